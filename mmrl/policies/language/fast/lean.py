"""A step of decoding written out: what a decoder of the known kind computes for one token a row, without its modules.

At one token a row the products are small, and a third of a step went into calling modules, handing dictionaries from
one to the next and making masks and positions anew. Here a layer is read once into the tensors it multiplies with, and
a step is their arithmetic: norm, projections, rotation, attention over prompt and own tokens, gated feed-forward part.
Weights are the model's own, not copies: they are never out of date. Projections that are no plain linear layers, such
as adapters, are called.

Known are layers of two root-mean-square norms, attention with or without norms of queries and keys, and a gated
feed-forward part: Llama, Mistral, Qwen2, Qwen3 and what is built on them. `refusal` says what a model has otherwise,
and `sampling.SharedCache` compares the first steps with the model's before it trusts one; what is refused goes the
model's own way, and is counted (`taken`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrl.policies.language.encoded import model_positions
from mmrl.policies.language.fast import shared_decode
from mmrl.policies.language.fast.shared_decode import SharedPrefix
from mmrl.policies.language.fast.written import Growing
from mmrl.policies.sharding import is_sharded

LAYER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
NORMED = frozenset({"q_norm", "k_norm"})
FEED_FORWARD = frozenset({"gate_proj", "up_proj", "down_proj"})
ROTATIONS = frozenset({"default", "linear", "llama3", "yarn", "mrope"})
"""Types of rotary embeddings whose angles do not depend on how long the row is."""
CLOSE = 1e-4
"""Of the spread of a row's logits: how far those of the first steps may be from the model's."""

BELOW = "its numbers are not float32, where the order of sums shows"

Map = Callable[[Tensor], Tensor]


def refusal(model: Any) -> str | None:
    """Why steps of this `ScoredLanguageModel` cannot be written out, or None."""
    if model.autocast is not None or next(model.parameters()).dtype != torch.float32:
        return BELOW
    if is_sharded(model):
        return "sharded weights are whole for a while only"
    decoder = model.family.decoder(model.core)
    if type(model.core.get_input_embeddings()) is not nn.Embedding:
        return "its embeddings are no plain table"
    if _norm_of(getattr(decoder, "norm", None)) is None:
        return "its last norm is not known"
    if getattr(getattr(decoder, "rotary_emb", None), "rope_type", None) not in ROTATIONS:
        return "its rotary embeddings are not known"
    if any(m._forward_hooks or m._forward_pre_hooks for m in decoder.modules()):
        return "its modules have hooks"
    if found := next(filter(None, map(_unlike, decoder.layers)), None):
        return found
    turned = 2 * decoder.rotary_emb.inv_freq.shape[-1]
    if any(layer.self_attn.head_dim != turned for layer in decoder.layers):
        return "its rotary embeddings do not turn whole heads"
    return None


def _unlike(layer: nn.Module) -> str | None:
    """What a layer has that is not written out here."""
    parts: dict[str, Any] = dict(layer.named_children())
    if parts.keys() != LAYER:
        return f"its layers have {', '.join(sorted(parts.keys() ^ LAYER))} more or less than the known kind"
    attention, inner = ({n for n, _ in parts[name].named_children()} for name in ("self_attn", "mlp"))
    if not ATTENTION <= attention <= ATTENTION | NORMED or len(attention & NORMED) == 1:
        return f"its attention is not of the known kind: {', '.join(sorted(attention))}"
    if not FEED_FORWARD <= inner <= FEED_FORWARD | {"act_fn"} or not callable(getattr(parts["mlp"], "act_fn", None)):
        return f"its feed-forward part is not of the known kind: {', '.join(sorted(inner))}"
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(parts["self_attn"], name) for name in attention & NORMED]
    return "its norms are not known" if None in map(_norm_of, norms) else None


def _norm_of(module: Any) -> Map | None:
    """A root-mean-square norm over the last dimension."""
    size = getattr(module, "variance_epsilon", None)
    if size is None or [name for name, _ in module.named_parameters()] != ["weight"] or module.weight.dim() != 1:
        return None
    return partial(F.rms_norm, normalized_shape=tuple(module.weight.shape), weight=module.weight, eps=size)


def _map_of(module: Any) -> Map:
    """A projection; any but a plain linear layer is called."""
    if type(module) is not nn.Linear:
        return module
    return partial(F.linear, weight=module.weight, bias=module.bias)


@dataclass
class _Layer:
    """What a layer multiplies with, and the keys and values (B, H_kv, t, d) of the rows' own tokens."""

    norm: Map
    projections: tuple[Map, ...]
    norms: tuple[Map, ...] | None
    out: Map
    norm_after: Map
    gate: Map
    act: Map
    up: Map
    down: Map
    size: int
    scaling: float
    keys: Growing
    values: Growing

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        attention, inner = layer.self_attn, layer.mlp
        norms = [_norm_of(getattr(attention, name, None)) for name in ("q_norm", "k_norm")]
        return cls(
            norm=_norm_of(layer.input_layernorm), norm_after=_norm_of(layer.post_attention_layernorm),
            projections=tuple(_map_of(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")),
            norms=None if None in norms else tuple(norms), out=_map_of(attention.o_proj),
            gate=_map_of(inner.gate_proj), act=inner.act_fn, up=_map_of(inner.up_proj), down=_map_of(inner.down_proj),
            size=attention.head_dim, scaling=attention.scaling, keys=Growing(), values=Growing(),
        )  # fmt: skip

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], prompts: Any, prefix: SharedPrefix) -> Tensor:
        """x (B, hidden); turn: cosines and sines (B, 1, d); prompts: keys and values of the layer's prompts."""
        rows, read = len(x), self.norm(x)
        q, k, v = (project(read).view(rows, -1, self.size) for project in self.projections)
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        heads = q.shape[1]
        both = turned(torch.cat((q, k), dim=1), turn)
        q, k = both[:, :heads], both[:, heads:]
        keys, values = self.keys.append(k[:, :, None]), self.values.append(v[:, :, None])
        q = q.view(rows, k.shape[1], -1, self.size)
        x = x + self.out(shared_decode.attended(q, keys, values, prompts, prefix, self.scaling).reshape(rows, -1))
        read = self.norm_after(x)
        return x + self.down(self.act(self.gate(read)) * self.up(read))


def turned(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of heads (B, H, d): `x cos + rotate_half(x) sin`, the sign of the half in the sines."""
    cosines, sines = turn
    return torch.addcmul(heads * cosines, heads.roll(heads.shape[-1] // 2, -1), sines)


class Turns:
    """Cosines and sines of all positions that rows will write, `turned`'s sign in the sines.

    first  (B,) position of the first token each row appends; steps: how many there may be
    axes   of positions
    """

    def __init__(self, decoder: Any, embeddings: Tensor, first: Tensor, steps: int, axes: int):
        self.begin = int(first.min())
        positions = torch.arange(self.begin, int(first.max()) + steps, device=first.device).expand(axes, 1, -1)
        cosines, sines = decoder.rotary_emb(embeddings.detach()[:1, None], model_positions(positions))
        self.cosines = cosines.reshape(-1, *cosines.shape[-2:])[0]  # of one axis: behind a prompt all are the same
        sines = sines.reshape(-1, *sines.shape[-2:])[0]
        half = sines.shape[-1] // 2
        self.sines = torch.cat((-sines[:, :half], sines[:, half:]), dim=-1)

    def at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) each, of positions (B,)."""
        at = position - self.begin
        return self.cosines[at], self.sines[at]


class Lean:
    """The decoder of a model while rows are written, from empty caches of their own tokens.

    first, steps, axes  as `Turns` has them
    """

    def __init__(self, model: Any, first: Tensor, steps: int, axes: int):
        decoder = model.family.decoder(model.core)
        self.embeddings, self.head = model.core.get_input_embeddings().weight, _map_of(model.head)
        self.layers = [_Layer.of(layer) for layer in decoder.layers]
        self.norm = _norm_of(decoder.norm)
        self.turns = Turns(decoder, self.embeddings, first, steps, axes)

    def logits(self, tokens: Tensor, position: Tensor, prefix: SharedPrefix) -> Tensor:
        """Append tokens (B,) at positions (B,) -> (B, V) of the output head."""
        x, (cosines, sines) = F.embedding(tokens, self.embeddings), self.turns.at(position)
        turn = cosines[:, None], sines[:, None]
        for layer, prompts in zip(self.layers, prefix.cache.layers, strict=True):
            x = layer(x, turn, prompts, prefix)
        return self.head(self.norm(x))

    def keep(self, chosen: Tensor) -> None:
        """Forget the other rows."""
        for layer in self.layers:
            layer.keys.select(chosen)
            layer.values.select(chosen)


def close(written: Tensor, models: Tensor) -> bool:
    """Whether logits (B, V) are the model's up to rounding; words that cannot be sampled, at the lowest number, left
    out."""
    real = models > torch.finfo(torch.float32).min / 2
    spread = models[real].max() - models[real].min()
    return bool(((written - models).abs()[real] <= CLOSE * spread.clamp(min=1.0)).all())
