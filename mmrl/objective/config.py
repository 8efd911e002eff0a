"""What the `objective` section of a recipe or configuration may say."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from mmrl.errors import ConfigError, unknown
from mmrl.settings import Section

Choice = str | dict[str, Any]


class ObjectiveConfig(Section):
    """Which function plays each stage: a name, or `{name: ..., parameter: ...}`.

    A regularizer also takes `coefficient`, and `aggregation` where its mean is not the objective's. An aggregation also
    takes `shared`: "each" (the default) weighs an action that several rows of a tree share in each of them, "once"
    divides its weight by them.
    `policy_weight` is the share of the policy gradient beside a `score_objective`, which has 1 minus it.
    `kinds` is for rows whose actions are of several kinds, such as `{tokens: {}, transition: {coefficient: 0.1, ratio:
    token}}`: each kind has an objective of its own, with these stages where it names no other, and its loss is added
    with its `coefficient`. Shaping, group selection and the learning rate are of the whole row.
    """

    shaping: list[Choice] = []
    group: list[Choice] = []
    advantage: Choice = "grpo"
    credit: list[Choice] = []
    ratio: Choice = "token"
    trust_region: Choice = "clip"
    aggregation: Choice = "token_mean"
    regularizers: list[Choice] = []
    score: Choice | None = None
    score_objective: Choice | None = None
    matching_objective: Choice | None = None
    policy_weight: float = 0.0
    learning_rate: Choice | None = None
    kinds: dict[str, dict[str, Any]] = {}

    @field_validator("shaping", "group", "credit", "regularizers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value


def split_shared(choice: Choice) -> tuple[Choice, str]:
    """An aggregation without its key `shared`, and that."""
    described = {"name": choice} if isinstance(choice, str) else dict(choice)
    shared = described.pop("shared", "each")
    if shared not in ("each", "once"):
        raise ConfigError(f"aggregation: {unknown('shared', str(shared), ('each', 'once'))}")
    return described, shared
