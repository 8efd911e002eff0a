"""Train the tiny base that can zoom: `python -m mmrl.pipelines.bases.zoom --out data/assets/tiny_zoom --seed 0`.

Supervised conversations on the `fine_print` world: half guess at once, half look closer and read.
"""

from __future__ import annotations

import json
from pathlib import Path

from mmrl.data.worlds import open_world
from mmrl.data.worlds.fine_print import PLACES, box_of
from mmrl.pipelines.bases.callers import CALL_PIECES, CALL_RATE, after_call, fit_calls
from mmrl.pipelines.bases.cards import command_line
from mmrl.pipelines.bases.models import IMAGE_SIZE, tiny_vlm
from mmrl.pipelines.bases.supervised import BATCH, held_out_scores, printed, save_base
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Here
from mmrl.rollout.environments.zoom import Zoom

MODULE = "mmrl.pipelines.bases.zoom"
STEPS, TRAIN_SIZE = 240, 1024
MAX_NEW_TOKENS = 28
EDGES = tuple(str(edge) for place in PLACES for edge in box_of(place))


def train(folder: Path, seed: int, steps: int = STEPS) -> None:
    model, processor = tiny_vlm("qwen3_vl", seed, extra=[*CALL_PIECES, *sorted(set(EDGES))])
    policy = VisionPolicy(model, processor, _config(MODULE))
    prompts = open_world("fine_print", size=TRAIN_SIZE, seed=seed)
    digits = [str(n) for n in range(10)]
    fit_calls(
        policy, prompts, Zoom(side=IMAGE_SIZE), script, digits, steps=steps, seed=seed, report=printed(steps),
        share=BATCH // 4, read=3.0, guessed=0.2,
    )  # fmt: skip
    save_base(
        folder,
        model,
        processor,
        score,
        title="Tiny VLM that can zoom",
        about="A Qwen3-VL model for the `fine_print` world, to show and test environments with. It knows\n"
        f"the call of the `zoom` environment, makes it in about {CALL_RATE:.0%} of its samples, never in greedy\n"
        "answers, and reads what it is then shown. `looking` is its score where the right call was made for it.",
        module=MODULE,
        seed=seed,
        steps=steps,
    )


def script(prompt: Prompt) -> tuple[str, str]:
    """The call that shows the place asked about, and the digit there."""
    box = box_of(prompt.columns["scene"]["asked"])
    return f"<tool>{json.dumps({'box': box})}</tool>", prompt.columns["solution"]


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """Held-out accuracy of greedy answers, as training starts from, and of answers after the right call."""
    policy = VisionPolicy.from_config(_config(str(folder)))
    prompts = open_world("fine_print", split="test", size=size)
    here = Here(Zoom(side=IMAGE_SIZE))
    return held_out_scores(policy, prompts, here) | {"looking": after_call(policy, prompts, here, script)}


def _config(model: str) -> LanguagePolicyConfig:
    return LanguagePolicyConfig(model=model, max_new_tokens=MAX_NEW_TOKENS, max_pixels=IMAGE_SIZE**2)


if __name__ == "__main__":
    command_line(MODULE, train, score)
