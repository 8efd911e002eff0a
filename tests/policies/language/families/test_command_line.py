"""A family that is not Qwen's from clips on disk to weights for others: `mmrl train video`, `mmrl export`."""

from __future__ import annotations

import sys

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl.media import Clip
from mmrl.pipelines import cli
from mmrl.pipelines.run import load_run
from mmrl.policies.language.families.check import own_logits
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from tests.data.clips import write_clip
from tests.pipelines.runs import policy_of, write_rows
from tests.policies.language.families.tiny import RECIPES

pytestmark = pytest.mark.families

REWARD = """
def spread(completions):
    return [sum(text.encode()) % 11 / 11 for text in completions]
"""
"""Of any text another number: a group of an untrained model has a signal, whatever alphabet it writes in."""


@pytest.fixture(params=["glm4v", "internvl", "smolvlm"])
def config(request, tmp_path):
    """Two clips, a reward and a tiny model, each a file or folder as a user has them."""
    model, processor = RECIPES[request.param]()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for name, count in {"red": 12, "blue": 16}.items():
        write_clip(tmp_path / f"{name}.mp4", frames=count, size=(64, 64))
    rows = [{"prompt": "<video>what moves", "video": f"{name}.mp4", "solution": name} for name in ("red", "blue")]
    (tmp_path / "my_rewards.py").write_text(REWARD)
    settings = {
        "recipe": "grpo",
        "run_dir": str(tmp_path / "run"),
        "policy": {"model": str(tmp_path / "model"), "lora": {"rank": 2, "alpha": 4}, **policy_of("video")},
        "data": {"train": str(write_rows(tmp_path / "rows.jsonl", rows)), "eval": None},
        "rewards": [{"name": f"{tmp_path / 'my_rewards.py'}:spread"}],
        "training": {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 0.1},
        "cache": {"root": str(tmp_path / "cache")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "config.yaml"


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["mmrl", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code


def test_clips_train_a_model_that_transformers_loads(config, monkeypatch):
    folder = config.parent
    command(monkeypatch, "train", "video", config)
    command(monkeypatch, "export", folder / "run", folder / "whole")
    plain = AutoModelForImageTextToText.from_pretrained(folder / "whole").eval()
    AutoProcessor.from_pretrained(folder / "whole")
    _, trained = load_run(folder / "run")
    clip = Prompt("p", [{"role": "user", "content": [{"type": "video"}]}], videos=[Clip(folder / "red.mp4")])
    written = trained.rollout([Request(clip, 1, 0)], Key(0))
    entry, ids = written.encoded[0], written.actions[0, : written.length[0]]
    with torch.no_grad():
        logits = [own_logits(model, trained.family, entry, ids) for model in (trained.inner.core, plain)]
        base = AutoModelForImageTextToText.from_pretrained(folder / "model").eval()
        before = own_logits(base, trained.family, entry, ids)
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    assert (logits[0] - before).abs().max() > 1e-3
