"""What was found of a pipeline is looked up the next time, and found again where anything it depends on changed."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from mmrl.policies.generation.families import generator_of, kept
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.families.kept import folder, key, verdict_of
from mmrl.policies.generation.families.swap import Swapped
from mmrl.policies.generation.families.z_image import ZImage
from mmrl.policies.generation.pipeline import trained_modules
from tests.policies.generation.families.cases import BY_NAME, PROMPTS, picture

CASE = BY_NAME["Z-Image"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))
    return tmp_path


def made(asked=CASE.asked):
    generator = generator_of(CASE.pipeline(), asked)
    return generator, trained_modules(generator)


def test_the_second_time_nothing_is_compared(cache):
    generator, modules = made()
    first = verdict_of(generator, PROMPTS[0], (), modules)
    assert [p.suffix for p in folder().iterdir()] == [".json"] and folder().parent == cache
    with patch.object(kept, "checked", side_effect=AssertionError):
        again, modules = made()
        found = verdict_of(again, PROMPTS[1], (), modules)
    assert found == (again, first[1])


def test_a_pipeline_that_is_replayed_is_replayed_again():
    with patch.object(ZImage, "guide", Generator.guide):
        assert verdict_of(*_given(made()))[1].path == "swap"
        generator, verdict = verdict_of(*_given(made()))
        assert isinstance(generator, Swapped) and "off the pipeline's velocity" in verdict.note
    assert verdict_of(*_given(made()))[1].path == "family"  # the code of the family is part of the key


def test_whatever_the_answer_depends_on_is_in_the_key():
    generator, modules = made()
    base = key(generator, (), modules)
    assert base == key(*_keyed(made()))
    other = replace(CASE.asked, guidance=2.0)
    assert key(*_keyed(made(other))) != base
    assert key(generator, (picture(),), modules) != key(generator, (picture(64, 64),), modules) != base
    pipeline = generator.pipeline
    pipeline.scheduler.register_to_config(shift=6.0)
    assert key(generator, (), modules) != base
    pipeline.scheduler.register_to_config(shift=3.0)
    assert key(generator, (), modules) == base
    pipeline.transformer.to(torch.bfloat16)
    assert key(generator, (), modules) != base


def test_what_autocast_rounds_is_judged_and_kept_apart():
    """SD3's call asks both branches of its guidance at once, we one by one: bfloat16 products differ by some 1e-3,
    which is no reason to replay the whole call, nor to believe so of a run without autocast."""
    case = BY_NAME["SD3"]
    generator = generator_of(case.pipeline(), case.asked)
    modules = trained_modules(generator)
    plain = key(generator, (), modules)
    with torch.autocast("cpu", torch.bfloat16):
        assert key(generator, (), modules) != plain
        verdict = verdict_of(generator, PROMPTS[0], (), modules)[1]
    assert verdict.path == "family" and verdict.gap > 1e-5 and verdict.tolerance == 4e-2
    assert verdict_of(generator, PROMPTS[0], (), modules)[1].tolerance == 1e-3


def test_what_is_kept_is_plain(cache):
    verdict_of(*_given(made()))
    (path,) = folder().iterdir()
    assert json.loads(path.read_text())["pipeline"] == "ZImagePipeline"


def _given(both):
    return both[0], PROMPTS[0], (), both[1]


def _keyed(both):
    return both[0], (), both[1]
