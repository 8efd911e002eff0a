"""`matching`: the flow-matching loss of the clean output at J draws of time and noise. T is the axis of draws.

    x_t = (1 - t) x_0 + t e,   target v = e - x_0,   loss l = mean((v_theta(x_t, t) - v)^2)

Any sampler will do: rollouts are the ODE's, and keep their clean latents only. -l stands where a log-prob would, but
is none: ratios, clips and KL of log-probs are refused, and methods read the losses they are defined by (`score`).
Rollouts may be guided (`policy.guidance_scale`); predictions that are trained are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.generation.likelihoods.base import Drawn, Kept, Likelihood, Predictions, States, Work, option
from mmrl.policies.generation.likelihoods.draws import draw_noise, drawn
from mmrl.policies.generation.sde import mean_square, wide
from mmrl.precision import DTYPES
from mmrl.record import Request, Rollouts
from mmrl.stages import Need

LEAST_ERROR = 1e-5
"""Below it a mean absolute error does not weigh: DiffusionNFT, train_nft_sd3.py."""


@dataclass
class Noised(States):
    """target  (N, ...) the velocity e - x_0"""

    target: Tensor


class Matching(Likelihood):
    """Probes, each (B, J):

    matching_loss  mean((v - target)^2). Options: `mix` b replaces the prediction v by (1 - b) v_anchor + b v;
                   `space` "clean" measures the clean latent it points to, t times the error of the velocity;
                   `weighted` divides by the mean absolute error, which carries no gradient
    velocity_gap   mean((v - v_other)^2). Options: `to` "reference" or "anchor"; a reference has the guidance of
                   policy.reference_guidance
    draw_times     of the draws
    """

    probes = frozenset({"matching_loss", "velocity_gap"})
    kept = frozenset({"draw_times"})
    trains = "matching"

    @property
    def actions(self) -> int:
        return self.config.draws.count

    def check(self, request: Request, times: Tensor) -> None:
        if request.start is not None:
            raise PolicyError(
                f"prompt {request.prompt.id!r}: likelihood=matching draws no noise, so a row that begins in another "
                "would repeat it; use likelihood=transition"
            )

    def record(self, drawn_rows: Drawn) -> Kept:
        draws, device = self.config.draws, drawn_rows.sampled.final.device
        times, seeds = drawn(draws, drawn_rows.times, drawn_rows.prompts, drawn_rows.members, drawn_rows.key)
        rows = len(times)
        actions = torch.arange(draws.count).expand(rows, -1).contiguous().to(device)
        clean = drawn_rows.sampled.final.to(DTYPES[self.config.latent_dtype])
        return Kept(
            actions, torch.ones_like(actions, dtype=torch.bool), torch.zeros(rows, draws.count, device=device),
            {Need("draw_times").key: times}, {"clean": clean, "draw_times": times.clone(), "draw_seeds": seeds},
        )  # fmt: skip

    def work(self, rollouts: Rollouts, asked: Sequence[Need]) -> Work:
        clean, t = rollouts.replay["clean"].float(), rollouts.replay["draw_times"]
        row, draw = rollouts.mask.nonzero(as_tuple=True)
        noise = draw_noise(rollouts.replay["draw_seeds"], t.shape[1], clean.shape[1:]).to(clean)
        x0, e, when = clean[row], noise[row, draw], t[row, draw]
        x = (1 - wide(when, x0)) * x0 + wide(when, x0) * e
        return Work(Noised(x, when, e - x0), row, (row, draw), torch.arange(len(row), device=t.device))

    @classmethod
    def compares(cls, asked: Sequence[Need]) -> frozenset[str]:
        others = {option(need, "to", "reference") for need in asked if need.probe == "velocity_gap"}
        mixed = any(need.probe == "matching_loss" and option(need, "mix", 1.0) != 1.0 for need in asked)
        return frozenset(others | ({"anchor"} if mixed else set()))

    def score(self, states: Noised, predict: Predictions, asked: Sequence[Need]) -> dict[str, Tensor]:
        # those without gradient first: the update's own prediction is then the last one before backward
        others = {name: self._other(predict, name) for name in sorted(self.compares(asked))}
        velocity = predict.current(guided=False)
        scores = {"log_probs": -mean_square(velocity, states.target)}
        for need in asked:
            if need.probe == "velocity_gap":
                scores[need.key] = mean_square(velocity, others[option(need, "to", "reference")])
            else:
                mix = option(need, "mix", 1.0)
                mixed = velocity if mix == 1.0 else (1 - mix) * others["anchor"] + mix * velocity
                scores[need.key] = self._loss(mixed - states.target, states.t, need)
        return scores

    def _other(self, predict: Predictions, name: str) -> Tensor:
        guidance = self.config.reference_guidance if name == "reference" else 1.0
        return predict.of(name, guided=False, guidance=guidance)

    @staticmethod
    def _loss(error: Tensor, t: Tensor, need: Need) -> Tensor:
        """(N,) of errors of the velocity `(N, ...)`."""
        if option(need, "space", "velocity") == "clean":
            error = wide(t, error) * error
        square = (error**2).flatten(1).mean(1)
        if not option(need, "weighted", False):
            return square
        return square / error.detach().abs().flatten(1).mean(1).clamp(min=LEAST_ERROR)

    def labels(self, rollouts: Rollouts) -> list[list[str]]:
        times = rollouts.replay.get("draw_times")
        if times is None:
            return super().labels(rollouts)
        return [[f"t={t:.3f}" for t in row] for row in times.tolist()]
