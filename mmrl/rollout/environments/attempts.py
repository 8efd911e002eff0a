"""Answers that are tried out: each turn is an attempt with a reward of its own, and is told how it went."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mmrl import plugins
from mmrl.errors import ConfigError
from mmrl.record import Prompt
from mmrl.rollout.environments.base import MAX_TURNS, Done, Environment, Observation
from mmrl.stages import LANGUAGE, stage

AGAIN = "That is not right. Try again."
JUDGE = "mmrl.rewards.accuracy:judge"


@stage(
    "environment",
    "attempts",
    method="dr_kernel_trloo",
    paper="Dr. Kernel, arXiv 2602.05885",
    formula="action_reward of turn k = judge(what turn k answers, the prompt's columns); another turn while it is "
    "below `enough`",
    confidence="partly",
    modalities=LANGUAGE,
)
class Attempts(Environment):
    """The policy answers, hears whether that was right, and answers again.

    judge      path/to/file.py:function or package.module:function that says what an answer is worth: it takes the
               answer, and by name those columns of the data set that it has parameters for. A number, or a number and
               what is said of the attempt, such as a compiler's message. The default reads `solution` and `task`
    enough     what ends it
    again      what is said of an attempt that is worth less, where the judge says nothing itself
    max_turns  attempts

    Column `action_reward` of a turn. What the panel's rewards score is the last attempt. Source: hkust-nlp/KernelGYM,
    where an attempt is a kernel that is compiled, checked and timed, and what is said are its errors; that judge needs
    a machine to run kernels on, and is yours to name.
    """

    turn_columns = ("action_reward",)

    def __init__(
        self, *, judge: str = JUDGE, enough: float = 1.0, again: str = AGAIN, max_turns: int = MAX_TURNS
    ) -> None:
        self.judge: Callable[..., Any] = plugins.load(judge, "environment 'attempts': judge")
        if not again.strip():
            raise ConfigError("environment 'attempts': again is blank; say something that another attempt can answer")
        names = list(inspect.signature(self.judge).parameters.values())[1:]
        self.reads = [p.name for p in names if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        self.required = [p.name for p in names if p.name in self.reads and p.default is p.empty]
        self.enough, self.again, self.max_turns = enough, again, max_turns

    def reset(self, prompt: Prompt) -> dict[str, Any]:
        """The columns the judge reads; KeyError with the name of one that the prompt lacks, which loses its rows."""
        if lacking := [name for name in self.required if name not in prompt.columns]:
            raise KeyError(f"the judge reads the column {lacking[0]!r}, which the prompt lacks")
        return {name: prompt.columns[name] for name in self.reads if name in prompt.columns}

    def step(self, state: dict[str, Any], output: str) -> Observation | Done:
        verdict = self.judge(output, **state)
        worth, said = verdict if isinstance(verdict, tuple) else (verdict, "")
        numbers = {"action_reward": float(worth)}
        if worth >= self.enough:
            return Done(of_turn=numbers)
        return Observation.of(str(said).strip() or self.again, of_turn=numbers)
