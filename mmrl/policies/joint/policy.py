"""Words and pictures in turns: one trajectory of two policies, with a likelihood each, under one loss.

    log pi(row) = sum over tokens of log pi_writer(token | prompt, what was written and drawn before)
                + sum over denoising steps of log pi_painter(x' | x, what it was asked)

The writer is any policy of words here, the painter a flow policy whose likelihood has log-probs; `policy.turns` says
who acts when. Stretches stand in that order on the action axis. The column `kind` says what an action is, `segment` in
which stretch; `objective.kinds: {tokens: {...}, transition: {...}}` gives each kind its ratio, clip and mean.

    mmrl train joint demo

After UniGRPO (arXiv 2603.23500), one round of words and picture, and the interleaved rows of arXiv 2603.09538.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError, DataError, MMRLError, PolicyError
from mmrl.policies import likelihood
from mmrl.policies.base import ANY_POLICY, Policy
from mmrl.policies.fixed_length import asked as refuse_starts
from mmrl.policies.generation.unconditional import COLUMN as UNCONDITIONAL
from mmrl.policies.joint.config import KIND, SIDES, WRITERS, JointConfig, refuse_side, sections_of_sides
from mmrl.policies.joint.rows import joined, part_of, told_of
from mmrl.policies.sharding import is_sharded
from mmrl.randomness import Key
from mmrl.record import Evaluation, Prompt, Request, Rollouts
from mmrl.settings import Section
from mmrl.stages import Need, View
from mmrl.told import Told, place_of

MEDIA = {"image": "images", "video": "videos"}


class Both(likelihood.Likelihood):
    """Log-probs of both, stretch by stretch."""

    def __init__(self, policies: Mapping[str, Policy], config: JointConfig):
        super().__init__(config)
        self.policies = policies

    @property
    def actions(self) -> int:
        return sum(self.policies[turn.by].max_actions for turn in self.config.turns)


class Sides(nn.ModuleDict):
    """Both models as one module, so that DDP sees one call of what it wrapped: `forward` runs a pass of each."""

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class JointPolicy(Policy):
    """A policy of words and a policy of pictures that act in turns."""

    modality = "joint"
    config_type = JointConfig
    probes = frozenset({"log_probs"})
    columns = frozenset({"kind", "segment"})
    earned = frozenset({"action_reward"})
    reads = frozenset({"image", "video"})
    least: ClassVar[dict[str, Any]] = {"writer": {"model": ""}, "painter": {"model": ""}}

    def __init__(self, writer: Policy, painter: Policy, config: JointConfig | None = None, *, turns: Sequence = ()):
        """
        turns  in Python, in place of a configuration's: `[{"by": "writer"}, {"by": "painter", "ask": "{text}"}]`
        """
        if painter.modality != "flow" or painter.likelihood.trains != "ratio" or writer.modality not in WRITERS:
            raise ConfigError(
                f"a joint policy has a writer of {', '.join(WRITERS)} and a flow policy of likelihood=transition; got "
                f"{writer.modality} and {painter.modality}, likelihood that trains by {painter.likelihood.trains}"
            )
        made = {"writer": {"modality": writer.modality, "model": ""}, "painter": {"model": ""}}
        self.config = config or JointConfig(**made | ({"turns": list(turns)} if turns else {}))
        self.writer = writer
        self.policies = {"writer": writer, "painter": painter}
        for side, policy in self.policies.items():
            refuse_side(side, policy.config)
            if side not in self.config.train:
                policy.module.requires_grad_(False)
        self.likelihood = Both(self.policies, self.config)
        self.module = Sides({side: policy.module for side, policy in self.policies.items()})

    @classmethod
    def from_config(cls, config: Any, *, seed: int = 0, read_clip: Any = None) -> JointPolicy:
        parts = {}
        for side in SIDES:
            own = {"read_clip": read_clip} if config.modality_of(side) == "video" else {}
            with of_side(side, config):
                parts[side] = config.class_of(side).from_config(config.settings_of(side), seed=seed, **own)
        return cls(**parts, config=config)

    @classmethod
    def sections(cls) -> list[tuple[str, type[Section]]]:
        return [*super().sections(), *sections_of_sides()]

    # ---- what it is made of

    @property
    def found(self) -> dict[str, Any]:
        return {side: policy.found for side, policy in self.policies.items()}

    @property
    def painter(self) -> Any:
        return self.policies["painter"]

    @property
    def device(self) -> torch.device:
        return self.writer.device

    @property
    def precision(self) -> torch.dtype:
        """The coarser of the two."""
        return max((p.precision for p in self.policies.values()), key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def learning_rates(self) -> dict[str, float]:
        return {str(side): rate for side, rate in self.config.learning_rates.items() if side in self.config.train}

    def counted(self) -> dict[str, Any]:
        return self.writer.counted() | self.painter.counted()

    def told(self, counts: dict[str, Any]) -> dict[str, Any]:
        return self.painter.told(self.writer.told(counts))

    @classmethod
    def stretches_of(cls, config: Any) -> list[str]:
        return config.kinds

    @classmethod
    def asks_for(cls, config: Any) -> list[str]:
        return config.columns_asked

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._trained)

    @classmethod
    def modalities_of(cls, config: Any) -> dict[str, str]:
        return config.modalities

    # ---- acting

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Turn by turn; every draw is keyed by the prompt of its turn, which is the row's own from the second on."""
        self._only_current(weights)
        _, _, rows = refuse_starts(requests, "joint policies begin with words of their own")
        prompts = [request.prompt for request, _ in rows]
        for prompt in {p.id: p for p in prompts}.values():
            self._refuse_unread(prompt)
        told = [Told() for _ in rows]
        parts = []
        for number, turn in enumerate(self.config.turns):
            first = number == 0 and turn.by == "writer"
            asked = list(requests) if first else self._requests(number, rows, told)
            policy = self.policies[turn.by]
            with torch.no_grad():  # what a side kept of this pass for its own update would not be this module's
                options = {} if greedy or policy.samples_with == "current" else {"weights": policy.samples_with}
                part = policy.rollout(asked, key, greedy=greedy, **options)
            for each, output in zip(told, part.outputs, strict=True):
                each.stretches.append(output)
            parts.append(part)
        kinds = [KIND[turn.by] for turn in self.config.turns]
        group, member = ([r.group for r, _ in rows], [m for _, m in rows])
        return joined(parts, kinds, prompts, group, member, told)

    def _refuse_unread(self, prompt: Prompt) -> None:
        first = self.policies[self.config.turns[0].by]
        for kind, name in MEDIA.items():
            if getattr(prompt, name) and kind not in first.reads:
                raise DataError(
                    f"prompt {prompt.id!r} has {name}, which a {first.modality} {self.config.turns[0].by} does not read"
                )

    def _requests(self, number: int, rows: Sequence[tuple[Request, int]], told: Sequence[Told]) -> list[Request]:
        asked = [self._asked(number, r.prompt, m, t) for (r, m), t in zip(rows, told, strict=True)]
        return [Request(prompt, 1, group=i) for i, prompt in enumerate(asked)]

    def _asked(self, number: int, prompt: Prompt, member: int, told: Told) -> Prompt:
        """What the policy of this turn answers in one row; a prompt of the row's own, whose id keys its draws."""
        turn = self.config.turns[number]
        if number == 0 and turn.by == "writer":
            return prompt
        name = f"{prompt.id}/{member}" + (f"/{number}" if number > 1 else "")
        text = filled(turn.ask, prompt, told, self.config.kinds, number)
        if turn.by == "painter":
            return Prompt(name, [{"role": "user", "content": text}])
        return self._talked(number, name, text, prompt, told)

    def _talked(self, number: int, name: str, text: str, prompt: Prompt, told: Told) -> Prompt:
        """What was said and drawn so far as a conversation, and `text` as the last word to the writer."""
        messages, images, drawn = list(prompt.messages), list(prompt.images), list[dict[str, Any]]()
        for place, turn in enumerate(self.config.turns[:number]):
            said = told.stretches[place]
            if turn.by == "painter":
                drawn.append({"type": "image"})
                images.append(said)
                continue
            if place:
                before = filled(turn.ask, prompt, told, self.config.kinds, place)
                messages.append({"role": "user", "content": [*drawn, {"type": "text", "text": before}]})
                drawn = []
            messages.append({"role": "assistant", "content": said})
        messages.append({"role": "user", "content": [*drawn, {"type": "text", "text": text}]})
        return Prompt(name, messages, images=images, videos=list(prompt.videos))

    # ---- scoring

    def evaluate(
        self, rollouts: Rollouts, needs: Sequence[Need] = (), *, under: View | None = None, weights: str = "current"
    ) -> Evaluation:
        """Each stretch by its own model, in one call of the module where there is a gradient.

        A need is met in the stretches of whoever offers it and is 0 in the others; so is all of a pass under a view
        that only the writer has. A side that is not trained keeps its log-probs in the update.
        """
        work = partial(self._scored, rollouts, needs, under, weights)
        if weights != "current" or not torch.is_grad_enabled():
            return Evaluation(*work())
        if is_sharded(self.inner):
            raise PolicyError("a joint policy trains under DDP, not in shards: training.sharding=ddp")
        return Evaluation(*self.module(work))

    def replayed(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """Both branches of the painter are asked anew."""
        left = {name: v for name, v in rollouts.replay.items() if name.partition("|")[2] != UNCONDITIONAL}
        return super().replayed(replace(rollouts, replay=left))

    def _scored(
        self, rollouts: Rollouts, needs: Sequence[Need], under: View | None, weights: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found = torch.zeros(rollouts.mask.shape, device=rollouts.mask.device)
        columns: dict[str, Tensor] = {}
        updating = weights == "current" and torch.is_grad_enabled()
        for number, turn in enumerate(self.config.turns):
            policy = self.policies[turn.by]
            part, put = part_of(rollouts, number, self._all_asked(rollouts, number))
            own = [n for n in needs if _offers(policy, n)]
            if under is not None and under.kind not in policy.views:
                continue
            if updating and turn.by not in self.config.train and not own:
                found = found + put(part.old_log_probs)
                continue
            each = policy.evaluate(part, own, under=under, weights=weights)
            found = found + put(each.log_probs)
            asked = {need.key: each.log_probs for need in own if need.probe == "log_probs"}
            for name, value in (asked | each.columns).items():
                if value.dim() < 2:
                    raise PolicyError(f"{name}: a number of a whole row, which a stretch of one cannot give")
                columns[name] = columns[name] + put(value) if name in columns else put(value)
        for need in needs:
            columns.setdefault(need.key, torch.zeros_like(found))
        return torch.where(rollouts.mask, found, 0.0), columns

    def _all_asked(self, rollouts: Rollouts, number: int) -> list[Prompt]:
        prompts = [rollouts.prompts[p] for p in rollouts.prompt.tolist()]
        if number == 0 and self.config.turns[0].by == "writer":
            return prompts
        members = rollouts.member.tolist()
        return [
            self._asked(number, prompt, member, told_of(rollouts, row))
            for row, (prompt, member) in enumerate(zip(prompts, members, strict=True))
        ]

    def micro_batches(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        return list(rows.split(size))

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        labels = [[""] * rollouts.mask.shape[1] for _ in range(len(rollouts))]
        for number, turn in enumerate(self.config.turns):
            part, _ = part_of(rollouts, number, self._all_asked(rollouts, number))
            own = rollouts.replay["stretch"] == number + 1
            for row, words in enumerate(self.policies[turn.by].action_labels(part)):
                for place, word in zip(own[row].nonzero().squeeze(1).tolist(), words, strict=False):
                    labels[row][place] = word
        return labels

    def character_spans(self, rollouts: Rollouts, row: int) -> list[tuple[int, int]]:
        """A stretch counts as one character of what a row says: [1, 2, .5] is worth .5 to the second."""
        stretch, mask = rollouts.replay["stretch"][row].tolist(), rollouts.mask[row].tolist()
        return [(n - 1, n) if acted else (0, 0) for n, acted in zip(stretch, mask, strict=True)]

    # ---- what a configuration may ask

    @classmethod
    def check_objective(cls, objective: Any, settings: Any = None) -> None:
        if settings is None:
            return
        for side in SIDES:
            own = objective.kinds.get(KIND[side], objective)
            settings.class_of(side).check_objective(own, settings.settings_of(side))

    @classmethod
    def check_need(cls, need: Need, asked_by: str, settings: Any = None) -> None:
        if settings is None or need.probe in ANY_POLICY:
            super().check_need(need, asked_by, settings)
            return
        said = []
        for side in SIDES:
            kind = settings.class_of(side)
            if need.probe in kind.group_probes | kind.batch_probes | {"step_rewards"}:
                raise ConfigError(f"{asked_by} needs {need.probe!r}, which is not made of rows of several stretches")
            try:
                kind.check_need(need, asked_by, settings.settings_of(side))
                return
            except ConfigError as error:
                said.append(f"{side}: {error}")
        raise ConfigError("; ".join(said))

    # ---- weights

    def after_update(self) -> None:
        for policy in self._trained.values():
            policy.after_update()

    def after_batch(self) -> None:
        for policy in self._trained.values():
            policy.after_batch()

    @property
    def _trained(self) -> dict[str, Policy]:
        return {side: policy for side, policy in self.policies.items() if side in self.config.train}

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        """Either that is trained, in a folder of its own; merged: both, which is all one needs to go on from."""
        for side, policy in (self.policies if merged else self._trained).items():
            policy.save_pretrained(Path(directory) / side, merged=merged)

    def trainable_state(self) -> dict[str, Tensor]:
        sides = self._trained.items()
        return {f"{side}.{n}": value for side, part in sides for n, value in part.trainable_state().items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        for side, part in self._trained.items():
            part.load_trainable_state(
                {n.removeprefix(f"{side}."): value for n, value in state.items() if n.startswith(f"{side}.")}
            )
        if strange := [name for name in state if name.partition(".")[0] not in self._trained]:
            raise PolicyError(f"{strange[0]}: not trained here, where policy.train={', '.join(self._trained)}")

    def trained_tensors(self) -> dict[str, Tensor]:
        sides = self._trained.items()
        return {f"{side}.{n}": value for side, part in sides for n, value in part.trained_tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        return {side: policy.state_dict() for side, policy in self.policies.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for side, policy in self.policies.items():
            policy.load_state_dict(state[side])


@contextmanager
def of_side(side: str, config: JointConfig) -> Iterator[None]:
    """Errors of this block say whose they are, and of a key of that side's section where it stands."""
    try:
        yield
    except MMRLError as error:
        key = str(error).partition(":")[0] in config.class_of(side).config_type.model_fields
        raise type(error)(f"policy.{side}{'.' if key else ': '}{error}") from error.__cause__


def _offers(policy: Policy, need: Need) -> bool:
    """Whether a side can meet a need. Log-probs both can."""
    try:
        type(policy).check_need(need, "", policy.config)
    except ConfigError:
        return False
    return True


def filled(template: str, prompt: Prompt, told: Told, kinds: Sequence[str], number: int) -> str:
    """A turn's `ask`, with what was written before the turn and what the row's columns say."""

    before = list(kinds[:number])
    texts = [f"text_{n + 1}" for n in range(before.count("text"))]
    written = {name: told.stretches[place_of(name, before)] for name in [*texts, *(["text"] if texts else [])]}
    return template.format_map(Known({**prompt.columns, "prompt": prompt.text, **written}, prompt.id, number))


class Known(dict):
    """What a template may name; what it names besides is an error that says where."""

    def __init__(self, values: Mapping[str, Any], prompt: str, number: int):
        super().__init__(values)
        self.where = f"prompt {prompt!r}: policy.turns.{number}.ask"

    def __missing__(self, name: str) -> Any:
        raise DataError(f"{self.where} reads {{{name}}}, which is no column of it; there are {', '.join(sorted(self))}")
