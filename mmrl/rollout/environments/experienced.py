"""An environment whose observations come with what was learned in others of their kind: SLEA-RL's half of acting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmrl.errors import ConfigError
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Done, Environment, Observation, turns_of
from mmrl.rollout.environments.states import number_of
from mmrl.stages import LANGUAGE, Bound, stage

EXPERIENCES = "experiences"
"""The column of a prompt in which strategy `slea_rl` puts {cluster: text}."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def cluster_of(text: str) -> int:
    """The kind of an observation: its words, whatever the case, the spaces and the numbers in it; 0 for none.

    >>> cluster_of("You see 3 doors.") == cluster_of("you see 12  doors.") != cluster_of("You see a wall.")
    True
    """
    return number_of(_NUMBER.sub("0", text))


def words_of(shown: Observation) -> str:
    """The text of an observation."""
    parts = [p for m in shown.messages for p in ([m["content"]] if isinstance(m["content"], str) else m["content"])]
    return " ".join(p if isinstance(p, str) else str(p.get("text", "")) for p in parts)


@dataclass
class _State:
    """inside: of the environment within; cluster: of what the policy acts in now; known: {cluster: text}"""

    inside: Any
    cluster: int
    known: Mapping[str, str]


@stage(
    "environment",
    "slea_rl",
    paper="SLEA-RL: step-level experience augmented RL, arXiv 2603.18079",
    formula="o'_t = o_t and what the library has of cluster(o_t)",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
class Experienced(Environment):
    """Another environment, with experiences of the same kind of observation behind each of its observations.

    inside  the environment within, as `environment:` names one

    Experiences are those that rollout strategy `slea_rl` put into the prompt; without it, and in evaluation, this is
    the environment within. Column `cluster (B, T)` numbers the kinds of observation. Source: abstract; that a kind is
    an observation's words without their numbers is ours.
    """

    def __init__(self, *, inside: str | dict[str, Any] = "toolbox") -> None:
        from mmrl.rollout.environments.opening import environment_of

        bound: Bound = environment_of(inside)
        if isinstance(bound.state, Experienced):
            raise ConfigError("environment 'slea_rl': inside is itself; name the environment it adds experiences to")
        self.inside: Environment = bound.state
        self.max_turns = turns_of(self.inside)
        self.columns = dict(self.inside.columns)  # type: ignore[misc]
        self.turn_columns = (*self.inside.turn_columns, "cluster")  # type: ignore[misc]

    def reset(self, prompt: Prompt) -> _State:
        known = prompt.columns.get(EXPERIENCES) or {}
        asked = prompt.beside.get("bare", prompt)
        return _State(self.inside.reset(prompt), cluster_of(asked.text), known)

    def step(self, state: _State, output: str) -> Observation | Done:
        reply = self.inside.step(state.inside, output)
        of_turn = {**reply.of_turn, "cluster": float(state.cluster)}
        if isinstance(reply, Done):
            return replace(reply, of_turn=of_turn)
        state.cluster = cluster_of(words_of(reply))
        told = state.known.get(str(state.cluster))
        return replace(_told(reply, told) if told else reply, of_turn=of_turn)


def _told(shown: Observation, text: str) -> Observation:
    """The observation with a text behind its last message."""
    last = dict(shown.messages[-1])
    content = last["content"]
    last["content"] = (
        f"{content}\n\n{text}" if isinstance(content, str) else [*content, {"type": "text", "text": f"\n\n{text}"}]
    )
    return replace(shown, messages=[*shown.messages[:-1], last])
