"""The half of a language policy that has to do with its engine."""

from __future__ import annotations

from typing import Any

from mmrl.policies.base import Policy
from mmrl.policies.language.config import LOCAL, LanguagePolicyConfig
from mmrl.policies.language.engines.bridge import Bridge, engine_class
from mmrl.policies.language.engines.rows import SAMPLER
from mmrl.policies.language.likelihoods import Tokens, likelihood_class


class ActsThroughEngine(Policy):
    """bridge  to the engine that writes this policy's responses"""

    bridge: Bridge
    config: Any
    likelihood: Tokens

    @classmethod
    def columns_of(cls, config: LanguagePolicyConfig) -> dict[str, str]:
        engine_class(config)
        made = {SAMPLER: f"engine {config.engine!r}"} if config.old_log_probs == "trainer" else {}
        return super().columns_of(config) | made

    @property
    def rescored(self) -> bool:
        """Whether responses are scored once more when they are written: what the sampler says is not what trains."""
        return self.config.old_log_probs == "trainer" or not self.likelihood.sampled

    @property
    def acts_apart(self) -> bool:
        return self.bridge.capabilities.own_weights

    @property
    def engine_gap(self) -> float:
        """None is too large where the sampler's log-probs are of something else than the likelihood's."""
        return self.config.engine_gap if self.likelihood.sampled else float("inf")

    def after_update(self) -> None:
        self.bridge.version += 1

    @classmethod
    def no_turns(cls, config: LanguagePolicyConfig) -> str | None:
        refusal = {
            "engine": (engine_class(config).capabilities.own_weights, LOCAL),
            "old_log_probs": (config.old_log_probs == "trainer", "sampler"),
            "likelihood": (not likelihood_class(config.likelihood).sampled, "tokens"),
        }
        for key, (refused, usual) in refusal.items():
            if refused:
                return (
                    f"policy.{key}={getattr(config, key)!r}: responses of several turns, in an environment, are not "
                    f"written so yet; expected {usual}"
                )
        return None
