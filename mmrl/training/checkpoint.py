"""Checkpoints that are whole or absent: written beside, fsynced, renamed. safetensors and json only.

    checkpoints/step-000020/
        policy/                 Hugging Face layout, loads without mmrl
        trainable.safetensors   what training changes, in its own precision
        optimizer.safetensors   AdamW moments by parameter name
        state.json              step, prompt sampler, stage functions that remember, policy state

Every random draw is keyed by (seed, step, ...), so no generator state needs saving.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmrl.errors import ConfigError, DataError
from mmrl.policies.base import Policy
from mmrl.training.finite import refuse_weights

_NAME = re.compile(r"step-(\d+)$")
_OURS = re.compile(r"\.?step-\d+(\.partial)?$")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first."""
    root = Path(folder) / "checkpoints"
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if (match := _NAME.match(path.name)) and (path / "state.json").exists():
            found.append((int(match[1]), path))
    return sorted(found)


def latest(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise ConfigError(f"{folder} holds no complete checkpoint; expected {folder}/checkpoints/step-N/state.json")
    return found[-1][1]


def save(
    folder: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any],
    accelerator: Accelerator, keep: int,
) -> Path:  # fmt: skip
    """Write `checkpoints/step-N` and keep the last `keep` up to it. Later ones are of a run that went on from an
    earlier step since, and what it wrote then goes. Every rank must call it."""
    final = folder / "checkpoints" / f"step-{step:06d}"
    beside = final.with_name(f".{final.name}.partial")
    trainable = {k: _whole(v) for k, v in policy.trainable_state().items()}
    refuse_weights(trainable.items(), f"{final} is not written")
    moments = _optimizer_tensors(policy.module, optimizer)
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    policy.save_pretrained(beside / "policy")
    if accelerator.is_main_process:
        _write(beside, trainable, moments, {"step": step, "policy": policy.state_dict(), **state})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
        _sync(final.parent)
        _drop_all_but([path for found, path in checkpoints(folder) if found <= step][-keep:], final.parent)
    accelerator.wait_for_everyone()
    return final


def _drop_all_but(kept: list[Path], root: Path) -> None:
    """Delete other checkpoints, and what is left of those that a killed process was writing or deleting."""
    for path in root.iterdir():
        if path not in kept and _OURS.match(path.name):
            shutil.rmtree(path)


def step_of(path: Path) -> int:
    return int(json.loads((path / "state.json").read_text())["step"])


def load_weights(path: Path, policy: Policy) -> dict[str, Any]:
    """What training changed, into a policy built from the same configuration; returns `state.json`."""
    from safetensors.torch import load_file

    state = json.loads((path / "state.json").read_text())
    trainable = load_file(path / "trainable.safetensors")
    refuse_weights(trainable.items(), str(path / "trainable.safetensors"))
    policy.load_trainable_state(trainable)
    policy.load_state_dict(state["policy"])
    return state


def load(path: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights, moments and policy state from a checkpoint; returns its `state.json`."""
    from safetensors.torch import load_file

    state = load_weights(path, policy)
    moments = load_file(path / "optimizer.safetensors")
    parameters = dict(policy.module.named_parameters())
    for name in {k.partition("|")[0] for k in moments}:
        if name not in parameters:
            raise DataError(f"{path}/optimizer.safetensors has moments of {name!r}, which this policy does not train")
    for name, parameter in parameters.items():
        own = {k.partition("|")[2]: v for k, v in moments.items() if k.partition("|")[0] == name}
        if own:
            optimizer.state[parameter] = {k: _placed(v, parameter, k) for k, v in own.items()}
    return state


def _write(folder: Path, trainable: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(trainable, folder / "trainable.safetensors")
    save_file(moments, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps(state, indent=1))
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU, gathered where FSDP holds shards."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().cpu().contiguous().clone()


def _placed(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if name == "step":
        return value
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{key}"] = _whole(torch.as_tensor(value))
    return tensors
