"""Published losses written out again, rollout by rollout and token by token, without a line of the library.

Slow, plain and float64, so that each can be read beside its paper. `World` is one optimizer step: groups of unequal
sizes, answers of unequal lengths, one with a hole in its mask. Every function takes it and the current log-probs and
returns the loss, with gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

SIZES = (3, 4, 2, 5)
LENGTHS = (4, 7, 1, 9, 2, 6, 5, 3, 8, 9, 1, 4, 6, 2)
LIMIT = 12
"""The limit on the length of an answer: a constant of the run."""


@dataclass
class World:
    """`group[i]`, `reward[i]`, `success[i]` of rollout i; `old[i][t]` and further tables of tokens; `time[i]` its
    tokens."""

    group: list[int]
    reward: list[float]
    success: list[float]
    time: list[list[int]]
    old: Tensor
    table: dict[str, Tensor] = field(default_factory=dict)
    row: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rows(self) -> range:
        return range(len(self.group))

    def members(self, i: int) -> list[int]:
        """All rollouts of i's prompt."""
        return [j for j in self.rows if self.group[j] == self.group[i]]

    @property
    def prompts(self) -> list[list[int]]:
        return [[i for i in self.rows if self.group[i] == g] for g in sorted(set(self.group))]

    def tokens(self, i: int) -> int:
        return len(self.time[i])


def make_world(seed: int = 0) -> World:
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    group = [n for n, size in enumerate(SIZES) for _ in range(size)]
    time = [list(range(length)) for length in LENGTHS]
    time[1] = [0, 2, 3, 4, 6, 7, 8]
    rows, width = len(group), 9
    tables = {name: uniform(rows, width) for name in ("entropy", "uniform")}
    old = -2.5 * uniform(rows, width) - 0.02
    tables["ref_log_probs"] = old + 0.4 * (uniform(rows, width) - 0.5)
    tables["sampler_log_probs"] = old + 0.2 * (uniform(rows, width) - 0.5)
    tables["gumbels"] = -2 * uniform(rows, width, 2)
    success = [1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0]
    return World(
        group=group,
        reward=(0.1 + 0.8 * uniform(rows)).tolist(),
        success=[float(s) for s in success],
        time=time,
        old=old,
        table=tables,
        row={"score_gradient_norm": (0.5 + uniform(rows)).tolist(), "reference_value": uniform(rows).tolist()},
        parts={name: uniform(rows).tolist() for name in ("coverage", "ranking")},
    )


# ---- statistics


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float], ddof: int = 1) -> float:
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def standard(world: World, i: int, eps: float = 1e-6, ddof: int = 1) -> float:
    """GRPO's advantage."""
    rewards = [world.reward[j] for j in world.members(i)]
    return (world.reward[i] - mean(rewards)) / (deviation(rewards, ddof) + eps)


def centred(world: World, i: int) -> float:
    """Dr.GRPO's advantage."""
    return world.reward[i] - mean([world.reward[j] for j in world.members(i)])


def others(world: World, i: int) -> float:
    """RLOO's advantage."""
    return world.reward[i] - mean([world.reward[j] for j in world.members(i) if j != i])


def ratio(world: World, new: Tensor, i: int, t: int) -> Tensor:
    return torch.exp(new[i, t] - world.old[i, t])


def apart(world: World, new: Tensor, i: int, other: Tensor | None = None) -> Tensor:
    """Log-ratios of the tokens of rollout i, to the policy that sampled or to `other`."""
    other = world.old if other is None else other
    return torch.stack([new[i, t] - other[i, t] for t in world.time[i]])


def ppo(r: Tensor, a: float, low: float, high: float) -> Tensor:
    return torch.minimum(r * a, torch.clamp(r, low, high) * a)


# ---- means: of token objectives `f(i, t)`, negated into a loss

Objective = Callable[[int, int], Tensor]


def token_mean(world: World, f: Objective) -> Tensor:
    return -sum(f(i, t) for i in world.rows for t in world.time[i]) / sum(world.tokens(i) for i in world.rows)


def sequence_mean(world: World, f: Objective) -> Tensor:
    return -sum(sum(f(i, t) for t in world.time[i]) / world.tokens(i) for i in world.rows) / len(world.rows)


def sequence_sum(world: World, f: Objective) -> Tensor:
    return -sum(f(i, t) for i in world.rows for t in world.time[i]) / len(world.rows)


def k3(new: Tensor, reference: Tensor) -> Tensor:
    return torch.exp(reference - new) - (reference - new) - 1


# ---- baselines


def grpo(world: World, new: Tensor, beta: float = 0.0) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        kl = k3(new[i, t], world.table["ref_log_probs"][i, t])
        return ppo(ratio(world, new, i, t), standard(world, i), 0.8, 1.2) - beta * kl

    return sequence_mean(world, f)


def dr_grpo(world: World, new: Tensor) -> Tensor:
    total = 0
    for i in world.rows:
        total = total + sum(ppo(ratio(world, new, i, t), centred(world, i), 0.8, 1.2) for t in world.time[i])
    return -total / (len(world.rows) * LIMIT)


def dapo(world: World, new: Tensor) -> Tensor:
    """The soft penalty starts at 80 % of the limit; prompts whose rollouts are all right or all wrong are left out."""
    buffer = 0.2 * LIMIT
    shaped = []
    for i in world.rows:
        n = world.tokens(i)
        penalty = 0.0 if n <= LIMIT - buffer else ((LIMIT - buffer) - n) / buffer if n <= LIMIT else -1.0
        shaped.append(world.reward[i] + penalty)
    priced = World(world.group, shaped, world.success, world.time, world.old)
    mixed = [i for i in world.rows if len({world.success[j] for j in world.members(i)}) == 2]
    values = [ppo(ratio(world, new, i, t), standard(priced, i), 0.8, 1.28) for i in mixed for t in world.time[i]]
    return -sum(values) / len(values)


def bnpo(world: World, new: Tensor, rows: int = 5) -> Tensor:
    chunks = [list(world.rows)[k : k + rows] for k in range(0, len(world.rows), rows)]
    loss = 0
    for chunk in chunks:
        tokens = sum(world.tokens(i) for i in chunk)
        values = [ppo(ratio(world, new, i, t), standard(world, i), 0.8, 1.2) for i in chunk for t in world.time[i]]
        loss = loss - sum(values) / tokens
    return loss / len(chunks)


def dual_clip(world: World, new: Tensor, c: float = 1.5) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        value = ppo(ratio(world, new, i, t), a, 0.8, 1.2)
        return torch.maximum(value, torch.tensor(c * a, dtype=torch.float64)) if a < 0 else value

    return token_mean(world, f)


def cispo(world: World, new: Tensor, low: float = 0.0, high: float = 5.0) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        weight = min(max(float(ratio(world, new.detach(), i, t)), low), high)
        return weight * standard(world, i) * new[i, t]

    return token_mean(world, f)


def rloo(world: World, new: Tensor) -> Tensor:
    return -sum(others(world, i) * sum(new[i, t] for t in world.time[i]) for i in world.rows) / len(world.rows)


def rloo_of_trl(world: World, new: Tensor, beta: float = 0.05) -> Tensor:
    """KL in the reward; PPO on the ratio of the whole sequence."""
    reference = world.table["ref_log_probs"]
    paid = [r - beta * float(sum(world.old[i, t] - reference[i, t] for t in world.time[i])) for i, r in
            enumerate(world.reward)]  # fmt: skip
    priced = World(world.group, paid, world.success, world.time, world.old)
    return -sum(
        ppo(torch.exp(apart(world, new, i).sum()), others(priced, i), 0.8, 1.2) for i in world.rows
    ) / len(world.rows)  # fmt: skip


def reinforce_plus_plus(
    world: World, new: Tensor, discount: float = 1.0, kl: float = 0.0, baseline: bool = False
) -> Tensor:
    returns: dict[tuple[int, int], float] = {}
    for i in world.rows:
        running = 0.0
        for t in reversed(world.time[i]):
            outcome = (centred(world, i) if baseline else world.reward[i]) if t == world.time[i][-1] else 0.0
            outcome -= kl * float(world.old[i, t] - world.table["ref_log_probs"][i, t])
            running = outcome + discount * running
            returns[i, t] = running
    centre = mean(list(returns.values()))
    variance = deviation(list(returns.values())) ** 2

    def f(i: int, t: int) -> Tensor:
        return ppo(ratio(world, new, i, t), (returns[i, t] - centre) / math.sqrt(variance + 1e-8), 0.8, 1.2)

    return token_mean(world, f)


def gspo(world: World, new: Tensor) -> Tensor:
    return -sum(
        ppo(torch.exp(apart(world, new, i).mean()), standard(world, i), 1 - 3e-4, 1 + 4e-4) for i in world.rows
    ) / len(world.rows)  # fmt: skip


def gspo_token(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        s = torch.exp(apart(world, new, i).mean()).detach() * torch.exp(new[i, t] - new[i, t].detach())
        return ppo(s, standard(world, i), 1 - 3e-4, 1 + 4e-4)

    return sequence_mean(world, f)


def luspo(world: World, new: Tensor) -> Tensor:
    return -sum(
        world.tokens(i)
        * ppo(torch.exp(apart(world, new, i).mean()), standard(world, i), 1 - 3e-4, 1 + 4e-4)
        for i in world.rows
    ) / len(world.rows)  # fmt: skip


def gmpo(world: World, new: Tensor) -> Tensor:
    loss = 0
    for i in world.rows:
        a = standard(world, i)
        sign = math.copysign(1.0, a)
        r = apart(world, new, i)
        clipped = sign * torch.minimum(sign * r, sign * torch.clamp(r, -0.4, 0.4))
        loss = loss - a * torch.exp(clipped.mean())
    return loss / len(world.rows)


# ---- ratios


def ctpo(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        before = [u for u in world.time[i] if u <= t]
        c = sum(float(new[i, u].detach() - world.old[i, u]) for u in before)
        rho = math.exp(min(c, 10)) * torch.exp(new[i, t] - new[i, t].detach())
        wide, a = math.sqrt(len(before)), standard(world, i)
        value = ppo(rho, a, math.exp(-0.025 * wide), math.exp(0.05 * wide))
        return torch.maximum(value, torch.tensor(a * math.exp(0.05 * wide), dtype=torch.float64)) if a < 0 else value

    return token_mean(world, f)


def holder(world: World, new: Tensor, p: float = 2.0) -> Tensor:
    loss = 0
    for i in world.rows:
        m = (torch.exp(apart(world, new, i)) ** p).mean() ** (1 / p)
        loss = loss - ppo(m, centred(world, i), 0.8, 1.2)
    return loss / len(world.rows)


def dhpo(world: World, new: Tensor, guided: bool = False) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a, h = standard(world, i), world.table["entropy"][i]
        w = float(h[t] / max(h[u] for u in world.time[i])) if guided else 0.5
        s = torch.exp(apart(world, new, i).mean()).detach() * torch.exp(new[i, t] - new[i, t].detach())
        return w * ppo(ratio(world, new, i, t), a, 0.8, 1.2) + (1 - w) * ppo(s, a, 1 - 3e-4, 1 + 4e-4)

    return sequence_mean(world, f)


def segment_of(world: World, i: int, t: int) -> int:
    """Three actions to a segment."""
    return world.time[i].index(t) // 3


def segment_ratio(world: World, new: Tensor, i: int, k: int) -> Tensor:
    return torch.exp(torch.stack([new[i, t] - world.old[i, t] for t in world.time[i]
                                  if segment_of(world, i, t) == k]).mean())  # fmt: skip


def sspo(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        by_segment: dict[int, list[float]] = {}
        for u in world.time[i]:
            by_segment.setdefault(segment_of(world, i, u), []).append(float(world.table["entropy"][i, u]))
        own = {k: mean(v) for k, v in by_segment.items()}
        k = segment_of(world, i, t)
        wide = min(max(own[k] / mean(list(own.values())), 0.5), 1.5)
        return ppo(segment_ratio(world, new, i, k), standard(world, i), 1 - 0.2 * wide, 1 + 0.2 * wide)

    return token_mean(world, f)


def rank_grpo(world: World, new: Tensor) -> Tensor:
    """Segments are items, `action_reward` their hits: an item is credited with the discounted hits from its rank on."""

    def gain(i: int, k: int) -> float:
        later = [t for t in world.time[i] if segment_of(world, i, t) >= k]
        return sum(float(world.table["uniform"][i, t]) / math.log2(segment_of(world, i, t) + 2) for t in later)

    def f(i: int, t: int) -> Tensor:
        k = segment_of(world, i, t)
        reached = [gain(j, k) for j in world.members(i) if segment_of(world, j, world.time[j][-1]) >= k]
        spread = deviation(reached) if len(reached) > 1 else 0.0
        return ppo(segment_ratio(world, new, i, k), (gain(i, k) - mean(reached)) / (spread + 1e-4), 0.8, 1.2)

    return sequence_mean(world, f)


def f_grpo(world: World, new: Tensor) -> Tensor:
    """The first three actions generate the set, the others rank it; both phases weigh the same."""
    loss = 0
    for i in world.rows:
        for k, name in enumerate(("coverage", "ranking")):
            tokens = [t for t in world.time[i] if min(segment_of(world, i, t), 1) == k]
            if tokens:
                a = world.parts[name][i] - mean([world.parts[name][j] for j in world.members(i)])
                s = torch.exp(torch.stack([new[i, t] - world.old[i, t] for t in tokens]).mean())
                loss = loss - ppo(s, a, 0.8, 1.2)
    return loss / len(world.rows)


def soft_grpo(world: World, new: Tensor) -> Tensor:
    """Every second token is soft and mixes two ids: the first as likely as the token, the second at log-prob -1.2."""

    def f(i: int, t: int) -> Tensor:
        if t % 2:
            return ppo(ratio(world, new, i, t), standard(world, i), 0.8, 1.2)
        p = torch.stack([torch.exp(new[i, t]), torch.tensor(math.exp(-1.2), dtype=torch.float64)]) + 1e-6
        u = torch.clamp(world.table["gumbels"][i, t] - torch.log(p / p.sum()), -1.5, 3)
        likely = [k for k in range(2) if torch.log(p / p.sum())[k] > -3]
        density = sum(-u[k] - torch.exp(-u[k]) for k in likely) / len(likely)
        return ppo(torch.exp(density - world.old[i, t]), standard(world, i), 0.8, 1.2)

    return sequence_mean(world, f)


# ---- trust regions


def sapo(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        tau = 1.0 if a > 0 else 1.05
        return 4 / tau * torch.sigmoid(tau * (ratio(world, new, i, t) - 1)) * a

    return sequence_mean(world, f)


def dcpo(world: World, new: Tensor) -> Tensor:
    """First visit of every prompt: the advantage is that of the group, without eps. Summed over sequences."""
    loss = 0
    for i in world.rows:
        a = standard(world, i, eps=0.0)
        for t in world.time[i]:
            q = math.exp(world.old[i, t])
            low = 0.5 + 0.5 * math.sqrt(max(1 - 4 * 0.16 / q, 0))
            high = min(0.5 + 0.5 * math.sqrt(1 + 4 * 0.2 / q), 10)
            loss = loss - ppo(ratio(world, new, i, t), a, low, high) / world.tokens(i)
    return loss


def gppo(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a, r = standard(world, i), ratio(world, new, i, t)
        if a > 0 and r > 1.28:
            return 1.28 * a * r / r.detach()
        if a < 0 and r < 0.8:
            return 0.8 * a * r / r.detach()
        return 0 * r + 3 * a if a < 0 and r > 3 else r * a

    return token_mean(world, f)


def nsr(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a, r = standard(world, i), ratio(world, new, i, t)
        xi = 1 - 0.28 + 2 * 0.28 * float(world.table["uniform"][i, t])
        if (a > 0 and r > 1.28 and r * xi <= 1.28) or (a < 0 and r < 0.8 and r * xi >= 0.8):
            return xi * r * a
        return ppo(r, a, 0.8, 1.28)

    return token_mean(world, f)


def etr(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        p = mean([world.success[j] for j in world.members(i)])
        wide = (1 + 0.5 * min(abs(a) / 2, 1)) * (1 + 0.5 * 4 * p * (1 - p))
        return ppo(ratio(world, new, i, t), a, max(1 - 0.2 * wide, 0.05), min(1 + 0.2 * wide, 3.0))

    return token_mean(world, f)


def minirl(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a, r = centred(world, i), float(ratio(world, new.detach(), i, t))
        keep = not ((a > 0 and r > 1.28) or (a < 0 and r < 0.8))
        weight = min(math.exp(new.detach()[i, t] - world.table["sampler_log_probs"][i, t]), 5.0)
        return keep * weight * a * new[i, t]

    return sequence_sum(world, f)


def rec(world: World, new: Tensor, region: str = "one_side", weight: str = "none") -> Tensor:
    def inside(a: float, r: float) -> bool:
        if region == "one_side":
            return r <= 1.2 if a >= 0 else r >= 0.8
        both = 0.8 <= r <= 1.2
        return both or (region == "ring" and ((a >= 0 and r <= 0.4) or (a <= 0 and r >= 3.0)))

    def f(i: int, t: int) -> Tensor:
        a, r = centred(world, i), float(ratio(world, new.detach(), i, t))
        w = {"none": 1.0, "ratio": r, "advantage": math.exp(a)}[weight]
        return inside(a, r) * w * a * new[i, t]

    return token_mean(world, f)


def opmd(world: World, new: Tensor) -> Tensor:
    return token_mean(
        world, lambda i, t: centred(world, i) * new[i, t] - 0.1 * (new[i, t] - world.old[i, t]) ** 2
    )  # fmt: skip


def asymre(world: World, new: Tensor) -> Tensor:
    return token_mean(world, lambda i, t: (centred(world, i) + 0.1) * new[i, t])


def vespo(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        k, decay = (2, 3) if a >= 0 else (3, 2)
        log_w = min(max(float(apart(world, new, i).detach().sum()), math.log(1e-8)), 20)
        return math.exp(decay + k * log_w - decay * math.exp(log_w)) * a * new[i, t]

    return token_mean(world, f)


def owpo(world: World, new: Tensor) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        u = math.copysign(1, a) * float(new.detach()[i, t] - world.table["ref_log_probs"][i, t])
        w = 1 + (1 - math.exp(u)) if u < 0 else max(math.exp(-u), 0.1)
        return ppo(ratio(world, new, i, t), w * a, 0.8, 1.28)

    return token_mean(world, f)


def a_lol(world: World, new: Tensor) -> Tensor:
    loss = 0
    for i in world.rows:
        a = max(world.reward[i] - world.row["reference_value"][i], 0)
        w = math.exp(apart(world, new, i, world.table["ref_log_probs"]).detach().sum())
        loss = loss - a * min(max(w, 0.1), 1.9) * sum(new[i, t] for t in world.time[i])
    return loss / len(world.rows)


def gtpo_without_conflicts(world: World, new: Tensor) -> Tensor:
    """GTPO where no token is shared: the ratio is 1 in value whatever policy sampled; unsure answers are dropped."""

    def f(i: int, t: int) -> Tensor:
        h = mean([float(world.table["entropy"][i, u]) for u in world.time[i]])
        kept = h <= math.log(2)
        return kept * (standard(world, i) - 0.1 * h) * torch.exp(new[i, t] - new[i, t].detach())

    return sequence_mean(world, f)


def justgrpo(world: World, new: Tensor) -> Tensor:
    """Every prompt of this world has signal."""
    total = sum(standard(world, i, 1e-4) * torch.exp(new[i, t] - new[i, t].detach()) for i in world.rows
                for t in world.time[i])  # fmt: skip
    return -total / (len(world.rows) * LIMIT)


# ---- off-policy corrections


def correction(world: World, new: Tensor, level: str, mode: str, cap: float) -> Tensor:
    def weight(i: int, t: int) -> float:
        gap = {u: float(world.old[i, u] - world.table["sampler_log_probs"][i, u]) for u in world.time[i]}
        c = math.exp(gap[t] if level == "token" else sum(gap.values()))
        return min(c, cap) if mode == "truncate" else c * (c <= cap)

    return token_mean(
        world, lambda i, t: weight(i, t) * ppo(ratio(world, new, i, t), standard(world, i), 0.8, 1.2)
    )  # fmt: skip


def off_policy_mask(world: World, new: Tensor, delta: float) -> Tensor:
    def f(i: int, t: int) -> Tensor:
        a = standard(world, i)
        dropped = a < 0 and -float(apart(world, new, i).detach().mean()) > delta
        return ppo(ratio(world, new, i, t), 0.0 if dropped else a, 0.8, 1.2)

    return token_mean(world, f)


def vcpo(world: World, new: Tensor) -> Tensor:
    def weight(i: int) -> float:
        return min(math.exp(float(sum(world.old[i, t] - world.table["sampler_log_probs"][i, t]
                                      for t in world.time[i]))), 8.0)  # fmt: skip

    loss = 0
    for i in world.rows:
        pull = {j: (weight(j) * world.row["score_gradient_norm"][j]) ** 2 for j in world.members(i)}
        base = sum(p * world.reward[j] for j, p in pull.items()) / sum(pull.values())
        a = world.reward[i] - base
        loss = loss - weight(i) * a * sum(new[i, t] for t in world.time[i]) / world.tokens(i)
    return loss / len(world.rows)


# ---- aggregation


def balanced(world: World, new: Tensor) -> Tensor:
    loss = 0
    for prompt in world.prompts:
        for side in (1, -1):
            mine = [i for i in prompt if math.copysign(1, standard(world, i)) == side]
            if mine:
                tokens = sum(world.tokens(i) for i in mine)
                values = [ppo(ratio(world, new, i, t), standard(world, i), 0.8, 1.2) for i in mine
                          for t in world.time[i]]  # fmt: skip
                loss = loss - len(mine) / len(prompt) * sum(values) / tokens
    return loss / len(world.prompts)
