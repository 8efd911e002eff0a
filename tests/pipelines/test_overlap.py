"""Prompts of reinforcement learning that were learned by heart before."""

import json
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from mmrl.data.overlap import overlap
from mmrl.errors import DataError
from mmrl.pipelines.config import DataConfig, read_config
from mmrl.pipelines.overlap import shared_with_sft
from mmrl.pipelines.run import open_prompts, train
from tests.training.tiny import make_prompts


def test_three_of_ten():
    """The spec's check. Case, spaces, ids and columns do not tell prompts apart; words do."""
    first = make_prompts(10)
    again = [replace(p, id="other", columns={}) for p in first[:3]]
    again[0].messages = json.loads(json.dumps(again[0].messages).replace("Which colour", "  WHICH   colour"))
    new = json.loads(json.dumps(first[4].messages).replace("4", "forty"))
    found = overlap(first, [*again, replace(first[4], messages=new)])
    assert found.rows == [0, 1, 2] and found.share == pytest.approx(0.3)
    assert overlap(first, []).share == 0 and overlap([], first).share == 0


def test_equal_words_about_another_picture_are_another_prompt():
    (prompt,) = make_prompts(1)
    other = replace(prompt, images=[Image.new("RGB", (64, 64), (0, 0, 0))])
    copied = replace(prompt, images=[prompt.images[0].copy()])
    assert not overlap([prompt], [other]).rows and overlap([prompt], [other, copied]).rows == [0]


@pytest.fixture
def sets(tmp_path):
    """Ten rows, and a supervised set with three of them, on pictures of other names."""
    for folder in ("rl", "sft"):
        (tmp_path / folder).mkdir()
    rows = {"rl": [], "sft": []}
    for i in range(10):
        for folder in ("rl", "sft") if i < 3 else ("rl",):
            name = f"{folder}-{i}.png"
            Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(tmp_path / folder / name)
            rows[folder].append({"prompt": "What colour is it?", "image": name, "solution": "red", "task": "exact"})
    for folder, of in rows.items():
        (tmp_path / folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in of))
    return str(tmp_path / "rl" / "data.jsonl"), str(tmp_path / "sft" / "data.jsonl")


def test_a_run_is_told_and_refused_above_its_limit(sets):
    train, sft = sets
    data = DataConfig(train=train, sft=[sft], sft_overlap=0.3)
    prompts = open_prompts(train, data)
    opened = partial(open_prompts, data=data)
    (line,) = shared_with_sft(data, prompts, opened)
    assert line.startswith("3 of 10 training prompts (30%) are in ") and sft in line
    with pytest.raises(DataError, match=r"3 of 10 .* at most 10% may be \(data.sft_overlap\)"):
        shared_with_sft(DataConfig(train=train, sft=[sft]), prompts, opened)
    assert shared_with_sft(DataConfig(train=train), prompts, opened) == []


def test_it_is_asked_before_a_model_is_loaded(sets, tmp_path):
    train_file, sft = sets
    values = {
        "policy": {"model": "asset:tiny_vlm"},
        "data": {"train": train_file, "sft": [sft]},
        "rewards": [{"name": "accuracy", "isolated": False}],
        "run_dir": str(tmp_path / "run"),
    }
    with pytest.raises(DataError, match="3 of 10 training prompts"):
        train(read_config(values, (), "vlm"))
