"""The shared-prompt forward: one packed row holds every prompt once and all of its responses, without padding.

    [ prompt a | response a1 | ... | response aG | prompt b | response b1 | ... ]

A prompt token does not depend on what follows it, so the G copies that plain rows hold are equal in every layer,
and so are the sums of their gradients. Position ids are those of the plain rows; prompts attend to themselves,
each response to its prompt and to itself, with the sliding window of layers that have one. Tokens per group fall
from G (P + R) to P + sum of R_i, the vision tower runs once per prompt, and no padding is computed at all. A prompt
whose prefill is at hand (`prefill`) is left out: its responses attend to what is kept of it.

The attention is registered with transformers once and delegates to its SDPA wherever no `Layout` is passed, so
nothing is switched around a forward pass (gradient checkpointing runs it again later). Exact: float32 log-probs
agree with plain rows to 1e-5, gradients to 1e-5 relative.

After Prefix Grouper (arXiv 2506.05433), which keeps one row per group and pads prompts and responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrl.policies.language.encoded import Encoded, model_positions, to_device
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.fast import cascade, shared_decode
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.fast.shared_decode import SharedPrefix
from mmrl.tools import tool

ATTENTION = "mmrl_shared_prompt"
EXACT_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass
class Group:
    """One prompt and its responses in the packed row.

    start     column of the group's first token
    prompt    length of the prompt
    lengths   of the responses that follow it
    prefill   what the decoder made of the prompt before; the row then holds the responses alone
    """

    start: int
    prompt: int
    lengths: list[int]
    prefill: Prefill | None = None

    @property
    def own(self) -> slice:
        """Columns of the prompt."""
        return slice(self.start, self.start + (self.prompt if self.prefill is None else 0))

    @property
    def responses(self) -> slice:
        return slice(self.own.stop, self.own.stop + sum(self.lengths))

    @cached_property
    def rectangle(self) -> tuple[Tensor, Tensor]:
        """(G, R) index of each response token among the group's response tokens, and which places are real."""
        lengths = torch.tensor(self.lengths)
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        index = torch.zeros(real.shape, dtype=torch.long)
        index[real] = torch.arange(int(lengths.sum()))
        return index, real

    def visible(self, window: int | None, device: torch.device) -> Tensor:
        """(R, P + R) bool: what each response place sees of `[prompt | own response]`."""
        steps = max(self.lengths)
        query = self.prompt + torch.arange(steps, device=device)[:, None]
        key = torch.arange(self.prompt + steps, device=device)
        return _causal(query, key, window)


@dataclass
class Layout:
    """Where everything stands in the packed row; passed through the model to `attention`.

    own_mask  prompts attend as the mask says that the model makes for the row (images that see all of themselves, in
              Gemma3, PaliGemma, Molmo2), not causally. Responses are causal in every family
    """

    groups: list[Group]
    own_mask: bool = False

    @property
    def prefills(self) -> list[Prefill]:
        return [g.prefill for g in self.groups if g.prefill is not None]

    @property
    def prompts_alone(self) -> bool:
        return not any(g.lengths for g in self.groups)

    def split(self, row: Tensor) -> Sequence[Tensor]:
        """(1, H, L, d) -> prompt and responses of each group, in turn, either possibly empty. One split, so that its
        backward pass joins their gradients; every slice would fill a row of its own with zeros."""
        return row.split([part.stop - part.start for g in self.groups for part in (g.own, g.responses)], dim=2)


@dataclass
class Packed:
    """Inputs of one packed forward.

    inputs  of the multimodal model, batch size 1
    layout  for the attention
    where   (B, T) column of the hidden state that predicts each action; 0 where there is none. The last states of
            the layout's prefills stand after the row's own
    """

    inputs: dict[str, Any]
    layout: Layout
    where: Tensor
    has_media: bool = False

    def states(self, module: Any, mask: Tensor) -> Tensor:
        states = module.states(self.inputs, idle=not self.has_media, shared_prompt=self.layout)[0]
        lasts = [p.last for p in self.layout.prefills]
        return torch.cat([states, *lasts])[self.where[mask]]


def refusal(core: Any, attention: str) -> str | None:
    """Why this model cannot take the shared-prompt path, or None."""
    text = core.config.get_text_config()
    other = sorted(set(getattr(text, "layer_types", None) or []) - EXACT_LAYERS)
    if other:
        return f"layers of type {', '.join(other)} carry state from one token to the next, or cut the row in chunks"
    if attention != "sdpa":
        return f"attention is {attention!r}; the packed row needs 'sdpa'"
    if dropped := dropout_of(core):
        return f"attention_dropout is {dropped}; plain and packed rows would drop different weights"
    return None


def dropout_of(core: Any) -> float:
    """Largest share of attention weights that a layer drops: as the layers keep it, whatever the configuration says."""
    kept = (getattr(module, "attention_dropout", 0.0) for module in core.get_decoder().modules())
    return max((share for share in kept if isinstance(share, float)), default=0.0)


def install(core: Any, family: Family) -> None:
    """Give the text decoder the attention that understands a `Layout`, and where the family allows it its last layer
    that of a prefill. Once, when the policy is made."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    decoder = family.decoder(core)
    decoder.set_attn_implementation(ATTENTION)
    last = decoder.layers[-1]
    if family.last_layer and not isinstance(last, LastLayer):
        last.__class__ = type(f"Last{type(last).__name__}", (LastLayer, type(last)), {})


@tool(
    "prefix_grouper",
    command="mmrl train vlm CONFIG policy.shared_prompt=on",
    paper="Prefix Grouper, arXiv 2506.05433",
    formula="[prompt | response 1 | ... | response G] in one row; prompts attend to themselves, each response to its "
    "prompt and itself: P + sum R_i tokens in place of G (P + R), the same log-probs and gradients",
    confidence="verified",
    modalities=("vlm", "video"),
    trains=True,
)
def pack(
    entries: Sequence[Encoded],
    prompt: Tensor,
    actions: Tensor,
    lengths: Tensor,
    device: torch.device,
    family: Family,
    prefills: Sequence[Prefill | None] | None = None,
) -> Packed:
    """One packed row that holds every prompt once, with all of its responses behind it.

    entries   P prompts; only those that rows use are packed
    prompt    (B,) which of them a row answers
    actions   (B, T); lengths (B,) how many are real
    prefills  of the P prompts, where they are at hand
    """
    actions, sizes = actions.cpu(), lengths.tolist()
    rows_of: dict[int, list[int]] = {}
    for row, p in enumerate(prompt.tolist()):
        rows_of.setdefault(p, []).append(row)
    where = torch.zeros(actions.shape, dtype=torch.long)
    width = sum(sizes) + sum(len(entries[p]) for p in rows_of if not prefills or prefills[p] is None)
    row_of, groups, column, lasts = _Row(family), [], 0, 0
    for p, rows in rows_of.items():
        entry, prefill = entries[p], prefills[p] if prefills else None
        group = Group(column, len(entry), [sizes[r] for r in rows], prefill)
        groups.append(group)
        if prefill is None:
            row_of.add_prompt(entry)
            last = group.own.stop - 1
        else:
            last, lasts = width + lasts, lasts + 1
        column = group.own.stop
        row_of.add_responses(entry, [actions[row, : sizes[row]] for row in rows])
        for row in rows:
            where[row, : sizes[row]] = torch.arange(column - 1, column + sizes[row] - 1)
            where[row, :1] = last
            column += sizes[row]
    has_media = any(entries[p].media for p in rows_of) or lasts > 0  # encoders of prefills take part already
    return Packed(row_of.inputs(device), Layout(groups, row_of.own_mask), where.to(device), has_media)


def pack_prompts(entries: Sequence[Encoded], device: torch.device, family: Family) -> tuple[dict[str, Any], Layout]:
    """Prompts alone in one row, each of which attends to itself: inputs of the multimodal model, and the layout."""
    row, groups, column = _Row(family), [], 0
    for entry in entries:
        row.add_prompt(entry)
        groups.append(Group(column, len(entry), []))
        column += len(entry)
    return row.inputs(device), Layout(groups, row.own_mask)


class _Row:
    """A packed row in the making."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.own_mask = family.capabilities.packed == "masked"
        self.prompts: list[Encoded] = []
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.aligned: list[dict[str, Tensor]] = []

    def add_responses(self, entry: Encoded, responses: Sequence[Tensor]) -> None:
        """Tokens (n,) of each, that go on from a prompt."""
        ids = torch.cat(list(responses))
        steps = torch.arange(entry.next_position, entry.next_position + max(map(len, responses)))
        steps = torch.cat([steps[: len(response)] for response in responses]).to(entry.positions)
        self.ids.append(ids)
        self.positions.append(steps.expand(len(entry.positions), -1))
        self.aligned.append({name: entry.appended(name, len(ids)) for name in entry.aligned})

    def add_prompt(self, entry: Encoded) -> None:
        self.prompts.append(entry)
        self.ids.append(entry.ids)
        self.positions.append(entry.positions)
        self.aligned.append(entry.aligned)

    def inputs(self, device: torch.device) -> dict[str, Any]:
        ids, positions = torch.cat(self.ids)[None], torch.cat(self.positions, dim=1)[:, None]
        row = {"input_ids": ids, "position_ids": model_positions(positions)}
        if len(positions) == 1:
            # Without a mask transformers takes a position that jumps back for the start of another row, and makes one.
            row["attention_mask"] = torch.ones_like(ids)
        aligned = {name: torch.cat(self._of(name))[None] for name in {n: 0 for part in self.aligned for n in part}}
        return to_device(row | aligned | self.family.media_inputs(self.prompts), device)

    def _of(self, name: str) -> list[Tensor]:
        example = next(part[name] for part in self.aligned if name in part)
        return [
            part[name] if name in part else example.new_zeros(len(ids), *example.shape[1:])
            for part, ids in zip(self.aligned, self.ids, strict=True)
        ]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prompt: Layout | SharedPrefix | Ends | None = None,
    scaling: float,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Registered with transformers. query (1, H, L, d), key and value (1, H_kv, L, d) -> (1, L, H, d).

    With a `SharedPrefix` instead of a `Layout`: one step of decoding, see `shared_decode`. With `Ends`:
    the last layer of a prefill, see `LastLayer`.
    """
    if shared_prompt is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if isinstance(shared_prompt, SharedPrefix):
        return shared_decode.attention(module, query, key, value, shared_prompt, scaling)
    if isinstance(shared_prompt, Ends):
        return _ends_attention(query, shared_prompt, scaling), None
    by_mask, parts = shared_prompt.own_mask and attention_mask is not None, []
    rows = zip(*(shared_prompt.split(t) for t in (query, key, value)), strict=True)
    for group in shared_prompt.groups:
        q, k_prompt, v_prompt = next(rows)
        if group.prefill is None:
            mask = attention_mask[:, :, group.own, group.own] if by_mask else None
            parts.append(_prompt_attention(q, k_prompt, v_prompt, scaling, sliding_window, mask))
        else:
            k_prompt, v_prompt = group.prefill.keys[module.layer_idx], group.prefill.values[module.layer_idx]
        q, k, v = next(rows)
        if sum(group.lengths):
            parts.append(_response_attention(group, q[0], k[0], v[0], k_prompt, v_prompt, scaling, sliding_window))
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


@dataclass
class Ends:
    """The last layer of a prefill: what its attention is for.

    groups  of the packed row
    layer   keys and values of the row; None while they are made, when nothing attends
    """

    groups: list[Group]
    layer: Any = None


class LastLayer:
    """Mixed into the decoder's last layer. Of a prompt that is only prefilled it is asked for keys and values, and for
    the output at the last token: what else it would compute nobody reads."""

    def forward(self, hidden_states: Tensor, *, shared_prompt: Any = None, **options: Any) -> Tensor:
        """(1, L, d) -> (1, L, d); of prompts alone, places other than their last tokens stay as they came."""
        layer: Any = super()
        if not (isinstance(shared_prompt, Layout) and shared_prompt.prompts_alone):
            return layer.forward(hidden_states, shared_prompt=shared_prompt, **options)
        module, groups, cache = cast(Any, self), shared_prompt.groups, options["past_key_values"]
        module.self_attn(hidden_states=module.input_layernorm(hidden_states), shared_prompt=Ends(groups), **options)
        ends = torch.tensor([g.own.stop - 1 for g in groups], device=hidden_states.device)
        rotary = tuple(t[..., ends, :] for t in options["position_embeddings"])
        options |= {"position_embeddings": rotary, "past_key_values": None, "position_ids": None}
        reads = Ends(groups, cache.layers[module.self_attn.layer_idx])
        return hidden_states.index_copy(1, ends, layer.forward(hidden_states[:, ends], shared_prompt=reads, **options))


def _ends_attention(query: Tensor, ends: Ends, scaling: float) -> Tensor:
    """query (1, H, n, d) of the last tokens of n prompts -> (1, n, H, d)."""
    if ends.layer is None:
        return query.new_zeros(1).expand_as(query).transpose(1, 2)
    parts = []
    for i, group in enumerate(ends.groups):
        q, k, v = query[:, :, i : i + 1], ends.layer.keys[:, :, group.own], ends.layer.values[:, :, group.own]
        parts.append(F.scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _prompt_attention(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, mask: Tensor | None = None
) -> Tensor:
    """Causal attention of one prompt, or by a mask (1, 1, P, P): (1, H, P, d)."""
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
    if window is None or window >= q.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    column = torch.arange(q.shape[2], device=q.device)
    mask = _causal(column[:, None], column, window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)


def _response_attention(
    group: Group,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_prompt: Tensor,
    v_prompt: Tensor,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Each response over `[prompt | itself]`: q (H, S, d) with S = sum of lengths -> (1, H, S, d).

    Without kernels for `cascade.attention`, the prompt's keys are copied for each response. Query heads that share a
    key-value head become extra query places, so keys are never repeated for them.
    """
    index, real = (t.to(q.device) for t in group.rectangle)
    if window is None and cascade.offered(q, k, v, k_prompt, v_prompt):
        return cascade.attention(q, k, v, k_prompt, v_prompt, index, real, scaling)[None]
    members, steps = index.shape
    heads, kv_heads, size = q.shape[0], k.shape[0], q.shape[-1]
    shared = heads // kv_heads

    def rectangle(t: Tensor) -> Tensor:
        return t[:, index].transpose(0, 1)

    def with_prompt(own: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([prompt.expand(members, -1, -1, -1), rectangle(own)], dim=2)

    queries = rectangle(q).reshape(members, kv_heads, shared * steps, size)
    mask = group.visible(window, q.device).repeat(shared, 1)
    out = F.scaled_dot_product_attention(
        queries, with_prompt(k, k_prompt), with_prompt(v, v_prompt), attn_mask=mask, scale=scaling
    )
    out = out.view(members, heads, steps, size).transpose(1, 2)[real]
    return out.transpose(0, 1)[None]


def _causal(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Keys up to the query, and within its window of so many tokens."""
    seen = key <= query
    return seen if window is None else seen & (key > query - window)
