"""The rest of `references`: whole-sequence objectives, baselines and credit, again without a line of the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from statistics import NormalDist, median_low

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.objective.references import (
    World,
    apart,
    deviation,
    dual_clip,
    grpo,
    k3,
    mean,
    ppo,
    ratio,
    segment_of,
    sequence_mean,
    standard,
    token_mean,
)

# ---- whole-sequence objectives


def pacs(world: World, new: Tensor, balance: bool = False) -> Tensor:
    q = [apart(world, new, i).sum() for i in world.rows]
    loss = 0
    for i in world.rows:
        rest = [q[j] for j in world.members(i) if j != i]
        z, y = q[i] - sum(rest) / len(rest), world.success[i]
        alike = sum(world.success[j] == y for j in world.members(i))
        weight = len(world.members(i)) / (2 * alike) if balance else 1.0
        loss = loss - weight * (y * logsigmoid(z) + (1 - y) * logsigmoid(-z))
    return loss / len(world.rows)


def real(world: World, new: Tensor, skip: bool = True) -> Tensor:
    """Prompts of one class are skipped but counted; the paper trains them."""
    loss = 0
    for prompt in world.prompts:
        if skip and len({world.success[i] for i in prompt}) == 1:
            continue
        s = {i: apart(world, new, i).mean() / 0.5 for i in prompt}
        good, bad = [torch.exp(-s[i]) for i in prompt if world.success[i]], [torch.exp(s[i]) for i in prompt
                                                                             if not world.success[i]]  # fmt: skip
        loss = loss + sum(torch.log(1 + sum(side)) for side in (good, bad) if side)
    return loss / len(world.prompts)


def disco(world: World, new: Tensor, kind: str = "log_prob", tau: float | None = 10.0) -> Tensor:
    gain, drift = 0, 0
    for prompt in world.prompts:
        s = {}
        for i in prompt:
            r = apart(world, new, i)
            s[i] = torch.stack([new[i, t] for t in world.time[i]]).mean() if kind == "log_prob" else r.exp().mean()
            drift = drift + (r.exp() - 1 - r).sum()
        good = [s[i] for i in prompt if world.success[i]]
        bad = [s[i] for i in prompt if not world.success[i]]
        if good and bad:
            soft = sum(bad) / len(bad) if tau is None else tau * torch.log(sum(torch.exp(b / tau) for b in bad)
                                                                           / len(bad))  # fmt: skip
            gain = gain + sum(good) / len(good) - soft
    excess = torch.clamp(drift / sum(world.tokens(i) for i in world.rows) - 1e-4, min=0)
    return -gain / len(world.prompts) + 1000 / 2 * excess**2


def pairwise(world: World, value: Callable[[int, int], Tensor], wanted: Callable[[int, int], bool]) -> Tensor:
    """Mean over the ordered pairs of a prompt, then over prompts."""
    total = 0
    for prompt in world.prompts:
        pairs = [(i, j) for i in prompt for j in prompt if i != j and wanted(i, j)]
        if pairs:
            total = total + sum(value(i, j) for i, j in pairs) / len(pairs)
    return total / len(world.prompts)


def anchored(world: World, new: Tensor, i: int) -> Tensor:
    return apart(world, new, i, world.table["ref_log_probs"]).sum()


def copg(world: World, new: Tensor) -> Tensor:
    total = 0
    for prompt in world.prompts:
        values = []
        for i, j in combinations(prompt, 2):
            d = anchored(world, new, i) - anchored(world, new, j)
            values.append((world.reward[i] - world.reward[j]) * d - 0.1 / 2 * d**2)
        total = total + sum(values) / len(values)
    return -total / len(world.prompts)


def dpo(world: World, new: Tensor) -> Tensor:
    return -pairwise(
        world, lambda i, j: logsigmoid(0.1 * (anchored(world, new, i) - anchored(world, new, j))),
        lambda i, j: world.reward[i] > world.reward[j],
    )  # fmt: skip


def dno(world: World, new: Tensor) -> Tensor:
    return -pairwise(
        world, lambda i, j: logsigmoid(0.1 * (apart(world, new, i).sum() - apart(world, new, j).sum())),
        lambda i, j: world.reward[i] > world.reward[j],
    )  # fmt: skip


def alignment(world: World, new: Tensor) -> Tensor:
    """DYPO's contrast: every success against every failure of the prompt."""
    return -pairwise(
        world, lambda i, j: logsigmoid(0.1 * (anchored(world, new, i) - anchored(world, new, j))),
        lambda i, j: world.success[i] > world.success[j],
    )  # fmt: skip


def reg_grpo(world: World, new: Tensor, eps: float = 1e-2) -> Tensor:
    rho = [apart(world, new, i).sum() for i in world.rows]
    loss = 0
    for i in world.rows:
        mine = torch.stack([rho[j] for j in world.members(i)])
        predicted = (rho[i] - mine.mean()) / (mine.std() + eps)
        loss = loss + (standard(world, i) - predicted) ** 2
    return loss / len(world.rows)


def grao(world: World, new: Tensor) -> Tensor:
    """The last member of every prompt is its reference answer."""
    total = 0
    for prompt in world.prompts:
        e = {i: torch.stack([new[i, t] for t in world.time[i]]).mean() for i in prompt}
        a = {i: standard(world, i, eps=0.0, ddof=0) for i in prompt}
        y, own = prompt[-1], prompt[:-1]
        terms = [a[i] * e[i] + 0.5 * a[y] * e[y] + 0.6 * a[i] * (e[i] - e[y]) for i in own]
        total = total + sum(terms) / len(own)
    return -total / len(world.prompts)


# ---- penalties, on top of GRPO


def kl(world: World, new: Tensor, estimator: str, importance: bool = False) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        d = new[i, t] - world.table["ref_log_probs"][i, t]
        value = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}.get(estimator)
        if estimator == "k3_plus":
            value = (torch.exp(-d) + d - 1).detach() + d**2 / 2 - (d**2 / 2).detach()
        return value * ratio(world, new, i, t) if importance else value

    return grpo(world, new) - 0.3 * sequence_mean(world, f)


def laser(world: World, new: Tensor) -> Tensor:
    """The self-score is read from a table, b = .1 and c = -23; classes weigh the same, cut answers nothing."""
    loss = 0
    alive = [i for i in world.rows if world.tokens(i) < 9]
    for i in alive:
        score = 0.1 * (-20 + world.table["uniform"][i, world.time[i][-1]] + 23)
        alike = sum(world.success[j] == world.success[i] for j in alive)
        loss = loss + (score - world.success[i]) ** 2 / (2 * alike)
    clipped = token_mean(world, lambda i, t: ppo(ratio(world, new, i, t), standard(world, i), 0.8, 1.2))
    return clipped + 0.1 * loss


def lightningrl(world: World, new: Tensor) -> Tensor:
    def z(values: list[float], value: float) -> float:
        return (value - mean(values)) / deviation(values, 0) if deviation(values, 0) > 1e-9 else 0.0

    total, speed = [], world.parts["ranking"]
    for i in world.rows:
        right, fast = [world.success[j] for j in world.members(i)], [speed[j] for j in world.members(i)]
        total.append(z(right, world.success[i]) + z(fast, speed[i]))
    a = [z(total, value) for value in total]
    policy = sequence_mean(world, lambda i, t: ppo(ratio(world, new, i, t), a[i], 0.8, 1.2))
    penalty = -token_mean(world, lambda i, t: k3(new[i, t], world.table["ref_log_probs"][i, t]))
    good = [(i, t) for i in world.rows if world.success[i] for t in world.time[i]]
    return policy + 0.01 * penalty - 0.1 * sum(new[i, t] for i, t in good) / len(good)


# ---- baselines, under DAPO's mean and plain clipping


def clipped(world: World, new: Tensor, a: Callable[[int, int], float], low: float = 0.2, high: float = 0.2) -> Tensor:
    return token_mean(world, lambda i, t: ppo(ratio(world, new, i, t), a(i, t), 1 - low, 1 + high))


def gui_libra(world: World, new: Tensor) -> Tensor:
    def a(i: int, t: int) -> float:
        scale = min(max(0.5 + 1.5 * mean([world.reward[j] for j in world.members(i)]), 0), 1)
        return standard(world, i) * (scale if standard(world, i) < 0 else 1)

    return clipped(world, new, a)


def mc_grpo(world: World, new: Tensor) -> Tensor:
    """The median member leaves the loss; aggregated like GRPO."""
    advantage, pivots = {}, []
    for prompt in world.prompts:
        middle = median_low([world.reward[i] for i in prompt])
        spread = median_low([abs(world.reward[i] - middle) for i in prompt])
        if spread < 1e-6:
            spread = deviation([world.reward[i] for i in prompt])
        a = {i: (world.reward[i] - middle) / (spread + 1e-3) for i in prompt}
        moved = sum(abs(v) > 1e-6 for v in a.values())
        advantage |= {i: v * len(prompt) / moved for i, v in a.items()}
        pivots.append(next(i for i in prompt if world.reward[i] == middle))
    rows = [i for i in world.rows if i not in pivots]
    values = [sum(ppo(ratio(world, new, i, t), advantage[i], 0.8, 1.2) for t in world.time[i]) / world.tokens(i)
              for i in rows]  # fmt: skip
    return -sum(values) / len(rows)


def ngrpo(world: World, new: Tensor) -> Tensor:
    def a(i: int, t: int) -> float:
        seen = [world.reward[j] for j in world.members(i)] + [1.0]
        return (world.reward[i] - mean(seen)) / (deviation(seen) + 1e-6)

    return clipped(world, new, a, 0.16, 0.24)


def gdpo(world: World, new: Tensor) -> Tensor:
    total = []
    for i in world.rows:
        terms = []
        for values in world.parts.values():
            mine = [values[j] for j in world.members(i)]
            terms.append((values[i] - mean(mine)) / (deviation(mine) + 1e-4))
        total.append(sum(terms))
    return clipped(world, new, lambda i, t: (total[i] - mean(total)) / (deviation(total) + 1e-4))


def spo_first_visit(world: World, new: Tensor) -> Tensor:
    """Nothing is known of any prompt: v = 1/2."""
    a = [r - 0.5 for r in world.reward]
    return clipped(world, new, lambda i, t: (a[i] - mean(a)) / (deviation(a) + 1e-8), 0.2, 0.28)


def w_reinforce(world: World, new: Tensor) -> Tensor:
    return clipped(world, new, lambda i, t: 0.1 if world.success[i] else -1.0)


def trloo(world: World, new: Tensor) -> Tensor:
    """Segments are turns."""

    def later(i: int, k: int) -> float:
        return sum(float(world.table["uniform"][i, t]) for t in world.time[i] if segment_of(world, i, t) >= k)

    def a(i: int, t: int) -> float:
        k = segment_of(world, i, t)
        reached = [later(j, k) for j in world.members(i) if segment_of(world, j, world.time[j][-1]) >= k]
        n = len(reached)
        return n / (n - 1) * (later(i, k) - mean(reached)) if n > 1 else later(i, k)

    return clipped(world, new, a, 0.2, 0.28)


def ma_rlhf(world: World, new: Tensor, size: int = 5, trace: float = 0.95) -> Tensor:
    """`uniform` holds the critic's values; the last action is a macro of its own."""
    advantage = {}
    for i in world.rows:
        *head, last = world.time[i]
        macros = [head[k : k + size] for k in range(0, len(head), size)] + [[last]]
        running, following = 0.0, 0.0
        for k in reversed(range(len(macros))):
            value = mean([float(world.table["uniform"][i, t]) for t in macros[k]])
            delta = (world.reward[i] if k == len(macros) - 1 else 0.0) + following - value
            running, following = delta + trace * running, value
            advantage |= {(i, t): running for t in macros[k]}
    return clipped(world, new, lambda i, t: advantage[i, t])


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def durian(world: World, new: Tensor) -> Tensor:
    """Four prompts: three perceptual levels, and one bin of confidence (too few prompts for twelve)."""
    image = {i: float(world.table["uniform"][world.members(i)[0], 0]) for i in world.rows}
    once = [image[prompt[0]] for prompt in world.prompts]
    level = {i: (image[i] > quantile(once, 0.25)) + (image[i] >= quantile(once, 0.75)) for i in world.rows}
    everyone = deviation(world.reward)

    def a(i: int, t: int) -> float:
        centre = world.reward[i] - mean([world.reward[j] for j in world.members(i)])
        alike = deviation([world.reward[j] for j in world.rows if level[j] == level[i]])
        return 0.4 * standard(world, i) + 0.3 * centre / alike + 0.3 * centre / everyone

    return sequence_mean(world, lambda i, t: ppo(ratio(world, new, i, t), a(i, t), 0.8, 1.2))


def g2rpo(world: World, new: Tensor) -> Tensor:
    """Normal scores inside each group, then over the batch, which is one task; no ties between different groups' scores
    but those of equal ranks in groups of equal size, of which there are none."""

    def scores(values: dict[int, float]) -> dict[int, float]:
        ordered = sorted(values, key=values.__getitem__)
        raw = {i: NormalDist().inv_cdf((k + 0.5) / len(ordered)) for k, i in enumerate(ordered)}
        same = {i: [raw[j] for j in values if abs(values[j] - values[i]) < 1e-9] for i in values}
        return {i: mean(same[i]) for i in values}

    first: dict[int, float] = {}
    for prompt in world.prompts:
        first |= scores({i: world.reward[i] for i in prompt})
    second = scores(first)
    return clipped(world, new, lambda i, t: second[i])


# ---- credit


def forking_tokens(world: World, new: Tensor) -> Tensor:
    everything = [float(world.table["entropy"][i, t]) for i in world.rows for t in world.time[i]]
    cut = quantile(everything, 0.8)
    return clipped(
        world, new, lambda i, t: standard(world, i) * (float(world.table["entropy"][i, t]) >= cut), 0.2, 0.28
    )  # fmt: skip


def fipo(world: World, new: Tensor) -> Tensor:
    def weight(i: int, t: int) -> float:
        later = [u for u in world.time[i] if u >= t]
        future = sum(2 ** (-(u - t) / 32) * float(new[i, u].detach() - world.old[i, u]) for u in later)
        w = min(max(math.exp(future), 1.0), 1.2)
        far = float(ratio(world, new.detach(), i, t)) > 4 and standard(world, i) < 0
        return min(max(w, 0.8), 1.0) if far else w

    return clipped(world, new, lambda i, t: standard(world, i) * weight(i, t), 0.2, 0.28)


def delta_log_p(world: World, new: Tensor) -> Tensor:
    return clipped(
        world, new, lambda i, t: standard(world, i) * (1 + 0.2 * (1 - math.exp(world.old[i, t]))), 0.2, 0.28
    )  # fmt: skip


def ace(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        c = mean([float(world.old[i, u] - world.table["ref_log_probs"][i, u]) for u in world.time[i]])
        return ppo(ratio(world, new, i, t), a * (1 + math.log(1 + math.exp(c))) if a < 0 else a, 0.8, 1.2)

    return sequence_mean(world, f)


def xrpo(world: World, new: Tensor) -> Tensor:
    s = [mean([float(world.old[i, t]) for t in world.time[i]]) for i in world.rows]

    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        novelty = 1 - math.exp(s[i] - mean([s[j] for j in world.members(i)]))
        bonus = min(max(2.5 * novelty, 0), 0.5 * a) if world.success[i] and a > 0 else 0.0
        return ppo(ratio(world, new, i, t), a + bonus, 0.8, 1.2)

    return sequence_mean(world, f)


def vppo(world: World, new: Tensor, share: float = 0.4, least: float = 0.9) -> Tensor:
    """Another log-prob table stands for the masked image."""
    masked = world.table["sampler_log_probs"]
    s = {i: {t: min(max(float(k3(world.old[i, t], masked[i, t])), 0), 10) for t in world.time[i]} for i in world.rows}
    level = [mean(list(s[i].values())) for i in world.rows]
    spread = [(v - min(level)) / (max(level) - min(level)) for v in level]
    most = least + (1 - least) / (mean(spread) + 1e-8)

    def a(i: int, t: int) -> float:
        kept = sorted(s[i], key=s[i].__getitem__, reverse=True)[: math.ceil(share * len(s[i]) - 1e-9)]
        return standard(world, i) * (least + spread[i] * (most - least)) * (t in kept)

    return clipped(world, new, a, 0.2, 0.28) - 0.06 * -token_mean(world, lambda i, t: new[i, t])


def tor(world: World, new: Tensor) -> Tensor:
    """Another log-prob table stands for the prompt without its image."""
    tokens = [(i, t) for i in world.rows for t in world.time[i]]
    count = math.ceil(0.3 * len(tokens) - 1e-9)
    gap = (world.old - world.table["sampler_log_probs"]).abs()
    reasoning = sorted(tokens, key=lambda at: float(world.table["entropy"][at]), reverse=True)[:count]
    perception = sorted(tokens, key=lambda at: float(gap[at]), reverse=True)[:count]

    def a(i: int, t: int) -> float:
        return standard(world, i) * (1.0 if (i, t) in reasoning else 0.5 if (i, t) in perception else 0.0)

    return clipped(world, new, a, 0.2, 0.28)


def verl(world: World, new: Tensor) -> Tensor:
    """The preset: dual clip at 3, k3 clamped to +-10."""

    def f(i: int, t: int) -> Tensor:
        return k3(new[i, t], world.table["ref_log_probs"][i, t]).clamp(-10, 10)

    return dual_clip(world, new, 3.0) - 0.001 * token_mean(world, f)
