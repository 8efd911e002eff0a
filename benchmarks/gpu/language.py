"""Steps of Qwen2.5-VL on pictures or clips, with LoRA or in full; and TRL's GRPOTrainer on the same pictures.

One update on the samples just drawn, no KL, end tokens suppressed on our side and a least length on TRL's, so that
both write and train the same number of tokens. Utilization counts what must be done once (`benchmarks.flops`): the
prompt once a group, each response once written and once trained; recomputation is not work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import measure

LEARNING_RATE, RANK = 1e-6, 16


@dataclass(frozen=True)
class Shape:
    """Of one step: `prompts` x `members` responses of `new` tokens, each to a picture, or a clip of `frames`, of
    `height` x `width` pixels; `members` is what fits beside 3B weights and their optimizer."""

    prompts: int
    members: int
    new: int
    height: int
    width: int
    frames: int = 0

    @property
    def media_tokens(self) -> int:
        """1,024 of a full picture, 8,192 of a full clip."""
        return max(self.frames // 2, 1) * (self.height // 28) * (self.width // 28)


SHAPES = {
    ("images", "full"): Shape(prompts=2, members=8, new=128, height=896, width=896),
    ("clips", "full"): Shape(prompts=2, members=4, new=64, height=448, width=896, frames=32),
    ("images", "tiny"): Shape(prompts=2, members=2, new=4, height=56, width=56),
    ("clips", "tiny"): Shape(prompts=2, members=2, new=4, height=56, width=56, frames=4),
}
QUESTION = "Describe what you see in a few words."


def run(media: str, way: str, size: str, device: str, steps: int, folder: Path) -> dict[str, Any]:
    """One part's row. `way`: lora or full."""
    shape = SHAPES[media, size]
    trainer = make_trainer(media, way, size, device, folder)
    entry = trainer.policy.encode(trainer.collector.prompts[0])
    core = trainer.policy.inner.core
    measured = measure.train_steps(trainer, steps, device)
    flops = model_flops(core.config, shape, len(entry), way)
    return {"prompt tokens": len(entry)} | _rates(shape, len(entry), flops, measured)


def _rates(shape: Shape, prompt: int, flops: float, measured: dict[str, Any]) -> dict[str, Any]:
    rows, seconds = shape.prompts * shape.members, measured["seconds a step"]
    rates = {"rows": rows, "new tokens a second": rows * shape.new / seconds}
    rates["tokens a second"] = rows * (prompt + shape.new) / seconds
    return measured | rates | {"model FLOPs": flops, "FLOPs a second": flops / seconds}


def make_trainer(media: str, way: str, size: str, device: str, folder: Path) -> Any:
    """Our trainer with TRL's objective on a model with random weights."""
    from benchmarks.models import score
    from mmrl.objective import Objective
    from mmrl.recipes import load_recipe
    from mmrl.training.config import TrainingConfig
    from mmrl.training.trainer import Trainer

    shape = SHAPES[media, size]
    rows = shape.prompts * shape.members
    training = TrainingConfig(
        steps=1000, prompts_per_step=shape.prompts, group_size=shape.members, micro_batch_size=rows,
        learning_rate=LEARNING_RATE, save_rollouts=0,
    )  # fmt: skip
    objective = Objective.of(load_recipe("trl").objective)
    return Trainer(make_policy(media, way, size, device), objective, prompts(media, size), score, training, folder)


def make_policy(media: str, way: str, size: str, device: str) -> Any:
    """Ours in bfloat16, with end tokens suppressed; activations are checkpointed where 3B would not fit otherwise."""
    from dataclasses import replace

    import torch

    from benchmarks.gpu import models
    from mmrl.policies.adapters import LoraConfig
    from mmrl.policies.language.video import VideoPolicy
    from mmrl.policies.language.vision import VisionPolicy

    model, processor = models.qwen(size, device, torch.bfloat16)
    shape = SHAPES[media, size]
    asked = {"model": "Qwen2.5-VL, random", "dtype": "bfloat16", "max_new_tokens": shape.new}
    asked["gradient_checkpointing"] = way == "full" or media == "clips"
    asked["lora"] = LoraConfig(rank=RANK, alpha=2 * RANK) if way == "lora" else None
    kind: Any = VideoPolicy if media == "clips" else VisionPolicy
    reader = {"read_clip": frames_of(shape)} if media == "clips" else {}
    policy = kind(model, processor, kind.config_type(**asked), **reader)
    module = policy.inner
    suppressed = tuple(sorted({*module.distribution.suppressed, *policy.stopping.ids}))
    module.distribution = replace(module.distribution, suppressed=suppressed)
    return policy


def prompts(media: str, size: str) -> list[Any]:
    from mmrl.record import Prompt

    shape, asked = SHAPES[media, size], []
    for index in range(4):
        shown: Any = f"clip-{index}" if media == "clips" else picture(shape, index)
        content = [{"type": "video" if media == "clips" else "image"}, {"type": "text", "text": QUESTION}]
        given = ([], [shown]) if media == "clips" else ([shown], [])
        asked.append(Prompt(f"p{index}", [{"role": "user", "content": content}], *given, {}))
    return asked


def picture(shape: Shape, index: int) -> Any:
    """Smooth colours with some texture, different for each."""
    import numpy as np
    from PIL import Image

    across, down = np.meshgrid(np.linspace(0, 1, shape.width), np.linspace(0, 1, shape.height))
    waves = [np.sin(2 * np.pi * (c + 1) * (across + (index + 1) * down / 3) + index) for c in range(3)]
    noise = np.random.default_rng(index).normal(0, 12, (shape.height, shape.width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def frames_of(shape: Shape) -> Any:
    """A reader that makes the frames of a clip by its name: decoding is measured elsewhere (`bench_video`)."""

    def read(clip: Any, sampling: Any) -> Any:
        import torch

        from mmrl.media import Frames

        generator = torch.Generator().manual_seed(int(str(clip).rpartition("-")[2]))
        size = (shape.frames, 3, shape.height // 8, shape.width // 8)
        pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        pixels = pixels.repeat_interleave(8, -1).repeat_interleave(8, -2)
        indices, whole = list(range(0, 15 * shape.frames, 15)), (shape.height, shape.width)
        return Frames(pixels, indices, 30.0, 15 * shape.frames, whole, "made", str(clip))

    return read


def model_flops(config: Any, shape: Shape, prompt: int, way: str) -> float:
    """Of one step, once each: a backward pass is two forward passes, one where the weights it meets are frozen."""
    from benchmarks import flops

    text = config.get_text_config()
    frames = max(shape.frames // 2, 1)
    tower = frames * flops.vision_forward(config.vision_config, shape.height * shape.width // 14**2)
    trained = 3 if way == "full" else 2
    seen = shape.prompts * (tower * (3 if way == "full" else 1) + trained * flops.prompt_forward(text, prompt))
    written = shape.prompts * shape.members * flops.response_forward(text, prompt, shape.new)
    return seen + (1 + trained) * written


def run_trl(way: str, size: str, device: str, steps: int, folder: Path) -> dict[str, Any]:
    """TRL's trainer on the same model, pictures and number of tokens; it takes no clips."""
    import time
    from itertools import pairwise

    import torch
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.gpu import models

    shape, ends = SHAPES["images", size], []

    class Timed(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            measure.settle(device)
            ends.append(time.perf_counter())
            if len(ends) == 1 and device != "cpu":
                torch.cuda.reset_peak_memory_stats(device)

    model, processor = models.qwen(size, device, torch.bfloat16)
    config = GRPOConfig(
        output_dir=str(folder), use_cpu=device == "cpu", bf16=True, max_steps=1 + steps,
        per_device_train_batch_size=shape.prompts * shape.members, num_generations=shape.members,
        gradient_accumulation_steps=1, max_completion_length=shape.new,
        generation_kwargs={"min_new_tokens": shape.new}, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        beta=0.0, num_iterations=1, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        gradient_checkpointing=way == "full",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=_letters, args=config, train_dataset=_trl_rows(shape), processing_class=processor,
        callbacks=[Timed()], peft_config=_trl_lora() if way == "lora" else None,
    )  # fmt: skip
    trainer.train()
    seconds = [b - a for a, b in pairwise(ends)]
    peak = None if device == "cpu" else round(torch.cuda.max_memory_allocated(device) / measure.GIB, 2)
    measured = {"seconds a step": sorted(seconds)[len(seconds) // 2], "all seconds": [round(s, 4) for s in seconds]}
    prompt = _trl_prompt(processor, shape)
    flops = model_flops(model.config, shape, prompt, way)
    return {"prompt tokens": prompt} | _rates(shape, prompt, flops, measured | {"peak GiB": peak})


def _trl_prompt(processor: Any, shape: Shape) -> int:
    """Tokens of a prompt with its picture."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    asked = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return len(processor(text=[text], images=[picture(shape, 0)])["input_ids"][0])


def _letters(completions: list[Any], **_: Any) -> list[float]:
    from benchmarks.models import early_letters

    return early_letters([c[0]["content"] for c in completions])


def _trl_rows(shape: Shape) -> Any:
    import datasets

    asked = [{"role": "user", "content": QUESTION}]
    rows = [{"prompt": asked, "image": picture(shape, index)} for index in range(4)]
    return datasets.Dataset.from_list(rows)


def _trl_lora() -> Any:
    """The same layers as ours: those of the text model."""
    from peft import LoraConfig

    layers = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=rf".*language_model.*\.({layers})")
