"""The learning rates of a configuration that names none, by what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RATES = {
    ("language", True): 1e-5,
    ("language", False): 1e-6,
    ("flow", True): 3e-4,
    ("flow", False): 1e-5,
}
"""By kind of policy and whether it has adapters: TRL's and verl's for full fine-tuning, of generators those of
Flow-GRPO (adapters) and DanceGRPO."""
WRITER, PAINTER = "writer", "painter"
SIDES = {WRITER: "vlm", PAINTER: "flow"}
"""Of a joint policy; all modalities of a writer have the same rates."""


def trains_adapters(modality: str, policy: Any) -> bool:
    """Whether a `policy` section asks for adapters: fresh ones, or those of a folder. A generator has them unless it
    says `lora: null`."""
    if not isinstance(policy, Mapping):
        return False
    if modality == "joint":
        return any(trains_adapters(m, policy.get(side)) for side, m in SIDES.items())
    return policy.get("adapter") is not None or policy.get("lora", {} if modality == "flow" else None) is not None


def usual_rate(values: Mapping[str, Any]) -> float:
    """The learning rate of a configuration that names none: adapters take at least ten times that of all weights."""
    modality = str(values.get("modality"))
    adapted = trains_adapters(modality, values.get("policy") or {})
    return RATES[("flow" if modality == "flow" else "language", adapted)]


def usual_rates(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration that change where it names no learning rate: `training`, and of two policies
    also `policy`, where each side that trains and has none takes its own modality's."""
    training, policy = values.get("training"), values.get("policy")
    if not isinstance(training, dict) or "learning_rate" in training:
        return {}
    if values.get("modality") != "joint":
        return {"training": {**training, "learning_rate": usual_rate(values)}}
    given = policy if isinstance(policy, Mapping) else {}
    usual = {s: usual_rate({"modality": m, "policy": given.get(s)}) for s, m in SIDES.items()}
    changed: dict[str, Any] = {"training": {**training, "learning_rate": usual[WRITER]}}
    own = given.get("learning_rates", {})
    if isinstance(own, Mapping) and isinstance(trained := given.get("train", list(usual)), list):
        rates = {side: rate for side, rate in usual.items() if side in trained} | dict(own)
        changed["policy"] = {**given, "learning_rates": rates}
    return changed
