"""A step of decoding in C: `step.c` does for plain float32 layers on a CPU what `lean` does by PyTorch's kernels.

At one token a row a step is some 150 kernels of ten to a hundred microseconds, half of whose time is theirs and not the
arithmetic's. In C a step is one call: rows are lanes of a vector, a weight is read once for all of them, each prompt's
keys once for its group, and a row's own keys and values once for all queries that share them. The sums are those of
float32, in another order.

The source is compiled by the machine's own C compiler when it is first wanted, a second or two, and kept in the cache
folder under the names of source, compiler and processor. Without a compiler steps go as before, and that is counted
(`taken`). With several threads each writes rows of its own: they meet once a step.

Weights are read where they are, under adapters from copies that have them added (`merged`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.policies.language.fast import merged
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
PATIENCE = 300
"""Seconds that a compiler may take."""

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
    if type(model.head) is not nn.Linear:
        return merged.NOT_PLAIN
    if found := merged.refusal(module for layer in decoder.layers for module in _projections(layer).values()):
        return found
    if not all(map(_is_plain, _weights(model, decoder))):
        return "weights are not all float32 and in one piece"
    if not all(isinstance(layer.mlp.act_fn, nn.SiLU) or _is_silu(layer.mlp.act_fn) for layer in decoder.layers):
        return "the activation is not SiLU"
    if found := _misfit(model, decoder):
        return found
    if torch.get_num_threads() > MOST_THREADS:
        return f"more than {MOST_THREADS} threads"
    return next((made for made in map(library, (NARROW, WIDE)) if isinstance(made, str)), None)


def _projections(layer: Any) -> dict[str, Any]:
    """By their names in `_Layer`."""
    found = {name[0]: getattr(layer.self_attn, name) for name in PROJECTIONS}
    return found | {name.removesuffix("_proj"): getattr(layer.mlp, name) for name in GATED}


def _weights(model: Any, decoder: Any) -> list[Tensor]:
    """All that a step reads of the model, adapters and what they were made from among them."""
    return [*decoder.parameters(), *model.head.parameters(), model.core.get_input_embeddings().weight]


def _is_plain(weight: Tensor) -> bool:
    """float32 on a CPU, one number behind the other, and there: sharded storage is emptied between uses."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
        return False
    return weight.untyped_storage().nbytes() >= 4 * (weight.storage_offset() + weight.numel())


def _misfit(model: Any, decoder: Any) -> str | None:
    """What has another size than the source, which asks nobody, takes it to have."""
    embeddings, head = model.core.get_input_embeddings().weight, model.head.weight
    size, hidden, layers = decoder.layers[0].self_attn.head_dim, embeddings.shape[1], decoder.layers
    if len(head) > len(embeddings):
        return "the head has more words than the table of embeddings"
    if size % 8:
        return "the size of a head is no multiple of 8"
    sizes = [{n: tuple(t.shape) for n, t in _tensors(y, _unmerged).items() if t is not None} for y in layers]
    if any(found != sizes[0] for found in sizes):
        return "layers are of several sizes"
    wide, narrow, inner = (sizes[0][name][0] for name in ("q", "k", "gate"))
    known: dict[str, tuple[int, ...]] = dict.fromkeys("kv", (narrow, hidden))
    known |= dict.fromkeys(("gate", "up"), (inner, hidden))
    known |= {"q": (wide, hidden), "o": (hidden, wide), "down": (hidden, inner)}
    known |= {f"{name}_bias": shape[:1] for name, shape in known.items()}
    known |= {"norm": (hidden,), "norm_after": (hidden,), "q_norm": (size,), "k_norm": (size,)}
    same = all(known[name] == shape for name, shape in sizes[0].items())
    same = same and decoder.norm.weight.shape == (hidden,) and head.shape[1] == hidden
    return None if same and wide % narrow == narrow % size == 0 else "its weights are not of the known sizes"


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


_compiling = threading.Lock()


def library(lanes: int) -> ctypes.CDLL | str:
    """The compiled source for so many rows, or why there is none. Threads wait for the one that compiles."""
    with _compiling:
        return _library(lanes)


@cache
def _library(lanes: int) -> ctypes.CDLL | str:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C compiler"
    try:
        return _loaded(compiler, lanes)
    except subprocess.CalledProcessError as error:
        return f"the C compiler failed: {(error.stderr.strip().splitlines() or [str(error)])[0][:200]}"
    except subprocess.TimeoutExpired:
        return f"the C compiler took more than {PATIENCE} seconds"
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where the home folder is
        return f"no library: {getattr(error, 'strerror', None) or error}"


def _loaded(compiler: str, lanes: int) -> ctypes.CDLL:
    version, source = _told([compiler, "--version"]), SOURCE.read_bytes()
    named = "\n".join([version, *FLAGS, str(lanes), _processor()]).encode()
    path = folder() / f"step-{hashlib.sha256(source + named).hexdigest()[:16]}.so"
    if path.exists():
        try:
            return ctypes.CDLL(os.fspath(path))
        except OSError:  # cut short when a machine went down: made again
            pass
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as own:  # ranks that compile at once put the same in place
        made = Path(own) / path.name
        _told([compiler, f"-DLANES={lanes}", "-o", os.fspath(made), os.fspath(SOURCE), *FLAGS])
        os.replace(made, path)
    return ctypes.CDLL(os.fspath(path))


def _told(command: list[str]) -> str:
    given: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    return str(subprocess.run(command, check=True, timeout=PATIENCE, **given).stdout)


def _processor() -> str:
    """What `-march=native` depends on: a home folder may serve machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


@cache
def _helpers(count: int, process: int) -> ThreadPoolExecutor:
    """Of this process: a forked one has the pool of its parent, but none of its threads."""
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


def _empty(*shape: int) -> Tensor:
    """float32 on the CPU, whatever the defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _at(tensor: Tensor | None) -> int | None:
    """Where the numbers are. The tensor has to be kept as long as they are read."""
    return None if tensor is None else tensor.data_ptr()


def _tensors(layer: Any, weight: Callable[[Any], Tensor]) -> dict[str, Tensor | None]:
    """What of `_Layer` stays as it is while rows are written. weight: of a projection"""
    maps = _projections(layer)
    told: dict[str, Tensor | None] = {name: weight(module) for name, module in maps.items()}
    told |= {f"{name}_bias": merged.base(module).bias for name, module in maps.items()}
    told |= {"norm": layer.input_layernorm.weight, "norm_after": layer.post_attention_layernorm.weight}
    return told | {name: norm.weight for name, norm in _norms(layer).items()}


def _unmerged(module: Any) -> Tensor:
    return merged.base(module).weight


def _norms(layer: Any) -> dict[str, Any]:
    """Of queries and keys, where there are any."""
    named = {name: getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm")}
    return {name: norm for name, norm in named.items() if norm is not None}


def _numbers(layer: Any) -> dict[str, float]:
    told = {"eps": layer.input_layernorm, "eps_after": layer.post_attention_layernorm}
    told |= {f"eps_{name[0]}": norm for name, norm in _norms(layer).items()}
    return {name: norm.variance_epsilon for name, norm in told.items()} | {"scaling": layer.self_attn.scaling}


class Native:
    """As `lean.Lean`: the decoder of a model while rows are written, from empty caches of their own tokens.

    Weights are read where they are. If something moves them between two steps they are read where they went, or, where
    that cannot be, the step is refused. Those with adapters are as they were at the beginning.
    """

    def __init__(self, model: Any, first: Tensor, steps: int, axes: int):
        self.whole, decoder = model, model.family.decoder(model.core)
        attention = decoder.layers[0].self_attn
        self.size, self.words = attention.head_dim, model.head.out_features
        self.kv = merged.base(attention.k_proj).out_features // self.size
        self.turns = Turns(decoder, model.core.get_input_embeddings().weight, first, steps, axes)
        self.rows, self.written, self.room, self.limit = len(first), 0, 0, steps
        self.own: list[tuple[Tensor, Tensor]] = []
        self._read_weights()

    def _read_weights(self) -> None:
        model, decoder = self.whole, self.whole.family.decoder(self.whole.core)
        self.watched = _weights(model, decoder)
        self.places = [weight.data_ptr() for weight in self.watched]
        self.kept = [weight.detach() for weight in self.watched]  # what they are moved from is not given back
        told = [_tensors(layer, merged.weight) for layer in decoder.layers]
        self.kept += [tensor for each in told for tensor in each.values() if tensor is not None]
        self.parts: list[dict[str, Any]] = [{name: _at(tensor) for name, tensor in each.items()} for each in told]
        for part, layer in zip(self.parts, decoder.layers, strict=True):
            part |= _numbers(layer)
        self.layers = (_Layer * len(told))()
        embeddings, first = model.core.get_input_embeddings().weight, _projections(decoder.layers[0])
        heads, inner = merged.base(first["q"]).out_features // self.size, merged.base(first["gate"]).out_features
        self.model = _Model(
            ctypes.addressof(self.layers), *map(_at, (embeddings, decoder.norm.weight)),
            *map(_at, (model.head.weight, model.head.bias)), decoder.norm.variance_epsilon,
            len(told), embeddings.shape[1], inner, heads, self.kv, self.size, self.words,
        )  # fmt: skip
        self.prefix: SharedPrefix | None = None

    def _follow(self) -> None:
        """Weights that something has moved."""
        if [weight.data_ptr() for weight in self.watched] == self.places:
            return
        if reason := refusal(self.whole):
            raise PolicyError(f"weights were moved while rows were written, and {reason}")
        self._read_weights()

    def logits(self, tokens: Tensor, position: Tensor, prefix: SharedPrefix) -> Tensor:
        """Append tokens (B,) at positions (B,) -> (B, V) of the output head."""
        if self.written == self.limit:
            raise IndexError(f"rows that were to append {self.limit} tokens append one more")
        if tokens.shape != (self.rows,) or tokens.dtype != torch.int64:
            raise ValueError(f"tokens {tuple(tokens.shape)} of {tokens.dtype}; expected ({self.rows},) of torch.int64")
        if self.written == self.room:
            self._widen()
        self._follow()
        if prefix is not self.prefix:
            self._read(prefix)
        cosines, sines = self.turns.at(position)
        found = _empty(self.rows, self.words)
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
            waiting = [_helpers(threads - 1, os.getpid()).submit(part, at) for at in others]
            failed = [part(first), *(one.result() for one in waiting)]
        if any(failed):
            raise MemoryError("a step of decoding has no memory for the numbers between its layers")

    def _widen(self) -> None:
        """Room for a quarter more tokens, whole tiles, no more than may come."""
        more = min(max(ROOM, self.room // 4), self.limit - self.room)
        room = -(-(self.room + more) // TILE) * TILE
        old, self.own = self.own, []
        for layer in range(len(self.parts)):
            keys = _empty(self.rows, self.kv, room // TILE, self.size, TILE)
            values = _empty(self.rows, self.kv, room, self.size)
            if old:
                keys[:, :, : self.room // TILE], values[:, :, : self.room] = old[layer]
                old[layer] = None
            self.own.append((keys, values))
        self.room, self.prefix = room, None

    def _read(self, prefix: SharedPrefix) -> None:
        """Say where everything is that the layers read."""
        self.prefix, layers = prefix, prefix.cache.layers
        self.prompts = [(layer.keys.float().contiguous(), layer.values.float().contiguous()) for layer in layers]
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
