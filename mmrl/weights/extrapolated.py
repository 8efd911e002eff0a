"""Decoding further along what training changed: from the base through the trained model, and a little on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError
from mmrl.tools import tool


def extrapolated(trained: Tensor, base: Tensor, gain: float, top_p: float = 1.0) -> Tensor:
    """Log-probs (B, V) float32 of pi (pi / pi_base)^gain, renormalised, inside the trained policy's nucleus.

    trained, base  (B, V) logits
    gain           0 is the trained policy, -1 the base, more goes beyond
    top_p          tokens outside of the likeliest so much of the trained policy get none
    """
    new, old = trained.float().log_softmax(-1), base.float().log_softmax(-1)
    moved = torch.where(new == -torch.inf, new, new + gain * (new - old))  # what may not be said stays so
    if top_p < 1:
        ordered, places = new.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        outside = torch.zeros_like(new, dtype=torch.bool).scatter(-1, places, before >= top_p)
        moved = moved.masked_fill(outside, -torch.inf)
    return moved.log_softmax(-1)


@tool(
    "delta_log_p_decoding",
    command="mmrl evaluate RUN engine=extrapolated engine.gain=0.3 policy.old_log_probs=trainer; outside of mmrl "
    "model.generate(**inputs, logits_processor=[Extrapolation(model, inputs)]), of mmrl.weights.extrapolated",
    paper="Delta-log-p extrapolation, 2026",
    formula="softmax of lp + gain (lp - lp_base), on the trained policy's top-p tokens",
    confidence="reconstructed",
)
class Extrapolation:
    """A logits processor of transformers' `generate`: every token is chosen beyond the trained policy.

    base    a model with adapters, whose base is itself without them; or the model that training started from
    inputs  what `generate` is called with, its pictures included
    gain    how far beyond; a few tenths
    top_p   of the trained policy's tokens that may be chosen: far out, what neither of both meant can win

    The base reads the whole text again for each token, without a cache: twice the model, and as many tokens more. The
    first processor of a list, so that temperature and truncation act on what it gives. Source: abstract; gain and the
    restriction to the nucleus are ours.
    """

    def __init__(self, base: nn.Module, inputs: Mapping[str, Any], *, gain: float = 0.3, top_p: float = 0.99) -> None:
        if "input_ids" not in inputs:
            raise ConfigError(f"delta_log_p_decoding: inputs hold {', '.join(inputs)}, and no input_ids")
        if not 0 < top_p <= 1 or not math.isfinite(gain):
            raise ConfigError(
                f"delta_log_p_decoding: gain={gain}, top_p={top_p}; expected a number, and above 0 and at most 1"
            )
        self.base, self.inputs, self.gain, self.top_p = base, dict(inputs), gain, top_p

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) log-probs in place of the trained policy's scores (B, V), behind `input_ids (B, N)`."""
        disabled = getattr(self.base, "disable_adapter", nullcontext)
        with disabled():
            logits = self.base(**self._extended(input_ids), use_cache=False).logits[:, -1]
        return extrapolated(scores, logits, self.gain, self.top_p).to(scores.dtype)

    def _extended(self, input_ids: Tensor) -> dict[str, Any]:
        """The inputs with what was written: what is aligned with tokens goes on with 0, the attention mask with 1."""
        shape = self.inputs["input_ids"].shape
        if len(input_ids) != shape[0]:
            raise ConfigError(
                f"delta_log_p_decoding: generate writes {len(input_ids)} rows and inputs hold {shape[0]}; repeat the "
                "inputs themselves in place of num_return_sequences and num_beams"
            )
        more = input_ids.shape[1] - shape[1]
        given: dict[str, Any] = {}
        for name, value in self.inputs.items():
            aligned = isinstance(value, Tensor) and value.shape == shape and name != "input_ids"
            fill = int(name == "attention_mask")
            given[name] = torch.cat([value, value.new_full((shape[0], more), fill)], 1) if aligned else value
        return given | {"input_ids": input_ids}
