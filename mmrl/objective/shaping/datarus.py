"""Datarus-R1: form first, meaning later."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.credit.rollouts import component
from mmrl.objective.shaping.cosine import cosine_between
from mmrl.record import Batch
from mmrl.stages import stage


def form_share(step: int, steps: int, first: float, last: float) -> float:
    """The weight of the form at a step: `first` at step 0, `last` from step `steps` - 1 on, along half a cosine.

    >>> form_share(0, 5, 0.8, 0.2), round(form_share(2, 5, 0.8, 0.2), 6), form_share(9, 5, 0.8, 0.2)
    (0.8, 0.5, 0.2)
    """
    done = torch.tensor(step / max(steps - 1, 1), dtype=torch.float64)
    return float(cosine_between(first, last, done))


@stage(
    "shaping",
    paper="Datarus-R1, arXiv 2508.13382",
    formula="r = w r_form + (1 - w) r_meaning; w = w_1 + (w_0 - w_1)(1 + cos(pi t/T))/2",
    confidence="reconstructed",
    needs=("components",),
)
def datarus_r1(
    batch: Batch,
    *,
    form: str = "format",
    meaning: str = "accuracy",
    first: float = 0.8,
    last: float = 0.2,
    over: int | None = None,
) -> Tensor:
    """Two reward components whose weights change places over the run. Replaces the reward. (B,)

    form, meaning  names of the components: tags that are as asked, and what the answer is worth
    first, last    weight of the form at the beginning and at the end; the meaning has the rest
    over           steps that the change takes; None: the run's. A run that is made longer and should go on as it began
                   names it

    The weight comes of the step alone, so that a run that goes on has that of one which never stopped. Rows that were
    not scored stay so, and so does a row one of whose two components is missing. Source: the paper's abstract; both
    ends of the schedule are ours.
    """
    if not (0 <= first <= 1 and 0 <= last <= 1):
        raise ConfigError(f"datarus_r1: first={first}, last={last}; expected shares from 0 to 1")
    if over is not None and over < 1:
        raise ConfigError(f"datarus_r1: over={over}; expected 1 step or more")
    share = form_share(batch.step, over or batch.steps, first, last)
    mixed = share * component(batch, form, "datarus_r1") + (1 - share) * component(batch, meaning, "datarus_r1")
    return torch.where(torch.isnan(batch.reward), batch.reward, mixed.to(batch.reward))
