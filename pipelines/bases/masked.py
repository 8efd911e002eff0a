"""Train the tiny masked base: `python -m mmrl.pipelines.bases.masked --out data/assets/tiny_masked --seed 0`.

A BERT of three layers learns to fill hidden places of answers on the `lists` world, stopped while it still fills
several at once carelessly, so that reinforcement learning has something to sharpen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.data.worlds import open_world
from mmrl.pipelines.bases.cards import command_line, write_card
from mmrl.pipelines.bases.models import fan_in_init
from mmrl.pipelines.bases.supervised import held_out_scores, printed, schedule
from mmrl.pipelines.bases.tokenizers import chat_tokenizer
from mmrl.policies.masked.policy import MaskedDiffusionConfig, MaskedDiffusionPolicy
from mmrl.randomness import Key

MODULE = "mmrl.pipelines.bases.masked"
STEPS, BATCH, TRAIN_SIZE, CANVAS = 190, 64, 8192, 6
DIFFICULTY = 2
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tiny_masked(seed: int, hidden: int = 96, layers: int = 3) -> tuple[Any, Any]:
    """A `BertForMaskedLM` with fan-in weights, and its tokenizer."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = chat_tokenizer(TEMPLATE)
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * hidden, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    fan_in_init(model, seed)
    return model.eval(), tokenizer


def train(folder: Path, seed: int, steps: int = STEPS) -> None:
    model, tokenizer = tiny_masked(seed)
    policy = MaskedDiffusionPolicy(model, tokenizer, settings(MODULE))
    prompts = open_world("lists", size=TRAIN_SIZE, difficulty=DIFFICULTY, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    report = printed(steps)
    model.train()
    for step in range(steps):
        rng = Key(seed, step, purpose="batch").generator()
        rows = torch.randint(len(prompts), (BATCH,), generator=rng).tolist()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step, steps)
        loss = hidden_loss(policy, [prompts[i] for i in rows], rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    model.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(
        folder,
        score(folder),
        title="Tiny masked language model",
        about=f"A BERT that fills canvases of {CANVAS} masks, for demonstrations and tests. It half knows the orders\n"
        f"of the `lists` world at difficulty {DIFFICULTY} and nothing else.",
        classes="`BertForMaskedLM`, `PreTrainedTokenizerFast`",
        parameters=model.num_parameters(),
        train=f"python -m {MODULE} --out {folder} --seed {seed}",
        seed=seed,
        steps=f"{steps} steps of {BATCH} answers",
        load="AutoModelForMaskedLM.from_pretrained",
        measure=f"python -m {MODULE} --score {folder}",
    )


def hidden_loss(policy: MaskedDiffusionPolicy, prompts: list[Any], rng: torch.Generator) -> Tensor:
    """Mean -log p of the hidden tokens of each answer, a random share of them hidden. The canvas ends in end tokens."""
    tokenizer, model = policy.tokenizer, policy.inner
    canvases = torch.full((len(prompts), CANVAS), policy.end)
    for row, prompt in enumerate(prompts):
        ids = tokenizer(prompt.columns["solution"]).input_ids
        canvases[row, : len(ids)] = torch.tensor(ids)
    share = torch.rand(len(prompts), 1, generator=rng)
    hidden = torch.rand(canvases.shape, generator=rng) < share.clamp(min=0.2)
    shown, mask = policy._padded([policy.encode(p) for p in prompts])
    logits = model.logits(shown, mask, torch.where(hidden, model.mask_token, canvases))
    return torch.nn.functional.cross_entropy(logits[hidden], canvases[hidden])


def settings(model: str) -> MaskedDiffusionConfig:
    """How the base is asked: the whole canvas in two passes."""
    return MaskedDiffusionConfig(model=model, max_new_tokens=CANVAS, block=CANVAS, tokens_per_step=3)


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """Held-out accuracy of greedy answers, as the demo starts from."""
    prompts = open_world("lists", split="test", size=size, difficulty=DIFFICULTY)
    return held_out_scores(MaskedDiffusionPolicy.from_config(settings(str(folder))), prompts)


if __name__ == "__main__":
    command_line(MODULE, train, score)
