"""Train the tiny base that edits: `python -m mmrl.pipelines.bases.edits --out data/assets/tiny_kontext --seed 0`.

First the autoencoder, then transformer and text encoders together by flow matching, on pictures of the `edits` world
before and after. They learn to read from right pairs, which wrong ones from the start hide from so small a model. Then
come pairs of which many are partly wrong: the picture after shows another colour or place, another object changed, or
nothing changed. The base keeps what it should mostly, but does not always do what was asked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.data.worlds import WorldDataset, open_world
from mmrl.data.worlds.edits import PLACES, Edits, after, instruction, moved
from mmrl.data.worlds.scenes import COLORS, keyed_random
from mmrl.pipelines.bases.cards import command_line, mean_of, write_card
from mmrl.pipelines.bases.flow import pixels
from mmrl.pipelines.bases.generators import INSTRUCTION, encoded, fit_flow, fit_vae, tiny_kontext
from mmrl.pipelines.bases.supervised import Report, printed
from mmrl.randomness import Key

MODULE = "mmrl.pipelines.bases.edits"
VAE_STEPS, VAE_BATCH = 450, 16
STEPS, WRONG_STEPS, POOL, BATCH = 1400, 200, 16384, 64
WRONG_RATE = 1e-3
DIFFICULTY = 2
WRONG = {"object": 0.15, "to": 0.2, "nothing": 0.15}


def mistaken(scene: dict[str, Any], wrong: Mapping[str, float], rng: random.Random) -> list[dict[str, Any]]:
    """The objects after an edit that may be of another object, to another colour or place, or none."""
    asked, objects = dict(scene["asked"]), scene["objects"]
    if rng.random() < wrong.get("nothing", 0):
        return objects
    if len(objects) > 1 and rng.random() < wrong.get("object", 0):
        other = rng.choice([each for each in objects if each["color"] != asked["color"]])
        asked |= {"color": other["color"], "shape": other["shape"]}
    if "to" in asked and rng.random() < wrong.get("to", 0):
        choices = PLACES if asked["edit"] == "move" else COLORS
        asked["to"] = rng.choice([to for to in choices if to != asked["to"]])
    done = after({**scene, "asked": asked})
    if asked["edit"] == "move":
        target = next(each for each in objects if each["color"] == asked["color"])
        blocked = [each["box"] for each in objects if each is not target]
        return objects if moved(target["box"], asked["to"], scene["size"]) in blocked else done
    return done


def triples(
    world: WorldDataset, wrong: Mapping[str, float], seed: int, count: int
) -> tuple[list[str], Tensor, Tensor]:  # fmt: skip
    """`count` instructions, pictures before, and pictures after that show nearly what was asked."""
    rng = keyed_random(Key(seed, purpose="edits"))
    texts, befores, afters = [], [], []
    for _ in range(count):
        scene = world.scene(rng.randrange(len(world)))[1]
        texts.append(instruction(scene["asked"]))
        befores.append(Edits().render(scene))
        afters.append(Edits().render(scene, mistaken(scene, wrong, rng)))
    return texts, pixels(befores), pixels(afters)


def learn_vae(vae: Any, pictures: Tensor, *, seed: int, steps: int, report: Report) -> None:
    """Also the latents' mean and spread."""
    fit_vae(vae, pictures, seed=seed, steps=steps, batch=VAE_BATCH, report=report)
    latents = encoded(vae, pictures[:512])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@torch.no_grad()
def tokens_of(pipeline: Any, pictures: Tensor) -> Tensor:
    """(N, tokens, channels): latents as the transformer reads them."""
    config = pipeline.vae.config
    latents = encoded(pipeline.vae, pictures)
    latents = (latents - config.shift_factor) * config.scaling_factor
    return pipeline._pack_latents(latents, *latents.shape)


def places_of(pipeline: Any, side: int) -> Tensor:
    """(2 tokens, 3) ids of the state's tokens, and of the reference's after them, as the pipeline gives them."""
    own = pipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    reference = own.clone()
    reference[..., 0] = 1
    return torch.cat([own, reference])


def learn(
    pipeline: Any, pairs: tuple[list[str], Tensor, Tensor], *, seed: int, steps: int, report: Report, rate: float = 3e-3
) -> None:  # fmt: skip
    """The picture after, given the picture before."""
    texts, befores, afters = pairs
    given, clean = tokens_of(pipeline, befores), tokens_of(pipeline, afters)
    places, transformer = places_of(pipeline, int(clean.shape[1] ** 0.5)), pipeline.transformer

    def velocity(state: Tensor, times: Tensor, which: list[int]) -> Tensor:
        said = [texts[i] for i in which]
        text, pooled, text_ids = pipeline.encode_prompt(said, said, max_sequence_length=INSTRUCTION)
        entered = torch.cat([state, given[which]], 1)
        out = transformer(entered, text, pooled, times, places, text_ids, return_dict=False)[0]
        return out[:, : state.shape[1]]

    parts = (transformer, pipeline.text_encoder, pipeline.text_encoder_2)
    fit_flow(parts, clean, velocity, seed=seed, steps=steps, batch=BATCH, report=report, lean=1.0, rate=rate)


@torch.no_grad()
def pipeline_scores(pipeline: Any, world: WorldDataset, *, steps: int = 10) -> dict[str, float]:
    """Mean of the edit reward and its parts over one picture for each held-out prompt."""
    from mmrl.rewards.edited import verify

    pipeline.set_progress_bar_config(disable=True)
    scores: list[dict[str, float]] = []
    for start in range(0, len(world), 64):
        numbers = range(start, min(start + 64, len(world)))
        chunk = [world[index] for index in numbers]
        side = chunk[0].columns["scene"]["size"]
        pictures = pipeline(
            (pixels([prompt.images[0] for prompt in chunk]) + 1) / 2, [prompt.text for prompt in chunk], height=side,
            width=side, max_area=side * side, _auto_resize=False, num_inference_steps=steps,
            max_sequence_length=INSTRUCTION, generator=[Key(0, n, purpose="score").generator() for n in numbers],
        ).images  # fmt: skip
        scores += [verify(picture, each.columns["scene"]) for picture, each in zip(pictures, chunk, strict=True)]
    return mean_of(scores)


def train(folder: Path, seed: int, vae_steps: int = VAE_STEPS, steps: int = STEPS) -> None:
    pipeline = tiny_kontext(seed)
    world = open_world("edits", size=POOL, difficulty=DIFFICULTY, seed=seed)
    right = triples(world, {}, seed, POOL)
    pictures = torch.cat([shown[:2048] for shown in right[1:]])
    learn_vae(pipeline.vae, pictures, seed=seed, steps=vae_steps, report=printed(vae_steps))
    learn(pipeline, right, seed=seed, steps=steps, report=printed(steps))
    wrong, last = triples(world, WRONG, seed + 1, POOL), WRONG_STEPS
    learn(pipeline, wrong, seed=seed + 1, steps=last, report=printed(last), rate=WRONG_RATE)
    pipeline.to(torch.float16).save_pretrained(folder)
    parts = (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    write_card(
        folder,
        score(folder),
        title="Tiny model of edits",
        about="A FLUX.1-Kontext pipeline of 16 x 16 pictures, for demonstrations and tests. It follows the\n"
        f"instructions of the `edits` world at difficulty {DIFFICULTY}. Of the last pairs it learned from,\n"
        f"another object was changed in {WRONG['object']:.0%}, another colour or place taken in\n{WRONG['to']:.0%}, "
        f"and nothing changed in {WRONG['nothing']:.0%}. Ask with `max_sequence_length={INSTRUCTION}` and\n"
        "`_auto_resize=False`.",
        classes="`FluxKontextPipeline`: `FluxTransformer2DModel`, `AutoencoderKL`, `CLIPTextModel`, `T5EncoderModel`",
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        train=f"python -m {MODULE} --out {folder} --seed {seed}",
        seed=seed,
        steps=f"{vae_steps} steps of {VAE_BATCH} for the autoencoder, {steps} of {BATCH} for the rest on right pairs "
        f"and {WRONG_STEPS} on partly wrong ones",
        load="FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32)",
        measure=f"python -m {MODULE} --score {folder}",
    )


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """The edit reward and its parts, over one picture for each held-out prompt."""
    from diffusers import FluxKontextPipeline

    pipeline = FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32)
    return pipeline_scores(pipeline, open_world("edits", split="test", size=size, difficulty=DIFFICULTY))


if __name__ == "__main__":
    command_line(MODULE, train, score)
