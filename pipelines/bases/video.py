"""Train the tiny video base: `python -m mmrl.pipelines.bases.video --out data/assets/tiny_video --seed 0`.

Supervised answers on the `motion` world, read from its mp4 files, stopped while the model is still learning.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from mmrl.data.video import read_clip
from mmrl.data.worlds import open_world
from mmrl.media import VideoSampling
from mmrl.pipelines.bases.cards import command_line
from mmrl.pipelines.bases.models import IMAGE_SIZE, tiny_vlm
from mmrl.pipelines.bases.supervised import fit, held_out_scores, printed, save_base
from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig

MODULE = "mmrl.pipelines.bases.video"
STEPS, TRAIN_SIZE = 205, 3072
DIFFICULTY = 1
SKILLS = ("direction", "order")
MAX_NEW_TOKENS = 4
SAMPLING = VideoSampling(fps=4, max_frames=8, min_pixels=IMAGE_SIZE**2, max_pixels=IMAGE_SIZE**2)


def train(folder: Path, seed: int, steps: int = STEPS) -> None:
    model, processor = tiny_vlm("qwen3_vl", seed)
    reader = partial(read_clip, isolate=False)
    policy = VideoPolicy(model, processor, _config(MODULE), read_clip=reader)
    with tempfile.TemporaryDirectory() as clips:
        prompts = open_world("motion", size=TRAIN_SIZE, difficulty=DIFFICULTY, skills=SKILLS, seed=seed, root=clips)
        fit(policy, prompts, steps=steps, seed=seed, report=printed(steps))
    save_base(
        folder,
        model,
        processor,
        score,
        title="Tiny video LLM",
        about="A Qwen3-VL model of clips of 64 x 64 pixels at 4 frames a second, for demonstrations and tests. It\n"
        f"half knows the questions of the `motion` world at difficulty {DIFFICULTY} ({', '.join(SKILLS)}).",
        module=MODULE,
        seed=seed,
        steps=steps,
    )


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """Held-out accuracy of greedy answers, as the demo starts from."""
    policy = VideoPolicy.from_config(_config(str(folder)), read_clip=partial(read_clip, isolate=False))
    with tempfile.TemporaryDirectory() as clips:
        prompts = open_world("motion", split="test", size=size, difficulty=DIFFICULTY, skills=SKILLS, root=clips)
        return held_out_scores(policy, prompts)


def _config(model: str) -> VideoPolicyConfig:
    return VideoPolicyConfig(model=model, max_new_tokens=MAX_NEW_TOKENS, sampling=SAMPLING)


if __name__ == "__main__":
    command_line(MODULE, train, score)
