"""Flow policies: a flow-matching generator that acts by denoising.

What an action is, and what is scored of it, is said by the run's likelihood (`mmrl.policies.generation.likelihoods`):
a stochastic denoising step, or a draw of time and noise on the clean output. Rollouts keep what it needs, so that
training scores exactly what was sampled, under the same conditions, times, guidance and noise level. Evaluation
(`greedy`) is the ODE sampler, on the pipeline's own times. What is particular to a pipeline stands in
`mmrl.policies.generation.families`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError, unknown
from mmrl.media import ReadClip
from mmrl.policies import adapters
from mmrl.policies.anchor import Anchor
from mmrl.policies.generation.calls import Calls, shares, uncounted
from mmrl.policies.generation.checking import check_objective, check_probe, check_settings
from mmrl.policies.generation.conditions import Conditioned, PromptConditions
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.distilled import attach, beside
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.asking import condition_media, guided_as
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.families.check import Verdict
from mmrl.policies.generation.families.kept import verdict_of
from mmrl.policies.generation.likelihoods import LIKELIHOODS, likelihood_class
from mmrl.policies.generation.likelihoods.base import Drawn, Kept, Likelihood, settings_of, unplanned
from mmrl.policies.generation.packing import packed_whole
from mmrl.policies.generation.pipeline import FrozenParts, load, load_transformers, trained_modules
from mmrl.policies.generation.pushing import aids
from mmrl.policies.generation.sampling import PROJECTIONS, STORED, Group, sample, stored
from mmrl.policies.generation.saving import MAIN, save_pipeline, save_transformers
from mmrl.policies.generation.scoring import Copies, Denoiser
from mmrl.policies.generation.sde import schedule
from mmrl.policies.generation.steps import continued, ode_plan
from mmrl.policies.generation.stored import TakesPictures
from mmrl.policies.generation.unconditional import COLUMN, Unconditional
from mmrl.policies.generation.watching import Watched
from mmrl.policies.sharding import is_sharded, whole, whole_weights
from mmrl.policies.weight_average import WeightAverage
from mmrl.precision import DTYPES
from mmrl.randomness import Key
from mmrl.record import FINISHED, Evaluation, Prompt, Request, Rollouts
from mmrl.stages import Need, View

AVERAGE = "average|"
"""Marks the moving average's tensors among those of a checkpoint."""


class FlowPolicy(TakesPictures):
    """A flow-matching pipeline of diffusers as a policy.

    verdict  what the comparison with the pipeline's own call found, before the first step; None until then
    """

    likelihood: Likelihood
    modality = "flow"
    varied_when_greedy = True
    splits_actions = True
    config_type = FlowPolicyConfig
    probes = frozenset.union(*(likelihood_class(name).offers() for name in LIKELIHOODS))
    reads = frozenset({"image"})

    def __init__(self, pipeline: Any, config: FlowPolicyConfig, *, seed: int = 0):
        """
        pipeline  a flow-matching pipeline; adapters are attached to its transformers here
        seed      of adapter weights
        """
        self.config, self.pipeline, self.seed = config, pipeline, seed
        self.generator = generator_of(pipeline, config.asked())
        self.verdict: Verdict | None = None
        self.likelihood = likelihood_class(config.likelihood)(config)
        self.watched, self.calls, self.updates = Watched(), Calls(), 0
        self.average = None if config.ema is None else WeightAverage(config.ema)
        self._source: str | None = None
        self._schedules: dict[int, Tensor] = {}
        self.frozen = FrozenParts(self.generator, config)
        modules = {name: self._prepared(name, part) for name, part in trained_modules(self.generator).items()}
        self.module = self._denoiser(modules)
        self.unconditional = Unconditional(config, self.module)
        asked = {"anchor": config.anchor, "behaviour": config.behaviour}
        self.anchors = {n: Anchor(n, each, modules) for n, each in asked.items() if each is not None}

    @classmethod
    def from_config(cls, config: FlowPolicyConfig, *, seed: int = 0, read_clip: ReadClip | None = None) -> FlowPolicy:
        """Load the pipeline that `config.model` names."""
        policy = cls(*load(config), seed=seed)
        policy._source = config.model
        return policy

    # -- what the model is ---------------------------------------------------------------------------------------

    @property
    def samples_with(self) -> str:
        for name, anchor in reversed(self.anchors.items()):
            after = anchor.config.samples
            if after is not None and self.updates >= after:
                return name
        return "current"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row's state."""
        return self.generator.state_shape()

    @property
    def found(self) -> dict[str, Any]:
        return {} if self.verdict is None else {"generator": self.verdict.as_dict()}

    def counted(self) -> dict[str, Any]:
        return self.calls.told()

    def told(self, counts: dict[str, Any]) -> dict[str, Any]:
        return shares(counts)

    def _denoiser(self, modules: Any) -> Denoiser:
        cast, chunk = self.config.autocast, self.config.transformer_batch
        autocast = None if cast is None else DTYPES[cast]
        return Denoiser(self.generator, modules, chunk=chunk, autocast=autocast, calls=self.calls)

    def times(self, steps: int, media: Sequence[Any] = ()) -> Tensor:
        """(S + 1,) times of a rollout: the pipeline's own, or the linear ones of `policy.schedule`."""
        if steps not in self._schedules:
            if self.config.schedule == "linear":
                shift = self.config.shift or float(self.pipeline.scheduler.config.get("shift", 1.0))
                self._schedules[steps] = schedule(steps, shift)
            else:
                with self.frozen.on(self.device):
                    self._schedules[steps] = self.generator.schedule(steps, media)
        return self._schedules[steps]

    def _prepared(self, name: str, transformer: Any) -> Any:
        """A transformer with adapters, checkpointing and attention as asked."""
        config = self.config
        if config.attention is not None:
            transformer.set_attention_backend(config.attention)
        if config.gradient_checkpointing:
            if self.generator.checkpointing is not None:
                raise ConfigError(
                    f"gradient_checkpointing: not under {type(self.pipeline).__name__}: {self.generator.checkpointing}"
                )
            transformer.enable_gradient_checkpointing()
        if config.lora is None and config.adapter is None:
            return transformer.requires_grad_(True)
        lora = config.lora
        if lora is not None and lora.targets is None:
            lora = lora.model_copy(update={"targets": lora.aimed(self.generator.targets(transformer))})
        start = config.adapter
        if start is not None and name != MAIN:
            start = str(Path(start) / name)
        module = adapters.attach_lora(transformer, lora, seed=self.seed, start=start)
        if config.distilled is not None:
            attach(self.pipeline, name, module, config.distilled)
        return module

    def _compared(self, prompt: Prompt) -> None:
        """Before anything is drawn or scored: is the generator its pipeline? Once, on the first prompt."""
        if self.verdict is not None:
            return
        media = condition_media(prompt)
        self.generator.check_media(prompt.id, media)
        modules, before = trained_modules(self.generator), self.generator
        with self.frozen.on(self.device), self.acting(), whole_weights(self.inner, Denoiser.partial_forwards):
            found = self.inner.within(lambda: verdict_of(before, prompt.text, media, modules))
            generator, self.verdict = found
            self._use(generator)
            for steps in (self.config.steps, self.config.eval_steps):
                self.times(steps, media)
        if self.verdict.note:
            warnings.warn(self.verdict.line(), stacklevel=2)

    def _use(self, generator: Generator) -> None:
        if generator is not self.generator:
            self.generator = self.inner.generator = generator
            self.frozen.forget(generator)

    # -- prompts -------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> PromptConditions:
        """What the prompt conditions the transformer on, captured once while the cache holds it."""
        return self.frozen.encode([prompt], self.device)[0]

    def _conditioned(self, encodings: Sequence[PromptConditions], index: Tensor) -> Conditioned:
        return Conditioned.of(encodings, index, self.device)

    def _encoded(self, rollouts: Rollouts) -> list[PromptConditions]:
        missing = [i for i, entry in enumerate(rollouts.encoded) if entry is None]
        for i, entry in zip(
            missing, self.frozen.encode([rollouts.prompts[i] for i in missing], self.device), strict=True
        ):
            rollouts.encoded[i] = entry
        return rollouts.encoded

    # -- acting --------------------------------------------------------------------------------------------------

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Draw `count` outputs per request. Noise is keyed by (key, prompt id, member, step). `greedy` rollouts of the
        current weights are those of their moving average, where one is kept."""
        self._compared(requests[0].prompt)
        self.calls.purpose = "watched" if greedy else "sampled"
        steps = self.config.eval_steps if greedy else self.config.steps
        times = self.times(steps)
        owner = torch.tensor([r for r, request in enumerate(requests) for _ in range(request.count)])
        members = torch.cat([request.first_member + torch.arange(request.count) for request in requests])
        for request in requests:
            if request.prefix is not None:
                raise PolicyError(f"prompt {request.prompt.id!r}: denoising steps cannot be replayed from a prefix")
            if not greedy:
                self.likelihood.check(request, times)
        ids = [requests[r].prompt.id for r in owner.tolist()]
        plan = ode_plan(len(owner), steps, members) if greedy else self.likelihood.plan(ids, members, times, key)
        starts = {row: start for row, o in enumerate(owner.tolist()) if (start := requests[o].start) is not None}
        plan = continued(plan, starts, ids)
        shown = self.frozen.encode([request.shown or request.prompt for request in requests], self.device)
        conditioned = self._conditioned(shown, owner)
        if self.average is not None:
            self.average.start(self.inner)
            weights = "ema" if greedy and weights == "current" else weights
        helped = aids(self.config, requests, greedy, self.frozen.decode, key)
        group, dtype = Group(ids, members, conditioned, plan, starts, *helped), DTYPES[self.config.latent_dtype]
        own = not greedy and weights == "current" and self.unconditional.kept_of(self.generator)
        keep = [n for n, wanted in (("means", self.config.keep_means and not greedy), (COLUMN, own)) if wanted]
        with torch.no_grad(), self._weights(weights) as module, self._sampling(greedy):
            sampled = sample(
                group, module.velocity, times.to(self.device), self.config.scoring(), key, self.shape, dtype,
                share_prefix=self.config.share_prefix, keep=keep,
                watch=None if greedy else self.watched.of(ids, members, times, weights),
                home=torch.device("cpu") if self.config.latents_on == "cpu" else None,
            )  # fmt: skip
            outputs = self.frozen.decode(sampled.final, conditioned)
        kept = unplanned(plan, sampled, self.device)
        if not greedy:
            kept = self.likelihood.record(Drawn(ids, members, plan, times, sampled, key))
            kept.replay["shown"] = torch.tensor([requests[r].shown is not None for r in owner.tolist()])
            kept.replay |= settings_of(self._settings(), len(owner))
        rollouts = self._record(requests, owner, members, kept, outputs)
        for row, start in starts.items():
            assert rollouts.owner is not None and start.row.owner is not None
            rollouts.owner[row, : start.action] = start.row.owner[0, : start.action]
        self.unconditional.drawn(rollouts, begun=[start.row for start in starts.values()])
        return rollouts

    def _record(
        self, requests: Sequence[Request], owner: Tensor, members: Tensor, kept: Kept, outputs: list[Any]
    ) -> Rollouts:
        prompts: dict[str, Prompt] = {}
        for request in requests:
            prompts.setdefault(request.prompt.id, request.prompt)
        places = {name: place for place, name in enumerate(prompts)}
        device = self.device
        return Rollouts(
            prompts=list(prompts.values()),
            encoded=self.frozen.encode(list(prompts.values()), self.device),
            prompt=torch.tensor([places[requests[r].prompt.id] for r in owner.tolist()], device=device),
            group=torch.tensor([requests[r].group for r in owner.tolist()], device=device),
            member=members.to(device),
            actions=kept.actions.to(device),
            mask=kept.mask.to(device),
            old_log_probs=kept.old_log_probs,
            outputs=outputs,
            length=torch.full((len(owner),), kept.actions.shape[1], device=device),
            finish=[FINISHED] * len(owner),
            columns={name: value.to(device) for name, value in kept.columns.items()},
            replay={n: value if n in STORED else value.to(device) for n, value in kept.replay.items()},
        )

    def step_outputs(self, rollouts: Rollouts, projection: str = "ode") -> tuple[list[Any], Tensor]:
        """The output that the state before each trained step leads to: `(outputs, addresses (N, 2))`, (row, step) each.

        projection  ode: all remaining steps of the rollout's own schedule (DenseGRPO); one_step: the clean latent that
                    the velocity points to, one transformer call a state and blurred early (VGPO)
        """
        check_settings(self._settings(), rollouts)
        rows, steps = rollouts.mask.nonzero(as_tuple=True)
        states = stored(rollouts.replay["latents"], rows, steps - rollouts.replay["first"][rows])
        conditioned = self._conditioned(self._encoded(rollouts), rollouts.prompt[rows])
        with self.acting(), whole_weights(self.inner, Denoiser.partial_forwards):
            final = PROJECTIONS[projection](
                states, steps, conditioned, self.inner.velocity, rollouts.replay["times"][0]
            )
            return self.frozen.decode(final, conditioned), torch.stack([rows, steps], 1)

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        return self.likelihood.labels(rollouts)

    # -- scoring -------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        rollouts: Rollouts,
        needs: Sequence[Need] = (),
        *,
        under: View | None = None,
        weights: str = "current",
    ) -> Evaluation:
        """Score what the likelihood says: all its states in one forward of the module, in chunks.

        A pass asked only for what the rollout knows already does not run the transformer.
        """
        if under is not None:
            raise PolicyError(f"the flow policy cannot score its steps under the view {under}")
        likelihood = self.likelihood
        offered = likelihood.offers() - {"step_rewards"}
        for need in needs:
            if need.probe not in offered:
                raise PolicyError(unknown(f"probe of likelihood {self.config.likelihood!r}", need.probe, offered))
        check_settings(self._settings(), rollouts)
        columns = {n.key: rollouts.columns[Need(n.probe).key] for n in needs if n.probe in likelihood.kept}
        if columns and len(columns) == len(needs) and weights == "old":
            return Evaluation(rollouts.old_log_probs, columns)
        self.calls.purpose = "scored"
        asked = [n for n in needs if n.probe in likelihood.probes]
        work = likelihood.work(self.unconditional.usable(rollouts, weights), asked)
        self._compared(rollouts.prompts[0])
        conditioned = self._conditioned(self._encoded(rollouts), rollouts.prompt[work.row])
        others = {name: self._copies(name) for name in likelihood.compares(asked)}
        with self._weights(weights) as module:
            scores = module(work.states, conditioned, likelihood.score, asked, others)
        blank = torch.zeros(rollouts.mask.shape, device=self.device)
        scores = {name: blank.index_put(work.at, values[work.which]) for name, values in scores.items()}
        columns |= {need.key: scores["log_probs"] for need in needs if need.probe == "log_probs"}
        return Evaluation(scores.pop("log_probs"), columns | scores)

    @uncounted
    def replayed(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        if self.likelihood.trains == "ratio":
            return super().replayed(self.unconditional.left_out(rollouts))
        states, at = self.watched.states(rollouts)
        if states is None:
            return self.watched.nothing(rollouts)
        conditioned = self._conditioned(self._encoded(rollouts), rollouts.prompt[at[0]])
        with self._weights(self.watched.weights) as module, self._sampling():
            gap = module(states, conditioned, self.watched.score)["log_probs"]
        return self.watched.compared(rollouts, at, gap)

    def _settings(self) -> dict[str, float]:
        """What rollout and training must agree on, stored with every rollout."""
        asked = self.generator.asked
        return self.likelihood.settings() | {
            "guidance": asked.guidance,
            "guidance_2": asked.guidance if asked.guidance_2 is None else asked.guidance_2,
            "embedded": -1.0 if asked.embedded is None else asked.embedded,
        }

    @property
    def _adapted(self) -> bool:
        return all(adapters.is_adapted(module) for module in self.inner.trained.values())

    @contextmanager
    def _weights(self, weights: str) -> Iterator[Any]:
        """The module to score with. Passes without gradient run in evaluation mode, on the unwrapped module."""
        if weights == "current" and torch.is_grad_enabled():
            yield self.module
            return
        weights = self.samples_with if weights == "old" else weights
        if weights == "ema" and self.average is None:
            raise PolicyError("this policy keeps no moving average of its weights: set policy.ema, or use 'reference'")
        averaged = self._averaged() if weights == "ema" else nullcontext()
        with averaged, self.acting(), whole_weights(self.inner, Denoiser.partial_forwards):
            if weights in ("current", "ema"):
                yield self.inner
            elif (copies := self._copies(weights)) is not None:
                yield self._denoiser(copies)
            else:
                with self.inner.other_weights(weights):
                    yield self.inner

    def _sampling(self, greedy: bool = False) -> AbstractContextManager[None]:
        """What rollouts are sampled with on top of their weights, and evaluation guided by."""
        if greedy:
            return guided_as(self.generator, self.config.eval_guidance)
        return beside(self.inner.trained, self.config.distilled is not None)

    def _copies(self, weights: str) -> Copies:
        """Modules with other weights; None where adapters are switched."""
        if weights == "reference":
            return None if self._adapted else self._frozen_reference
        if weights not in self.anchors:
            raise PolicyError(f"this policy keeps no {weights} weights: set policy.{weights}")
        return self.anchors[weights].on(self.device)

    @cached_property
    def _frozen_reference(self) -> dict[str, Any]:
        """The transformers as training found them: loaded again, or copied when first asked for."""
        if self._source is None:
            return {name: adapters.frozen_copy(part, self.device) for name, part in self.inner.trained.items()}
        loaded = load_transformers(self.config)
        return {name: part.requires_grad_(False).eval().to(self.device) for name, part in loaded.items()}

    def micro_batches(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        """At most `size` rows each, those with equally many trained steps together. Rows of a tree stay together,
        however many, since their shared steps are scored once."""
        owners, members = rollouts.owner[rows], rollouts.member[rows]
        shares = bool(((owners >= 0) & (owners != members[:, None])).any())
        if shares:
            groups = rollouts.group[rows]
            trees = [rows[(groups == g).to(rows.device)] for g in torch.unique(groups)]
            return packed_whole(trees, size)
        count = rollouts.mask.sum(1).cpu()
        order = torch.argsort(count[rows.cpu()], stable=True, descending=True)
        return list(rows[order.to(rows.device)].split(size))

    # -- weights -------------------------------------------------------------------------------------------------

    def after_update(self) -> None:
        self.updates += 1
        self.unconditional.forget()
        if self.average is not None:
            self.average.update(self.inner)
        self._move("update")

    def after_batch(self) -> None:
        self._move("batch")

    def _move(self, moment: str) -> None:
        for anchor in self.anchors.values():
            if anchor.config.moves == moment:
                anchor.move(self.inner.trained, self.updates)

    def _averaged(self) -> AbstractContextManager[None]:
        """The moving average of the weights, where one is kept."""
        return nullcontext() if self.average is None else self.average.applied(self.inner)

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        """An adapter for `PeftModel` and, beside it, for `pipeline.load_lora_weights`; transformer weights after
        full fine-tuning; with `merged` a whole pipeline, adapters folded in. A second expert goes into a folder of
        its name. The moving average where one is kept. Every rank must call it."""
        with self._averaged():
            if merged:
                save_pipeline(self.pipeline, self.inner.trained, directory)
            else:
                save_transformers(self.pipeline, self.inner.trained, directory)

    def trainable_state(self) -> dict[str, Tensor]:
        state = adapters.trainable_state(self.inner)
        if self.average is not None:
            state |= {AVERAGE + name: whole(value).clone() for name, value in self.average.values.items()}
        for anchor in self.anchors.values():
            state |= {n: whole(value).clone() for n, value in anchor.tensors(self.inner.trained).items()}
        return state

    def trained_tensors(self) -> dict[str, Tensor]:
        tensors = super().trained_tensors()
        if self.average is not None:  # until it begins, it is the weights
            tensors |= {AVERAGE + name: value for name, value in (self.average.values or tensors).items()}
        for anchor in self.anchors.values():
            tensors |= anchor.tensors(self.inner.trained)
        return tensors

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        if self._source is None and not self._adapted and not is_sharded(self.inner):
            _ = self._frozen_reference  # the weights about to be replaced are the reference
        averages = {name.removeprefix(AVERAGE): v for name, v in state.items() if name.startswith(AVERAGE)}
        if self.average is not None and averages:
            # through the parameters, which know their device and their shards
            adapters.load_trainable_state(self.inner, averages)
            self.average.values = {}
            self.average.start(self.inner)
        for anchor in self.anchors.values():
            anchor.load(self.inner.trained, state)
        adapters.load_trainable_state(self.inner, {n: v for n, v in state.items() if "|" not in n})

    def state_dict(self) -> dict[str, Any]:
        averaged = {} if self.average is None else {"averaged_updates": self.average.updates}
        return averaged | ({"updates": self.updates} if self.anchors else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.updates = state["averaged_updates"]
        if self.anchors:
            self.updates = state["updates"]

    # -- what a configuration may ask --------------------------------------------------------------------------------

    @classmethod
    def check_need(cls, need: Need, asked_by: str, settings: Any = None) -> None:
        if settings is None or not check_probe(need, asked_by, settings) or need.under is not None:
            super().check_need(need, asked_by, settings)
        cls.check_weights(need, asked_by)

    @classmethod
    def check_objective(cls, objective: Any, settings: Any = None) -> None:
        if settings is not None:
            check_objective(objective, settings)
