"""A prompt becomes tensors once: chat template and processor run here, and nothing is tokenised or decoded again.

`Encoded` is what the rollout was sampled from and what training scores; it is stored once per prompt, never once
per rollout. Positions (M-RoPE, timestamps) are computed here too, by the model's own index function. What differs
between model families is asked of the `Family`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.images import open_image
from mmrl.policies.language.encoded import Encoded, model_positions, to_device
from mmrl.policies.language.families.default import Family
from mmrl.record import Prompt


def media_parts(prompt: Prompt) -> dict[str, int]:
    """How many image and video parts the messages have."""
    counts = {"image": 0, "video": 0}
    for message in prompt.messages:
        if not isinstance(message["content"], str):
            for part in message["content"]:
                if part.get("type") in counts:
                    counts[part["type"]] += 1
    return counts


def check_media(prompt: Prompt) -> None:
    """Every image and video part has its medium, and no medium is left over."""
    for kind, parts in media_parts(prompt).items():
        given = len(getattr(prompt, f"{kind}s"))
        if parts != given:
            raise PolicyError(
                f"prompt {prompt.id!r} has {given} {kind}(s) but its messages have {parts} {kind} part(s); "
                f'add one {{"type": "{kind}"}} part for each, where the {kind} belongs in the text'
            )


def encode(
    prompt: Prompt,
    family: Family,
    core: Any,
    *,
    frames: Sequence[Frames] = (),
    template: dict[str, Any] | None = None,
    max_tokens: int | None = None,
    room: int = 0,
) -> Encoded:
    """Chat template and processor, once.

    core        the model, which knows its positions
    frames      the prompt's videos, sampled already
    template    extra variables of the chat template, such as `enable_thinking`
    max_tokens  a longer prompt is an error: cutting one would cut through its media
    room        tokens that a response may need behind it
    """
    check_media(prompt)
    processor = family.processor
    text = processor.apply_chat_template(
        prompt.messages, tokenize=False, add_generation_prompt=True, **(template or {})
    )
    check_text(prompt, text, family)
    images = [open_image(image, prompt) for image in prompt.images]
    try:
        entry = family.encode(core, text, images, frames)
        family.check_length(len(entry) + room)
    except PolicyError as error:
        raise PolicyError(f"prompt {prompt.id!r}: {error}") from None
    if max_tokens is not None and len(entry) > max_tokens:
        held = sum(int((entry.ids == i).sum()) for i in family.placeholders.values())
        raise PolicyError(
            f"prompt {prompt.id!r} has {len(entry)} tokens ({held} of them media), the limit "
            f"max_prompt_tokens is {max_tokens}; raise it, or lower max_pixels or the number of frames. "
            "Prompts are never cut: that would cut through their media"
        )
    return entry


def check_text(prompt: Prompt, text: str, family: Family) -> None:
    """One placeholder per medium in the rendered text: none written by a user, none lost by the template."""
    for kind, token in family.written.items():
        written, given = text.count(token), len(getattr(prompt, f"{kind}s"))
        if written != given:
            raise PolicyError(
                f"prompt {prompt.id!r}: the chat template rendered {written} {token} for {given} {kind}(s); "
                "the prompt's own text may hold a placeholder, or the template leaves out media parts"
            )


def collate(
    entries: Sequence[Encoded],
    actions: Tensor | None,
    lengths: Tensor | None,
    device: torch.device,
    family: Family,
) -> dict[str, Any]:
    """Plain rows `[left padding | prompt | response | right padding]`, prompts ending at one column.

    entries  one per row; a prompt shared by rows is repeated, pixels included
    actions  (B, T) token ids, or None for the prompts alone
    lengths  (B,) how many of them are real
    """
    width = max(len(e) for e in entries)
    count, steps = len(entries), 0 if actions is None else actions.shape[1]
    axes, positions_type = entries[0].positions.shape[0], entries[0].positions.dtype
    ids = torch.zeros(count, width + steps, dtype=torch.long)
    attention = torch.zeros_like(ids)
    positions = torch.zeros(axes, count, width + steps, dtype=positions_type)
    aligned = {name: row.new_zeros(count, width + steps, *row.shape[1:]) for name, row in _aligned(entries).items()}
    for row, entry in enumerate(entries):
        prompt = slice(width - len(entry), width)
        ids[row, prompt], attention[row, prompt] = entry.ids, 1
        positions[:, row, prompt] = entry.positions
        positions[:, row, width:] = entry.next_position + torch.arange(steps)
        for name in entry.aligned:
            aligned[name][row, prompt] = entry.aligned[name]
            aligned[name][row, width:] = entry.appended(name, steps)
    if actions is not None and lengths is not None:
        real = torch.arange(steps) < lengths.cpu()[:, None]
        ids[:, width:] = actions.cpu() * real
        attention[:, width:] = real
    rows = {"input_ids": ids, "attention_mask": attention, "position_ids": model_positions(positions)}
    return to_device(rows | aligned | family.media_inputs(entries), device)


def _aligned(entries: Sequence[Encoded]) -> dict[str, Tensor]:
    """An example of each token-aligned input that any of them has."""
    return {name: entry.aligned[name] for entry in entries for name in entry.aligned}


def extended(entry: Encoded, prefix: Tensor) -> Encoded:
    """`entry` with the first tokens of a response appended, as context of what follows."""
    count = len(prefix)
    if not count:
        return entry
    steps = (entry.next_position + torch.arange(count)).to(entry.positions)
    return replace(
        entry,
        ids=torch.cat([entry.ids, prefix]),
        aligned={n: torch.cat([t, entry.appended(n, count).to(t)]) for n, t in entry.aligned.items()},
        positions=torch.cat([entry.positions, steps.expand(len(entry.positions), -1)], dim=1),
        next_position=entry.next_position + count,
    )


def predictors(width: int, actions: Tensor) -> Tensor:
    """(B, T) flat index over plain rows of the hidden state before each action; prompts end at column `width`."""
    count, steps = actions.shape
    step = torch.arange(steps, device=actions.device)
    return torch.arange(count, device=actions.device)[:, None] * (width + steps) + width - 1 + step
