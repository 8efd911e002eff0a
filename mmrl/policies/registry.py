"""Which policy acts for a modality. Each is named by module and class, and imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import Any

from mmrl.errors import ConfigError, unknown

POLICIES = {
    "vlm": "mmrl.policies.language.vision:VisionPolicy",
    "video": "mmrl.policies.language.video:VideoPolicy",
    "flow": "mmrl.policies.generation.policy:FlowPolicy",
    "masked": "mmrl.policies.masked.policy:MaskedDiffusionPolicy",
    "joint": "mmrl.policies.joint.policy:JointPolicy",
}
MODALITIES = tuple(POLICIES)
OF_ONE_MODEL = tuple(name for name in POLICIES if name != "joint")
"""What stage functions are for: a joint policy is judged kind by kind, by the modalities that it is made of."""
SCHEDULED = "mmrl.policies.masked.scheduled:ScheduledMaskedPolicy"
"""The masked policy whose schedule acts too (`policy.schedule`)."""


def named(place: str) -> Any:
    """What `module:name` is."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def policy_class(modality: str) -> Any:
    """The `mmrl.policies.base.Policy` subclass of a modality; no model library is loaded."""
    if modality not in POLICIES:
        raise ConfigError(unknown("modality", modality, POLICIES))
    return named(POLICIES[modality])


def policy_classes() -> dict[str, Any]:
    """The policy of every modality."""
    return {modality: policy_class(modality) for modality in POLICIES}
