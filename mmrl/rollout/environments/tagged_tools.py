"""Tools for a policy that tags its turns, and rules that pay for what the tags promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmrl.rollout.environments.base import MAX_TURNS, Done, Observation
from mmrl.rollout.environments.toolbox import Talk, Toolbox, Turn
from mmrl.stages import LANGUAGE, stage

TAGS = {"<planning>": 1, "<explore>": 2, "<reflection>": 3}
"""The numbers of the tags; 0 for a turn without one, or whose call could not be followed."""
PLANNING, EXPLORE, REFLECTION = TAGS.values()


@stage(
    "environment",
    "tagged_tools",
    method="rlvmr",
    paper="RLVMR: verifiable meta-reasoning rewards, 2025",
    formula="tag of a turn; r = [an <explore> acts as no turn before] or [a <reflection> changes a call that failed]",
    confidence="verified",
    modalities=LANGUAGE,
)
class TaggedTools(Toolbox):
    """`toolbox` whose turns say what they are for: <planning>, <explore> or <reflection>, one a turn.

    explore, reflect  what an exploring turn earns whose action is new, and a reflecting one that does something else
                      than the call before, which failed
    others            as in `toolbox`

    Columns `tag` and `action_reward` of a turn. A plan pays where the rollout succeeds, which nobody knows yet: rollout
    `turn_rewards` adds that. An action is a call, or the answer. Source: zzjweb/digitalhuman, core_rlvmr.py, where
    the rewards' sizes are not published, and where a first turn that reflects is paid though nothing failed.
    """

    turn_columns = (*Toolbox.turn_columns, "tag", "action_reward")

    def __init__(
        self, *, tools: Sequence[str] = ("zoom", "frames", "calculator"), side: int = 448, max_turns: int = MAX_TURNS,
        explore: float = 1.0, reflect: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(tools=tools, side=side, max_turns=max_turns)
        self.explore, self.reflect = explore, reflect

    def of_turn(self, talk: Talk, turn: Turn, reply: Observation | Done) -> Mapping[str, float]:
        tag = tag_of(turn)
        earned = {EXPLORE: self.explore * explored(talk, turn), REFLECTION: self.reflect * changed(talk, turn)}
        return {"tag": float(tag), "action_reward": earned.get(tag, 0.0)}


def tag_of(turn: Turn) -> int:
    """The number of a turn's tag, the first of `TAGS` it writes; 0 where its call could not be followed."""
    return 0 if turn.bad else next((number for tag, number in TAGS.items() if tag in turn.output), 0)


def explored(talk: Talk, turn: Turn) -> bool:
    """Whether no earlier call that was followed did the same."""
    return all(before.bad or before.action != turn.action for before in talk.turns)


def changed(talk: Talk, turn: Turn) -> bool:
    """Whether the call before failed, and this turn does something else."""
    return bool(talk.turns) and bool(talk.turns[-1].bad) and talk.turns[-1].action != turn.action
