"""Run on two gloo ranks: the gradient of a sum over rows that are split between them, one rank without images."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

import mmrl  # noqa: F401
from mmrl.pipelines.bases.models import tiny_vlm
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from tests.policies.language.scenes import mixed_prompts, requests

LORA = {"lora": {"rank": 4, "alpha": 8.0}, "train_vision": True}
CASES = {
    "ddp-full": ("ddp", {}),
    "ddp-prefilled": ("ddp", {}),
    "fsdp2-full": ("fsdp2", {}),
    "fsdp2-lora": ("fsdp2", LORA),
}
SHARES = ([0, 1, 2, 4, 5, 12, 13, 14, 15], [8, 9, 10, 11])
"""Rows of each rank: the second has the prompt without images alone."""


def build(options: dict) -> VisionPolicy:
    torch.set_num_threads(1)
    return VisionPolicy(*tiny_vlm("qwen3_vl"), LanguagePolicyConfig(model="tiny", max_new_tokens=6, **options))


def share(log_probs: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """What `rows` contribute to a fixed weighted sum over all 16 rows."""
    weights = torch.linspace(-1, 1, 16 * log_probs.shape[1]).view(16, -1)
    return (log_probs * weights[rows]).sum()


def wrap(policy: VisionPolicy, engine: str) -> None:
    if engine == "ddp":
        policy.module = torch.nn.parallel.DistributedDataParallel(policy.module)
        return
    from torch.distributed.fsdp import fully_shard

    core = policy.inner.core.model
    for block in [*core.language_model.layers, *core.visual.blocks]:
        fully_shard(block)
    fully_shard(policy.module)


def run(rank: int, folder: str) -> None:
    for name, (engine, options) in CASES.items():
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-{name}", rank=rank, world_size=2)
        one_case(rank, Path(folder) / name, engine, options)
        dist.barrier()
        dist.destroy_process_group()


def one_case(rank: int, out: Path, engine: str, options: dict) -> None:
    policy = build(options)
    wrap(policy, engine)
    policy.load_state_dict({"update_in_one_pass": out.name == "ddp-prefilled"})
    rollouts = policy.rollout(requests(mixed_prompts()), Key(1))
    # Ranks act on unequal work: decoding must not wait for the other rank.
    mine = policy.rollout(requests(mixed_prompts())[rank * 2 : rank + 3], Key(1))
    assert mine.outputs == [rollouts.outputs[i] for i in (range(12), range(8, 16))[rank]]
    old = policy.evaluate(rollouts, weights="old").log_probs
    assert len(policy._kept) == (len(rollouts.encoded) + len(mine.encoded)) * (out.name == "ddp-prefilled")
    policy.module.train()
    scored = policy.evaluate(rollouts.index(SHARES[rank]))
    (2 * share(scored.log_probs, SHARES[rank])).backward()
    gradients = {n: p.grad for n, p in policy.inner.named_parameters() if p.requires_grad}
    gradients = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in gradients.items()}
    policy.save_pretrained(out / "saved")
    state = policy.trainable_state()
    policy.load_trainable_state(state)
    if rank == 0:
        save_file({n: g.contiguous() for n, g in gradients.items()}, out / "gradients.safetensors")
        save_file({"old": old, "actions": rollouts.actions}, out / "rows.safetensors")
        save_file(state, out / "state.safetensors")


if __name__ == "__main__":
    mp.start_processes(run, (sys.argv[1],), nprocs=2, start_method="fork")
