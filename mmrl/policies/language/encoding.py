"""A prompt becomes tensors once: chat template and processor run here, and nothing is tokenised or decoded again.

`Encoded` is what the rollout was sampled from and what training scores; it is stored once per prompt, never once
per rollout. Positions (M-RoPE, timestamps) are computed here too, by the model's own index function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.images import open_image
from mmrl.policies.language.families.base import Family
from mmrl.record import Prompt

POSITION_ONLY = frozenset({"second_per_grid_ts"})
"""Processor outputs that only enter position ids; kept in the record, not passed to the forward."""


@dataclass(eq=False)
class Encoded:
    """One prompt as the model reads it. CPU tensors; compared by identity.

    ids            (P,) token ids with expanded placeholders
    token_types    (P,) 0 text, 1 image, 2 video
    positions      (3, P) temporal, height and width positions
    next_position  of the first response token, equal on the three axes
    media          everything else the processor returned (pixel tensors, grids, seconds per grid), rows of all
                   images and videos in the order of their placeholders
    features       what a frozen vision tower made of them. Set only on the copies a policy makes for its own
                   passes, never in the record: they belong to one tower
    """

    ids: Tensor
    token_types: Tensor
    positions: Tensor
    next_position: int
    media: dict[str, Tensor]
    features: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]


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
    processor: Any,
    family: Family,
    positions_of: Any,
    *,
    frames: Sequence[Frames] = (),
    template: dict[str, Any] | None = None,
    max_tokens: int | None = None,
) -> Encoded:
    """Chat template and processor, once.

    positions_of  the model's `get_rope_index`
    frames        the prompt's videos, sampled and resized already
    template      extra variables of the chat template, such as `enable_thinking`
    max_tokens    a longer prompt is an error: cutting one would cut through its media
    """
    check_media(prompt)
    text = processor.apply_chat_template(
        prompt.messages, tokenize=False, add_generation_prompt=True, **(template or {})
    )
    _check_text(prompt, text, processor)
    given: dict[str, Any] = {}
    if prompt.images:
        given["images"] = [open_image(image, prompt) for image in prompt.images]
    if frames:
        given["videos"] = [torch.as_tensor(f.pixels) for f in frames]
        given["videos_kwargs"] = _video_options(frames)
    output = dict(processor(text=[text], return_tensors="pt", **given))
    ids = output.pop("input_ids")[0]
    types = output.pop("mm_token_type_ids", torch.zeros_like(ids)[None])[0]
    media = {k: torch.as_tensor(v) for k, v in output.items() if k not in ("attention_mask", "video_metadata")}
    _check_placeholders(prompt, ids, media, family)
    if max_tokens is not None and len(ids) > max_tokens:
        raise PolicyError(
            f"prompt {prompt.id!r} has {len(ids)} tokens ({int((types > 0).sum())} of them media), the limit "
            f"max_prompt_tokens is {max_tokens}; raise it, or lower max_pixels or the number of frames. "
            "Prompts are never cut: that would cut through their media"
        )
    positions, _ = positions_of(
        input_ids=ids[None],
        mm_token_type_ids=types[None],
        attention_mask=torch.ones_like(ids)[None],
        **{k: v for k, v in media.items() if not k.startswith("pixel_values")},
    )
    positions = positions[:, 0]
    return Encoded(ids, types, positions, int(positions.max()) + 1, media)


def _video_options(frames: Sequence[Frames]) -> dict[str, Any]:
    from transformers.video_utils import VideoMetadata

    metadata = [
        VideoMetadata(
            total_num_frames=f.total_frames,
            fps=f.fps,
            frames_indices=list(f.indices),
            height=f.size[0],
            width=f.size[1],
            video_backend=f.backend,
        )
        for f in frames
    ]
    return {"video_metadata": metadata, "do_sample_frames": False, "do_resize": False}


def _check_text(prompt: Prompt, text: str, processor: Any) -> None:
    """One placeholder per medium in the rendered text: none written by a user, none lost by the template."""
    for kind, token in (("image", processor.image_token), ("video", processor.video_token)):
        written, given = text.count(token), len(getattr(prompt, f"{kind}s"))
        if written != given:
            raise PolicyError(
                f"prompt {prompt.id!r}: the chat template rendered {written} {token} for {given} {kind}(s); "
                "the prompt's own text may hold a placeholder, or the template leaves out media parts"
            )


def _check_placeholders(prompt: Prompt, ids: Tensor, media: dict[str, Tensor], family: Family) -> None:
    """Placeholders in the text and features of the vision tower must agree, per prompt, before any forward."""
    for kind, token in (("image", family.image_token), ("video", family.video_token)):
        grid = media.get(f"{kind}_grid_thw")
        features = 0 if grid is None else int(grid.prod(-1).sum()) // family.merge**2
        placeholders = int((ids == token).sum())
        if placeholders != features:
            raise PolicyError(
                f"prompt {prompt.id!r}: {placeholders} {kind} placeholders but {features} {kind} features; "
                "processor and model do not belong together (patch or merge size)"
            )


def collate(
    entries: Sequence[Encoded], actions: Tensor | None, lengths: Tensor | None, device: torch.device
) -> dict[str, Tensor]:
    """Plain rows `[left padding | prompt | response | right padding]`, prompts ending at one column.

    entries  one per row; a prompt shared by rows is repeated, pixels included
    actions  (B, T) token ids, or None for the prompts alone
    lengths  (B,) how many of them are real
    """
    width = max(len(e) for e in entries)
    count, steps = len(entries), 0 if actions is None else actions.shape[1]
    ids = torch.zeros(count, width + steps, dtype=torch.long)
    types, attention = torch.zeros_like(ids), torch.zeros_like(ids)
    positions = torch.zeros(3, count, width + steps, dtype=torch.long)
    for row, entry in enumerate(entries):
        prompt = slice(width - len(entry), width)
        ids[row, prompt], types[row, prompt], attention[row, prompt] = entry.ids, entry.token_types, 1
        positions[:, row, prompt] = entry.positions
        positions[:, row, width:] = entry.next_position + torch.arange(steps)
    if actions is not None and lengths is not None:
        real = torch.arange(steps) < lengths.cpu()[:, None]
        ids[:, width:] = actions.cpu() * real
        attention[:, width:] = real
    rows = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "mm_token_type_ids": types}
    return to_device(rows | collate_media(entries), device)


def to_device(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same tensors on `device`; what is there already is not copied.

    To a CUDA device they go from page-locked memory, so that pixels travel while the CPU prepares what comes next.
    PyTorch keeps that memory until the copy is done.
    """
    cuda = device.type == "cuda"

    def moved(tensor: Tensor) -> Tensor:
        locked = tensor.pin_memory() if cuda and tensor.device.type == "cpu" else tensor
        return locked.to(device, non_blocking=cuda)

    return {name: moved(tensor) for name, tensor in tensors.items()}


def extended(entry: Encoded, prefix: Tensor) -> Encoded:
    """`entry` with the first tokens of a response appended, as context of what follows."""
    if not len(prefix):
        return entry
    steps = entry.next_position + torch.arange(len(prefix))
    return replace(
        entry,
        ids=torch.cat([entry.ids, prefix]),
        token_types=torch.cat([entry.token_types, torch.zeros_like(prefix).to(entry.token_types)]),
        positions=torch.cat([entry.positions, steps.expand(3, -1)], dim=1),
        next_position=entry.next_position + len(prefix),
    )


def predictors(width: int, actions: Tensor) -> Tensor:
    """(B, T) flat index over plain rows of the hidden state before each action; prompts end at column `width`."""
    count, steps = actions.shape
    step = torch.arange(steps, device=actions.device)
    return torch.arange(count, device=actions.device)[:, None] * (width + steps) + width - 1 + step


def collate_media(entries: Sequence[Encoded]) -> dict[str, Tensor]:
    """Pixel rows and grids of all entries in row order, or the features kept of them.

    Entries without media contribute nothing.
    """
    given = [e for e in entries if e.media]
    parts = [e.features for e in given if e.features is not None]
    if given and len(parts) == len(given):
        dims = {name: 1 if name.endswith("_levels") else 0 for part in parts for name in part}
        return {name: torch.cat([p[name] for p in parts if name in p], dim) for name, dim in dims.items()}
    names = sorted({name for e in given for name in e.media} - POSITION_ONLY)
    return {name: torch.cat([e.media[name] for e in given if name in e.media]) for name in names}
