"""Train the tiny base that edits: `python -m mmrl.pipelines.bases.edits --out data/assets/tiny_kontext --seed 0`.

The autoencoder is that of `tiny_flow`, whose pictures look the same; transformer and text encoders are trained together
by flow matching, on pictures of the `edits` world before and after. Many of the instructions are partly wrong: the
picture after shows another colour or place, another object changed, or nothing changed. The base keeps what it should
mostly, but does not always do what was asked.
"""

from __future__ import annotations

import json
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
from mmrl.pipelines.bases.generators import INSTRUCTION, fit_flow, tiny_kontext
from mmrl.pipelines.bases.supervised import Report, printed
from mmrl.randomness import Key

MODULE = "mmrl.pipelines.bases.edits"
STEPS, ROUNDS, POOL, BATCH = 3000, 2, 8192, 16
DIFFICULTY = 2
WRONG = {"object": 0.2, "to": 0.2, "nothing": 0.1}


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


@torch.no_grad()
def tokens_of(pipeline: Any, pictures: Tensor) -> Tensor:
    """(N, tokens, channels): latents as the transformer reads them."""
    config = pipeline.vae.config
    latents = torch.cat([pipeline.vae.encode(part).latent_dist.mode() for part in pictures.split(64)])
    latents = (latents - config.shift_factor) * config.scaling_factor
    return pipeline._pack_latents(latents, *latents.shape)


def places_of(pipeline: Any, side: int) -> Tensor:
    """(2 tokens, 3) ids of the state's tokens, and of the reference's after them, as the pipeline gives them."""
    own = pipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    reference = own.clone()
    reference[..., 0] = 1
    return torch.cat([own, reference])


def learn(
    pipeline: Any, texts: list[str], befores: Tensor, afters: Tensor, *, seed: int, steps: int, report: Report
) -> None:  # fmt: skip
    """The picture after, given the picture before."""
    given, clean = tokens_of(pipeline, befores), tokens_of(pipeline, afters)
    places, transformer = places_of(pipeline, int(clean.shape[1] ** 0.5)), pipeline.transformer

    def velocity(state: Tensor, times: Tensor, which: list[int]) -> Tensor:
        said = [texts[i] for i in which]
        text, pooled, text_ids = pipeline.encode_prompt(said, said, max_sequence_length=INSTRUCTION)
        entered = torch.cat([state, given[which]], 1)
        out = transformer(entered, text, pooled, times, places, text_ids, return_dict=False)[0]
        return out[:, : state.shape[1]]

    parts = (transformer, pipeline.text_encoder, pipeline.text_encoder_2)
    fit_flow(parts, clean, velocity, seed=seed, steps=steps, batch=BATCH, report=report)


@torch.no_grad()
def pipeline_scores(pipeline: Any, world: WorldDataset, *, steps: int = 10) -> dict[str, float]:
    """Mean of the edit reward and its parts over one picture for each held-out prompt."""
    from mmrl.rewards.edited import verify

    pipeline.set_progress_bar_config(disable=True)
    scores: list[dict[str, float]] = []
    for index in range(len(world)):
        prompt = world[index]
        side = prompt.columns["scene"]["size"]
        picture = pipeline(
            prompt.images[0], prompt.text, height=side, width=side, max_area=side * side, _auto_resize=False,
            num_inference_steps=steps, max_sequence_length=INSTRUCTION,
            generator=Key(0, index, purpose="score").generator(),
        ).images[0]  # fmt: skip
        scores.append(verify(picture, prompt.columns["scene"]))
    return mean_of(scores)


def load(folder: Path) -> Any:
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32)


def train_round(folder: Path, seed: int, number: int, steps: int = STEPS) -> Any:
    """From random weights, or on from those that the round before has stored; with pairs and noise of its own."""
    pipeline, own = load(folder) if number else tiny_kontext(seed), seed + 1000 * number
    world = open_world("edits", size=4096, difficulty=DIFFICULTY, seed=own)
    texts, befores, afters = triples(world, WRONG, own, POOL)
    learn(pipeline, texts, befores, afters, seed=own, steps=steps, report=printed(steps))
    pipeline.to(torch.float16).save_pretrained(folder)
    for path in folder.rglob("*.json"):  # diffusers writes down where a part was loaded from
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None):
            path.write_text(json.dumps(config, indent=2) + "\n")
    return pipeline


def train(folder: Path, seed: int) -> None:
    for number in range(ROUNDS):
        pipeline = train_round(folder, seed, number)
    finish(folder, seed, pipeline)


def finish(folder: Path, seed: int, pipeline: Any) -> None:
    """The card."""
    parts = (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    write_card(
        folder,
        score(folder),
        title="Tiny model of edits",
        about="A FLUX.1-Kontext pipeline of 16 x 16 pictures, for demonstrations and tests. It follows the\n"
        f"instructions of the `edits` world at difficulty {DIFFICULTY}. Of the pairs it learned from, another object\n"
        f"was changed in {WRONG['object']:.0%}, another colour or place taken in {WRONG['to']:.0%}, and nothing "
        f"changed in\n{WRONG['nothing']:.0%}. Ask with `max_sequence_length={INSTRUCTION}` and `_auto_resize=False`.",
        classes="`FluxKontextPipeline`: `FluxTransformer2DModel`, `AutoencoderKL`, `CLIPTextModel`, `T5EncoderModel`",
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        train=f"python -m {MODULE} --out {folder} --seed {seed}",
        seed=seed,
        steps=f"{ROUNDS} rounds of {STEPS} steps of {BATCH}; the autoencoder is that of tiny_flow",
        load="FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32)",
        measure=f"python -m {MODULE} --score {folder}",
    )


def score(folder: Path, size: int = 256) -> dict[str, float]:
    """The edit reward and its parts, over one picture for each held-out prompt."""
    return pipeline_scores(load(folder), open_world("edits", split="test", size=size, difficulty=DIFFICULTY))


if __name__ == "__main__":
    command_line(MODULE, train, score)
