"""Run by `mmrl launch`, and alone: a short training whose rows are written by a vLLM in each process."""

import sys
from pathlib import Path

import torch

from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.recipes import load_recipe
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import make_accelerator
from mmrl.training.tracking import JsonLines
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_prompts, score_vowels

RUN = {"steps": 4, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-4, "save_every": 0}


def main(checkpoint: str, out: Path) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator()
    policy = VisionPolicy.from_config(LanguagePolicyConfig(model=checkpoint, max_new_tokens=8, engine="vllm"))
    start = {name: weight.clone() for name, weight in policy.trainable_state().items()}
    for name, changes in (("now", {"check_every": 1}), ("ahead", {"check_every": 0, "ahead": 1})):
        policy.module = policy.inner  # the trainer before wrapped it
        policy.load_trainable_state(start)
        (out / name).mkdir(parents=True, exist_ok=True)
        trackers = [JsonLines(out / name / "metrics.jsonl")] if accelerator.is_main_process else []
        Trainer(
            policy, Objective.of(load_recipe("grpo").objective), make_prompts(8), score_vowels,
            TrainingConfig(**RUN | changes), out / name, accelerator=accelerator, trackers=trackers,
        ).train()  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
