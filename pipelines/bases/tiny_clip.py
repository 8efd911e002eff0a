"""Train the tiny CLIP that scores pictures of the compositional world: `python -m mmrl.pipelines.bases.tiny_clip`.

A CLIP of open_clip's own class on 32 x 32 pixels and a few hundred words. Each batch holds scenes together with
their near misses, one colour, shape, count or position changed: without them, a model this small tells colours apart
and guesses the rest. Pictures are blurred and noised as a generator's are.

    python -m mmrl.pipelines.bases.tiny_clip --out data/assets/tiny_clip --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmrl.data.worlds.compositions import COUNTS, POSITIONS, Compositions, caption
from mmrl.data.worlds.scenes import COLORS, SHAPES, keyed_random, split_of
from mmrl.pipelines.bases.supervised import schedule
from mmrl.pipelines.bases.tokenizers import clip_tokenizer
from mmrl.randomness import Key
from mmrl.rewards.clip import load_scorer

CONTEXT = 24
EMBED_DIM = 64
VISION: dict[str, Any] = {
    "image_size": 32,
    "layers": 3,
    "width": 64,
    "head_width": 16,
    "patch_size": 4,
    "pool_type": "avg",
    "pos_embed_type": "sin_cos_2d",  # learned ones take five times as many steps to tell left from right
}
TEXT: dict[str, Any] = {
    "context_length": CONTEXT, "width": 64, "heads": 4, "layers": 2, "hf_tokenizer_name": "tiny",
}  # fmt: skip
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
LEVELS = (1, 1, 2, 3)  # difficulties of the world, as often as they are drawn
ATTRIBUTES: dict[str, list] = {
    "color": list(COLORS),
    "shape": list(SHAPES),
    "count": list(COUNTS),
    "position": list(POSITIONS),
}

Scene = dict[str, Any]


def draw_scene(rng: random.Random, split: str) -> Scene:
    """A scene of the split, of one of LEVELS."""
    world, level = Compositions(), rng.choice(LEVELS)
    while True:
        scene = world.scene(rng, level, split)
        if split_of(scene) == split:
            return scene


def near_miss(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """The same scene with one attribute of one of its groups changed; the picture still has room for it."""
    which = rng.randrange(len(scene["objects"]))
    group = scene["objects"][which]
    values = [value for value in ATTRIBUTES[attribute] if value != group[attribute]]
    if attribute == "position" and len(scene["objects"]) > 1:  # the other group fills the opposite half
        return {**scene, "objects": _swap_positions(scene["objects"])}
    objects = list(scene["objects"])
    objects[which] = {**group, attribute: rng.choice(values)}
    return {**scene, "objects": objects}


def _swap_positions(objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    first, second = objects
    return [{**first, "position": second["position"]}, {**second, "position": first["position"]}]


def picture_tensor(scene: Scene, rng: random.Random, *, noisy: bool) -> Tensor:
    """(3, 32, 32) in [-1, 1]; noisy: blurred and noised as a half-trained generator's pictures are."""
    import numpy as np
    from PIL import Image, ImageFilter

    image = Compositions().render(scene, rng)
    if noisy:
        image = image.filter(ImageFilter.GaussianBlur(rng.choice((0, 0, 0.4, 0.8))))
    image = image.resize((32, 32), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    if noisy:
        strength = rng.choice((0.0, 0.05, 0.15, 0.3))
        noise = torch.Generator().manual_seed(rng.getrandbits(62))
        pixels = (pixels + strength * torch.randn(pixels.shape, generator=noise)).clamp(-1, 1)
    return pixels


def draw_batch(rng: random.Random, families: int) -> list[Scene]:
    """`families` training scenes, each with a near miss of every attribute; captions are all different."""
    scenes: dict[str, Scene] = {}
    for _ in range(families):
        scene = draw_scene(rng, "train")
        for member in (scene, *(near_miss(scene, attribute, rng) for attribute in ATTRIBUTES)):
            if split_of(member) == "train":
                scenes.setdefault(caption(member), member)
    return list(scenes.values())


def model_config(tokenizer: Any) -> dict[str, Any]:
    text = {**TEXT, "vocab_size": len(tokenizer)}
    return {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": text}


def build(seed: int, tokenizer: Any) -> Any:
    """The untrained model, of open_clip's own class."""
    import open_clip

    torch.manual_seed(seed)
    return open_clip.CLIP(**model_config(tokenizer))


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(N, CONTEXT) ids, as open_clip's own wrapper of this tokenizer makes them."""
    options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
    return tokenizer(list(texts), **options)["input_ids"]


def train(seed: int, steps: int, families: int = 16, learning_rate: float = 2e-3, report=print) -> tuple[Any, Any]:
    """Contrastive training, AdamW, warm-up, rate decayed to 0. Returns (model, tokenizer)."""
    tokenizer = clip_tokenizer(CONTEXT)
    model = build(seed, tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        rng = keyed_random(Key(seed, step, purpose="tiny clip batch"))
        scenes = draw_batch(rng, families)
        pixels = torch.stack([picture_tensor(scene, rng, noisy=True) for scene in scenes])
        texts = tokenize(tokenizer, [caption(scene) for scene in scenes])
        image, text, scale = model(pixels, texts)
        logits = scale * image @ text.T
        target = torch.arange(len(scenes))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
        if step % 100 == 0 or step == steps - 1:
            report(f"step {step:5d}  loss {loss.item():.3f}")
    return model.eval(), tokenizer


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights in float16, configuration and tokenizer, as `open_clip` reads a `local-dir:`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_config(tokenizer), "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


def measure(folder: Path, scenes: int = 512, choices: int = 64) -> dict[str, float]:
    """What the saved model knows of held-out scenes, loaded and used as the reward uses it.

    retrieval  share of clean pictures whose own caption scores best among `choices` held-out captions
    others     share of clean pictures whose caption beats the same with that attribute changed (chance .5)
    """
    scorer = load_scorer(f"local-dir:{folder}")
    world, rng = Compositions(), keyed_random(Key(0, purpose="tiny clip held out"))
    held_out: dict[str, Scene] = {}
    while len(held_out) < scenes:
        scene = draw_scene(rng, "test")
        held_out.setdefault(caption(scene), scene)
    texts, pictures = list(held_out), [world.render(scene, rng) for scene in held_out.values()]
    best = 0
    for start in range(0, scenes, choices):
        part = slice(start, start + choices)
        rows = [scorer.cosines([picture] * choices, texts[part]) for picture in pictures[part]]
        best += sum(max(range(choices), key=row.__getitem__) == i for i, row in enumerate(rows))
    own = scorer.cosines(pictures, texts)
    result = {"retrieval": best / scenes}
    for attribute in ATTRIBUTES:
        changed = [caption(near_miss(scene, attribute, rng)) for scene in held_out.values()]
        other = scorer.cosines(pictures, changed)
        result[attribute] = sum(a > b for a, b in zip(own, other, strict=True)) / scenes
    return result


def card(arguments: argparse.Namespace, seconds: float, scores: dict[str, float], size: int) -> str:
    lines = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    return f"""# Tiny CLIP of the compositional world

Scores pictures against captions such as "two red circles on the left, white background". It knows the words and
the shapes of `mmrl.data.worlds.compositions` and nothing else. It is the default of the reward `clip_score`; for real
pictures name a real checkpoint.

- Model: open_clip `CLIP`, 32 x 32 pixels, patch 4, 3 vision and 2 text layers of width 64, {size / 2**20:.2f} MiB of
  weights in float16. Plain open_clip loads this folder as `local-dir:...`.
- Data: made scenes of difficulties 1 to 3, training split only, with near misses in each batch. No other data.
- Rebuilt by `python -m mmrl.pipelines.bases.tiny_clip --out data/assets/tiny_clip --seed {arguments.seed} \
--steps {arguments.steps}` ({seconds:.0f} s on one CPU core).
- Licence: that of this repository.

Measured on 512 held-out captions and pictures. `retrieval`: the own caption scores best among 64 held-out ones. The
others: the own caption beats the same caption with that attribute of one group changed (chance .5).

| held out | share |
|---|---|
{lines}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    start = time.perf_counter()
    model, tokenizer = train(arguments.seed, arguments.steps)
    seconds = time.perf_counter() - start
    save(model, tokenizer, arguments.out)
    scores = measure(arguments.out)
    size = (arguments.out / "open_clip_model.safetensors").stat().st_size
    (arguments.out / "CARD.md").write_text(card(arguments, seconds, scores, size))
    print(json.dumps(scores | {"seconds": round(seconds), "bytes": size}))


if __name__ == "__main__":
    main()
