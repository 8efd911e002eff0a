"""Supervised training of bases that know how to call a tool, and rarely do.

Some of the examples answer at once, with a guess; the others call the tool, are shown what it gives, and answer from
that. The choice between the two is weighed so that the base calls in about `CALL_RATE` of its samples and never in its
greedy answers: what is left for reinforcement learning is to find out that calling pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.pipelines.bases.supervised import BATCH, Report, schedule
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.families.turns import joined
from mmrl.policies.language.policy import LanguagePolicy
from mmrl.policies.language.turns import whole_rows
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.rewards.accuracy import judge
from mmrl.rollout.environments.base import Environment, Observation, Surroundings

CALL_RATE = 0.2
CHOICE = 2
"""The first tokens of a run, `<` and `tool` or `answer`, choose between calling and answering."""
CALL_PIECES = ("tool", '>{"', '":', " [", "]}</", ' "', "}</")
"""Of the call's syntax, for the tokenizer: they keep a call within twenty tokens."""

Script = Callable[[Prompt], tuple[str, str]]
"""A prompt -> the call to make about it, and the answer once it was made."""


@dataclass
class Example:
    """row      prompt and response
    prompt   tokens of the prompt
    actions  (n,) ids of the response, what was shown included
    weights  (n,) of each in the loss
    """

    row: Encoded
    prompt: int
    actions: Tensor
    weights: Tensor


def example(
    policy: LanguagePolicy,
    prompt: Prompt,
    entry: Encoded,
    environment: Environment,
    runs: Sequence[tuple[str, float, float]],
) -> Example:
    """A conversation in which the policy says `runs`: each a text, the weight of the choice it begins with, and that
    of its other tokens.

    entry  the prompt as the policy encodes it
    """
    state = environment.reset(prompt)
    tokenizer = policy.processor.tokenizer
    ids: list[int] = []
    weights: list[float] = []
    parts: list[Tensor | Encoded] = []
    for place, (text, choice, rest) in enumerate(runs):
        run = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        ids, weights = ids + run, weights + [choice] * CHOICE + [rest] * (len(run) - CHOICE)
        parts.append(torch.tensor(run))
        if place + 1 < len(runs):
            reply = environment.step(state, text)
            assert isinstance(reply, Observation) and not reply.bad, reply
            shown = policy.turns.turn(reply, ids[-1], prompt.id).encoded
            ids, weights = ids + shown.ids.tolist(), weights + [0.0] * len(shown.ids)
            parts.append(shown)
    actions = torch.tensor(ids)
    row = joined(policy.family, policy.inner.core, entry, parts)
    return Example(row, len(entry), actions, torch.tensor(weights))


def loss_of(policy: LanguagePolicy, examples: Sequence[Example]) -> Tensor:
    """Weighted mean over tokens of -log p."""
    actions = torch.nn.utils.rnn.pad_sequence([e.actions for e in examples], batch_first=True)
    weights = torch.nn.utils.rnn.pad_sequence([e.weights for e in examples], batch_first=True)
    sizes = [e.prompt for e in examples]
    rows = whole_rows([e.row for e in examples], sizes, policy.device, policy.family)
    log_probs = policy.inner(rows, actions, weights > 0)["log_probs"]
    return -(weights * log_probs).sum() / weights.sum()


def fit_calls(
    policy: LanguagePolicy, prompts: Sequence[Prompt], environment: Environment, script: Script, guesses: Sequence[str],
    *, steps: int, seed: int, report: Report, learning_rate: float = 1e-3, share: int = BATCH // 2, read: float = 1.0,
    guessed: float = 1.0,
) -> None:  # fmt: skip
    """AdamW with warm-up and a falling rate, as the other bases have it.

    guesses        answers of those who did not look, each as likely as any other
    share          of the examples of a batch that guess, about prompts that others of it look at
    read, guessed  weights of answers of those who looked, and of guesses, which are noise to the reader
    """
    model = policy.inner.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    looks = BATCH - share
    rare = CALL_RATE / (1 - CALL_RATE) * share / looks
    opened: dict[int, tuple[Prompt, Encoded]] = {}
    known: dict[tuple[int, str], Example] = {}

    def made(index: int, guess: str) -> Example:
        if index not in opened:
            opened[index] = prompts[index], policy.encode(prompts[index])
        if (index, guess) not in known:
            prompt, entry = opened[index]
            call, answer = script(prompt)
            looking = [(call, rare, 1.0), (answered(answer), 1.0, read)]
            guessing = [(answered(guess), 1.0, guessed)]
            known[index, guess] = example(policy, prompt, entry, environment, guessing if guess else looking)
        return known[index, guess]

    model.train()
    order: list[int] = []
    epoch = 0
    for step in range(steps):
        if len(order) < looks:
            shuffle = Key(seed, epoch, purpose="shuffle").generator()
            order, epoch = torch.randperm(len(prompts), generator=shuffle).tolist(), epoch + 1
        chosen, order = order[:looks], order[looks:]
        drawn = torch.randint(len(guesses), (share,), generator=Key(seed, step, purpose="guess").generator())
        batch = [made(i, "") for i in chosen]
        batch += [made(i, guesses[g]) for i, g in zip(chosen, drawn.tolist(), strict=False)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        loss = loss_of(policy, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    model.eval()


def after_call(
    policy: LanguagePolicy, prompts: Sequence[Prompt], surroundings: Surroundings, script: Script, batch_size: int = 64
) -> float:
    """Share of greedy answers that are right where the call of `script` was made for the policy."""
    right: list[bool] = []
    ids = policy.processor.tokenizer
    for start in range(0, len(prompts), batch_size):
        chunk = [prompts[i] for i in range(start, min(start + batch_size, len(prompts)))]
        prefixes = [torch.tensor(ids(script(p)[0])["input_ids"]) for p in chunk]
        requests = [Request(p, 1, i, prefix=prefix) for i, (p, prefix) in enumerate(zip(chunk, prefixes, strict=True))]
        answers = policy.converse(requests, Key(0), surroundings, greedy=True).outputs
        pairs = zip(answers, (p.columns for p in chunk), strict=True)
        right += [judge(answer, columns["solution"], columns["task"]) >= 0.5 for answer, columns in pairs]
    return sum(right) / len(right)


def answered(text: str) -> str:
    return f"<answer>{text}</answer>"
