"""Checkpoints that are whole or absent: written beside, fsynced, renamed. safetensors and json only.

    checkpoints/step-000020/
        trainable.safetensors   what training changes, in its own precision (tensor_files: shards where the model is)
        optimizer.safetensors   AdamW moments by parameter name
        state.json              step, prompt sampler, stage functions that remember, policy state; a digest of each file
        policy/                 Hugging Face layout, loads without mmrl: at the end and every `training.export_every`

Every random draw is keyed by (seed, step, ...), so no generator state needs saving. Names have no wrapper's prefix, and
files say where their pieces belong: a run goes on with another number of ranks. What the version before wrote is read.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmrl.errors import ConfigError, DataError, MMRLError
from mmrl.policies.base import Policy
from mmrl.policies.sharding import is_sharded_tensor, plain_name
from mmrl.training import tensor_files
from mmrl.training.digests import digest_of, read_state, restoring, sealed, verify
from mmrl.training.distributed import gather_objects, together
from mmrl.training.finite import refuse_weights
from mmrl.training.optimizer import whole_state
from mmrl.training.storage import remove_tree, require_space, sync, write_atomically, writing

_NAME = re.compile(r"step-(\d+)$")
_LEFT_OVER = re.compile(r"\.step-\d+\.(partial|deleted)$")
WRITTEN, BEST, GOING_BACK = ".written.json", "best", ".going_back.json"
"""In the run directory: the checkpoints it wrote, and a resume that sets some aside. BEST is a link among them."""


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first; without those that a resume is setting aside."""
    root, entry = Path(folder) / "checkpoints", going_back(Path(folder))
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if (match := _NAME.match(path.name)) and (path / "state.json").exists():
            found.append((int(match[1]), path))
    return sorted((step, path) for step, path in found if entry is None or step <= entry["step"])


def going_back(folder: Path) -> dict[str, int] | None:
    """`{"step", "into"}` of a resume that began to set later checkpoints aside."""
    try:
        entry = json.loads(_text_of(folder / GOING_BACK))
        return {key: int(entry[key]) for key in ("step", "into")}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _text_of(path: Path) -> str:
    """Of a file; "" for anything else, such as a pipe, which nobody may ever write into."""
    return path.read_text() if path.is_file() else ""


def latest(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise ConfigError(f"{folder} holds no complete checkpoint; expected {folder}/checkpoints/step-N/state.json")
    return found[-1][1]


def save(
    folder: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any],
    accelerator: Accelerator, keep: int, *, export: bool = False, best: bool = False,
) -> Path:  # fmt: skip
    """Write `checkpoints/step-N` and keep the last `keep` that this run wrote, and the best. Every rank must call it.

    export  with `policy/`; best: `checkpoints/best` points to it from now on
    Raises StorageError, on every rank, where the disk refuses; what was saved before still stands.
    """
    final = folder / "checkpoints" / f"step-{step:06d}"
    beside = final.with_name(f".{final.name}.partial")
    weights, moments = policy.trained_tensors(), _moments(policy, optimizer)
    size = tensor_files.bytes_here(weights) + tensor_files.bytes_here(moments)

    def prepare() -> None:
        with writing(beside):
            if accelerator.is_main_process:
                remove_tree(beside)
                beside.mkdir(parents=True)
        refuse_weights(weights.items(), f"{final} is not written")
        require_space(final, size, "a checkpoint")

    def finish() -> None:
        if not accelerator.is_main_process:
            return
        with writing(final):
            entry = {"step": step, "policy": policy.state_dict(), **state, "files": files}
            write_atomically(beside / "state.json", sealed(entry))
            _put_in_place(beside, final)
            if best:
                _point_to_best(final)
            _drop_old(final.parent, step, keep)

    try:
        together(prepare, accelerator)
        files = _write(beside, weights, moments, policy if export else None, accelerator)
        together(finish, accelerator)
    except MMRLError:
        if accelerator.is_main_process:
            with suppress(OSError):  # what went wrong first is what is said
                remove_tree(beside)
        raise
    return final


def _write(
    beside: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], exported: Policy | None,
    accelerator: Accelerator,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Tensors of all ranks, and the Hugging Face layout; returns the digest of every file by its name."""

    def tensors() -> list[Path]:
        with writing(beside):
            return tensor_files.write(beside, weights, moments)

    def layout() -> list[Path]:
        folder = beside / "policy"
        with writing(folder):
            if exported is not None:
                exported.save_pretrained(folder)
                if exported.card is not None and accelerator.is_main_process:
                    (folder / "README.md").write_text(exported.card())
            files = sorted(p for p in folder.rglob("*") if p.is_file()) if accelerator.is_main_process else []
            for path in files:
                if path.suffix == ".safetensors":
                    tensor_files.sort_header(path)
            return files

    def digests() -> dict[str, dict[str, Any]]:
        with writing(beside):
            for path in written:
                sync(path)
            return {str(p.relative_to(beside)): digest_of(p) for p in written}

    written = together(tensors, accelerator) + together(layout, accelerator)
    parts = gather_objects(together(digests, accelerator), accelerator)
    return dict(sorted(item for part in parts for item in part.items()))


def _put_in_place(beside: Path, final: Path) -> None:
    """From now on it is complete, and ours to delete."""
    root = final.parent
    for folder in (beside / "policy", beside):
        if folder.is_dir():
            sync(folder)
    _note_written(root.parent, {*_written(root.parent), final.name})
    remove_tree(final)
    os.replace(beside, final)
    sync(root)


def adopt(folder: Path) -> None:
    """Count the checkpoints of a run as its own, where they were written before such lists were kept."""
    if not (folder / WRITTEN).exists():
        _note_written(folder, {path.name for _, path in checkpoints(folder)})


def _note_written(folder: Path, names: set[str]) -> None:
    write_atomically(folder / WRITTEN, json.dumps(sorted(names)))


def _written(folder: Path) -> list[str]:
    try:
        names = json.loads(_text_of(folder / WRITTEN))
    except (OSError, ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str) and _NAME.match(name)] if isinstance(names, list) else []


def _point_to_best(final: Path) -> None:
    link = final.with_name(BEST)
    fresh = final.with_name(f".{BEST}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(final.name)
    os.replace(fresh, link)


def best_of(folder: Path) -> Path | None:
    """The checkpoint that `checkpoints/best` points to, if it is still there."""
    path = Path(folder) / "checkpoints" / BEST
    return path.resolve() if path.is_symlink() and (path / "state.json").exists() else None


def _drop_old(root: Path, step: int, keep: int) -> None:
    """Delete older checkpoints that this run wrote, and what is left of those it was writing or deleting when killed.
    Checkpoints of others are theirs."""
    own = set(_written(root.parent))
    found = [path for at, path in checkpoints(root.parent) if at <= step and path.name in own]
    kept = {path.name for path in found[-keep:]} | {p.name for p in (best_of(root.parent),) if p is not None}
    for path in list(root.iterdir()):
        if _LEFT_OVER.match(path.name) or (path in found and path.name not in kept):
            remove_tree(path)
        elif _NAME.match(path.name):
            with suppress(OSError):  # what an earlier version half deleted, down to the empty folder
                path.rmdir()
    _note_written(root.parent, {name for name in own if (root / name).exists()})


def step_of(path: Path) -> int:
    return int(read_state(path)["step"])


def check(path: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """`state.json` of a checkpoint all of whose files are what was written. DataError names the first that is not."""
    state = read_state(path)
    names = [n for n in state.get("files", {}) if n.startswith(tensor_files.WEIGHTS)] if weights_only else None
    verify(path, state, names)
    if "files" not in state:  # of the version before: what a file holds can be read, at least
        for stem in (tensor_files.WEIGHTS, *(() if weights_only else (tensor_files.MOMENTS,))):
            _readable(path, stem)
    return state


def _readable(path: Path, stem: str) -> None:
    """Files of the version before have no digest; their headers at least must be whole."""
    try:
        if tensor_files.files_of(path, stem):
            tensor_files.shapes(path, stem)
            return
    except Exception as error:  # the library raises its own kinds
        raise DataError(f"{path}/{stem}.safetensors: damaged: {' '.join(str(error).split())[:120]}") from None
    raise DataError(f"{path}/{stem}.safetensors: not there")


def load_weights(path: Path, policy: Policy) -> dict[str, Any]:
    """What training changed, into a policy built from the same configuration; returns `state.json`."""
    state = read_state(path)
    found = tensor_files.shapes(path, tensor_files.WEIGHTS)
    live = policy.trained_tensors()
    fits = {name for name, shape in found.items() if name in live and tuple(live[name].shape) == shape}
    targets = {n: torch.empty_like(live[n]) if n in fits else torch.empty(shape) for n, shape in found.items()}
    tensor_files.read(path, tensor_files.WEIGHTS, targets)
    refuse_weights(targets.items(), str(path / "trainable.safetensors"))
    policy.load_trainable_state(targets)  # which says what does not fit
    with restoring(path):
        policy.load_state_dict(state["policy"])
    return state


def load(path: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights, moments and policy state from a checkpoint; returns its `state.json`."""
    state = load_weights(path, policy)
    parameters = _parameters(policy)
    targets = {}
    for key, (shape, kind) in tensor_files.described(path, tensor_files.MOMENTS).items():
        name, _, moment = key.partition("|")
        parameter = parameters.get(name.removeprefix("module."), parameters.get(name))
        if parameter is None:
            raise DataError(f"{path}/optimizer.safetensors has moments of {name!r}, which this policy does not train")
        wide = bool(shape)
        if wide and shape != tuple(parameter.shape):
            raise DataError(f"{path}/optimizer.safetensors: {key}: shape {shape}, expected {tuple(parameter.shape)}")
        # in their own precision: moments and master copies of bfloat16 weights are float32
        targets[key] = torch.empty_like(parameter.detach(), dtype=kind) if wide else torch.empty((), dtype=kind)
        optimizer.state[parameter][moment] = targets[key]
    tensor_files.read(path, tensor_files.MOMENTS, targets)
    return state


def _parameters(policy: Policy) -> dict[str, nn.Parameter]:
    return {plain_name(name): p for name, p in policy.inner.named_parameters() if p.requires_grad}


def _moments(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{NAME|exp_avg: tensor}`, as they lie on this rank."""
    tensors = {}
    for name, parameter in _parameters(policy).items():
        for key, value in whole_state(optimizer.state.get(parameter, {}), parameter).items():
            tensors[f"{name}|{key}"] = value if is_sharded_tensor(value) else value.detach()
    return tensors
