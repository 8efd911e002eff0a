"""A strong model learns from labels, a small one from it: the order, who reads labels, and what goes on from what."""

import json

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.bridge import Bridge, cross, read_bridge
from mmrl.training.tracking import read_metrics

TINY = {"model": "asset:tiny_vlm", "max_new_tokens": 5}
COMMON = {
    "data": {"train": "world:stills?split=train&size=64&skills=color", "eval": "world:stills?split=test&size=4"},
    "rewards": [{"name": "accuracy"}],
    "training": {"steps": 1, "prompts_per_step": 2, "group_size": 2, "learning_rate": 1e-3},
}  # fmt: skip


def plan(out, **stages) -> Bridge:
    return Bridge(teacher=TINY, student=TINY, common=COMMON, stages=stages, out=str(out))


def test_only_the_first_and_the_last_stage_read_labels(tmp_path):
    asked = plan(tmp_path)
    configs = {name: asked.config(name, TINY, TINY) for name in asked.asked()}
    assert list(configs) == ["teacher", "warm_up", "distil", "student"]
    assert {n: [r.name for r in c.rewards] for n, c in configs.items()} == {
        "teacher": ["accuracy"], "warm_up": ["unlabelled"], "distil": ["unlabelled"], "student": ["accuracy"],
    }  # fmt: skip
    assert [n for n, c in configs.items() if c.data.eval] == ["teacher", "student"]
    assert [n for n, c in configs.items() if c.policy.get("teacher")] == ["warm_up", "distil"]


def test_stages_are_left_out_by_null_and_unknown_ones_refused(tmp_path):
    assert plan(tmp_path, teacher=None, student=None).asked() == ["warm_up", "distil"]
    with pytest.raises(ConfigError, match="unknown stage 'distill'; did you mean 'distil'"):
        plan(tmp_path, distill={}).asked()
    with pytest.raises(ConfigError, match="no such file; expected a plan"):
        read_bridge(tmp_path / "none.yaml")


def test_the_small_model_learns_what_the_teacher_writes_and_nothing_is_run_twice(tmp_path):
    asked, told = plan(tmp_path, teacher=None, student=None), []
    said = cross(asked, told.append)
    assert "warm_up: teacher_answers, 1 steps, 0 labels read" in said and "KL to the teacher" in said
    metrics = read_metrics(tmp_path / "warm_up" / "metrics.jsonl")
    rows = {line["source"]: line["trained"] for line in metrics[0]["rows_by_source"]}
    assert rows == {"policy": 0, "demonstration": 2} and metrics[0]["gradient_norm"] > 0
    stage = json.loads((tmp_path / "bridge.json").read_text())["distil"]
    assert stage["labels_read"] == 0 and stage["teacher_kl"]
    again: list[str] = []
    assert cross(asked, again.append) == said and not again
