"""Held-out scores: the actor acts deterministically (or `samples` times) on every prompt once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from accelerate import Accelerator

from mmrl.randomness import Key
from mmrl.record import Prompt, Request, Rollouts, Scores
from mmrl.rollout.actor import Actor, score_rows
from mmrl.selection.prompts import Prefetching
from mmrl.shown import tell
from mmrl.training.distributed import gather_objects, my_share, together

Score = Callable[[list, list[Prompt]], Scores]
EVALUATION_SEED = 20_240_131


def pass_at_k(correct: torch.Tensor, total: int, k: int) -> torch.Tensor:
    """Unbiased pass@k of `correct (P,)` successes out of `total` samples: 1 - C(n-c, k) / C(n, k)."""
    if k > total:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {total}")
    misses = (total - correct).double()
    ratio = torch.ones_like(misses)
    for i in range(k):
        ratio = ratio * (misses - i).clamp(min=0) / (total - i)
    return 1 - ratio


@torch.no_grad()
def evaluate(
    actor: Actor, prompts: Sequence[Prompt], score: Score, *, batch_size: int, accelerator: Accelerator,
    samples: int = 1, keep: int = 0, halted: Callable[[], bool] | None = None,
) -> tuple[dict[str, float], Rollouts | None]:  # fmt: skip
    """Mean reward, components and success over `prompts`; with `samples > 1` also pass@k.

    One sample is greedy (argmax, or the ODE sampler); several are drawn where argmax would only repeat itself.
    Draws are keyed by prompt and member, so the score does not depend on batch size or world size.
    Returns the first `keep` rollouts of this rank as well. Ranks act equally often: one without prompts of its own acts
    on the first and drops what came out.

    halted  asked on every rank before each round; where it says so, nothing is returned: `({}, None)`
    """
    mine = my_share(list(range(len(prompts))), accelerator)
    lines: list[dict] = []
    kept: list[Rollouts] = []
    greedy = samples == 1 or actor.policy.varied_when_greedy

    def act(chunk: list[int]) -> Rollouts:
        requests = [Request(prompts[i], samples, group=i) for i in chunk]
        rollouts = actor.act(requests, Key(EVALUATION_SEED, purpose="evaluate"), greedy=greedy)
        score_rows(rollouts, score)
        return rollouts

    most = -(-len(prompts) // accelerator.num_processes)
    for start in range(0, most, batch_size):
        if halted is not None and halted():
            return {}, None
        chunk = mine[start : start + batch_size]
        if isinstance(prompts, Prefetching):
            prompts.prefetch(mine[start : start + 2 * batch_size])
        rollouts = together(partial(act, chunk or [0]), accelerator)
        if not chunk:
            continue
        lines += _rows(rollouts)
        if sum(map(len, kept)) < keep:
            kept.append(rollouts.index(torch.arange(min(keep - sum(map(len, kept)), len(rollouts)))))
    everyone = sorted((line for part in gather_objects(lines, accelerator) for line in part), key=lambda r: r["row"])
    return _summary(everyone, samples), Rollouts.concatenate(kept) if kept else None


def tell_before(scores: Mapping[str, float], accelerator: Accelerator) -> None:
    """What the model can do before it is trained: how often it is right by itself decides what training may find."""
    if not accelerator.is_main_process or "success" not in scores:
        return
    passes = [f"{name} {value:.3f}" for name, value in scores.items() if name.startswith("pass@") and name != "pass@1"]
    more = f", {', '.join(passes)}" if passes else ""
    tell(f"before training: held-out success {scores['success']:.3f} on {scores['prompts']:.0f} prompts{more}")


def _rows(rollouts: Rollouts) -> list[dict]:
    rows = []
    for i in range(len(rollouts)):
        row = {"row": [int(rollouts.group[i]), int(rollouts.member[i])], "length": int(rollouts.length[i])}
        row |= {k: float(rollouts.columns[k][i]) for k in ("calls", "bad_calls") if k in rollouts.columns}
        row |= {f"reward/{k}": float(v[i]) for k, v in rollouts.components.items()}
        row |= {"reward": float(rollouts.reward[i]), "success": float(rollouts.success[i])}
        rows.append(row)
    return rows


def _summary(rows: list[dict], samples: int) -> dict[str, float]:
    summary = {"prompts": float(len(rows) // samples)}
    for name in dict.fromkeys(k for row in rows for k in row if k != "row"):
        values = torch.tensor([r.get(name, float("nan")) for r in rows], dtype=torch.float64)
        scored = ~values.isnan()
        if name == "reward":
            summary["unscored"] = float((~scored).sum())
        if scored.any():
            summary[name] = values[scored].mean().item()
    if samples > 1 and "success" in summary:
        success = torch.tensor([r["success"] for r in rows]).nan_to_num(0).reshape(-1, samples)
        k = 1
        while k <= samples:
            summary[f"pass@{k}"] = pass_at_k(success.sum(1), samples, k).mean().item()
            k *= 2
    return summary
