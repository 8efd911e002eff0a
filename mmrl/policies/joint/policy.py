"""Words, and then a picture of them: one trajectory of two policies, with a likelihood each, under one loss.

    log pi(row) = sum over tokens of log pi_writer(token | prompt, tokens before)
                + sum over denoising steps of log pi_painter(x' | x, prompt and words)

The writer is any policy of words here, the painter a flow policy whose likelihood has log-probs. Denoising steps stand
first on the action axis, since their number is fixed; the column `kind` says which is which, and
`objective.kinds: {transition: {...}, tokens: {...}}` gives each its ratio, clip and mean. In Python only:

    Trainer(JointPolicy(writer, painter), Objective.of({"kinds": {...}}), prompts, score, config).train()

After UniGRPO (arXiv 2603.23500), one round of words and picture: GRPO for the words, Flow-GRPO without guidance for the
steps, one advantage for both; its velocity penalty is regularizer `gaussian_kl` of kind transition with
`policy.kl: velocity_mse`, which is not offered here, where no reference is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.batch import KINDS
from mmrl.errors import ConfigError, PolicyError
from mmrl.policies import likelihood
from mmrl.policies.base import Policy
from mmrl.policies.generation.unconditional import COLUMN
from mmrl.randomness import Key
from mmrl.record import Evaluation, Prompt, Request, Rollouts, pad_columns
from mmrl.settings import Section
from mmrl.stages import Need, View

WORDS, STEPS, TEXT = "words|", "steps|", "words|utf-8"
WRITERS = {"masked": "masked", "vlm": "tokens", "video": "tokens"}
"""Which kind of action a writer's modality has."""


@dataclass
class Told:
    """What a reward sees: the words that were written, and the picture that was drawn of them."""

    text: str
    picture: Any

    def save(self, path: str | Path) -> None:
        """The picture; the words stand beside it as actions."""
        self.picture.save(path)


class Both(likelihood.Likelihood):
    def __init__(self, writer: Policy, painter: Policy):
        super().__init__(painter.config)
        self.writer, self.painter = writer, painter

    @property
    def actions(self) -> int:
        return self.painter.max_actions + self.writer.max_actions


class JointPolicy(Policy):
    """A policy of words and a policy of pictures that act one behind the other.

    ask  what the painter is asked for, of the prompt's text and the words; both by default
    """

    modality = "joint"
    config_type = Section
    probes = frozenset({"log_probs"})
    columns = frozenset({"kind"})

    def __init__(self, writer: Policy, painter: Policy, ask: Callable[[str, str], str] = "{} {}".format):
        if painter.modality != "flow" or painter.likelihood.trains != "ratio" or writer.modality not in WRITERS:
            raise ConfigError(
                f"a joint policy has a writer of {', '.join(WRITERS)} and a flow policy of likelihood=transition; got "
                f"{writer.modality} and {painter.modality}, likelihood that trains by {painter.likelihood.trains}"
            )
        self.writer, self.painter, self.ask = writer, painter, ask
        self.config, self.likelihood = Section(), Both(writer, painter)
        self.module = nn.ModuleDict({"writer": writer.module, "painter": painter.module})

    @classmethod
    def from_config(cls, config: Any, *, seed: int = 0, read_clip: Any = None) -> JointPolicy:
        raise ConfigError("a joint policy is made in Python, of two policies: JointPolicy(writer, painter)")

    # ---- acting

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        self._only_current(weights)
        words = self.writer.rollout(requests, key, greedy=greedy)
        asked = self._asked(words, words.outputs)
        steps = self.painter.rollout([Request(p, 1, group=i) for i, p in enumerate(asked)], key, greedy=greedy)
        text = [torch.tensor(list(text.encode()), dtype=torch.long)[None] + 1 for text in words.outputs]
        kinds = (KINDS.index("transition"), KINDS.index(WRITERS[self.writer.modality]))
        pairs = [(steps, kinds[0]), (words, kinds[1])]
        columns = {"kind": torch.cat([torch.full_like(part.mask, kind, dtype=torch.long) for part, kind in pairs], 1)}
        replay = {STEPS + n: v for n, v in steps.replay.items()} | {WORDS + n: v for n, v in words.replay.items()}
        for part, prefix in ((steps, STEPS), (words, WORDS)):
            replay |= {f"{prefix}column {name}": value for name, value in part.columns.items()}
        return Rollouts(
            prompts=words.prompts, encoded=words.encoded, prompt=words.prompt, group=words.group, member=words.member,
            actions=torch.cat([steps.actions, words.actions], 1), mask=torch.cat([steps.mask, words.mask], 1),
            old_log_probs=torch.cat([steps.old_log_probs, words.old_log_probs], 1),
            outputs=[Told(*pair) for pair in zip(words.outputs, steps.outputs, strict=True)],
            length=words.length + steps.length, finish=words.finish, columns=columns,
            replay=replay | {TEXT: torch.cat(pad_columns(text)).to(words.mask.device)},
        )  # fmt: skip

    def _asked(self, rows: Rollouts, texts: Sequence[str]) -> list[Prompt]:
        """What the painter is asked in each row; every row has a prompt of its own, which keys its noise."""
        asked = []
        for prompt, member, text in zip(rows.prompt.tolist(), rows.member.tolist(), texts, strict=True):
            own = rows.prompts[prompt]
            asked.append(Prompt(f"{own.id}/{member}", [{"role": "user", "content": self.ask(own.text, text)}]))
        return asked

    # ---- scoring

    def evaluate(
        self, rollouts: Rollouts, needs: Sequence[Need] = (), *, under: View | None = None, weights: str = "current"
    ) -> Evaluation:
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise PolicyError("a joint policy trains on one process: its two models are asked one by one")
        if under is not None or weights not in ("current", "old"):
            raise PolicyError(f"a joint policy scores its rows as they were drawn, by its own weights; not {weights!r}")
        steps, words = self._parts(rollouts)
        found = [policy.evaluate(part, weights=weights).log_probs
                 for policy, part in ((self.painter, steps), (self.writer, words))]  # fmt: skip
        return Evaluation(torch.where(rollouts.mask, torch.cat(found, 1), 0.0))

    def replayed(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        left = {name: value for name, value in rollouts.replay.items() if name != STEPS + COLUMN}
        return super().replayed(replace(rollouts, replay=left))

    def _parts(self, rollouts: Rollouts) -> tuple[Rollouts, Rollouts]:
        """The rows as the painter knows them, and as the writer does."""
        split = rollouts.mask.shape[1] - self._words(rollouts)
        texts = [bytes(v - 1 for v in row if v).decode() for row in rollouts.replay[TEXT].tolist()]
        asked = self._asked(rollouts, texts)
        each = torch.arange(len(rollouts), device=rollouts.prompt.device)
        parts = []
        for prefix, at in ((STEPS, slice(0, split)), (WORDS, slice(split, None))):
            kept = {n.removeprefix(prefix): v for n, v in rollouts.replay.items() if n.startswith(prefix) and n != TEXT}
            columns = {n.removeprefix("column "): v for n, v in kept.items() if n.startswith("column ")}
            mine = {
                "actions": rollouts.actions[:, at], "mask": rollouts.mask[:, at],
                "old_log_probs": rollouts.old_log_probs[:, at], "length": rollouts.mask[:, at].sum(1),
                "replay": {n: v for n, v in kept.items() if not n.startswith("column ")}, "columns": columns,
                "group": rollouts.group, "member": rollouts.member, "finish": rollouts.finish,
            }  # fmt: skip
            if prefix == STEPS:
                mine |= {"prompts": asked, "encoded": [None] * len(asked), "prompt": each, "outputs": rollouts.outputs,
                         "group": each, "member": torch.zeros_like(each)}  # fmt: skip
            else:
                mine |= {"prompts": rollouts.prompts, "encoded": rollouts.encoded, "prompt": rollouts.prompt,
                         "outputs": texts}  # fmt: skip
            parts.append(Rollouts(**mine))
        return parts[0], parts[1]

    def _words(self, rollouts: Rollouts) -> int:
        """How many columns the words have; steps are first, and as many in every row."""
        steps = rollouts.columns["kind"] == KINDS.index("transition")
        return rollouts.mask.shape[1] - int(steps.long().cumprod(1).sum(1).max())

    def micro_batches(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        return list(rows.split(size))

    # ---- weights

    @property
    def device(self) -> torch.device:
        return self.writer.device

    def counted(self) -> dict[str, Any]:
        return self.writer.counted() | self.painter.counted()

    def told(self, counts: dict[str, Any]) -> dict[str, Any]:
        return self.painter.told(self.writer.told(counts))

    def after_update(self) -> None:
        self.writer.after_update()
        self.painter.after_update()

    def after_batch(self) -> None:
        self.writer.after_batch()
        self.painter.after_batch()

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        """Either in a folder of its own."""
        self.writer.save_pretrained(Path(directory) / "writer", merged=merged)
        self.painter.save_pretrained(Path(directory) / "painter", merged=merged)

    def trainable_state(self) -> dict[str, Tensor]:
        parts = {"writer": self.writer, "painter": self.painter}
        return {f"{name}.{n}": value for name, part in parts.items() for n, value in part.trainable_state().items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        for name, part in (("writer", self.writer), ("painter", self.painter)):
            part.load_trainable_state(
                {n.removeprefix(f"{name}."): value for n, value in state.items() if n.startswith(f"{name}.")}
            )

    def trained_tensors(self) -> dict[str, Tensor]:
        parts = {"writer": self.writer, "painter": self.painter}
        return {f"{name}.{n}": value for name, part in parts.items() for n, value in part.trained_tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"writer": self.writer.state_dict(), "painter": self.painter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.writer.load_state_dict(state["writer"])
        self.painter.load_state_dict(state["painter"])
