"""RLIR: a world model is right if the actions it was given can be read back from the video it made.

An inverse dynamics model sees the video and says which action lies between each frame and the next; the reward is how
often that is the commanded one. `model: file.py:function` is called as `f(videos)` and returns, for each video, one
action a step: a name, a list of names (several heads: keys and mouse), or numbers. The default, "centroid", needs no
weights: what stands out from the commonest colour moves left, right, up, down, or stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from mmrl import plugins
from mmrl.errors import RewardError
from mmrl.rewards.registry import reward

STAYS = "stays"
LEAST = 0.02
"""Of the picture: less is standing still."""
CENTROID = "centroid"


def centroid_actions(videos: Sequence[Any]) -> list[list[str]]:
    """The way the centre of what is not background goes, step by step, with y pointing down."""
    return [[_way(a, b) for a, b in pairwise(map(_centre, video))] for video in videos]


def _centre(frame: Any) -> tuple[float, float] | None:
    """In shares of the picture; None for a picture of one colour."""
    import numpy as np

    pixels = np.asarray(frame.convert("RGB")) // 32
    codes = (pixels * np.array([64, 8, 1])).sum(-1)
    apart = codes != np.bincount(codes.ravel()).argmax()
    if not apart.any():
        return None
    rows, columns = np.nonzero(apart)
    return float((columns.mean() + 0.5) / codes.shape[1]), float((rows.mean() + 0.5) / codes.shape[0])


def _way(before: tuple[float, float] | None, after: tuple[float, float] | None) -> str:
    if before is None or after is None:
        return "unseen"
    x, y = after[0] - before[0], after[1] - before[1]
    if max(abs(x), abs(y)) < LEAST:
        return STAYS
    if abs(x) >= abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def agreement(asked: Any, found: Any, *, exact: bool, scale: float) -> float:
    """Of one step: 1 or 0 for names, the mean over heads or all of them, exp(-|a - b| / scale) for numbers."""
    if isinstance(asked, int | float) and not isinstance(asked, bool):
        if not isinstance(found, int | float) or math.isnan(found):
            return 0.0
        return math.exp(-abs(asked - found) / scale)
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        heads = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        if len(heads) != len(asked):
            raise ValueError(f"the inverse model gave {len(heads)} heads for an action of {len(asked)}")
        each = [agreement(a, b, exact=exact, scale=scale) for a, b in zip(asked, heads, strict=True)]
        return float(min(each) == 1.0) if exact else sum(each) / len(each)
    return float(asked == found)


def check_actions(row: Mapping[str, Any], *, model: str = CENTROID, noop_weight: float = 1.0, **_: Any) -> None:
    """Raise RewardError for a row without commands, or a model that is not there."""
    actions = row.get("actions")
    if not isinstance(actions, Sequence) or isinstance(actions, str) or not actions:
        raise RewardError(f"actions is {actions!r}; expected a list, one action a step", "actions")
    if not 0 <= noop_weight <= 1:
        raise RewardError(f"rlir: noop_weight={noop_weight:g}; expected 0 to 1")
    _model(model)


@lru_cache(maxsize=4)
def _model(name: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    if name == CENTROID:
        return centroid_actions
    if not plugins.is_reference(name):
        raise RewardError(f"rlir: model {name!r} is neither 'centroid' nor file.py:function")
    return plugins.load(name, "rlir's inverse dynamics model")


@reward(
    "rlir",
    check=check_actions,
    paper="RLIR: reinforcement learning with inverse rewards for world models, arXiv 2509.23958",
    formula="R = mean_f 1[IDM(video)_f = a_f]; numbers: mean_f exp(-|IDM(video)_f - a_f| / scale)",
    confidence="partly",
)
def rlir(
    completions, actions, *, model: str = CENTROID, exact: bool = False, scale: float = 1.0, noop: str = STAYS,
    noop_weight: float = 1.0,
) -> list[dict[str, float]]:  # fmt: skip
    """How often the action an inverse model reads from the video is the commanded one; `moved`: where one was to move.

    exact        several heads count only where all are right (which rule the authors use for keys and mouse was not
                 read)
    noop_weight  of steps that command `noop` (ours): below 1, a video that stands still earns less by it

    A world model and the inverse model may share training data; hold out another inverse model for evaluation.
    """
    recovered = _model(model)(completions)
    scores = []
    for asked, found in zip(actions, recovered, strict=True):
        if len(found) != len(asked):
            raise ValueError(f"the inverse model gave {len(found)} actions for {len(asked)} commanded ones")
        each = [agreement(a, b, exact=exact, scale=scale) for a, b in zip(asked, found, strict=True)]
        weights = [noop_weight if a == noop else 1.0 for a in asked]
        moving = [e for e, a in zip(each, asked, strict=True) if a != noop]
        total = sum(weights)
        score = sum(w * e for w, e in zip(weights, each, strict=True)) / total if total else 0.0
        scores.append({"score": score, "moved": sum(moving) / len(moving) if moving else 1.0})
    return scores
