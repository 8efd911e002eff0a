"""Several tools in one environment: which one a turn asks for is read from the arguments of its call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mmrl.errors import ConfigError, unknown
from mmrl.record import Prompt
from mmrl.rollout.environments.base import MAX_TURNS, Done, Environment, Observation
from mmrl.rollout.environments.calculator import Calculator
from mmrl.rollout.environments.calls import CALL, BadCall, call_in
from mmrl.rollout.environments.frames import FramesBetween
from mmrl.rollout.environments.states import number_of
from mmrl.rollout.environments.zoom import Zoom
from mmrl.stages import LANGUAGE, stage

ARGUMENTS = {"zoom": {"box"}, "frames": {"start", "end"}, "calculator": {"expression"}}
"""What a call of each tool names."""


@dataclass(frozen=True)
class Turn:
    """What was done in a turn: what the policy wrote, the number of its action, and why it could not be followed."""

    output: str
    action: int
    bad: str


@dataclass
class Talk:
    """A conversation: what each tool keeps of it, and its turns so far."""

    kept: dict[str, Any]
    turns: list[Turn] = field(default_factory=list)


@stage(
    "environment",
    "toolbox",
    paper="-",
    formula='<tool>{"box": ...}</tool>, <tool>{"start": ..., "end": ...}</tool> or <tool>{"expression": ...}</tool>: '
    "the tool whose arguments a call names answers",
    confidence="ours",
    modalities=LANGUAGE,
)
class Toolbox(Environment):
    """A closer look at a picture, more frames of a clip, and arithmetic, whichever a turn asks for.

    tools      of zoom, frames and calculator; the others are not there
    side       pixels of a crop's longer side, as in `zoom`
    max_turns  calls and the answer, at most

    Column `choice` of a turn: the place of the tool it asked for, from 1, one more than there are tools for a call that
    none of them knows, and for an answer a number of what it says, 0 if it says nothing.
    """

    turn_columns: ClassVar[tuple[str, ...]] = ("choice",)

    def __init__(
        self, *, tools: Sequence[str] = ("zoom", "frames", "calculator"), side: int = 448, max_turns: int = MAX_TURNS
    ) -> None:
        for name in tools:
            if name not in ARGUMENTS:
                raise ConfigError(f"environment 'toolbox': tools: {unknown('tool', name, ARGUMENTS)}")
        if not tools:
            raise ConfigError(f"environment 'toolbox': tools is empty; expected some of {', '.join(ARGUMENTS)}")
        made: dict[str, Environment] = {
            "zoom": Zoom(side=side), "frames": FramesBetween(), "calculator": Calculator()
        }  # fmt: skip
        self.tools = {name: made[name] for name in tools}
        self.max_turns = max_turns

    def reset(self, prompt: Prompt) -> Talk:
        return Talk({name: tool.reset(prompt) for name, tool in self.tools.items()})

    def step(self, state: Talk, output: str) -> Observation | Done:
        reply, choice = self._answer(state, output)
        turn = Turn(output, action_of(output), reply.bad if isinstance(reply, Observation) else "")
        numbers = {"choice": float(choice), **self.of_turn(state, turn, reply)}
        state.turns.append(turn)
        return replace(reply, of_turn=numbers)

    def of_turn(self, talk: Talk, turn: Turn, reply: Observation | Done) -> Mapping[str, float]:
        """More numbers of a turn, behind those of `talk.turns`."""
        return {}

    def _answer(self, talk: Talk, output: str) -> tuple[Observation | Done, int]:
        strange = len(self.tools) + 1
        try:
            arguments = call_in(output)
        except BadCall as error:
            return Observation.of(f"{error}.", bad=error.cause), strange
        if arguments is None:
            answer = number_of(output)
            return Done(), answer and answer + strange
        for place, (name, tool) in enumerate(self.tools.items(), 1):
            if arguments.keys() & ARGUMENTS[name]:
                return tool.step(talk.kept[name], output), place
        known = "; ".join(" and ".join(sorted(ARGUMENTS[name])) for name in self.tools)
        said = f"no tool takes {sorted(map(str, arguments))}; the arguments of those here are {known}."
        return Observation.of(said, bad="no such tool"), strange


def action_of(output: str) -> int:
    """The number of what a turn does: of its call, or of the answer outside tags where it makes none."""
    call = CALL.search(output)
    return number_of(call[1] if call else output)
