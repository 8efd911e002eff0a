"""Train the tiny VLM base: `python -m mmrl.pipelines.bases.vlm --out data/assets/tiny_vlm --seed 0`.

Supervised answers on the `stills` world (made shapes and real handwritten digits), stopped while the model is
still learning, so that reinforcement learning has something to sharpen.
"""

from __future__ import annotations

from pathlib import Path

from mmrl.data.worlds import open_world
from mmrl.pipelines.bases.cards import command_line
from mmrl.pipelines.bases.models import tiny_vlm
from mmrl.pipelines.bases.supervised import fit, held_out_scores, printed, save_base
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy

MODULE = "mmrl.pipelines.bases.vlm"
STEPS, TRAIN_SIZE = 90, 8192
DIFFICULTY = 1
SKILLS = ("count", "color", "largest")
MAX_NEW_TOKENS = 5


def train(folder: Path, seed: int, steps: int = STEPS) -> None:
    model, processor = tiny_vlm("qwen3_vl", seed)
    policy = VisionPolicy(model, processor, LanguagePolicyConfig(model=MODULE, max_new_tokens=MAX_NEW_TOKENS))
    prompts = open_world("stills", size=TRAIN_SIZE, difficulty=DIFFICULTY, skills=SKILLS, seed=seed)
    fit(policy, prompts, steps=steps, seed=seed, report=printed(steps))
    save_base(
        folder,
        model,
        processor,
        score,
        title="Tiny VLM",
        about="A Qwen3-VL model of 64 x 64 pictures, for demonstrations and tests. It half knows the questions of the\n"
        f"`stills` world at difficulty {DIFFICULTY} ({', '.join(SKILLS)}) and nothing else.",
        module=MODULE,
        seed=seed,
        steps=steps,
    )


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """Held-out accuracy of greedy answers, as the demo starts from."""
    config = LanguagePolicyConfig(model=str(folder), max_new_tokens=MAX_NEW_TOKENS)
    prompts = open_world("stills", split="test", size=size, difficulty=DIFFICULTY, skills=SKILLS)
    return held_out_scores(VisionPolicy.from_config(config), prompts)


if __name__ == "__main__":
    command_line(MODULE, train, score)
