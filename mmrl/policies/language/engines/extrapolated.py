"""The engine that answers further along what training changed: from the base through the policy, and a little on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.base import EngineCapabilities
from mmrl.policies.language.engines.beside import Beside
from mmrl.policies.language.engines.local import Local
from mmrl.policies.language.sampling import Decoded, decode
from mmrl.policies.language.scoring import ScoredLanguageModel
from mmrl.settings import Section
from mmrl.weights.extrapolated import extrapolated


class ExtrapolatedOptions(Section):
    """What stands beside `name: extrapolated`.

    gain   how far beyond the policy, a few tenths; 0 is the policy itself, -1 what it was trained from
    top_p  of the policy's tokens that may be chosen: far out, what neither of both meant can win
    """

    gain: float = Field(0.3, allow_inf_nan=False)
    top_p: float = Field(0.99, gt=0, le=1)


class Extrapolated(Local):
    """Decodes with the module that trains and the reference it was trained from, side by side: pi (pi / base)^gain.

    For `mmrl evaluate` and `mmrl sample`. Its log-probs are of what it draws from, so `policy.old_log_probs: trainer`
    is asked for, and a run that trains on its rows is stopped by `policy.engine_gap` where the two part.
    """

    capabilities: ClassVar = EngineCapabilities(
        exact_log_probs=False, media=frozenset({"image", "video"}), lora=True, own_weights=False
    )
    Options: ClassVar = ExtrapolatedOptions

    @staticmethod
    def refuse(config: LanguagePolicyConfig, options: ExtrapolatedOptions) -> None:
        if config.reference_device != "same":
            raise ConfigError(
                f"policy.engine=extrapolated reads the reference at every token, and policy.reference_device="
                f"{config.reference_device!r} keeps it elsewhere; expected same"
            )

    def _reference(self) -> AbstractContextManager[Any]:
        if self.setting.weights is None:
            raise PolicyError("engine extrapolated: this policy gives no reference weights")
        return self.setting.weights("reference")

    def _decoded(self, model: ScoredLanguageModel, *asking: Any) -> Decoded:
        def begin(*given: Any) -> Beside:
            return Beside(self._reference, self._beyond, *given)

        return decode(model, *asking, begin=begin)

    def _beyond(self, logits: Tensor, base: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        options, least = self.setting.options, torch.finfo(torch.float32).min
        never = logits <= least  # suppressed ids have the lowest finite number, of which no difference may be taken
        moved = extrapolated(
            logits.masked_fill(never, -torch.inf), base.masked_fill(never, -torch.inf), options.gain, options.top_p
        )
        return moved.clamp(min=least), {}
