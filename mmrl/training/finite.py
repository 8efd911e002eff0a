"""Nothing steps on garbage: which row, term or parameter is not finite, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmrl.errors import NonFiniteError
from mmrl.objective import Objective
from mmrl.objective.objective import Loss
from mmrl.record import Batch, Evaluation, Rollouts
from mmrl.training.optimizer import all_finite

SHOWN = 4


def named_rows(rollouts: Rollouts, rows: Sequence[int]) -> str:
    """`prompt 'a' member 2, prompt 'b' member 0 and 5 more`."""
    names = [f"prompt {rollouts.prompts[int(rollouts.prompt[i])].id!r} member {int(rollouts.member[i])}" for i in rows]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def loss_problem(
    objective: Objective, share: Loss, evaluation: Evaluation, batch: Batch, weights: Tensor, rollouts: Rollouts
) -> str | None:
    """Why this micro-batch's loss is not finite: the component and its rows; None if it is.

    evaluation, batch, weights, rollouts  of the micro-batch, row by row
    """
    if bool(torch.isfinite(share.loss)):
        return None
    read = {"the log-probs": evaluation.log_probs, "the advantages": batch.advantage, "the loss weights": weights}
    read |= {f"the rollout's {name.partition('|')[0]}": v for name, v in batch.columns.items() if v.dim() > 1}
    read |= {f"the update's {name.partition('|')[0]}": v for name, v in evaluation.columns.items()}
    for name, values in read.items():
        bad = (~torch.isfinite(values.detach())).view(len(batch), -1).any(1)
        if bad.any():
            return f"{name} of {named_rows(rollouts, bad.nonzero().squeeze(1).tolist())}"
    terms = [name for name, (value, _) in share.sums.items() if not bool(torch.isfinite(value))]
    guilty = [i for i in range(len(batch)) if not _finite_alone(objective, evaluation, batch, weights, i)]
    return f"{terms[0] if terms else 'the policy term'} of {named_rows(rollouts, guilty or range(len(batch)))}"


@torch.no_grad()
def _finite_alone(objective: Objective, evaluation: Evaluation, batch: Batch, weights: Tensor, row: int) -> bool:
    if objective.score_objective:
        return True  # its coefficients are of the whole update
    at = torch.tensor([row], device=weights.device)
    columns = {k: v[at] if v.dim() and len(v) == len(batch) else v for k, v in evaluation.columns.items()}
    alone = replace(evaluation, log_probs=evaluation.log_probs[at], columns=columns)
    return bool(torch.isfinite(objective.loss(alone, batch.index(at), weights[at]).loss))


def gradient_problem(named: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """The first parameter whose gradient is not finite, and how many more; None if all are."""
    held = [(n, p.grad) for n, p in named if p.grad is not None]
    return _problem([(n, g) for n, g in held], "the gradient of")


def weight_problem(named: Iterable[tuple[str, Tensor]]) -> str | None:
    return _problem(list(named), "the weights of")


def _problem(named: list[tuple[str, Tensor]], what: str) -> str | None:
    named = [(n, t) for n, t in named if t.is_floating_point()]
    if not named:
        return None
    sound = all_finite([t for _, t in named])
    if bool(sound.all()):
        return None
    bad = [n for (n, _), fine in zip(named, sound.tolist(), strict=True) if not fine]
    return f"{what} {bad[0]!r}" + (f" and of {len(bad) - 1} more" if len(bad) > 1 else "")


def refuse_weights(named: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raise NonFiniteError where a weight is not finite; `where` begins the sentence."""
    if problem := weight_problem(named):
        raise NonFiniteError(f"{where}: {problem} are not finite")
