"""Choices that fill what was chosen too seldom: data that looks more on-policy than chance would make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError, got
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

WORDINGS = {"plain": "", "stepwise": "Think step by step, then answer.", "short": "Answer at once."}


def low_discrepancy_choice(counts: Sequence[float], probs: Sequence[float]) -> int:
    """The choice that lacks most of what its probability would have given it by now, this draw included.

    counts  how often each was taken; probs  its probability, of which the sum is 1

    The first of equals, of those with a probability above 0. After n draws each count is within 1 of n p.
    """
    drawn = sum(counts) + 1
    lacks = [p * drawn - c if p > 0 else -float("inf") for c, p in zip(counts, probs, strict=True)]
    return max(range(len(lacks)), key=lambda i: (lacks[i], -i))


def props_loss(log_probs: Tensor, target_log_probs: Tensor, *, clip: float = 0.3) -> Tensor:
    """() what the behaviour policy descends: mean max(r, clip(r, 1 - e, 1 + e)), r = pi_behaviour / pi_target.

    log_probs, target_log_probs  (N,) of the actions taken so far, by both; the second without gradient

    Over-sampled actions become less likely, and none below 1 - e of its target probability. Source:
    NicholasCorrado/PROPS, ppo_discrete.py, `update_behavior_policy`.
    """
    ratio = (log_probs - target_log_probs).exp()
    return torch.maximum(ratio, ratio.clamp(1 - clip, 1 + clip)).mean()


def behaviour_probs(
    counts: Sequence[float], probs: Sequence[float], *, clip: float = 0.3, most_kl: float = 0.05, epochs: int = 16,
    learning_rate: float = 0.1,
) -> list[float]:  # fmt: skip
    """Who draws next in one state of few actions: the target's softmax, moved along `props_loss` of what was taken.

    most_kl  KL(target || behaviour) on the actions taken, by its k3 estimate, at which it stops
    """
    taken = torch.tensor(counts, dtype=torch.float64)
    target = torch.tensor(probs, dtype=torch.float64).log()
    logits = target.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    actions = torch.repeat_interleave(torch.arange(len(counts)), taken.long())
    for _ in range(epochs if len(actions) else 0):
        log_probs = torch.log_softmax(logits, 0)[actions]
        difference = (log_probs - target[actions]).detach()
        if float((difference.exp() - 1 - difference).mean()) > most_kl:
            break
        optimizer.zero_grad()
        props_loss(log_probs, target[actions], clip=clip).backward()
        optimizer.step()
    return torch.softmax(logits.detach(), 0).tolist()


@stage(
    "rollout",
    "props",
    paper="PROPS: On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling, arXiv 2311.08290",
    formula="next choice = argmax_k p_k (n + 1) - n_k; or k ~ pi_b, pi_b descends mean max(r, clip(r, 1 - e, 1 + e)) "
    "of what was taken, r = pi_b / p",
    confidence="partly",
    modalities=LANGUAGE,
)
class Props(Strategy):
    """Members of a group see one of several wordings, each as often as its share says, prompt by prompt.

    wordings  {name: what is put behind the user's words}; an empty one is the bare prompt
    shares    {name: probability}; None: all alike
    choose    "deficit" takes the wording that lacks most; "behaviour" draws from the policy that `props_loss` moves

    Chance leaves one of three wordings out of a group of 8 every ninth time; this never does. Column
    `wording (B,)` is the number of what a member saw, and its loss is under it. What was taken is counted over the
    whole run. Not for tokens: at their scale it is a second policy to train. Source: the authors' code for the loss;
    the reduction to counts, and wordings as the actions, are ours.
    """

    origins = (OWN, SHOWN)
    columns = {"wording": -1.0}

    def __init__(
        self,
        *,
        wordings: dict[str, str] | None = None,
        shares: dict[str, float] | None = None,
        choose: str = "deficit",
    ) -> None:
        self.wordings = WORDINGS if wordings is None else wordings
        self.names = list(self.wordings)
        self.probs = _probabilities(self.names, shares)
        if choose not in ("deficit", "behaviour"):
            raise ConfigError(f"rollout 'props': choose={choose!r}; expected 'deficit' or 'behaviour'")
        self.choose = choose
        self.taken: dict[int, list[int]] = {}
        self._rest: dict[int, list[int]] = {}

    def ask(self, step: Step) -> Plan | None:
        """A group is opened by the members of its commonest wording; those of others join it."""
        self._rest, asks = {}, []
        counts: dict[int, list[int]] = {}  # of rows that are drawn twice in a step, too
        for group, index in enumerate(step.draw(step.prompts_per_step)):
            taken = counts.setdefault(index, list(self.taken.get(index, [0] * len(self.names))))
            numbers = self._chosen(taken, step.key.at(prompt=str(group), purpose="props").generator(), step.group_size)
            first = numbers.index(max(numbers))
            self._rest[group] = [0 if k == first else n for k, n in enumerate(numbers)]
            asks.append(self._ask(numbers[first], first, index=index))
        return Plan(asks)

    def _chosen(self, taken: list[int], generator: torch.Generator, size: int) -> list[int]:
        """How many of a group's members see each wording; `taken` is counted on."""
        before = list(taken)
        for _ in range(size):
            if self.choose == "deficit":
                taken[low_discrepancy_choice(taken, self.probs)] += 1
            else:
                weights = torch.tensor(behaviour_probs(taken, self.probs), dtype=torch.float64)
                taken[int(torch.multinomial(weights, 1, generator=generator))] += 1
        return [now - then for now, then in zip(taken, before, strict=True)]

    def _ask(self, count: int, k: int, **where: Any) -> Ask:
        shown: dict[str, Any] = {"note": k, "trains": "shown"} if self.wordings[self.names[k]] else {}
        return Ask(count, columns={"wording": float(k)}, **shown, **where)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        rest, self._rest = self._rest, {}
        asks = [self._ask(n, k, group=g) for g, numbers in rest.items() for k, n in enumerate(numbers) if n]
        return Plan(asks) if asks else None

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        return with_text(prompt, self.wordings[self.names[ask.note]], "wording")

    def observe(self, batch: Batch, step: Step) -> None:
        for group, k in zip(batch.group.tolist(), batch["wording"].tolist(), strict=True):
            if (row := step.groups[group]) is not None and k >= 0:
                self.taken.setdefault(row, [0] * len(self.names))[int(k)] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"taken": [[row, *counts] for row, counts in self.taken.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = {int(row): list(counts) for row, *counts in state["taken"]}


def _probabilities(names: Sequence[str], shares: Mapping[str, float] | None) -> list[float]:
    if len(names) < 2:
        raise ConfigError(f"rollout 'props': wordings: expected at least two to choose from, got {got(list(names))}")
    if shares is None:
        return [1 / len(names)] * len(names)
    if set(shares) != set(names) or min(shares.values()) < 0 or not sum(shares.values()) > 0:
        raise ConfigError(f"rollout 'props': shares {dict(shares)}: expected 0 or more for each of {list(names)}")
    return [shares[name] / sum(shares.values()) for name in names]
