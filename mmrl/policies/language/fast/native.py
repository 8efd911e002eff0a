"""A step of decoding in C: `step.c` does for plain float32 layers on a CPU what `lean` does by PyTorch's kernels.

At one token a row a step is some 150 kernels of ten to a hundred microseconds, half of whose time is theirs and not the
arithmetic's. In C a step is one call: rows are lanes of a vector, a weight is read once for all of them, each prompt's
keys once for its group, and a row's own keys and values once for all queries that share them. The sums are those of
float32, in another order.

The source is compiled by the machine's own C compiler when it is first wanted, a second or two, and kept in the cache
folder under the names of source, compiler and processor. Without a compiler steps go as before, and that is counted
(`taken`). With several threads each writes rows of its own: they meet once a step.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.policies.language.fast.lean import Turns
from mmrl.policies.language.fast.shared_decode import SharedPrefix

SOURCE = Path(__file__).with_name("step.c")
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-lm")
TILE = 16
"""As in the source: own tokens whose keys lie side by side."""
NARROW, WIDE = 8, 16
"""Rows that go through a step together."""
ROOM = 128
"""Own tokens there is room for at first."""

ELSEWHERE = "steps in C are for rows that are written out on a CPU"
UNASKED = "policy.native_steps is off"
MOST_THREADS = 4
"""With more there are too few rows for each; PyTorch's kernels share a row's work among them."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


def refusal(model: Any) -> str | None:
    """Why the steps of this `ScoredLanguageModel`, which `lean` writes out, cannot go by C; None if they can."""
    if next(model.parameters()).device.type != "cpu":
        return ELSEWHERE
    decoder = model.family.decoder(model.core)
    if any(type(module) is not nn.Linear for module in _maps(model, decoder)):
        return "projections are no plain linear layers"
    read = [*decoder.parameters(), *model.head.parameters(), model.core.get_input_embeddings().weight]
    if any(weight.dtype != torch.float32 or not weight.is_contiguous() for weight in read):
        return "weights are not all float32 and in one piece"
    if not all(isinstance(layer.mlp.act_fn, nn.SiLU) or _is_silu(layer.mlp.act_fn) for layer in decoder.layers):
        return "the activation is not SiLU"
    if model.head.out_features > len(model.core.get_input_embeddings().weight):
        return "the head has more words than the table of embeddings"
    if len({_shapes(layer) for layer in decoder.layers}) > 1:
        return "layers are of several sizes"
    if decoder.layers[0].self_attn.head_dim % 8:
        return "the size of a head is no multiple of 8"
    if torch.get_num_threads() > MOST_THREADS:
        return f"more than {MOST_THREADS} threads"
    found = library(NARROW)
    return found if isinstance(found, str) else None


def _maps(model: Any, decoder: Any) -> list[Any]:
    parts: list[tuple[Any, tuple[str, ...]]] = [(layer.self_attn, PROJECTIONS) for layer in decoder.layers]
    parts += [(layer.mlp, GATED) for layer in decoder.layers]
    return [model.head, *(getattr(part, name) for part, names in parts for name in names)]


def _shapes(layer: Any) -> tuple[Any, ...]:
    return (layer.self_attn.head_dim, *(tuple(weight.shape) for _, weight in sorted(layer.named_parameters())))


def _is_silu(act: Any) -> bool:
    x = torch.linspace(-8.0, 8.0, 33)
    return bool(torch.equal(act(x), nn.functional.silu(x)))


# -- the library ------------------------------------------------------------------------------------------------


def folder() -> Path:
    """`native` in `$MMRL_CACHE`, or in `mmrl` in the cache folder of the platform."""
    if own := os.environ.get("MMRL_CACHE"):
        return Path(own).expanduser() / "native"
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "mmrl" / "native"


@cache
def library(lanes: int) -> ctypes.CDLL | str:
    """The compiled source for so many rows, or why there is none."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C compiler"
    try:
        return ctypes.CDLL(os.fspath(_compiled(compiler, lanes)))
    except subprocess.CalledProcessError as error:
        return f"the C compiler failed: {(error.stderr.strip().splitlines() or [str(error)])[0][:200]}"
    except OSError as error:
        return f"no library: {error.strerror or error}"


def _compiled(compiler: str, lanes: int) -> Path:
    """Ranks that compile at once each put the same file in place."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    source = SOURCE.read_bytes()
    named = "\n".join([version, *FLAGS, str(lanes), _processor()]).encode()
    path = folder() / f"step-{hashlib.sha256(source + named).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        command = [compiler, f"-DLANES={lanes}", "-o", os.fspath(made), os.fspath(SOURCE), *FLAGS]
        subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(made, path)
    return path


def _processor() -> str:
    """What `-march=native` depends on: a home folder may serve machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="mmrl-step")


# -- what the source reads --------------------------------------------------------------------------------------

TENSORS = (
    "norm", "q", "q_bias", "k", "k_bias", "v", "v_bias", "q_norm", "k_norm", "o", "o_bias",
    "norm_after", "gate", "gate_bias", "up", "up_bias", "down", "down_bias",
    "prompt_keys", "prompt_values", "keys", "values",
)  # fmt: skip
NUMBERS = ("eps", "eps_after", "eps_q", "eps_k", "scaling")
SIZES = ("count", "hidden", "inner", "heads", "kv", "size", "words")


class _Layer(ctypes.Structure):
    _fields_ = [*((n, ctypes.c_void_p) for n in TENSORS), *((n, ctypes.c_float) for n in NUMBERS)]


class _Model(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("layers", "embeddings", "norm", "head", "head_bias")),
        ("eps", ctypes.c_float),
        *((n, ctypes.c_int64) for n in SIZES),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("tokens", "context", "begin", "cosines", "sines")),
        *((n, ctypes.c_int64) for n in ("longest", "written", "room")),
        ("logits", ctypes.c_void_p),
    ]


def _at(tensor: Tensor | None) -> int | None:
    """Where the numbers are. The tensor has to be kept as long as they are read."""
    return None if tensor is None else tensor.data_ptr()


def _described(layer: Any) -> dict[str, Any]:
    """Everything of `_Layer` that stays as it is while rows are written."""
    attention, inner = layer.self_attn, layer.mlp
    named = {name[0]: getattr(attention, name) for name in PROJECTIONS}
    named |= {name.removesuffix("_proj"): getattr(inner, name) for name in GATED}
    told: dict[str, Any] = {name: _at(module.weight) for name, module in named.items()}
    told |= {f"{name}_bias": _at(module.bias) for name, module in named.items()}
    norms = {"": layer.input_layernorm, "_after": layer.post_attention_layernorm}
    told |= {f"norm{after}": _at(module.weight) for after, module in norms.items()}
    told |= {f"eps{after}": module.variance_epsilon for after, module in norms.items()}
    for name in "qk":
        module = getattr(attention, f"{name}_norm", None)
        told |= {} if module is None else {f"{name}_norm": _at(module.weight), f"eps_{name}": module.variance_epsilon}
    return told | {"scaling": attention.scaling}


class Native:
    """As `lean.Lean`: the decoder of a model while rows are written, from empty caches of their own tokens.

    Weights are read where they are, so nothing may move them until the rows are written.
    """

    def __init__(self, model: Any, first: Tensor, steps: int, axes: int):
        decoder = model.family.decoder(model.core)
        attention, inner = decoder.layers[0].self_attn, decoder.layers[0].mlp
        self.size, heads = attention.head_dim, attention.q_proj.out_features // attention.head_dim
        self.kv, self.words = attention.k_proj.out_features // self.size, model.head.out_features
        embeddings = model.core.get_input_embeddings().weight
        self.turns = Turns(decoder, embeddings, first, steps, axes)
        self.parts = [_described(layer) for layer in decoder.layers]
        self.layers = (_Layer * len(self.parts))()
        self.model = _Model(
            ctypes.addressof(self.layers), *map(_at, (embeddings, decoder.norm.weight)),
            *map(_at, (model.head.weight, model.head.bias)), decoder.norm.variance_epsilon,
            len(self.parts), embeddings.shape[1], inner.gate_proj.out_features, heads, self.kv, self.size, self.words,
        )  # fmt: skip
        self.rows, self.written, self.room, self.limit = len(first), 0, 0, steps
        self.own: list[tuple[Tensor, Tensor]] = []
        self.prefix: SharedPrefix | None = None

    def logits(self, tokens: Tensor, position: Tensor, prefix: SharedPrefix) -> Tensor:
        """Append tokens (B,) at positions (B,) -> (B, V) of the output head."""
        if self.written == self.limit:
            raise IndexError(f"rows that were to append {self.limit} tokens append one more")
        if self.written == self.room:
            self._widen()
        if prefix is not self.prefix:
            self._read(prefix)
        cosines, sines = self.turns.at(position)
        found = torch.empty(len(tokens), self.words)
        read = (tokens.contiguous(), self.context, self.begin, cosines, sines)
        asked = _Step(*map(_at, read), self.prompts[0][0].shape[2], self.written, self.room, _at(found))
        self._run(asked, len(tokens))
        self.written += 1
        return found

    def _run(self, asked: _Step, rows: int) -> None:
        threads = torch.get_num_threads()
        lanes = NARROW if rows <= NARROW * threads else WIDE
        made: Any = library(lanes)

        def part(first: int) -> int:
            given = (ctypes.c_int64(first), ctypes.c_int64(min(lanes, rows - first)))
            return made.step(ctypes.byref(self.model), ctypes.byref(asked), *given)

        first, *others = range(0, rows, lanes)
        if threads == 1 or not others:
            failed = [part(at) for at in (first, *others)]
        else:
            waiting = [_helpers(threads - 1).submit(part, at) for at in others]
            failed = [part(first), *(one.result() for one in waiting)]
        if any(failed):
            raise MemoryError("a step of decoding has no memory for the numbers between its layers")

    def _widen(self) -> None:
        """Room for a quarter more tokens, whole tiles, no more than may come."""
        more = min(max(ROOM, self.room // 4), self.limit - self.room)
        room = -(-(self.room + more) // TILE) * TILE
        old, self.own = self.own, []
        for layer in range(len(self.parts)):
            keys = torch.empty(self.rows, self.kv, room // TILE, self.size, TILE)
            values = torch.empty(self.rows, self.kv, room, self.size)
            if old:
                keys[:, :, : self.room // TILE], values[:, :, : self.room] = old[layer]
                old[layer] = None
            self.own.append((keys, values))
        self.room, self.prefix = room, None

    def _read(self, prefix: SharedPrefix) -> None:
        """Say where everything is that the layers read."""
        self.prefix, layers = prefix, prefix.cache.layers
        self.prompts = [(layer.keys.contiguous(), layer.values.contiguous()) for layer in layers]
        self.context = prefix.there.nonzero()[:, 0].contiguous()
        hidden = torch.zeros(len(prefix.there), 1) if prefix.hidden is None else prefix.hidden[:, 0, 0]
        self.begin = torch.isinf(hidden).sum(-1)
        names = ("prompt_keys", "prompt_values", "keys", "values")
        for place, part in enumerate(self.parts):
            given = dict(zip(names, map(_at, (*self.prompts[place], *self.own[place])), strict=True))
            self.layers[place] = _Layer(**part, **given)

    def keep(self, chosen: Tensor) -> None:
        """Forget the other rows."""
        self.own = [(keys.index_select(0, chosen), values.index_select(0, chosen)) for keys, values in self.own]
        self.rows, self.prefix = len(chosen), None
