"""CLIP score: the shipped tiny model through open_clip's own loader, and checkpoints by name and folder."""

import json
import random
import subprocess
import sys

import pytest
import torch
from PIL import Image

from mmrl.data.worlds.compositions import Compositions, caption
from mmrl.errors import RewardError
from mmrl.rewards import clip
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts


def scene(color: str = "red", shape: str = "circle", count: int = 1, position: str = "left") -> dict:
    group = {"shape": shape, "color": color, "count": count, "position": position}
    return {"size": 24, "background": "black", "objects": [group]}


def render(described: dict) -> Image.Image:
    return Compositions().render(described, random.Random(0))


@pytest.mark.parametrize("changed", [{"color": "blue"}, {"shape": "square"}, {"count": 3}, {"position": "right"}])
def test_the_own_caption_beats_a_near_miss(changed):
    """On four pictures each, in sum: a model this small may miss one."""
    margins = []
    for base in ({}, {"position": "left", "color": "green"}, {"shape": "circle", "color": "cyan"}, {"count": 2}):
        right, wrong = scene(**base), scene(**{**base, **changed})
        own, other = clip.load_scorer().cosines([render(right)] * 2, [caption(right), caption(wrong)])
        margins.append(own - other)
    assert sum(margins) / len(margins) > 0.02


def test_the_wrong_picture_scores_less():
    right = scene()
    images = [render(right), render(scene(color="blue")), Image.new("RGB", (24, 24))]
    own, *others = clip.load_scorer().cosines(images, [caption(right)] * 3)
    assert own > max(others) + 0.1


def test_in_the_panel_text_comes_from_the_prompt_or_the_column():
    right = scene()
    image, text = render(right), caption(right)
    with RewardPanel(["clip_score"]) as panel:
        from_prompt = panel.score([image], prompts(text=text))
        from_column = panel.score([image], prompts(text="draw something", caption=text))
    assert torch.equal(from_prompt.reward, from_column.reward)
    assert -1 <= from_prompt.reward.item() <= 1
    assert from_prompt.success.isnan().all()


def test_batches_change_nothing():
    scenes = [scene(color) for color in ("red", "green", "blue")]
    images, texts = [render(each) for each in scenes], [caption(each) for each in scenes]
    whole = clip.clip_score(texts, images, batch_size=3)
    assert clip.clip_score(texts, images, batch_size=1) == pytest.approx(whole, abs=1e-5)


def test_plain_open_clip_loads_the_folder():
    """In a process where mmrl's own modules are not used, besides the repair of torchvision."""
    code = (
        "import mmrl, open_clip, sys\n"
        "name = 'local-dir:' + sys.argv[1]\n"
        "model, _, transform = open_clip.create_model_and_transforms(name)\n"
        "text = open_clip.get_tokenizer(name)(['a red circle'])\n"
        "print(model.encode_text(text).shape[-1], sum(p.numel() for p in model.parameters()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(clip.tiny_folder())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    width, parameters = map(int, done.stdout.split())
    config = json.loads((clip.tiny_folder() / "open_clip_config.json").read_text())
    assert width == config["model_cfg"]["embed_dim"]
    assert parameters < 500_000


def test_the_shipped_weights_are_small():
    assert (clip.tiny_folder() / "open_clip_model.safetensors").stat().st_size < 2**20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-33", "pretrained": "openai"}, "did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32"}, "needs `pretrained`"),
        ({"model": "ViT-B-32", "pretrained": "opnai"}, "did you mean 'openai'"),
        ({"model": "local-dir:nowhere"}, "nowhere"),
        ({"pretrained": "openai"}, "name its `model` too"),
    ],
)
def test_a_model_that_is_not_there_says_what_is(options, message):
    with pytest.raises(RewardError, match=message):
        clip.load_scorer(**options)


def test_text_is_no_picture():
    with pytest.raises(RewardError, match="reads PIL images, got a str"):
        clip.clip_score(["a red circle"], ["a red circle"])


def test_a_near_miss_differs_in_its_attribute_alone():
    from mmrl.pipelines.bases.tiny_clip import ATTRIBUTES, near_miss

    rng = random.Random(0)
    for level in (1, 2, 3):
        original = Compositions().scene(rng, level, "train")
        for attribute in ATTRIBUTES:
            changed = near_miss(original, attribute, rng)
            assert caption(changed) != caption(original)
            for before, after in zip(original["objects"], changed["objects"], strict=True):
                assert {k for k in before if before[k] != after[k]} <= {attribute}
            assert Compositions().render(changed, random.Random(0)) is not None


def test_the_rebuilding_script_writes_what_the_reward_loads(tmp_path):
    from mmrl.pipelines.bases.tiny_clip import ATTRIBUTES, measure, save, train

    lines = []
    model, tokenizer = train(0, steps=2, families=2, report=lines.append)
    save(model, tokenizer, tmp_path)
    scores = measure(tmp_path, scenes=8, choices=4)
    assert set(scores) == {"retrieval", *ATTRIBUTES}
    assert len(lines) == 2
    with torch.inference_mode():
        texts = clip.load_scorer(f"local-dir:{tmp_path}").tokenizer(["two red circles on the left"])
        shipped = clip.load_scorer().tokenizer(["two red circles on the left"])
    assert texts.tolist() == shipped.tolist()
