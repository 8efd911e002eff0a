"""Train the tiny base that asks for frames:
`python -m mmrl.pipelines.bases.frames --out data/assets/tiny_frames --seed 0`.

Supervised conversations on the `flashes` world: half guess at once, half look at the gap and tell.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

from mmrl.data.video import read_clip
from mmrl.data.worlds import open_world
from mmrl.data.worlds.flashes import seconds_of
from mmrl.data.worlds.scenes import COLORS
from mmrl.media import VideoSampling
from mmrl.pipelines.bases.callers import CALL_PIECES, CALL_RATE, after_call, fit_calls
from mmrl.pipelines.bases.cards import command_line
from mmrl.pipelines.bases.models import IMAGE_SIZE, tiny_vlm
from mmrl.pipelines.bases.supervised import held_out_scores, printed, save_base
from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Here
from mmrl.rollout.environments.frames import FramesBetween

MODULE = "mmrl.pipelines.bases.frames"
STEPS, TRAIN_SIZE = 250, 768
MAX_NEW_TOKENS = 28
SAMPLING = VideoSampling(fps=1, min_frames=4, max_frames=4, min_pixels=IMAGE_SIZE**2, max_pixels=IMAGE_SIZE**2)


def train(folder: Path, seed: int, steps: int = STEPS) -> None:
    model, processor = tiny_vlm("qwen3_vl", seed, extra=CALL_PIECES)
    policy = VideoPolicy(model, processor, _config(MODULE), read_clip=partial(read_clip, isolate=False))
    with tempfile.TemporaryDirectory() as clips:
        prompts = open_world("flashes", size=TRAIN_SIZE, seed=seed, root=clips)
        fit_calls(policy, prompts, FramesBetween(), script, list(COLORS), steps=steps, seed=seed, report=printed(steps))
    save_base(
        folder,
        model,
        processor,
        score,
        title="Tiny video LLM that asks for frames",
        about="A Qwen3-VL model for the `flashes` world, to show and test environments with. It knows\n"
        f"the call of the `frames` environment, makes it in about {CALL_RATE:.0%} of its samples, never in greedy\n"
        "answers, and tells what it is then shown. `looking` is its score where the right call was made for it.",
        module=MODULE,
        seed=seed,
        steps=steps,
    )


def script(prompt: Prompt) -> tuple[str, str]:
    """The call that shows the gap asked about, and the colour that flashes in it."""
    start, end = seconds_of(prompt.columns["scene"]["asked"])
    return f"<tool>{json.dumps({'start': start, 'end': end})}</tool>", prompt.columns["solution"]


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """Held-out accuracy of greedy answers, as training starts from, and of answers after the right call."""
    policy = VideoPolicy.from_config(_config(str(folder)), read_clip=partial(read_clip, isolate=False))
    with tempfile.TemporaryDirectory() as clips:
        prompts = open_world("flashes", split="test", size=size, root=clips)
        here = Here(FramesBetween())
        return held_out_scores(policy, prompts, here) | {"looking": after_call(policy, prompts, here, script)}


def _config(model: str) -> VideoPolicyConfig:
    return VideoPolicyConfig(model=model, max_new_tokens=MAX_NEW_TOKENS, sampling=SAMPLING)


if __name__ == "__main__":
    command_line(MODULE, train, score)
