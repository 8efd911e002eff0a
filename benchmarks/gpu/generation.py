"""Iterations of flow-matching generators: SD3.5 medium with `flow_grpo`, Wan 1.3B with `flow_grpo_fast`.

An image or clip counts once it was sampled, scored and trained. TRL has no trainer for flow matching.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import measure

CAPTIONS = ("a red circle", "two blue squares on the left")
LORA = {"rank": 32, "alpha": 64}


@dataclass(frozen=True)
class Shape:
    """`prompts` x `members` outputs of `height` x `width` pixels, clips of `frames`; `text` tokens of a prompt."""

    prompts: int
    members: int
    recipe: str
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    text: int | None = None


SHAPES = {
    ("sd3", "full"): Shape(2, 4, "flow_grpo", 512, 512),
    ("wan", "full"): Shape(1, 4, "flow_grpo_fast", 480, 832, 17),
    ("sd3", "tiny"): Shape(2, 2, "flow_grpo", text=16),
    ("wan", "tiny"): Shape(1, 2, "flow_grpo_fast", 32, 32, 5, text=16),
}


def run(kind: str, size: str, device: str, steps: int, folder: Path) -> dict[str, Any]:
    """One part's row."""
    shape, trainer = SHAPES[kind, size], make_trainer(kind, size, device, folder)
    work = Work(trainer.policy)
    measured = measure.train_steps(trainer, steps, device, work.begin)
    flops, calls = work.of_steps(steps + 1), shape.prompts * shape.members
    seconds = measured["seconds a step"]
    made = "clips" if shape.frames else "images"
    measured |= {"rows": calls, f"{made} a second": calls / seconds}
    return measured | {"model FLOPs": flops, "FLOPs a second": flops / seconds}


class Work:
    """The operations of the transformer's calls: a forward pass of one row is counted once, then rows are.

    A pass with gradient counts twice: its weights are frozen under adapters, and get no gradient of their own.
    """

    def __init__(self, policy: Any):
        self.policy, self.rows, self.each = policy, 0.0, None
        policy.generator.pipeline.transformer.register_forward_hook(self._count, with_kwargs=True)

    def begin(self) -> None:
        """Forget what came before: the first step compares the generator with its pipeline, too."""
        self.rows = 0.0

    def _count(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        import torch

        latents = kwargs.get("hidden_states", args[0] if args else None)
        if self.each is None:
            self.each = 0.0  # the pass that counts comes through here too
            self.each = self._counted(module, args, kwargs) / len(latents)
            return
        self.rows += len(latents) * (2 if torch.is_grad_enabled() else 1)

    def _counted(self, module: Any, args: Any, kwargs: Any) -> float:
        import torch

        from benchmarks.flops import counted

        with torch.no_grad():
            return counted(lambda: module(*args, **kwargs))

    def of_steps(self, steps: int) -> float:
        """Model FLOPs of one of `steps` steps. Passes that recompute for a checkpoint do not come through here."""
        return self.rows * (self.each or 0.0) / steps


def make_trainer(kind: str, size: str, device: str, folder: Path) -> Any:
    from mmrl.objective import Objective
    from mmrl.policies.generation.config import FlowPolicyConfig
    from mmrl.policies.generation.policy import FlowPolicy
    from mmrl.precision import DTYPES
    from mmrl.recipes import load_recipe
    from mmrl.record import Prompt
    from mmrl.training.config import TrainingConfig
    from mmrl.training.trainer import Trainer

    shape, recipe = SHAPES[kind, size], load_recipe(SHAPES[kind, size].recipe)
    rows = shape.prompts * shape.members
    kept = "float32" if device == "cpu" else "bfloat16"  # which takes a CPU minutes
    size_of = {"height": shape.height, "width": shape.width, "frames": shape.frames}
    settings = recipe.policy | size_of | {
        "model": f"{kind}, random", "dtype": kept, "ema": None, "lora": LORA, "transformer_batch": rows,
        "max_sequence_length": shape.text, "gradient_checkpointing": kind == "wan",
    }  # fmt: skip
    policy = FlowPolicy(_pipeline(kind, size, device, DTYPES[kept]), FlowPolicyConfig(**settings))
    training = TrainingConfig(
        steps=1000, prompts_per_step=shape.prompts, group_size=shape.members, micro_batch_size=rows,
        micro_batch_actions=1 if kind == "wan" else None, learning_rate=3e-4, save_rollouts=0,
    )  # fmt: skip
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(CAPTIONS)]
    return Trainer(policy, Objective.of(recipe.objective), prompts, _score, training, folder)


def _pipeline(kind: str, size: str, device: str, dtype: Any) -> Any:
    from benchmarks.gpu import models

    made = {"sd3": models.sd3_medium, "wan": models.wan_1_3b}[kind](size, device, dtype)
    made.set_progress_bar_config(disable=True)
    return made


def _score(outputs: list[Any], _: Any) -> Any:
    """How much redder than blue an image, or the first frame of a clip, is."""
    import torch

    from benchmarks.bench_flow import redness
    from mmrl.record import Scores

    reward = torch.tensor(redness([o[0] if isinstance(o, list) else o for o in outputs]))
    return Scores({"redness": reward}, reward, (reward > 0).float())
