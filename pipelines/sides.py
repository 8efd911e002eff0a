"""One side of a joint run as a run of its own: what plans, sizes and cards of one model read."""

from __future__ import annotations

from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.rates import SIDES

JOINT = "joint"


def side_of(config: RunConfig, side: str) -> RunConfig:
    """The configuration in which the policy is this side alone; stages and data stay as they are."""
    values = dict(config.policy[side])
    modality = values.pop("modality", SIDES[side])
    return config.model_copy(update={"modality": modality, "policy": values})


def looking_side(config: RunConfig) -> RunConfig:
    """Whose model looks at the prompts: of a joint run the writer's."""
    return side_of(config, "writer") if config.modality == JOINT and "writer" in config.policy else config
