"""Reward classes of maintained packages: built tiny here where they can be, else asked what is missing."""

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mmrl.errors import RewardError
from mmrl.rewards.models import aesthetic, rendered_text
from mmrl.rewards.registry import registered

RED, BLUE = (Image.new("RGB", (40, 40), c) for c in ((220, 30, 30), (30, 60, 230)))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP of transformers with its processor, as a hub folder has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "square"])}
    text = CLIPTextConfig(**size, vocab_size=len(words), max_position_embeddings=16, bos_token_id=1, eos_token_id=2)
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=8)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=16,
    )  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    CLIPProcessor(images, fast).save_pretrained(folder)
    return str(folder)


def test_pickscore_is_the_scaled_cosine(clip_folder):
    from transformers import AutoProcessor, CLIPModel

    texts = ["a red square", "a blue square"]
    found = registered()["pickscore"].function(
        prompts=texts, completions=[RED, BLUE], model=clip_folder, device="cpu", batch_size=1
    )
    model, processor = CLIPModel.from_pretrained(clip_folder), AutoProcessor.from_pretrained(clip_folder)
    for text, image, score in zip(texts, [RED, BLUE], found, strict=True):
        with torch.inference_mode():
            out = model(**processor(text=[text], images=[image], return_tensors="pt", padding=True))
        assert score == pytest.approx(out.logits_per_image.item() / 26, rel=1e-4)


def test_aesthetic_is_the_head_over_the_embedding(clip_folder, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    weights = {f"layers.{name}": value for name, value in aesthetic.head(16).state_dict().items()}
    save_file(weights, tmp_path / "head.safetensors")
    (tmp_path / "head.pth").write_bytes(b"a pickle")
    call = registered()["aesthetic"].function
    red, blue = call(completions=[RED, BLUE], head=str(tmp_path / "head.safetensors"), model=clip_folder, device="cpu")
    assert red != blue
    with pytest.raises(RewardError, match=r"nothing is unpickled here; convert it once: python -c .*head\.safetensors"):
        call(completions=[RED], head=str(tmp_path / "head.pth"), model=clip_folder, device="cpu")
    with pytest.raises(RewardError, match="no such file"):
        call(completions=[RED], head=str(tmp_path / "none.pth"), model=clip_folder)
    with pytest.raises(RewardError, match="needs `head`"):
        call(completions=[RED])


@pytest.mark.parametrize(("name", "module"), [("hpsv2", "hpsv2"), ("hpsv3", "hpsv3"), ("image_reward", "ImageReward")])
def test_a_missing_package_is_one_line_with_what_to_do(name, module):
    with pytest.raises(RewardError, match=rf"needs the package '{module}'.*pip install.*python: /path/to/venv") as told:
        registered()[name].function(prompts=["red"], completions=[RED])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["hpsv2", "hpsv3", "image_reward", "pickscore", "aesthetic", "lpips", "rendered_text"])
def test_texts_are_no_pictures(name):
    given = {"completions": ["red"]} | ({} if name in ("aesthetic", "lpips") else {"prompts": ["red"]})
    with pytest.raises(RewardError, match="reads PIL images, got a str"):
        registered()[name].function(**given)


def test_lpips_compares_with_the_reference():
    pytest.importorskip("lpips")
    same, other = registered()["lpips"].function(
        completions=[RED, BLUE], reference=[RED, RED], random_backbone=True, device="cpu"
    )
    assert same == pytest.approx(1) and other < same


class TestRenderedText:
    def test_likeness(self):
        assert rendered_text.likeness("STOP here", "stop") == 1 and rendered_text.likeness("STO", "stop") == 0.75
        assert rendered_text.likeness("", "stop") == 0 and rendered_text.likeness("xxxx yyyy zzzz", "stop") == 0

    def test_target(self):
        assert rendered_text.target_of('A sign that says "Open late"', None) == "Open late"
        assert rendered_text.target_of("A sign", "Open") == "Open"
        with pytest.raises(RewardError, match="no column `target`"):
            rendered_text.target_of("A sign", None)

    def test_the_weights_that_ship_read_it(self):
        pytest.importorskip("rapidocr")
        image = Image.new("RGB", (320, 96), "white")
        ImageDraw.Draw(image).text((20, 30), "HELLO WORLD", fill="black", font=ImageFont.load_default(40))
        shown, blank = registered()["rendered_text"].function(
            prompts=['a sign that says "Hello World"'] * 2, completions=[image, Image.new("RGB", (320, 96), "white")]
        )
        assert shown > 0.9 and blank == 0
