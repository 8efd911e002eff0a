"""Training that writes context, not weights: lessons from groups, put before the prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import ConfigError, DataError
from mmrl.randomness import Key
from mmrl.record import Prompt, Request, Rollouts
from mmrl.rollout.actor import score_rows
from mmrl.rollout.hints import with_text, worth
from mmrl.selection.prompts import Shuffled
from mmrl.training.storage import write_atomically
from mmrl.training.trainer import Trainer
from mmrl.weights.experiences import as_text, merged, operations_in

HEAD = "When you answer, keep these lessons in mind:"
ASK = (
    "Several answers to the above, and whether each is right:\n{answers}\n\nLessons so far:\n{lessons}\n\nSay what the "
    "right ones did that the wrong ones did not, as one general lesson of at most 32 words. Answer with a JSON list: "
    '[{"operation": "ADD", "text": "..."}], or "UPDATE" or "DELETE" with the "number" of a lesson.'
)
CONTEXT, TEXT = "context.json", "context.txt"


def told(prompt: Prompt, text: str) -> Prompt:
    """The prompt with a system message before it, behind one that it has. Its id stays: what is asked is the same."""
    if not text:
        return prompt
    first = prompt.messages[0]
    if first["role"] != "system":
        return replace(prompt, messages=[{"role": "system", "content": text}, *prompt.messages])
    if not isinstance(first["content"], str):
        raise DataError(f"prompt {prompt.id!r}: its system message is no text, so no lessons can be put behind it")
    return replace(prompt, messages=[dict(first, content=f"{first['content']}\n\n{text}"), *prompt.messages[1:]])


class ContextTrainer(Trainer):
    """Training-Free GRPO: the policy compares its own right and wrong answers, and writes down what it learned.

    most   lessons that are kept; the oldest beyond them go
    head   what stands before them in the system message
    ask    what the policy is asked about a group, with {answers} and {lessons}
    start  a context.json to go on from

    Each step writes `context.json` and `context.txt` into the run directory, and no checkpoint: the weights are those
    of policy.model. Groups in which all are right, or all wrong, are asked nothing. What the policy writes that is no
    list of operations is counted, as `context/unreadable`. One process.
    """

    go_on = f"start a new run with learner.start=RUN/{CONTEXT}"

    def __init__(
        self, *args: Any, most: int = 30, head: str = HEAD, ask: str = ASK, start: str = "", **settings: Any
    ):  # fmt: skip
        super().__init__(*args, **settings)
        if not isinstance(self.sampler, Shuffled):
            raise ConfigError(
                "learner training_free tells no sampler what came of its prompts; expected prompts=shuffled"
            )
        if self.accelerator.num_processes > 1 or self.strategies.bounds:
            raise ConfigError(
                "learner training_free runs in one process and asks for independent answers: no `rollout`"
            )
        if missing := [field for field in ("{answers}", "{lessons}") if field not in ask]:
            raise ConfigError(f"learner training_free: ask lacks {missing[0]}; put it where it belongs")
        self.most, self.head, self.ask = most, head, ask
        self.lessons = _read(Path(start)) if start else {}

    @torch.no_grad()
    def train_step(self) -> dict[str, Any]:
        """Groups, and of those with a contrast what the policy makes of it."""
        key = Key(self.config.seed, self.step)
        indices = self.sampler.select(self.config.prompts_per_step, len(self.collector.prompts), key)
        asked = [told(self.collector.prompts[i], as_text(self.lessons, self.head)) for i in indices]
        rollouts = self._acted([Request(p, self.config.group_size, group=g) for g, p in enumerate(asked)], key)
        mixed = _mixed(rollouts)
        unreadable = 0
        if mixed:
            requests = [Request(self._question(asked[g], rollouts, g), 1, group=g) for g in mixed]
            answers = self.actor.act(requests, key.at(purpose="lessons")).outputs
            found = [operations_in(str(text)) for text in answers]
            unreadable = sum(operations is None for operations in found)
            self.lessons = merged(self.lessons, [operation for each in found for operation in each or ()], self.most)
        self._write()
        reward = rollouts.reward
        assert reward is not None
        return {
            "reward/mean": float(reward.nanmean()), "rollouts": len(rollouts), "context/lessons": len(self.lessons),
            "reward/unscored_fraction": float(reward.isnan().double().mean()), "unscored": dict(self.causes),
            "context/asked": len(mixed), "context/unreadable": unreadable, "updates": self.updates,
            "signal/zero_variance_fraction": 1 - len(mixed) / len(indices), **self.counters(), **self.policy.counted(),
        }  # fmt: skip

    def _acted(self, requests: list[Request], key: Key) -> Rollouts:
        with self.clock("rollout"):
            rollouts = self.actor.act(requests, key)
        with self.clock("reward"):
            self.causes = score_rows(rollouts, self.score).causes
        return rollouts

    def _question(self, prompt: Prompt, rollouts: Rollouts, group: int) -> Prompt:
        value = worth(rollouts)
        rows = ((rollouts.group == group) & ~value.isnan()).nonzero().squeeze(1).tolist()
        lines = [f"- {'right' if value[row] > 0 else 'wrong'}: {rollouts.outputs[row]}" for row in rows]
        lessons = as_text(self.lessons, "").strip() or "none"
        return with_text(
            prompt, self.ask.replace("{answers}", "\n".join(lines)).replace("{lessons}", lessons), "lesson"
        )

    def _write(self) -> None:
        listed = {"step": self.step + 1, "lessons": {str(n): text for n, text in self.lessons.items()}}
        write_atomically(self.run_dir / CONTEXT, json.dumps(listed, indent=1, ensure_ascii=False))
        write_atomically(self.run_dir / TEXT, as_text(self.lessons, self.head))

    def evaluate(self, halted: Any = None) -> dict[str, float]:
        """Held-out scores with the lessons as they stand."""
        plain = self.eval_prompts
        text = as_text(self.lessons, self.head)
        self.eval_prompts = [told(p, text) for p in plain] if text else plain
        try:
            return super().evaluate(halted)
        finally:
            self.eval_prompts = plain

    def save(self, state: dict[str, Any] | None = None, *, best: bool = False) -> Path:
        """The context is all there is to save, and it is written after every step."""
        self.saved = self.step
        self.saving.begin_interval()
        return self.run_dir / CONTEXT


def _mixed(rollouts: Rollouts) -> list[int]:
    """Groups with an answer that is worth something and one that is not."""
    value = worth(rollouts)
    good, bad = (set(rollouts.group[mask].tolist()) for mask in (value > 0, value <= 0))
    return sorted(good & bad)


def _read(path: Path) -> dict[int, str]:
    try:
        return {int(number): str(text) for number, text in json.loads(path.read_text())["lessons"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"learner.start: {path}: expected a context.json of such a run: {error}") from None
