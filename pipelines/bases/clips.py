"""Train the tiny base that draws clips: `python -m mmrl.pipelines.bases.clips --out data/assets/tiny_wan --seed 0`.

First the autoencoder, then transformer and text encoder together by flow matching, on clips of the `moves` world. They
learn to read from right captions, which wrong ones from the start hide from so small a model. Then come captions that
are partly wrong, as those on the web are: about the way things move most often, then about colour and shape. The base
draws clean clips, but does not always move what was asked where it was asked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.data.worlds import WorldDataset, open_world
from mmrl.data.worlds.moves import FRAMES, STAYS, WAYS, Moves, caption
from mmrl.data.worlds.scenes import COLORS, SHAPES, keyed_random, split_of
from mmrl.pipelines.bases import generators
from mmrl.pipelines.bases.cards import command_line, mean_of, write_card
from mmrl.pipelines.bases.flow import pixels
from mmrl.pipelines.bases.generators import CAPTION, encoded, fit_flow, tiny_wan
from mmrl.pipelines.bases.supervised import Report, printed
from mmrl.randomness import Key

MODULE = "mmrl.pipelines.bases.clips"
FRAME_STEPS, FRAME_BATCH = 400, 32
VAE_STEPS, VAE_BATCH = 900, 8
STEPS, WRONG_STEPS, POOL, BATCH = 2500, 150, 8192, 64
LEAN, RATE, WRONG_RATE = 0.5, 2e-3, 1e-3
DIFFICULTY, HELD_OUT = 2, 160
WRONG = {"motion": 0.35, "color": 0.2, "shape": 0.1}
CHOICES = {"motion": tuple(WAYS), "color": tuple(COLORS), "shape": SHAPES}
NO_CAPTION = 0.1


def mistaken(scene: dict[str, Any], wrong: Mapping[str, float], rng: random.Random) -> dict[str, Any]:
    """The scene with each attribute changed at the rate `wrong` says; what stays keeps staying."""
    while True:
        objects = [dict(each) for each in scene["objects"]]
        for each in objects:
            for attribute, rate in wrong.items():
                if rng.random() < rate and each[attribute] != STAYS:
                    each[attribute] = rng.choice([v for v in CHOICES[attribute] if v != each[attribute]])
        changed = {**scene, "objects": objects}
        if split_of(changed) == "train" and len({each["color"] for each in objects}) == len(objects):
            return changed


def clip_pixels(frames: list[Any]) -> Tensor:
    """(3, F, H, W) from -1 to 1."""
    return pixels(frames).transpose(0, 1)


def pairs(world: WorldDataset, wrong: Mapping[str, float], seed: int, count: int) -> tuple[list[str], Tensor]:
    """`count` captions, some of them empty, with clips (count, 3, F, H, W) that show nearly what they say."""
    rng = keyed_random(Key(seed, purpose="clips"))
    captions, clips = [], []
    for _ in range(count):
        scene = world.scene(rng.randrange(len(world)))[1]
        captions.append("" if rng.random() < NO_CAPTION else caption(scene))
        clips.append(clip_pixels(Moves().render(mistaken(scene, wrong, rng), rng)))
    return captions, torch.stack(clips)


def fit_vae(vae: Any, clips: Tensor, *, seed: int, steps: int, report: Report) -> None:
    """Squared error of clips decoded from slightly noisy latents; then their mean and spread by channel.

    It learns to draw single frames first: from whole clips at once it learns no shapes in the same time.
    """
    frames = clips[:: FRAMES // 2].transpose(1, 2).flatten(0, 1).unsqueeze(2)
    generators.fit_vae(vae, frames, seed=seed, steps=steps * FRAME_STEPS // VAE_STEPS, batch=FRAME_BATCH, report=report)
    vae.requires_grad_(True)
    generators.fit_vae(vae, clips, seed=seed + 1, steps=steps, batch=VAE_BATCH, report=report)
    latents = encoded(vae, clips[:512]).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())


def learn(
    pipeline: Any, pairs: tuple[list[str], Tensor], *, seed: int, steps: int, report: Report, rate: float = RATE
) -> None:  # fmt: skip
    """The clip, given its caption."""
    captions, clips = pairs
    config, transformer = pipeline.vae.config, pipeline.transformer
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))

    def velocity(state: Tensor, times: Tensor, which: list[int]) -> Tensor:
        said = [captions[i] for i in which]
        text, _ = pipeline.encode_prompt(said, do_classifier_free_guidance=False, max_sequence_length=CAPTION)
        return transformer(state, 1000 * times, text, return_dict=False)[0]

    clean = (encoded(pipeline.vae, clips) - mean) / std
    parts = (transformer, pipeline.text_encoder)
    fit_flow(parts, clean, velocity, seed=seed, steps=steps, batch=BATCH, report=report, lean=LEAN, rate=rate)


@torch.no_grad()
def pipeline_scores(pipeline: Any, world: WorldDataset, *, steps: int = 10) -> dict[str, float]:
    """Mean of the choreography reward and its parts over one clip for each held-out prompt."""
    from PIL import Image

    from mmrl.rewards.choreography import verify

    pipeline.set_progress_bar_config(disable=True)
    scores: list[dict[str, float]] = []
    for start in range(0, len(world), 64):
        chunk = [world[index] for index in range(start, min(start + 64, len(world)))]
        scene = chunk[0].columns["scene"]
        clips = pipeline(
            [prompt.text for prompt in chunk], height=scene["size"], width=scene["size"], num_frames=scene["frames"],
            num_inference_steps=steps, guidance_scale=1.0, max_sequence_length=CAPTION, output_type="np",
            generator=Key(0, start, purpose="score").generator(),
        ).frames  # fmt: skip
        for clip, prompt in zip((clips * 255).round().astype("uint8"), chunk, strict=True):
            scores.append(verify([Image.fromarray(frame) for frame in clip], prompt.columns["scene"]))
    return mean_of(scores)


def train(folder: Path, seed: int, vae_steps: int = VAE_STEPS, steps: int = STEPS) -> None:
    pipeline = tiny_wan(seed)
    world = open_world("moves", size=4096, difficulty=DIFFICULTY, seed=seed)
    right = pairs(world, {}, seed, POOL)
    fit_vae(pipeline.vae, right[1], seed=seed, steps=vae_steps, report=printed(vae_steps))
    learn(pipeline, right, seed=seed, steps=steps, report=printed(steps))
    wrong, last = pairs(world, WRONG, seed + 1, POOL), WRONG_STEPS
    learn(pipeline, wrong, seed=seed + 1, steps=last, report=printed(last), rate=WRONG_RATE)
    pipeline.to(torch.float16).save_pretrained(folder)
    write_card(
        folder,
        score(folder),
        title="Tiny model of clips",
        about="A Wan pipeline of 5 frames of 16 x 16 pixels, for demonstrations and tests. It draws the captions of\n"
        f"the `moves` world at difficulty {DIFFICULTY}. The last captions it learned from named another way in "
        f"{WRONG['motion']:.0%} of the\nmovements, another colour in {WRONG['color']:.0%}, another shape in "
        f"{WRONG['shape']:.0%}. Encode prompts with\n`max_sequence_length={CAPTION}`.",
        classes="`WanPipeline`: `WanTransformer3DModel`, `AutoencoderKLWan`, `UMT5EncoderModel`",
        parameters=sum(
            p.numel() for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder) for p in part.parameters()
        ),
        train=f"python -m {MODULE} --out {folder} --seed {seed}",
        seed=seed,
        steps=f"{vae_steps} steps of {VAE_BATCH} for the autoencoder, {steps} of {BATCH} for the rest on right "
        f"captions and {WRONG_STEPS} on partly wrong ones",
        load="WanPipeline.from_pretrained(folder, dtype=torch.float32)",
        measure=f"python -m {MODULE} --score {folder}",
    )


def score(folder: Path, size: int = HELD_OUT) -> dict[str, float]:
    """The choreography reward and its parts, over one clip for each held-out prompt."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    return pipeline_scores(pipeline, open_world("moves", split="test", size=size, difficulty=DIFFICULTY))


if __name__ == "__main__":
    command_line(MODULE, train, score)
