"""Credit for parts of a rollout: steps that meet in the same state, phases around a marker, flagged spans.

Steps are the column `segment (B, T)` (0, 1, 2 ... in the row, -1 outside); `state (B, T)` numbers the state each
step starts from, equal numbers being equal states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.advantages.parts import spread_out, table
from mmrl.objective.advantages.robust import scored
from mmrl.objective.credit.rollouts import component
from mmrl.objective.credit.tokens import training_tokens
from mmrl.objective.groups import (
    group_average,
    group_centred,
    group_count,
    group_mean,
    group_normalized,
    group_std,
    group_sum,
    masked_mean,
)
from mmrl.objective.numerics import later_sum
from mmrl.objective.prefixes import action_ids
from mmrl.objective.vocabulary import numbers
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, stage


def _keys(batch: Batch, column: str) -> tuple[Tensor, Tensor]:
    """(B, K) the key of each step, and which steps exist."""
    keys, size = table(batch[column].double(), batch["segment"], batch.mask)
    return (keys / size.clamp(min=1)).round().long(), size > 0


def _pools(batch: Batch, column: str) -> tuple[Tensor, Tensor]:
    """(B K,) a number for each (group, key), and the steps that enter statistics."""
    keys, there = _keys(batch, column)
    group = batch.group[:, None].expand_as(keys)
    _, pool = torch.unique(torch.stack([group.flatten(), keys.flatten()], 1), dim=0, return_inverse=True)
    return pool, (there & scored(batch)[:, None]).flatten()


def _step_returns(batch: Batch, column: str | None, gamma: float) -> Tensor:
    """(B, K) discounted sum of later step rewards; without a column, of the outcome at the last step."""
    if column is not None:
        rewards, _ = table(batch[column], batch["segment"], batch.mask)
        return later_sum(rewards, gamma)
    _, size = table(torch.zeros_like(batch.old_log_probs), batch["segment"], batch.mask)
    steps = torch.arange(size.shape[1], device=size.device)
    last = (steps * (size > 0)).amax(1)
    return batch.reward.nan_to_num(0)[:, None] * gamma ** (last[:, None] - steps).clamp(min=0) * (size > 0)


def _pooled(returns: Tensor, pool: Tensor, where: Tensor, std: bool) -> Tensor:
    """(B, K) returns compared with the other steps of their pool; 0 for a step alone in it."""
    flat = returns.flatten()
    compared = group_normalized(flat, pool, where) if std else group_centred(flat, pool, where)
    alone = group_count(pool, where) < 2
    return compared.masked_fill(alone | ~where, 0.0).view_as(returns)


@stage(
    "credit",
    paper="GiGPO: Group-in-Group Policy Optimization, arXiv 2505.10978",
    formula="A_i + w (R_k - mean of R over the group's steps in the same state), R_k = sum_j>=k gamma^(j-k) r_j",
    confidence="verified",
    needs=("segment", "state"),
    modalities=LANGUAGE,
)
def gigpo(
    advantage: Tensor,
    batch: Batch,
    *,
    weight: float = 1.0,
    gamma: float = 0.95,
    std: bool = False,
    rewards: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Steps of a group that start from the same state form groups of their own. (B, T)

    weight   of the step advantage beside the episode's
    gamma    discount between steps
    std      divide by the deviation of the pool
    rewards  column (B, T) of rewards at actions; None: the outcome alone, at the last step

    A state met once adds exactly 0. Reads `segment` and `state`. Source: a released implementation
    (Fateyetian/Rebel, core_gigpo.py).
    """
    pool, where = _pools(batch, "state")
    step = _pooled(_step_returns(batch, rewards, gamma), pool, where, std)
    return advantage + weight * spread_out(step, batch["segment"], batch.mask).to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    paper="ReBel: belief grouping, arXiv 2605.20061",
    formula="A_i + w (Z(R_env) + Z(R_belief)), Z over the group's steps that state the same belief",
    confidence="verified",
    needs=("segment", "belief", "action_reward", "belief_reward"),
    modalities=LANGUAGE,
)
def rebel(
    advantage: Tensor, batch: Batch, *, weight: float = 0.5, gamma: float = 0.95, std: bool = True
) -> tuple[Tensor, Tensor]:
    """GiGPO whose pools are the belief a step states, with environment and belief-consistency returns apart. (B, T)

    weight, gamma, std  as in `gigpo`

    Reads `segment`, `belief`, `action_reward`, `belief_reward`. Source: the authors' code; trackers that
    canonicalise beliefs of text games are out of scope.
    """
    pool, where = _pools(batch, "belief")
    step = sum(
        _pooled(_step_returns(batch, column, gamma), pool, where, std) for column in ("action_reward", "belief_reward")
    )
    return advantage + weight * spread_out(step, batch["segment"], batch.mask).to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    paper="RLVMR: verifiable meta-reasoning rewards, 2025",
    formula="A_traj + a (r_step - mean over the group's steps with the same tag)",
    confidence="verified",
    needs=("segment", "tag", "action_reward"),
    modalities=LANGUAGE,
)
def rlvmr(advantage: Tensor, batch: Batch, *, weight: float = 1.0, std: bool = False) -> tuple[Tensor, Tensor]:
    """Rule rewards of tagged steps (plan, explore, reflect), normalised among steps of the same tag. (B, T)

    weight  of the tag advantage
    std     divide by the deviation of the tag

    Reads `segment`, `tag` (untagged steps share a tag of their own), `action_reward`: planning pays where the
    rollout succeeds, exploring where the action is new, reflecting where it changes after a failure. Source: the
    authors' code (core_rlvmr.py); a tag met once adds 0 here and its own reward there.
    """
    pool, where = _pools(batch, "tag")
    rewards, _ = table(batch["action_reward"], batch["segment"], batch.mask)
    step = spread_out(_pooled(rewards, pool, where, std), batch["segment"], batch.mask)
    return advantage + weight * step.to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    paper="Graph-GRPO, 2025",
    formula="A of a choice = mean reward of the group's rollouts that make it - group mean",
    confidence="reconstructed",
    needs=("segment", "choice"),
)
def graph_grpo(advantage: Tensor, batch: Batch, *, std: bool = False, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """A discrete choice is worth what the rollouts that make it earn beyond the group; replaces the advantage. (B, T)

    std  divide by the group's deviation

    Reads `segment` and `choice (B, T)`; a rollout counts once for a choice it makes often. Reconstructed from
    the abstract.
    """
    keys, there = _keys(batch, "choice")
    counted = there & scored(batch)[:, None]
    row = torch.arange(len(keys), device=keys.device)[:, None].expand_as(keys)
    triple = torch.stack([batch.group[:, None].expand_as(keys), keys, row], 2).flatten(0, 1)
    _, made = torch.unique(triple, dim=0, return_inverse=True)
    _, choice = torch.unique(triple[:, :2], dim=0, return_inverse=True)
    # a choice made n times in a rollout counts 1/n each time
    once = counted.flatten() / group_count(made, counted.flatten()).clamp(min=1).to(batch.reward.dtype)
    reward = batch.reward.nan_to_num(0)[:, None].expand_as(keys).flatten()
    worth = group_average(reward, once, choice)
    gain = worth.view_as(keys) - group_mean(batch.reward, batch.group, scored(batch))[:, None]
    if std:
        gain = gain / (group_std(batch.reward, batch.group, scored(batch))[:, None] + eps)
    return spread_out(gain * counted, batch["segment"], batch.mask).to(advantage.dtype), batch.loss_mask


@stage(
    "credit",
    paper="SALT: step-level advantages from a trajectory graph, arXiv 2510.20022",
    formula="a step that rollouts share (same state, same actions, same next state) takes the mean of their A_i",
    confidence="partly",
    needs=("segment", "state", "actions"),
    modalities=LANGUAGE,
)
def salt(advantage: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Steps shared by right and wrong rollouts get averaged credit, others keep their own. (B, T)

    Reads `segment` and `state`. The sum of the group's step advantages stays. Source: abstract and surveys (one
    graph for each prompt, equal states merged, no extra rollouts); the merge and the averaging rule are ours.
    """
    ids, rows = action_ids(batch, "salt").tolist(), masked_mean(advantage, batch.mask).tolist()
    states, segments = batch["state"].tolist(), batch["segment"].tolist()
    edges: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
    for i in (batch.trained & batch.counted.bool()).nonzero().squeeze(1).tolist():
        steps: dict[int, list[int]] = defaultdict(list)
        for t in batch.mask[i].nonzero().squeeze(1).tolist():
            if segments[i][t] >= 0:
                steps[segments[i][t]].append(t)
        before = {k: states[i][places[0]] for k, places in steps.items()}
        for k, places in steps.items():
            acted = tuple(ids[i][t] for t in places)
            edges[int(batch.group[i]), before[k], acted, before.get(k + 1)].append((i, k))
    merged = advantage.clone()
    for members in edges.values():
        if len({i for i, _ in members}) > 1:
            mean = sum(rows[i] for i, _ in members) / len(members)
            for i, k in members:
                merged[i, (batch["segment"][i] == k) & batch.mask[i]] = mean
    return merged, batch.loss_mask


@stage(
    "credit",
    paper="DynFrame (SD-GRPO), 2026",
    formula="A_retrieval up to the first marker, A_answer after it, each the group z-score of its own reward",
    confidence="partly",
    needs=("actions", "components"),
    modalities=LANGUAGE,
    waits=("marker",),
    vocabulary={"marker": "sequence"},
)
def dynframe_sd_grpo(
    advantage: Tensor,
    batch: Batch,
    *,
    marker: Sequence[int | str] = (),
    retrieval: str = "retrieval",
    answer: str = "answer",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The retrieval decision and the answer each get their own advantage; replaces the incoming one. (B, T)

    marker             token ids of `</fps>` (or whatever ends the retrieval part), or that text, where the tokenizer
                       writes it so wherever it stands
    retrieval, answer  reward components of the two parts

    The marker's last token still belongs to retrieval. A rollout without a marker uses its answer advantage
    throughout and counts as 0 in the retrieval statistics (ours). Source: the project's README; its public
    training code normalises the rewards apart and sums them instead.
    """
    if not marker:
        raise ConfigError("dynframe_sd_grpo: give it marker, the token ids that end the retrieval part")
    ids = numbers(marker, "credit 'dynframe_sd_grpo': marker")
    end = marker_end(action_ids(batch, "dynframe_sd_grpo"), batch.mask, ids)
    place = torch.arange(batch.mask.shape[1], device=end.device)
    return _two_parts(advantage, batch, place <= end[:, None], retrieval, answer, eps), batch.loss_mask


@stage(
    "credit",
    method="dynframe_turns",
    paper="DynFrame (SD-GRPO), 2026",
    formula="A_retrieval in the turns before the last, A_answer in the last, each the group z-score of its own reward",
    confidence="partly",
    needs=("turn", "components"),
    modalities=LANGUAGE,
)
def dynframe_turns(
    advantage: Tensor, batch: Batch, *, retrieval: str = "retrieval", answer: str = "answer", eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """`dynframe_sd_grpo` where an environment, such as `frames`, fetches: it asks in one turn and answers in another.

    retrieval, answer  reward components of the two parts; the first may be a row column, as `fetched` of `frames`

    A rollout of one turn fetched nothing: its answer advantage holds throughout, and it counts as 0 in the retrieval
    statistics. No marker is needed. Source: the project's README, as of `dynframe_sd_grpo`.
    """
    turn = torch.where(batch.mask, batch["turn"], torch.full_like(batch["turn"], -1))
    early = batch.mask & (turn < turn.amax(1, keepdim=True))
    return _two_parts(advantage, batch, early, retrieval, answer, eps), batch.loss_mask


def _two_parts(
    advantage: Tensor, batch: Batch, early: Tensor, retrieval: str, answer: str, eps: float
) -> Tensor:  # fmt: skip
    """(B, T) the advantage of the retrieval reward where `early (B, T)`, that of the answer reward elsewhere."""
    found = (early & batch.mask).any(1)
    where = scored(batch)
    held = batch.columns.get(retrieval)
    first = (component(batch, retrieval, "dynframe_sd_grpo") if held is None else held).masked_fill(~found, 0.0)
    fetched = group_normalized(first, batch.group, where, eps)
    answered = group_normalized(component(batch, answer, "dynframe_sd_grpo"), batch.group, where, eps)
    split = torch.where(early, fetched[:, None], answered[:, None]) * batch.mask
    return split.to(advantage.dtype)


def marker_end(actions: Tensor, mask: Tensor, marker: Sequence[int]) -> Tensor:
    """(B,) long: column of the last token of the first occurrence of `marker` among sampled tokens, -1 if none."""
    width, n = actions.shape[1], len(marker)
    if width < n:
        return torch.full((len(actions),), -1, device=actions.device)
    windows = actions.unfold(1, n, 1) == torch.tensor(list(marker), device=actions.device)
    hit = windows.all(2) & mask.unfold(1, n, 1).all(2)
    return torch.where(hit.any(1), hit.long().argmax(1) + n - 1, -1)


@stage(
    "credit",
    paper="Perceval: perception process rewards, 2026",
    formula="A_i - alpha M_it |A_i|, M = 1 on tokens the process reward model flags",
    confidence="verified",
    needs=("flagged_tokens",),
    modalities=LANGUAGE,
)
def perceval(advantage: Tensor, batch: Batch, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """Tokens that contradict the image lose a share of |A|, in right and wrong rollouts alike. (B, T)

    alpha  .03 is too weak and .3 too strong in the paper

    Reads `flagged_tokens (B, T)`, made by `flagged_spans` from the process reward model's reply. A group of equal
    rewards gets no penalty. Source: the authors' code (RUCAIBox/Perceval).
    """
    flagged = (batch["flagged_tokens"] != 0).to(advantage.dtype)
    return advantage - alpha * flagged * advantage.abs(), batch.loss_mask


def flagged_spans(pieces: Sequence[str], spans: Sequence[str]) -> list[bool]:
    """Which tokens of a response, given as the text each adds, touch the first occurrence of any of `spans`.

    Pieces of the sampled ids, not of the text tokenised again, which may differ. A span that does not occur is
    ignored.
    """
    text, flagged = "".join(pieces), [False] * len(pieces)
    ends, end = [], 0
    for piece in pieces:
        end += len(piece)
        ends.append(end)
    for span in spans:
        start = text.find(span) if span else -1
        for t, piece in enumerate(pieces):
            flagged[t] |= start >= 0 and ends[t] > start and ends[t] - len(piece) < start + len(span)
    return flagged


@stage(
    "credit",
    paper="ATLAS (LA-GRPO), arXiv 2605.15198",
    formula="L_GRPO + alpha mean over functional tokens of their own clipped loss",
    confidence="partly",
    scope="update",
    needs=("actions",),
    modalities=LANGUAGE,
    waits=("tokens",),
    vocabulary={"tokens": "single"},
)
def atlas_la_grpo(
    advantage: Tensor, batch: Batch, *, tokens: Sequence[int | str] = (), alpha: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Rare functional tokens get an extra loss averaged over themselves only. (B, T)

    tokens  the functional vocabulary: ids, or texts that are one token each, such as "<|Line|>"
    alpha   weight of the extra loss; .05 to .5 (ours: the paper's value was not found)

    As a credit: their advantage is multiplied by 1 + alpha N / |M| (N tokens of the optimizer step, |M| of them
    functional), which is that loss exactly under the `token_mean` aggregation. No functional token: unchanged.
    Source: the overview figure and the abstract; no training code was released.
    """
    if not tokens:
        raise ConfigError("atlas_la_grpo: give it tokens, the ids of the functional vocabulary")
    where = training_tokens(batch)
    wanted = torch.tensor(numbers(tokens, "credit 'atlas_la_grpo': tokens"), device=where.device)
    functional = torch.isin(action_ids(batch, "atlas_la_grpo"), wanted) & where
    total = group_sum(where.sum(1), batch.update)
    rare = group_sum(functional.sum(1), batch.update)
    factor = 1 + alpha * functional * (total / rare.clamp(min=1))[:, None]
    return advantage * factor.to(advantage.dtype), batch.loss_mask
