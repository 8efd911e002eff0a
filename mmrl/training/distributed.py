"""The few things ranks say to each other. Stage functions never see a rank: they get the gathered batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from torch import Tensor

from mmrl.errors import ConfigError, MMRLError
from mmrl.policies.base import Policy
from mmrl.policies.counts import Mean
from mmrl.record import Batch, Rollouts
from mmrl.training.sequence_parallel import refuse_split_sequences

T = TypeVar("T")
PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU")  # one process, or DDP


def make_accelerator(sharding: str = "launcher", patience: float | None = None) -> Accelerator:
    """Accelerate's own choice of device; on a machine without one, ranks talk through gloo.

    sharding  "launcher": as the launcher's configuration says; "ddp" and "fsdp2" whatever it says
    patience  seconds ranks wait for each other; None: torch's default, ten minutes on GPUs and half an hour else

    Raises ConfigError for accelerate's mixed precision, which would round training and not the rollout, for engines
    that do more in their backward pass than add gradients, and for ranks that share a sequence.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ConfigError(
            f"accelerate is set to mixed_precision={precision}, which rollouts would not see; set it to 'no', and "
            "policy.dtype=bfloat16 or policy.autocast=bfloat16 instead"
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ConfigError(
            "DeepSpeed takes an optimizer step of its own in each backward pass, so a step of several micro-batches "
            "would come out wrong; shard with FSDP2 instead (configs/accelerate/fsdp2.yaml)"
        )
    refuse_split_sequences(os.environ)
    gpus = torch.accelerator.is_available()
    waits = [InitProcessGroupKwargs(timeout=timedelta(seconds=patience))] if patience else []
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    told = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    plugin = _fsdp2() if sharding == "fsdp2" and several else None
    if sharding == "ddp" and told:
        raise ConfigError(
            "training.sharding=ddp, and the launcher's configuration asks for FSDP; leave one of them out"
        )
    accelerator = Accelerator(
        mixed_precision="no", cpu=not gpus, fsdp_plugin=plugin if gpus else None, kwargs_handlers=waits
    )
    if several and not gpus and (told or plugin is not None):
        _shard_on_cpus(accelerator, plugin or FullyShardedDataParallelPlugin())
    if accelerator.distributed_type.value not in PLAIN and not accelerator.is_fsdp2:
        raise ConfigError(
            f"accelerate is set to {accelerator.distributed_type.value}; expected one process, DDP, or FSDP with "
            "fsdp_version: 2 (configs/accelerate)"
        )
    return accelerator


def _fsdp2() -> FullyShardedDataParallelPlugin:
    """What `configs/accelerate/fsdp2.yaml` says."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False,
    )  # fmt: skip


def _shard_on_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Let ranks without GPUs shard too: accelerate reads its plugin on GPUs alone, and torch shards anywhere.

    What is prepared and how gradients are clipped goes by the accelerator's state; how ranks talk, by that of the
    process, which stays gloo's.
    """
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def my_share(items: list, accelerator: Accelerator) -> list:
    """Every world-size-th item, so that each rank holds whole groups and about the same number."""
    return items[accelerator.process_index :: accelerator.num_processes]


def gather_objects(value: Any, accelerator: Accelerator) -> list[Any]:
    """One JSON-sized object of every rank, in rank order."""
    if accelerator.num_processes == 1:
        return [value]
    out: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(out, value)
    return out


def together(call: Callable[[], T], accelerator: Accelerator) -> T:
    """The result of `call`. Where it fails on some ranks, all raise, and none waits for another in vain.

    The rank at fault raises what went wrong there, the others an MMRLError that says which rank it was.
    """
    if accelerator.num_processes == 1:
        return call()
    result, failure = None, None
    try:
        result = call()
    except Exception as error:
        failure = error
    failures = gather_objects(None if failure is None else _in_words(failure), accelerator)
    if failure is not None:
        raise agreed(failure)
    for rank, message in enumerate(failures):
        if message is not None:
            raise agreed(MMRLError(f"rank {rank}: {message}"))
    return cast(T, result)


def agreed(error: Exception) -> Exception:
    """Mark an error that every rank raises at this place: what all must do together may still be done after it."""
    error.agreed = True  # type: ignore[attr-defined]
    return error


def is_agreed(error: Exception) -> bool:
    return getattr(error, "agreed", False)


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, MMRLError) else f"{type(error).__name__}: {error}"


def gather_rows(tensors: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Concatenate `(rows, ...)` tensors of all ranks in rank order; rows and `T` may differ between ranks."""
    if accelerator.num_processes == 1:
        return tensors
    rows = next(iter(tensors.values())).shape[0]
    kinds = {name: (tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in tensors.items()}
    each = gather_objects((rows, kinds), accelerator)
    counts = [count for count, _ in each]
    tensors = tensors | _missing_here(tensors, [kinds for _, kinds in each], rows)
    gathered = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        kind = tensor.dtype
        wide = tensor.to(torch.uint8) if kind == torch.bool else tensor
        for dim in range(wide.dim()):
            wide = accelerator.pad_across_processes(wide.contiguous(), dim=dim)
        parts = accelerator.gather(wide).split(max(counts))
        gathered[name] = torch.cat([p[:n] for p, n in zip(parts, counts, strict=True)]).to(kind)
    return gathered


def _missing_here(tensors: dict[str, Tensor], each: list[dict], rows: int) -> dict[str, Tensor]:
    """Components that only rewards of other ranks gave, NaN here; any other name must be known to all.

    Ranks gather name by name, so each must know the same ones: they would mix up different tensors, or hang.
    """
    device = next(iter(tensors.values())).device
    missing = {}
    for name in sorted({n for kinds in each for n in kinds}):
        without = [rank for rank, kinds in enumerate(each) if name not in kinds]
        if without and not name.startswith("components/"):
            raise agreed(
                MMRLError(
                    f"{name} is not on rank {without[0]}, where the others have it; columns must not depend on rows"
                )
            )
        if name not in tensors:
            kind, shape = next(kinds[name] for kinds in each if name in kinds)
            missing[name] = torch.full((rows, *shape), float("nan"), dtype=kind, device=device)
    return missing


def gather_batch(rollouts: Rollouts, accelerator: Accelerator, **constants) -> tuple[Batch, Tensor]:
    """The batch of all ranks, in the order of (group, member) whatever the world size.

    Returns it with `mine (rows of this rank,)`: where each local row stands in it.
    """
    local = Batch.of(rollouts)
    names = [
        *("mask", "old_log_probs", "group", "member", "task", "prompt"),
        *("reward", "success", "length", "truncated", "actions", "owner", "source", "helped"),
    ]
    tensors: dict[str, Tensor] = {n: v for n in names if isinstance(v := getattr(local, n), Tensor)}
    tensors |= {f"components/{k}": v for k, v in local.components.items()}
    tensors |= {f"columns/{k}": v for k, v in local.columns.items()}
    rows = len(rollouts)
    tensors["rank"] = torch.full((rows,), accelerator.process_index, device=rollouts.mask.device)
    tensors["row"] = torch.arange(rows, device=rollouts.mask.device)
    every = gather_rows(tensors, accelerator)
    order = torch.argsort(every["member"], stable=True)
    order = order[torch.argsort(every["group"][order], stable=True)]
    every = {k: v[order] for k, v in every.items()}
    batch = replace(
        Batch(mask=every["mask"], old_log_probs=every["old_log_probs"], **constants),
        **{n: every[n] for n in names[2:] if n in every},
        components={k.partition("/")[2]: v for k, v in every.items() if k.startswith("components/")},
        columns={k.partition("/")[2]: v for k, v in every.items() if k.startswith("columns/")},
    )
    here = (every["rank"] == accelerator.process_index).nonzero().squeeze(1)
    mine = torch.empty_like(here)
    mine[every["row"][here]] = here
    return batch, mine


def sum_over_ranks(sums: dict[str, tuple[float, float]], accelerator: Accelerator) -> dict[str, float]:
    """{name: (sum, count)} of this rank -> {name: mean over all ranks}."""
    total: dict[str, list[float]] = {}
    for part in gather_objects(sums, accelerator):
        for name, (value, count) in part.items():
            entry = total.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += count
    return {name: value / count if count else 0.0 for name, (value, count) in total.items()}


def counted_by_all(counts: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Sums over ranks of what each counted: numbers, tables of numbers, or means, which become those over all ranks; a
    name that one rank lacks is 0 there."""
    total: dict[str, Any] = {}
    for part in gather_objects(counts, accelerator):
        for name, value in part.items():
            if isinstance(value, dict):
                held = total.setdefault(name, {})
                total[name] = {k: held.get(k, 0) + value.get(k, 0) for k in sorted({*held, *value})}
            else:
                total[name] = total[name] + value if name in total else value
    return {name: float(value) if isinstance(value, Mean) else value for name, value in total.items()}


def even_micro_batches(
    policy: Policy, rollouts: Rollouts, size: int, accelerator: Accelerator, rows: Tensor | None = None
) -> list[Tensor]:
    """Micro-batches of `rows` (default: all), equally many on every rank."""
    rows = torch.arange(len(rollouts)) if rows is None else rows
    return evened(policy.micro_batches(rollouts, rows, size) if len(rows) else [], accelerator)


def evened(parts: list[Tensor], accelerator: Accelerator) -> list[Tensor]:
    """Equally many parts of rows on every rank: short ranks repeat a row.

    A repeated row must carry zero weight in a loss; writing its columns again changes nothing.
    """
    most = max(gather_objects(len(parts), accelerator))
    return parts + [torch.zeros(1, dtype=torch.long)] * (most - len(parts))


def whole_groups(group: Tensor, accelerator: Accelerator) -> list[Tensor]:
    """The rows of each group, for probes that compare its members; short ranks repeat a group."""
    parts = [(group == g).nonzero().squeeze(1).cpu() for g in torch.unique(group).tolist()]
    return parts + parts[:1] * (max(gather_objects(len(parts), accelerator)) - len(parts))
