"""What a configuration may ask of a pipeline: limits are errors that name the nearest choice."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from PIL import Image

from mmrl.data.rows import parse_row
from mmrl.data.sources import RowError
from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.asking import Asked, condition_media
from mmrl.record import Prompt
from tests.policies.generation.families.cases import BY_NAME, picture


@cache
def pipeline_of(name: str) -> Any:
    return BY_NAME[name].pipeline()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("FLUX.1-dev", {"height": 30}, r"height=30: expected a multiple of 4; the nearest is 32"),
        ("SANA", {"width": 40}, r"width=40: expected a multiple of 32; the nearest is 32"),
        ("CogView4", {"width": 40}, r"width=40: expected a multiple of 16"),
        ("Wan 2.1 text", {"frames": 10}, r"frames=10: expected 1 more than a multiple of 4; the nearest is 9"),
        ("FLUX.1-dev", {"frames": 9}, r"FluxPipeline takes no number of frames; leave frames out"),
        ("FLUX.1-schnell", {"embedded": 3.5}, r"does not take guidance as an input"),
        ("FLUX.2-dev", {"guidance": 2.0}, r"no unconditional pass.*set embedded_guidance"),
        ("FLUX.2-klein distilled", {"guidance": 2.0}, r"is distilled"),
        ("FLUX.2-klein base", {"negative": "blurry"}, r"reads none"),
        ("SD3", {"guidance": 0.5}, r"guides above 1 only"),
        ("SD3", {"guidance_2": 2.0}, r"has one transformer"),
        ("Wan 2.1 text", {"guidance_2": 2.0}, r"has one transformer"),
        ("SD3", {"options": {"clip_skp": 1}}, r"did you mean 'clip_skip'"),
        ("SD3", {"options": {"height": 8}}, r"set by the policy's own settings"),
        ("HunyuanVideo-1.5", {"height": None, "width": None}, r"set policy.height and policy.width"),
        ("Stable Audio 3", {"height": 32}, r"sound has none; set pipeline_options.duration"),
    ],
)
def test_what_cannot_be_asked(name, change, message):
    with pytest.raises(ConfigError, match=message):
        generator_of(pipeline_of(name), replace(BY_NAME[name].asked, **change))


def test_null_is_the_pipelines_own():
    assert generator_of(pipeline_of("SD3"), Asked()).size.height == 24
    assert generator_of(pipeline_of("Wan 2.1 text"), Asked()).size.frames == 81


def prompt(*media: Any, roles: tuple[str, ...] = ()) -> Prompt:
    parts = [{"type": "image", **({"role": role} if role else {})} for role in roles]
    return Prompt("p", [{"role": "user", "content": [*parts, {"type": "text", "text": "make it red"}]}], list(media))


class TestConditionImages:
    def test_in_order_and_in_rgb(self, tmp_path):
        gray = Image.new("L", (4, 4), 7)
        picture(8, 8).save(tmp_path / "a.png")
        found = condition_media(prompt(gray, tmp_path / "a.png", roles=("condition", "")))
        assert [image.mode for image in found] == ["RGB", "RGB"] and found[1].size == (8, 8)

    @pytest.mark.parametrize(
        ("name", "images", "message"),
        [
            ("Wan 2.1 image", 0, "has 0 condition image.*WanImageToVideoPipeline takes 1"),
            ("SD3", 1, "StableDiffusion3Pipeline takes 0"),
            ("FLUX.1-Kontext", 2, "takes 0 to 1"),
        ],
    )
    def test_too_few_or_too_many(self, name, images, message):
        with pytest.raises(PolicyError, match=message):
            generator_of(pipeline_of(name), BY_NAME[name].asked).check_media("p", [picture()] * images)

    def test_another_role_is_an_error_in_the_prompt_and_in_the_data(self):
        with pytest.raises(PolicyError, match="did you mean 'condition'"):
            condition_media(prompt(picture(), roles=("conditon",)))
        part = {"type": "image", "image": "a.png", "role": "conditon"}
        with pytest.raises(RowError, match="did you mean 'condition'"):
            parse_row({"prompt": [{"role": "user", "content": [part, {"type": "text", "text": "red"}]}]})
        part["role"] = "condition"
        row = parse_row({"prompt": [{"role": "user", "content": [part, {"type": "text", "text": "red"}]}]})
        assert row.messages[0]["content"][0] == {"type": "image", "role": "condition"} and row.images == ["a.png"]
