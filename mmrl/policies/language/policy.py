"""Language policies: a vision-language model that answers in tokens. `T` is the token axis.

Both modalities of this family, images (`vision.py`) and clips (`video.py`), share this adapter. It encodes each
prompt once, decodes groups from one prefill, and scores the same ids, pixels, grids and positions afterwards, under
the same temperature and suppressed ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.media import Frames, ReadClip
from mmrl.policies import adapters
from mmrl.policies.language import teacher
from mmrl.policies.language.batching import micro_batches, most_tokens, within
from mmrl.policies.language.config import LanguagePolicyConfig, load_model, load_processor, without_noise
from mmrl.policies.language.conversing import converse
from mmrl.policies.language.encoded import Encoded, to_device, with_features
from mmrl.policies.language.encoding import encode, extended
from mmrl.policies.language.engines.acting import ActsThroughEngine
from mmrl.policies.language.engines.rows import with_sampler, with_version
from mmrl.policies.language.families import check_model_type, family_of
from mmrl.policies.language.families.base import Capabilities
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.families.kept import checked_below_float32
from mmrl.policies.language.families.qwen import Qwen
from mmrl.policies.language.fast import prefill
from mmrl.policies.language.fast.prefill import KeptPrefills, Prefill
from mmrl.policies.language.layout import Way, cheaper, lay_out, ways
from mmrl.policies.language.likelihoods import Tokens, likelihood_class
from mmrl.policies.language.log_probs import PROBES, Distribution
from mmrl.policies.language.pixels import corrupted, shown_otherwise
from mmrl.policies.language.preparing import prepared, size_images
from mmrl.policies.language.probes.batch_probes import BATCH_PROBES
from mmrl.policies.language.probes.group_probes import GROUP_PROBES, hellinger, of_groups
from mmrl.policies.language.probes.row_probes import ROW_PROBES
from mmrl.policies.language.probes.spectrum import visual_entropy
from mmrl.policies.language.scoring import Rows, ScoredLanguageModel
from mmrl.policies.language.spans import action_labels, row_spans
from mmrl.policies.language.stopping import Stopping
from mmrl.policies.language.taken import Taken
from mmrl.policies.language.turns import Changed, Turns, whole_rows, written_rows
from mmrl.policies.language.writing import WritingPlan, given_rows, tokens_of
from mmrl.policies.sharding import is_sharded, whole
from mmrl.policies.views import BESIDE, REMOVE_MEDIA, PixelScale, check_view, draws_of, is_fresh, without_media
from mmrl.precision import DTYPES
from mmrl.randomness import Key
from mmrl.record import Answer, Evaluation, Prompt, Request, Rollouts
from mmrl.stages import Need, View

PROMPT_PROBES = frozenset({"visual_entropy"})
"""With one value per prompt, expanded to its rows."""
PAIR_PROBES = {"hellinger": "reference", "teacher_value": teacher.WEIGHTS}
"""What compares the next-token distributions of the policy and of these weights."""
STATES = Need("states")


class LanguagePolicy(ActsThroughEngine):
    """What image and video policies share."""

    batch_probes = frozenset(BATCH_PROBES)
    group_probes = frozenset(GROUP_PROBES)
    takes_teacher = True
    probes = Tokens.probes | PROMPT_PROBES | PAIR_PROBES.keys() | ROW_PROBES.keys() | group_probes | batch_probes
    config: Any

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: LanguagePolicyConfig,
        *,
        seed: int = 0,
        read_clip: ReadClip | None = None,
    ):
        """
        model, processor  of `transformers`; adapters are attached here
        seed              of adapter weights and of the views' randomness
        read_clip         decodes videos, `mmrl.data.video.read_clip` or anything like it; the video policy needs it
        """
        if config.top_p != 1.0 or config.top_k != 0:
            raise ConfigError(
                f"top_p={config.top_p}, top_k={config.top_k}: expected 1 and 0. Truncated sampling biases the "
                "importance ratios (a kept mass of .895 gives a mean ratio of .896); lower the temperature instead"
            )
        self.config, self.processor, self.seed, self.read_clip = config, processor, seed, read_clip
        self.family: Family = family_of(model.config, processor)
        self.stopping = Stopping.of(model, processor.tokenizer, config.stop, config.stop_tokens)
        size_images(processor, self.family, config)
        self.pixel_scales = PixelScale.of(processor) if isinstance(self.family, Qwen) else {}
        self._source: str | None = None
        self._features: WeakKeyDictionary[Encoded, dict[str, Any]] = WeakKeyDictionary()
        self.likelihood = likelihood_class(config.likelihood)(config)
        video = "video" in self.reads
        self.module = self._scored(prepared(without_noise(model), self.family, config, video=video, seed=seed))
        with self.acting():
            checked_below_float32(self.inner, self.family, config.attention, video=video)
        self.ways, closed = ways(config, self.family, self.inner.core)
        self.taken = Taken(closed)
        self._kept = KeptPrefills(self.inner)
        self._prefill_refusal()
        self.bridge = self.bridged()

    @classmethod
    def from_config(cls, config: Any, *, seed: int = 0, read_clip: ReadClip | None = None) -> Any:
        """Load the checkpoint that `config.model` names; whether transformers has its kind is seen before its weights
        are read."""
        from transformers import AutoConfig

        cls.check_engine(config)
        trusted = {"trust_remote_code": config.trust_remote_code}
        try:
            check_model_type(AutoConfig.from_pretrained(config.model, **trusted))
            processor = load_processor(config)
            model = load_model(config)
        except (OSError, ValueError, ImportError) as error:  # the last for an attention backend that is not installed
            raise ConfigError(f"model: cannot load {config.model!r}: {str(error).splitlines()[0]}") from None
        policy = cls(model, processor, config, seed=seed, read_clip=read_clip)
        policy._source = config.model
        return policy

    def _scored(self, model: Any) -> ScoredLanguageModel:
        config, found = self.config, self.capabilities
        distribution = Distribution(config.temperature, self.family.suppressed, self.family.soft_cap, found.scale)
        packed = Way.PACKED in ways(config, self.family, adapters.unwrapped(model))[0]
        given: dict[str, Any] = {"rows": config.logit_rows, "shared": packed, "score": self.likelihood.score}
        given |= {"autocast": DTYPES.get(config.autocast), "native_steps": config.native_steps}
        return ScoredLanguageModel(model, self.family, distribution, **given)

    @property
    def capabilities(self) -> Capabilities:
        """What was found about this model when it was loaded."""
        return self.family.capabilities

    @property
    def found(self) -> dict[str, Any]:
        told: dict[str, Any] = {"model_type": self.family.model_type, "family": type(self.family).__name__}
        told |= {"ways": [way.value for way in self.ways], "closed": self.taken.closed}
        return told | self.capabilities.as_dict()

    def counted(self) -> dict[str, Any]:
        return self.taken.told() | self.bridge.remembered("counted", {})

    @property
    def inner(self) -> ScoredLanguageModel:
        return cast(ScoredLanguageModel, super().inner)

    # -- prompts -------------------------------------------------------------------------------------------------

    def _frames(self, prompt: Prompt) -> list[Frames]:
        """Sampled frames of the prompt's videos."""
        if prompt.videos:
            raise PolicyError(
                f"prompt {prompt.id!r} has {len(prompt.videos)} video(s), the {self.modality} policy reads images "
                "only; train it with the video policy"
            )
        return []

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt as the model reads it. The trainer never calls this twice for one rollout."""
        return self._encode(prompt, self._frames(prompt))

    def _encode(self, prompt: Prompt, frames: Sequence[Frames]) -> Encoded:
        limits = {"max_tokens": self.config.max_prompt_tokens, "room": self.config.max_new_tokens}
        return encode(prompt, self.family, self.inner.core, frames=frames, template=self._template, **limits)

    def _with_features(self, entries: Sequence[Encoded]) -> list[Encoded]:
        """`entries` with what a frozen vision tower makes of them: it runs once per prompt, for the rollout and
        every pass after it. A tower that trains runs in every pass over the prompt."""
        if self.inner.media_train or not self.config.reuse_vision or not self.capabilities.features:
            return list(entries)
        new = [e for e in entries if e.media and e not in self._features]
        if new:
            with self.acting():
                for entry in new:
                    self._features[entry] = self.inner.encode_media(to_device(entry.media, self.device))
        return [with_features(e, self._features.get(e)) for e in entries]

    def token_ids(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False).input_ids)

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        """The token at each place, as text; empty past a response's end."""
        return action_labels(self.processor.tokenizer, rollouts)

    def character_spans(self, rollouts: Rollouts, row: int) -> list[tuple[int, int]]:
        return row_spans(self.processor.tokenizer, rollouts, row)

    def _shown(self, rollouts: Rollouts, view: View | None, weights: str = "current") -> list[Encoded]:
        """The encodings of `rollouts.prompts`, as `view` shows them; of a fresh view, one prompt a row. A teacher sees
        with a vision tower of its own."""
        for index, entry in enumerate(rollouts.encoded):
            if entry is None:
                rollouts.encoded[index] = self.encode(rollouts.prompts[index])
        if view is None:
            return list(rollouts.encoded) if weights == teacher.WEIGHTS else self._with_features(rollouts.encoded)
        check_view(view, self.views)
        if view.kind == REMOVE_MEDIA:
            return [self.encode(without_media(p)) for p in rollouts.prompts]
        if view.kind == BESIDE:
            name, pairs = dict(view.options)["prompt"], zip(rollouts.prompts, rollouts.encoded, strict=True)
            return [self.encode(p.beside[name]) if name in p.beside else entry for p, entry in pairs]
        entries = zip(rollouts.prompts, rollouts.encoded, draws_of(view, rollouts, self.seed), strict=True)
        if isinstance(self.family, Qwen):
            return [corrupted(entry, view, draw, self.family, self.pixel_scales) for _, entry, draw in entries]
        frames, encode = self._frames, self._encode
        return [shown_otherwise(prompt, e, view, draw, frames(prompt), encode) for prompt, e, draw in entries]

    # -- acting --------------------------------------------------------------------------------------------------

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Write `count` responses per request. See `mmrl.policies.language.sampling` for what a draw depends on."""
        self._only_current(weights)
        prompts: dict[str, Prompt] = {}
        for request in requests:
            prompts.setdefault(request.prompt.id, request.prompt)
        encoded, ready = self.ready(prompts)
        plan = WritingPlan.of(requests, self.config.max_new_tokens)
        prefills = {} if greedy or self.acts_apart else self.prefills(requests, encoded, ready)
        shown = [ready[r.prompt.id] if r.shown is None else self.encode(r.shown) for r in requests]
        contexts, draws = plan.contexts(shown, prefills), None if greedy else plan.draws(key)
        with self.acting():
            written, version = self.bridge.write(contexts, plan.budget, draws, self.inner.model, key)
            rows = plan.record(written, prompts, encoded, self.processor.tokenizer)
            if self.rescored and not greedy:
                self.rescore(rows, plan, shown)
        self.taken.write(None if self.acts_apart else self.inner, requests)
        return with_version(rows, version)

    def ready(self, prompts: dict[str, Prompt]) -> tuple[dict[str, Encoded], dict[str, Encoded]]:
        """The encoding of each prompt by its id: as it is kept, and with features of its media."""
        encoded = {name: self.encode(prompt) for name, prompt in prompts.items()}
        return encoded, dict(zip(encoded, self._with_features(list(encoded.values())), strict=True))

    converse = converse  # as `rollout`, with an environment that answers between turns

    @cached_property
    def turns(self) -> Turns:
        """How later turns are rendered; raises PolicyError for a chat template that cannot append one."""
        return Turns(self.family, self.inner.core, self._frames, self._template)

    def check_turns(self) -> None:
        super().check_turns()
        _ = self.turns

    @property
    def _template(self) -> dict[str, Any]:
        return {} if self.config.thinking is None else {"enable_thinking": self.config.thinking}

    def prefills(
        self, requests: Sequence[Request], encoded: dict[str, Encoded], ready: dict[str, Encoded]
    ) -> dict[Encoded, Prefill]:
        """Of `ready` prompts, with gradient, to be taken by the update; none where it would run prompts again."""
        way = self.config.reuse_prefill
        if way == "off" or not torch.is_grad_enabled() or self._prefill_refusal():
            return {}
        updates = self._kept.begin()
        if way == "auto" and not updates:
            return {}
        prefills: dict[Encoded, Prefill] = {}
        prompt_of = {
            ready[r.prompt.id]: encoded[r.prompt.id] for r in requests if r.shown is r.prefix is r.start is None
        }
        first = list(prompt_of)[: len(prompt_of) if way == "on" else -(-len(prompt_of) // updates)]
        with self.acting(), torch.enable_grad():
            for row in prefill.packs(first):
                made = self.inner.prefill(row)
                self._kept.keep([prompt_of[shown] for shown in row], made)
                prefills |= zip(row, made, strict=True)
        return prefills

    def _prefill_refusal(self) -> str | None:
        """Why the update has to run prompts again, or None; an error where the opposite was asked for."""
        reason = prefill.refusal(self.inner, self.config.gradient_checkpointing)
        if reason and self.config.reuse_prefill == "on":
            raise ConfigError(f"reuse_prefill: on, but {reason}; set it to 'off' (or 'auto')")
        return reason

    def context(self, request: Request, ready: dict[str, Encoded], prefix: Tensor) -> Encoded:
        """What a request's rows continue: the prompt as it is shown, and the replayed prefix."""
        shown = ready[request.prompt.id] if request.shown is None else self.encode(request.shown)
        return extended(shown, prefix)

    @torch.no_grad()
    def written(self, prompts: Sequence[Prompt], answers: Sequence[str | Answer]) -> Rollouts:
        """Answers of others as rows of this policy's, with its own log-probs of them."""
        end, limit = self.processor.tokenizer.eos_token_id, self.config.max_new_tokens
        end = self.stopping.ids[0] if end is None else end
        pairs = list(zip(answers, prompts, strict=True))
        known, never = self.processor.tokenizer, self.family.suppressed
        ids = [tokens_of(answer, prompt, known, end, limit, never) for answer, prompt in pairs]
        encoded = {name: self.encode(prompt) for name, prompt in {p.id: p for p in prompts}.items()}
        rows = given_rows(ids, prompts, encoded, self.processor.tokenizer, self.device)
        for part in self.micro_batches(rows, torch.arange(len(rows)), self.config.decode_rows):
            rows.old_log_probs[part] = self.evaluate(rows.index(part), (), weights="old").log_probs
        rows = with_sampler(rows) if self.rescored else rows
        return with_version(rows, self.bridge.version)

    # -- scoring -------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        rollouts: Rollouts,
        needs: Sequence[Need] = (),
        *,
        under: View | None = None,
        weights: str = "current",
    ) -> Evaluation:
        """Score the rollouts' tokens under their own prompts, or under a view of them.

        A pass that is asked for probes of prompts and rows alone, such as `visual_entropy`, makes no other pass over
        the tokens; its log-probs are the rollout's own.
        """
        if under is not None and is_fresh(under):
            rollouts = rollouts.prompt_a_row()
        shown = self._shown(rollouts, under, weights)
        by_prompt = [need for need in needs if need.probe in PROMPT_PROBES]
        by_row = [need for need in needs if need.probe in ROW_PROBES]
        by_group = [need for need in needs if need.probe in GROUP_PROBES]
        by_pair = [need for need in needs if need.probe in PAIR_PROBES]
        by_token = [need for need in needs if need.probe in self.likelihood.probes | PROBES.keys()]
        with self._weights(weights) as module:
            unwrapped = self.inner if module is self.module else module
            entropies = [visual_entropy(unwrapped, entry) for entry in shown] if by_prompt else []
            columns = {n.key: torch.tensor(entropies, device=self.device)[rollouts.prompt] for n in by_prompt}
            columns |= {n.key: self._of_rows(unwrapped, rollouts, shown, n.probe) for n in by_row}
            if needs and len(by_prompt) + len(by_row) == len(needs) and weights == "old" and under is None:
                return Evaluation(rollouts.old_log_probs, columns)
            asked = [*(n for n in by_token if n.probe != "log_probs"), *([STATES] if by_group else [])]
            updating = weights == "current" and under is None and torch.is_grad_enabled()
            known = self._kept.take(rollouts.encoded) if updating else None
            numbers = self._score(module, rollouts, shown, asked, known, under)
            if by_group:
                columns |= of_groups(rollouts, numbers.pop(STATES.key), by_group, unwrapped.logits)
        if by_pair:
            columns |= {n.key: self._compared(rollouts, n) for n in by_pair}
        log_probs = numbers.pop("log_probs")
        columns |= numbers | {n.key: log_probs for n in by_token if n.probe == "log_probs"}
        return Evaluation(log_probs, columns)

    def _score(
        self,
        module: Any,
        rollouts: Rollouts,
        shown: list[Encoded],
        asked: Sequence[Need] = (),
        prefills: Sequence[Prefill | None] | None = None,
        under: View | None = None,
    ) -> dict[str, Tensor]:
        device, home = next(module.parameters()).device, rollouts.mask.device
        work, mask = self.likelihood.work(rollouts).to(device), rollouts.mask.to(device)
        whole, first, alone = any(rollouts.media), self._way(), self.capabilities.batches is None
        fixed = self.config.shared_prompt != "auto" or whole or alone or any(prefills or ()) or is_sharded(module)
        way = first if fixed else cheaper(first, shown, rollouts)  # shards are gathered in the same order by all ranks
        self.taken.score(way, first, len(mask), written_out=whole, dropped=first is not self.ways[0], alone=alone)
        if whole:
            sizes = [len(shown[p]) for p in rollouts.prompt.tolist()]
            draws = [] if under is None else draws_of(under, rollouts, self.seed)
            changed = None if under is None else Changed(under, draws, self.family, self.pixel_scales)
            rows: Rows = whole_rows(written_rows(rollouts, shown, changed), sizes, device, self.family, alone)
        else:
            rows = lay_out(way, shown, rollouts, device, self.family, prefills)
        numbers = module(self.likelihood.laid(rows, rollouts), work, mask, asked)
        return {name: values.to(home) for name, values in numbers.items()}

    def _way(self) -> Way:
        """transformers drops the cache of a layer whose activations are checkpointed."""
        dropped = self.config.gradient_checkpointing and torch.is_grad_enabled()
        return next(way for way in self.ways if not (dropped and way is Way.TWO_CALLS))

    @torch.no_grad()
    def _compared(self, rollouts: Rollouts, need: Need) -> Tensor:
        """(B, T) of the next-token distributions of the policy and of its reference or teacher."""
        mask, states, other = rollouts.mask, {}, PAIR_PROBES[need.probe]
        for weights in ("old", other):
            with self._weights(weights) as module:
                shown = self._shown(rollouts, need.under, weights)
                states[weights] = self._score(module, rollouts, shown, [STATES])[STATES.key][mask]

        def logits(weights: str, rows: slice) -> Tensor:
            with self._weights(weights) as module:
                return module.logits(states[weights][rows]).to(mask.device)

        made: Callable[..., Tensor] = hellinger
        if need.probe == "teacher_value":
            made = partial(teacher.value, **dict(need.options))
        found = made(partial(logits, "old"), partial(logits, other), int(mask.sum()))
        return torch.zeros_like(rollouts.old_log_probs).masked_scatter(mask, found)

    def _of_rows(self, module: Any, rollouts: Rollouts, shown: list[Encoded], probe: str) -> Tensor:
        """(B,) of a probe that needs the gradient of each row by itself."""
        if is_sharded(module):
            raise PolicyError(f"{probe}: the gradient of single rows is not made of sharded weights; use DDP")

        def log_prob(row: int) -> Tensor:
            one = rollouts.index([row])
            return self._score(module, one, [shown[int(rollouts.prompt[row])]])["log_probs"][0]

        trained = [weight for weight in module.parameters() if weight.requires_grad]
        return ROW_PROBES[probe](log_prob, len(rollouts), trained)

    @contextmanager
    def _weights(self, weights: str) -> Iterator[Any]:
        """The module to score with. Passes without gradient run in evaluation mode, on the unwrapped module."""
        if weights == "current" and torch.is_grad_enabled():
            yield self.module
            return
        if weights == "ema":
            raise PolicyError(f"the {self.modality} policy keeps no moving average of its weights; use 'reference'")
        with self.acting():
            if weights in ("current", "old"):
                yield self.inner
            elif weights == teacher.WEIGHTS:
                yield self._teacher
            elif adapters.is_adapted(self.inner.model):
                with adapters.reference_adapter(self.inner.model):
                    yield self.inner
            else:
                yield self._frozen_reference

    @cached_property
    def _frozen_reference(self) -> ScoredLanguageModel:
        """The model as training found it: loaded again from its checkpoint, or copied when first asked for."""
        device = "cpu" if self.config.reference_device == "cpu" else self.device
        if self._source is None:
            return adapters.frozen_copy(self.inner, device)
        model = load_model(self.config).requires_grad_(False).eval().to(device)
        return self._scored(model)

    @cached_property
    def _teacher(self) -> ScoredLanguageModel:
        """The model of `policy.teacher`, loaded when first asked for."""
        teacher.required(self.config, "this pass")
        loaded = teacher.loaded(self.config, load_model, self.inner.core, self.processor, self.device)
        return self._scored(without_noise(loaded))

    def micro_batches(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        return micro_batches(rollouts, rows, size)

    def update_passes(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        parts = self.micro_batches(rollouts, rows, size)
        if len(parts) == 1 and self.config.reuse_prefill != "off" and not self._prefill_refusal():
            parts = within(rollouts, parts[0], most_tokens(self.config.pass_tokens, self.device))
            self._kept.expect([rollouts.index(part).encoded for part in parts])
        return parts

    @classmethod
    def check_need(cls, need: Need, asked_by: str, settings: Any = None) -> None:
        super().check_need(need, asked_by, settings)
        if settings is not None and teacher.WEIGHTS in (need.weights, PAIR_PROBES.get(need.probe)):
            teacher.required(settings, asked_by)

    @classmethod
    def offered(cls, settings: Any = None) -> frozenset[str]:
        own = Tokens if settings is None else likelihood_class(settings.likelihood)
        return super().offered(settings) - Tokens.offers() | own.offers()

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"updates_in_one_pass": self._kept.updates} | self.bridge.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept.updates = int(state.get("updates_in_one_pass", state.get("update_in_one_pass", 0)))
        self.bridge.load_state_dict(state)

    # -- weights -------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        adapters.save_adapter_or_weights(
            self.inner.model,
            directory,
            merged=merged,
            extras=[self.processor.save_pretrained],
        )

    def trainable_state(self) -> dict[str, Tensor]:
        return adapters.trainable_state(self.inner) | {n: whole(t).clone() for n, t in self.bridge.tensors().items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        if self._source is None and not adapters.is_adapted(self.inner.model) and not is_sharded(self.inner):
            _ = self._frozen_reference  # the weights about to be replaced are the reference
        adapters.load_trainable_state(self.inner, self.bridge.loaded(state))
        self.bridge.held = None
