"""Tools for a policy that states what it believes and expects, and is paid for what comes as it expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.rollout.environments.base import MAX_TURNS, Done, Observation
from mmrl.rollout.environments.states import number_of
from mmrl.rollout.environments.toolbox import Talk, Toolbox, Turn
from mmrl.stages import LANGUAGE, stage

BELIEF = re.compile(r"<belief>(.*?)</belief>", re.DOTALL | re.IGNORECASE)
_EXPECT = re.compile(r"\bi expect\s+(.*)", re.DOTALL)
_WORD = re.compile(r"\d[\d.]*\d|\d|[^\W\d_]{4,}")
_COMMON = frozenset(["that", "will", "with", "from", "this", "then", "find", "expect", "next", "observation"])
KEYED = ("phase", "target")


@stage(
    "environment",
    "believing_tools",
    method="rebel",
    paper="ReBel: belief grouping, arXiv 2605.20061",
    formula="belief = number of what <belief> states; belief_reward = share of the predicted words in what comes next; "
    "action_reward = -penalty for a call that cannot be followed",
    confidence="partly",
    modalities=LANGUAGE,
)
class BelievingTools(Toolbox):
    """`toolbox` whose turns say <belief>{"task": {"phase": ..., "target": ...}, "prediction": "..."}</belief>.

    penalty  of a call that cannot be followed
    others   as in `toolbox`

    Columns of a turn: `belief`, equal where phase and target are, or where the words are if it is no JSON, 0 for none;
    `belief_reward`, how much of what it predicts is said in the observation that follows; `action_reward`, to which
    rollout `turn_rewards` adds the outcome. Source: Fateyetian/Rebel, core_rebel.py (key by phase and target) and
    belief_tracker.py (predicted words; numbers count here too). Its two other rewards compare a belief with the true
    state of ALFWorld or WebShop, which tools do not have.
    """

    turn_columns = (*Toolbox.turn_columns, "belief", "belief_reward", "action_reward")

    def __init__(
        self, *, tools: Sequence[str] = ("zoom", "frames", "calculator"), side: int = 448, max_turns: int = MAX_TURNS,
        penalty: float = 0.02,
    ) -> None:  # fmt: skip
        super().__init__(tools=tools, side=side, max_turns=max_turns)
        self.penalty = penalty

    def of_turn(self, talk: Talk, turn: Turn, reply: Observation | Done) -> Mapping[str, float]:
        belief, predicted = stated(turn.output)
        said = words_of(reply) if isinstance(reply, Observation) else ""
        return {
            "belief": float(belief),
            "belief_reward": foretold(predicted, said),
            "action_reward": -self.penalty if turn.bad else 0.0,
        }


def stated(output: str) -> tuple[int, str]:
    """The number of the belief that an output states, 0 for none, and what it predicts."""
    found = BELIEF.search(output)
    if found is None:
        return 0, ""
    try:
        belief = json.loads(found[1])
    except ValueError:
        belief = None
    if not isinstance(belief, dict):
        return number_of(found[1]), found[1]
    task: Any = belief.get("task")
    keyed = [str(task.get(key, "")) for key in KEYED] if isinstance(task, dict) else [json.dumps(task)]
    return number_of(" | ".join(keyed)), str(belief.get("prediction") or "")


def foretold(predicted: str, said: str) -> float:
    """Share of the telling words of a prediction that stand in what was said next; 0 where either has none.

    >>> foretold("If I add them, I expect the total 42", "The total is 42.")
    1.0
    """
    expected = _EXPECT.search(predicted.lower())
    words = [w for w in _WORD.findall(expected[1] if expected else predicted.lower()) if w not in _COMMON]
    heard = set(_WORD.findall(said.lower()))
    return sum(word in heard for word in words) / len(words) if words else 0.0


def words_of(shown: Observation) -> str:
    """The text of an observation."""
    texts = []
    for message in shown.messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if part.get("type") == "text"]
    return " ".join(texts)
