"""Two gloo ranks: DDP with adapters and FSDP2 with full weights give the gradient of one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group

from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from mmrl.record import Rollouts
from mmrl.stages import NEEDS, Need
from tests.policies.generation.tiny import flow_policy, flow_requests, nudge

KEY = Key(3, 0)
MATCHING = {"likelihood": "matching", "draws": {"count": 2}, "anchor": {"start": 0.5, "rate": 0.0}}
OPTIONS = {
    "ddp": {"lora": {"rank": 4}},
    "fsdp": {"lora": None},
    "matching_ddp": {"lora": {"rank": 4}, **MATCHING},
    "matching_fsdp": {"lora": None, **MATCHING},
}
MIXED = Need("matching_loss", weights="current", options=(("mix", 0.3),))


def moved_policy(mode: str) -> FlowPolicy:
    policy = flow_policy(guidance_scale=2.0, transformer_batch=4, gradient_checkpointing=True, **OPTIONS[mode])
    nudge(policy)
    return policy


def gradient(policy: FlowPolicy, rollouts: Rollouts) -> Tensor:
    """Of the log-probs, and with adapters of the KL to the reference too; of a loss that mixes in a moved anchor."""
    needs = [NEEDS["reference_kl"]] if policy._adapted else []
    if policy.anchors:
        policy.after_batch()
        needs = [MIXED]
    seen = policy.evaluate(rollouts, needs)
    (seen.log_probs.sum() + sum(c.sum() for c in seen.columns.values())).backward()
    grads = [p.grad for p in policy.module.parameters() if p.requires_grad]
    return torch.cat([(g.full_tensor() if hasattr(g, "full_tensor") else g).flatten() for g in grads])


def wrap(mode: str, policy: FlowPolicy) -> None:
    if mode.endswith("ddp"):
        policy.module = torch.nn.parallel.DistributedDataParallel(policy.module)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in policy.module.transformer.transformer_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(policy.module, mesh=mesh)


def on_a_rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for mode in OPTIONS:
        policy = moved_policy(mode)
        wrap(mode, policy)
        policy.rollout(flow_requests(1 + rank), KEY, greedy=True)  # ranks may act unequally often
        mine = policy.rollout([flow_requests()[rank]], KEY)
        with torch.no_grad():
            old, new, mask = policy.replayed(mine)
            assert bool(mask.any())
            results[f"{mode}/gap"] = (new - old).abs().max()
        results[f"{mode}/gradient"] = gradient(policy, mine)
        policy.save_pretrained(f"{folder}/{mode}")
    if rank == 0:
        save_file(results, f"{folder}/results.safetensors")
    destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict[str, Tensor], Path]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_a_rank, args=(str(folder),), nprocs=2)
    return load_file(folder / "results.safetensors"), folder


@pytest.mark.parametrize("mode", OPTIONS)
def test_two_ranks_are_one_process(mode, results):
    numbers, folder = results
    assert numbers[f"{mode}/gap"] < 1e-5
    alone = moved_policy(mode)
    expected = gradient(alone, alone.rollout(flow_requests(), KEY))
    two = 2 * numbers[f"{mode}/gradient"]  # ranks average
    assert (two - expected).norm() < 1e-4 * expected.norm()
    name = "pytorch_lora_weights.safetensors" if alone._adapted else "diffusion_pytorch_model.safetensors"
    assert (folder / mode / name).is_file()


def test_sharded_weights_are_saved_whole(results):
    from diffusers import SD3Transformer2DModel

    saved = SD3Transformer2DModel.from_pretrained(results[1] / "fsdp").state_dict()
    expected = moved_policy("fsdp").inner.transformer.state_dict()
    assert saved.keys() == expected.keys() and all(torch.equal(saved[n], expected[n]) for n in saved)
