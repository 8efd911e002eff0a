"""What a step of a language policy takes of memory, from the model's configuration alone.

Counted are the tensors that autograd keeps for the backward pass, in numbers a token and layer: of a decoder block of
width h, keys of width k and a feed-forward part of width m

    9 h + 2 k + 4 m     both norms 3 h each, queries, attention and its copy h each, keys and values; gate, its
                        activation, up, their product

which is what `Live` counts of a Qwen2.5-VL to 1 %. Other blocks are taken for such; mixtures of experts are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

PROCESS = 500 * 2**20
"""Python, torch, transformers and what they load in the first step, on the CPU."""
GAPS = 1.25
"""What lies between tensors in the heap, and those of a backward pass that nothing keeps; at 1,024 new tokens it was
more (docs/speed.md). With checkpointing blocks are mapped one by one (`mmrl.training.heap`): no gaps."""
LONG, OF_LONG = 4096, 1.7
"""Response tokens of a pass up to which a measured peak was near the counted one, and as a multiple of it the peak with
16,384."""
LOGITS = 4
"""Copies of a chunk of logits alive at once: raw, float32, and their gradients."""
TEXT = 30
"""Tokens of a prompt beside its picture or clip, where `max_prompt_tokens` does not say."""


@dataclass(frozen=True)
class Sizes:
    """Of one micro-batch: `prompts` of `prompt` tokens with `patches` each, `rows` responses of `new` tokens."""

    prompts: int
    prompt: int
    patches: int
    rows: int
    new: int

    def within(self, limit: int | None) -> Sizes:
        """What goes through one pass of an update, where at most `limit` response tokens do."""
        return self if limit is None else replace(self, rows=min(self.rows, max(limit // self.new, 1)))

    @property
    def tokens(self) -> int:
        """Of the packed row."""
        return self.prompts * self.prompt + self.rows * self.new


def kept_by_decoder(text: Any, tokens: int, *, checkpointing: bool) -> int:
    """Numbers that are kept of so many tokens; with checkpointing a layer's input, and the layer that runs again."""
    h = text.hidden_size
    layers = [9 * h + 2 * k + 4 * m for k, m in _widths(text)]
    return tokens * (5 * h + (len(layers) * h + max(layers) if checkpointing else sum(layers)))


def kept_by_tower(vision: Any, patches: int, *, checkpointing: bool) -> int:
    """The same of a vision tower that trains; 0 of one whose sizes are not known."""
    h, m = getattr(vision, "hidden_size", 0), getattr(vision, "intermediate_size", 0)
    layers = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", 0)
    layer = 11 * h + 4 * m
    return patches * (layers * h + layer if checkpointing else layers * layer)


def activations(config: Any, sizes: Sizes, *, checkpointing: bool, train_vision: bool, logit_rows: int) -> int:
    """Numbers alive at the most in forward and backward."""
    text = config.get_text_config()
    kept = kept_by_decoder(text, sizes.tokens, checkpointing=checkpointing)
    vision = getattr(config, "vision_config", None)
    if train_vision and vision is not None:
        kept += kept_by_tower(vision, sizes.prompts * sizes.patches, checkpointing=checkpointing)
    return kept + LOGITS * text.vocab_size * min(logit_rows, sizes.rows * sizes.new)


def written(config: Any, sizes: Sizes) -> int:
    """Numbers of the caches while responses are written: a block has room for a quarter more, and stands beside the one
    it takes the place of."""
    text = config.get_text_config()
    keys = [k for k, _ in _widths(text)]
    own = sizes.rows * sizes.new
    return 2 * sum(keys) * (sizes.prompts * sizes.prompt + own + own // 4) + 2 * max(keys) * own


def peak(
    held: int, config: Any, sizes: Sizes, *, bytes_each: int = 4, pass_tokens: int | None = None, **how: Any
) -> int:
    """Bytes of the process. held: weights, gradients and moments; pass_tokens: response tokens of one pass at the most
    (with checkpointing all pass at once); how: as `activations` takes it"""
    passing = sizes if how["checkpointing"] else sizes.within(pass_tokens)
    most = max(activations(config, passing, **how), written(config, sizes))
    return int(PROCESS + held + (1 if how["checkpointing"] else GAPS) * bytes_each * most)


def sizes_of(settings: Any, training: Any, config: Any) -> tuple[Sizes | None, str]:
    """Of the largest micro-batch that the settings allow, and what was assumed; None where nothing bounds a prompt."""
    rows = min(training.micro_batch_size, training.prompts_per_step * training.group_size)
    prompts = -(-rows // training.group_size)
    vision = getattr(config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", 1) ** 2
    area = _area(getattr(vision, "patch_size", None))
    patches = _pixels(settings, vision) // area if area else 0
    prompt = settings.max_prompt_tokens or (patches // merge + TEXT if patches else 0)
    if not prompt:
        return None, "set policy.max_prompt_tokens or policy.max_pixels"
    if area:  # a prompt that is bounded shows no more than it has tokens for
        patches = min(patches or prompt * merge, prompt * merge)
    said = f"{prompts} prompts of {prompt} tokens with {patches} patches each, {rows} responses of "
    return Sizes(prompts, prompt, patches, rows, settings.max_new_tokens), f"{said}{settings.max_new_tokens} tokens"


def _pixels(settings: Any, vision: Any) -> int:
    """Of a prompt's picture or clip at the most, frames that share a patch counted once; 0: nothing bounds them."""
    sampling = getattr(settings, "sampling", None)
    if sampling is None:
        return settings.max_pixels or 0
    clip = sampling.max_frames * sampling.max_pixels
    return min(clip, sampling.total_pixels or clip) // getattr(vision, "temporal_patch_size", 1)


def _area(patch: Any) -> int:
    """Pixels of a patch, whose side or sides a configuration names; 0 where it names none."""
    if isinstance(patch, int):
        return patch**2
    return math.prod(patch[-2:]) if patch else 0


def _widths(text: Any) -> list[tuple[int, int]]:
    """Width of keys and of the feed-forward part, of each layer: some families have them differ."""
    count = text.num_hidden_layers
    layers = list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text] * count
    inner = [layer.intermediate_size for layer in layers]
    each = [m[i] if isinstance(m, list | tuple) else m for i, m in enumerate(inner)]
    return [(_keys(layer), m) for layer, m in zip(layers, each, strict=True)]


def _keys(text: Any) -> int:
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return size * (getattr(text, "num_key_value_heads", None) or heads)
