"""Run on two gloo ranks: optimizer steps, a checkpoint of each engine, and a step from what one process wrote.

python -m tests.training.checkpoint_ranks FOLDER     reads FOLDER/alone, writes FOLDER/{ddp,fsdp2} and .../again
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from safetensors.torch import save_file

from mmrl.policies.base import Policy
from mmrl.training import checkpoint
from tests.policies.language.two_ranks import wrap
from tests.training.tiny import make_policy

ENGINES = ("ddp", "fsdp2")
LORA = {"lora": {"rank": 4, "alpha": 8}}


def optimizer_of(policy: Policy) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in policy.inner.parameters() if p.requires_grad], lr=1e-3)


def steps(policy: Policy, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Optimizer steps with gradients that depend on the parameter and the step alone."""
    for number in numbers:
        for parameter in (p for p in policy.inner.parameters() if p.requires_grad):
            draw = torch.Generator().manual_seed(number * 1000 + parameter.numel() % 997)
            gradient = torch.randn(parameter.shape, generator=draw)
            if hasattr(parameter, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    checkpoint.save(folder, step, policy, optimizer, {}, accelerator, keep=9)


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    for engine in ENGINES:
        out = Path(folder) / engine
        policy = make_policy(**LORA)
        wrap(policy, engine)
        optimizer = optimizer_of(policy)
        steps(policy, optimizer, range(2))
        save(out, 2, policy, optimizer, accelerator)
        again = make_policy(**LORA)
        wrap(again, engine)
        optimizer = optimizer_of(again)
        checkpoint.load(Path(folder) / "alone" / "checkpoints" / "step-000002", again, optimizer)
        steps(again, optimizer, range(2, 3))
        state = again.trainable_state()
        if rank == 0:
            save_file(state, out / "again.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(run, (sys.argv[1],), nprocs=2, start_method="fork")
