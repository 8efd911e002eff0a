"""Supervised training of the tiny language bases: answers and their end token, on a world's training split."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.pipelines.bases.cards import write_card
from mmrl.policies.base import Policy
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.encoding import collate
from mmrl.policies.language.policy import LanguagePolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.rewards.accuracy import judge
from mmrl.rollout.actor import Actor
from mmrl.rollout.environments.base import Surroundings

Report = Callable[[int, float], None]
WARMUP = 50
BATCH = 32


def fit(
    policy: LanguagePolicy,
    prompts: Sequence[Prompt],
    *,
    steps: int,
    batch_size: int = BATCH,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Report = lambda step, loss: None,
) -> None:
    """Cross-entropy of each prompt's `solution` and end token, AdamW, warm-up, then the rate falls to 0.

    At a constant rate, without warm-up or with the usual second beta, models this small learn the answers'
    frequencies and never look at the picture.
    """
    model = policy.inner.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step, batch in enumerate(_batches(policy, prompts, steps, batch_size, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        loss = answer_loss(policy, *batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    model.eval()


def printed(steps: int, every: int = 100) -> Report:
    """A report that prints the mean loss now and then."""
    losses: list[float] = []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if len(losses) == every or step + 1 == steps:
            print(f"step {step + 1}/{steps}: loss {sum(losses) / len(losses):.3f}", flush=True)
            losses.clear()

    return report


def save_base(
    folder: Path, model: Any, processor: Any, score: Callable[[Path], dict[str, float]], *,
    title: str, about: str, module: str, seed: int, steps: int,
) -> None:  # fmt: skip
    """The trained base as it ships, float16, with its card and the scores of what was saved."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    write_card(
        folder,
        score(folder),
        title=title,
        about=about,
        classes="`Qwen3VLForConditionalGeneration`, `Qwen3VLProcessor`",
        parameters=model.num_parameters(),
        train=f"python -m {module} --out {folder} --seed {seed}",
        seed=seed,
        steps=f"{steps} steps of {BATCH} answers",
        load="AutoModelForImageTextToText.from_pretrained",
        measure=f"python -m {module} --score {folder}",
    )


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine down to 0."""
    warm = min(WARMUP, steps // 4)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def answer_loss(policy: LanguagePolicy, entries: list[Encoded], answers: list[Tensor]) -> Tensor:
    """Mean over answer tokens of -log p, under the prompts exactly as the policy samples from them."""
    lengths = torch.tensor([len(answer) for answer in answers])
    actions = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
    inputs = collate(entries, actions, lengths, policy.device, policy.family)
    width = actions.shape[1]
    logits = policy.inner.model(**inputs, logits_to_keep=width + 1).logits[:, :-1].float()
    real = torch.arange(width) < lengths[:, None]
    return torch.nn.functional.cross_entropy(logits[real], actions[real])


def _batches(
    policy: LanguagePolicy, prompts: Sequence[Prompt], steps: int, size: int, seed: int
) -> Iterator[tuple[list[Encoded], list[Tensor]]]:
    tokenizer = policy.processor.tokenizer
    encoded: dict[int, tuple[Encoded, Tensor]] = {}
    order: list[int] = []
    epoch = 0
    for _ in range(steps):
        if len(order) < size:
            shuffle = Key(seed, epoch, purpose="shuffle").generator()
            order, epoch = torch.randperm(len(prompts), generator=shuffle).tolist(), epoch + 1
        chosen, order = order[:size], order[size:]
        for index in chosen:
            if index not in encoded:
                prompt = prompts[index]
                ids = tokenizer(prompt.columns["solution"] + tokenizer.eos_token)["input_ids"]
                encoded[index] = policy.encode(prompt), torch.tensor(ids)
        yield [encoded[i][0] for i in chosen], [encoded[i][1] for i in chosen]


def held_out_scores(
    policy: Policy, prompts: Sequence[Prompt], environment: Surroundings | None = None, batch_size: int = 64
) -> dict[str, float]:
    """Share of greedy answers that the accuracy reward calls right (0.5 or more), in all and by skill."""
    actor = Actor(policy, environment)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(prompts), batch_size):
        chunk = [prompts[i] for i in range(start, min(start + batch_size, len(prompts)))]
        rollouts = actor.act([Request(p, 1, i) for i, p in enumerate(chunk)], Key(0), greedy=True)
        for prompt, answer in zip(chunk, rollouts.outputs, strict=True):
            columns = prompt.columns
            hit = judge(answer, columns["solution"], columns["task"]) >= 0.5
            right["all"].append(hit)
            right[columns["skill"]].append(hit)
    return {skill: sum(hits) / len(hits) for skill, hits in sorted(right.items())}
