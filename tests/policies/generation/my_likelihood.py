"""A likelihood that is no part of the package: the error at one time, half way."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.policies.generation.likelihoods.base import Drawn, Kept, Likelihood, Predictions, States, Work
from mmrl.record import Batch, Evaluation
from mmrl.stages import FLOW, Need, stage


@dataclass
class Halfway(States):
    target: Tensor


class Mine(Likelihood):
    """One action a rollout: noise of its own, t = 1/2."""

    probes = frozenset({"halfway_error"})
    trains = "matching"
    actions = 1

    def record(self, drawn: Drawn) -> Kept:
        one = torch.zeros(len(drawn.members), 1)
        keys = [
            drawn.key.at(prompt=p, member=m, purpose="halfway")
            for p, m in zip(drawn.prompts, drawn.members.tolist(), strict=True)
        ]
        noise = torch.stack([key.normal(*drawn.sampled.final.shape[1:]) for key in keys])
        return Kept(one.long(), one == 0, one, {}, {"clean": drawn.sampled.final, "noise": noise})

    def work(self, rollouts, asked) -> Work:
        clean, noise = rollouts.replay["clean"], rollouts.replay["noise"]
        rows = torch.arange(len(clean))
        states = Halfway((clean + noise) / 2, torch.full((len(clean),), 0.5), noise - clean)
        return Work(states, rows, (rows, torch.zeros_like(rows)), rows)

    def score(self, states: Halfway, predict: Predictions, asked) -> dict[str, Tensor]:
        error = (predict.current(guided=False) - states.target).abs().flatten(1).mean(1)
        return {"log_probs": -error} | {need.key: error for need in asked}


def _needs(**_) -> dict[str, Need]:
    return {"error": Need("halfway_error", weights="current")}


@stage(
    "matching_objective",
    paper="-",
    confidence="ours",
    formula="-A |v - target| at t = 1/2",
    needs=_needs,
    modalities=FLOW,
)
def halfway(evaluation: Evaluation, batch: Batch) -> Tensor:
    """Nearer to good outputs, away from bad ones."""
    return -batch.advantage * evaluation["error"]
