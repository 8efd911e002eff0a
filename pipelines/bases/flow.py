"""Train the tiny flow base: `python -m mmrl.pipelines.bases.flow --out data/assets/tiny_flow --seed 0`.

First the autoencoder, then transformer and text encoders together by flow matching. Captions
are partly wrong (about the colour most often, then shape, count and side), as captions on the web are: the base
draws clean pictures but does not always draw what was asked, and that is left to reinforcement learning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.data.worlds import WorldDataset, open_world
from mmrl.data.worlds.compositions import COUNTS, POSITIONS, Compositions, caption
from mmrl.data.worlds.scenes import COLORS, SHAPES, keyed_random, split_of
from mmrl.pipelines.bases.cards import command_line, mean_of, write_card
from mmrl.pipelines.bases.models import CAPTION_LENGTH, tiny_flow
from mmrl.pipelines.bases.supervised import Report, printed, schedule
from mmrl.randomness import Key

MODULE = "mmrl.pipelines.bases.flow"
VAE_STEPS, STEPS, TRAIN_SIZE = 1250, 3000, 4096
DIFFICULTY = 2
WRONG = {"color": 0.25, "shape": 0.1, "count": 0.1, "position": 0.1}
CHOICES = {"color": tuple(COLORS), "shape": SHAPES, "count": tuple(COUNTS), "position": POSITIONS}
LEARNING_RATE = 3e-3
LATENT_NOISE = 0.1
NO_CAPTION = 0.1


def pixels(images: list[Any]) -> Tensor:
    """(N, 3, H, W) from -1 to 1."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def mistaken(scene: dict[str, Any], wrong: Mapping[str, float], rng: random.Random) -> dict[str, Any]:
    """The scene with each attribute changed at the rate `wrong` says; never into a held-out scene."""
    while True:
        objects = [dict(each) for each in scene["objects"]]
        for each in objects:
            for attribute, rate in wrong.items():
                if rng.random() < rate:
                    each[attribute] = rng.choice([v for v in CHOICES[attribute] if v != each[attribute]])
        changed = {**scene, "objects": objects}
        if split_of(changed) == "train":
            return changed


class Pairs:
    """Endless (captions, pixels) from the training split; `wrong` says how often which attribute is mistaken."""

    def __init__(self, world: WorldDataset, wrong: Mapping[str, float], seed: int):
        self.scenes = [world.scene(index)[1] for index in range(len(world))]
        self.wrong, self.seed = wrong, seed

    def batch(self, step: int, size: int) -> tuple[list[str], Tensor]:
        rng = keyed_random(Key(self.seed, step, purpose="pairs"))
        captions, images = [], []
        for scene in rng.choices(self.scenes, k=size):
            captions.append("" if rng.random() < NO_CAPTION else caption(scene))
            images.append(Compositions().render(mistaken(scene, self.wrong, rng), rng))
        return captions, pixels(images)


def fit_vae(vae: Any, pairs: Pairs, *, steps: int, batch_size: int = 32, report: Report) -> None:
    """Squared error of pictures decoded from slightly noisy latents, which are kept near unit size.

    Sets `shift_factor` and `scaling_factor` so that latents have mean 0 and variance 1.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    vae.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * schedule(step, steps)
        _, images = pairs.batch(step, batch_size)
        latents = vae.encode(images).latent_dist.mode()
        noise = Key(pairs.seed, step, purpose="latent noise").normal(*latents.shape)
        decoded = vae.decode(latents + LATENT_NOISE * noise).sample
        loss = (decoded - images).square().mean() + 1e-3 * latents.square().mean()
        _update(optimizer, loss, vae.parameters())
        report(step, loss.item())
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = torch.cat([vae.encode(pairs.batch(-1 - n, 64)[1]).latent_dist.mode() for n in range(8)])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def fit_flow(pipeline: Any, pairs: Pairs, *, steps: int, batch_size: int = 32, report: Report) -> None:
    """Flow matching (Lipman et al. 2023; SD3): predict noise - latent on the straight line between the two.

    Times are logit-normal, as in SD3. The text encoders learn along.
    """
    vae, transformer = pipeline.vae, pipeline.transformer
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
    parameters = [p for part in (transformer, *encoders) for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for part in (transformer, *encoders):
        part.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        captions, images = pairs.batch(step, batch_size)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode()
            latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        key = Key(pairs.seed, step, purpose="flow")
        noise = key.at(purpose="noise").normal(*latents.shape)
        times = torch.sigmoid(key.at(purpose="times").normal(batch_size))
        mixed = torch.lerp(latents, noise, times[:, None, None, None])
        embeds, pooled = encode_captions(pipeline, captions)
        predicted = transformer(mixed, embeds, pooled, 1000 * times, return_dict=False)[0]
        loss = (predicted - (noise - latents)).square().mean()
        _update(optimizer, loss, parameters)
        report(step, loss.item())
    for part in (transformer, *encoders):
        part.eval()


def encode_captions(pipeline: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """What the transformer is conditioned on, (N, L, D) and (N, Q), by the pipeline's own method."""
    embeds, _, pooled, _ = pipeline.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=CAPTION_LENGTH
    )
    return embeds, pooled


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


@torch.no_grad()
def pipeline_scores(pipeline: Any, world: WorldDataset, *, steps: int = 10, seed: int = 0) -> dict[str, float]:
    """Mean of the compositional reward and its parts over one picture for each held-out prompt."""
    from mmrl.rewards.image import verify

    prompts = [world[index] for index in range(len(world))]
    scores: list[dict[str, float]] = []
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), 64):
        chunk = prompts[start : start + 64]
        images = pipeline(
            [prompt.text for prompt in chunk],
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=CAPTION_LENGTH,
            generator=Key(seed, start, purpose="score").generator(),
        ).images
        scores += [verify(image, prompt.columns["scene"]) for image, prompt in zip(images, chunk, strict=True)]
    return mean_of(scores)


def train(folder: Path, seed: int, vae_steps: int = VAE_STEPS, steps: int = STEPS) -> None:
    pipeline = tiny_flow(seed)
    world = open_world("compositions", size=TRAIN_SIZE, difficulty=DIFFICULTY, seed=seed)
    fit_vae(pipeline.vae, Pairs(world, {}, seed), steps=vae_steps, report=printed(vae_steps))
    fit_flow(pipeline, Pairs(world, WRONG, seed), steps=steps, report=printed(steps))
    pipeline.to(torch.float16).save_pretrained(folder)
    parts = (
        pipeline.transformer,
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.text_encoder_2,
        pipeline.text_encoder_3,
    )
    write_card(
        folder,
        score(folder),
        title="Tiny flow model",
        about="A Stable Diffusion 3 pipeline of 24 x 24 pictures, for demonstrations and tests. It draws the captions\n"
        f"of the `compositions` world at difficulty {DIFFICULTY}. The captions it learned from named another\n"
        f"colour in {WRONG['color']:.0%} of the pictures, and another shape, count or side in some. "
        f"Encode prompts with\n`max_sequence_length={CAPTION_LENGTH}`.",
        classes="`StableDiffusion3Pipeline`: `SD3Transformer2DModel`, `AutoencoderKL`, two "
        "`CLIPTextModelWithProjection`, `T5EncoderModel`",
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        train=f"python -m {MODULE} --out {folder} --seed {seed}",
        seed=seed,
        steps=f"{vae_steps} steps of 32 for the autoencoder, {steps} of 32 for the rest",
        load="StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)",
        measure=f"python -m {MODULE} --score {folder}",
    )


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """The compositional reward and its parts, over one picture for each held-out prompt."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
    return pipeline_scores(pipeline, open_world("compositions", split="test", size=size, difficulty=DIFFICULTY))


if __name__ == "__main__":
    command_line(MODULE, train, score)
