"""Below float32: the whole model in its own precision, against the same reference, on average.

The self-check runs a few layers in float32, where two ways that are the same agree to the last digits. In bfloat16 they
never do, since sums round otherwise, but on average they stay close, and a kernel that is wrong in this precision
does not. What is too far is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmrl.errors import PolicyError
from mmrl.policies.language import scoring
from mmrl.policies.language.families.check import Trial, decoded, prepared, two_calls_of, units
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.families.prompts import Probe
from mmrl.policies.language.fast import shared_prompt
from mmrl.policies.language.log_probs import Distribution
from mmrl.policies.language.sampling import Recomputed, RepeatedCache, SharedCache

MEAN = 0.03
"""Largest mean difference of a log-prob, that of training's own self-check below float32."""


@torch.no_grad()
def mean_gaps(module: Any, family: Family, probes: Sequence[Probe]) -> dict[str, float]:
    """{way: mean difference} of every way that was found exact in float32, at temperature 1 over all tokens."""
    usual = module.distribution
    module.distribution = Distribution(1.0, (), family.soft_cap, family.capabilities.scale)
    try:
        return _mean_gaps(module, family, probes)
    finally:
        module.distribution = usual


def _mean_gaps(module: Any, family: Family, probes: Sequence[Probe]) -> dict[str, float]:
    found = family.capabilities
    readable = [probe for probe in probes if f"prompt: {probe.name}" not in found.gaps]
    with module.precision():
        trial = prepared(module.core, family, readable)
    rows = trial.actions, trial.lengths, trial.core.device, family
    lay_out: dict[str, Callable[[], scoring.Rows]] = {"single rows": lambda: scoring.one_by_one(trial.entries(), *rows)}
    if found.batches == "media":
        lay_out["batches"] = lambda: scoring.Plain.of(trial.entries(), *rows)
    if found.prefix_cache:
        lay_out["two calls"] = lambda: two_calls_of(trial, trial.prompts)
    if found.packed and module.shared:
        lay_out["packed"] = lambda: shared_prompt.pack(trial.prompts, trial.prompt, *rows)
    gaps = {name: _mean(trial, module, made()) for name, made in lay_out.items()}
    ways: dict[str, Any] = {"decoding": RepeatedCache if found.prefix_cache else Recomputed}
    ways |= {"shared cache": SharedCache} if module.shares_prefixes else {}
    return gaps | {name: _decoding(trial, module, way) for name, way in ways.items()}


def _mean(trial: Trial, module: Any, rows: scoring.Rows) -> float:
    device = trial.core.device
    log_probs = module(rows, trial.actions.to(device), trial.mask.to(device))["log_probs"]
    return float((log_probs.cpu() - trial.expected)[trial.mask].abs().mean())


def _decoding(trial: Trial, module: Any, way: Any) -> float:
    gaps = [gap for unit in units(trial) for gap in decoded(trial, module, way, unit, trial.prompts)]
    return sum(gaps) / len(gaps)


def closed_by(gaps: dict[str, float], family: Family, dtype: torch.dtype) -> None:
    """Take back what is too far in this precision. Raises PolicyError where nothing is left in its place."""
    found, far = family.capabilities, {name: gap for name, gap in gaps.items() if gap > MEAN}
    found.gaps |= {f"{name}, {dtype}, mean".replace("torch.", ""): gap for name, gap in gaps.items()}
    if "single rows" in far or ("decoding" in far and not found.prefix_cache):
        raise PolicyError(
            f"model type {family.model_type!r} in {str(dtype)[6:]}: log-probs of the whole model differ from those of "
            f"its own forward pass by {max(far.values()):.2g} on average, tolerance {MEAN}; train it in float32"
        )
    found.batches = None if "batches" in far else found.batches
    found.packed = None if "packed" in far else found.packed
    found.shared_cache = found.shared_cache and not {"packed", "shared cache"} & far.keys()
    found.prefix_cache = found.prefix_cache and not {"two calls", "decoding"} & far.keys()
    found.fallbacks = found.named_fallbacks()
