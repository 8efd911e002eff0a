"""What may be asked of a generator's likelihood: by a configuration, before anything is loaded, and by rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.likelihoods import LIKELIHOODS, likelihood_class
from mmrl.record import Rollouts
from mmrl.stages import Need


def check_probe(need: Need, asked_by: str, settings: Any) -> bool:
    """Whether the likelihood of these settings offers the probe; ConfigError where another would, or weights are
    read that nobody keeps."""
    chosen = likelihood_class(settings.likelihood)
    if need.probe not in chosen.offers():
        for other in LIKELIHOODS:
            if need.probe in likelihood_class(other).offers():
                raise ConfigError(
                    f"{asked_by} needs {need.probe!r}, which policy.likelihood={settings.likelihood} does not offer; "
                    f"set policy.likelihood={other}"
                )
        return False
    if need.probe == "process_reward" and settings.push is None:
        raise ConfigError(f"{asked_by} reads the process reward of each step; name it in policy.push.reward")
    for weights in sorted(chosen.compares([need]) | {need.weights}):
        if weights in ("anchor", "behaviour", "ema") and getattr(settings, weights) is None:
            raise ConfigError(
                f"{asked_by} compares with {weights} weights, which this run does not keep; give policy.{weights} its "
                "decay, as recipe diffusion_nft does"
            )
    return True


def check_settings(settings: Mapping[str, float], rollouts: Rollouts) -> None:
    """PolicyError where rollouts were drawn otherwise than this policy scores."""
    for name, value in settings.items():
        if name not in rollouts.replay:
            raise PolicyError("these rollouts hold no denoising states: they were drawn by the ODE sampler (greedy)")
        drawn = rollouts.replay[name]
        if bool((drawn - value).abs().max() > 1e-6):
            raise PolicyError(
                f"rollouts were drawn with {name}={drawn[(drawn - value).abs().argmax()].item():g}, this policy "
                f"scores with {value:g}: the ratio would compare two different policies"
            )


def check_objective(objective: Any, settings: Any) -> None:
    """A likelihood without log-probs trains only what reads its probes."""
    chosen = likelihood_class(settings.likelihood)
    leading = objective.matching_objective or (None if objective.policy_weight else objective.score)
    reads = leading is not None and any(need.probe in chosen.probes for need in leading.needs.values())
    if chosen.trains == "matching" and not reads:
        what = f"{leading.spec.stage} {leading.name!r}" if leading else f"ratio {objective.ratio.name!r}"
        raise ConfigError(
            f"policy.likelihood={settings.likelihood} has no log-probs, and {what} reads them; choose a "
            "matching_objective such as diffusion_nft, or policy.likelihood=transition"
        )
