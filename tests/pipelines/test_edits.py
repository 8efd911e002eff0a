"""Condition images through the pipeline object: generated from, scored with, kept and shown."""

import json
import re

import pytest

from mmrl.pipelines.flow import FlowPipeline
from mmrl.pipelines.report import write_report
from tests.policies.generation.families.cases import BY_NAME, picture

CASE = BY_NAME["FLUX.1-Kontext"]
SIZES = {"steps": 1, "prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4, "save_rollouts_every": 1}


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kontext")
    CASE.pipeline().save_pretrained(folder)
    return FlowPipeline.from_pretrained(
        folder, height=32, width=32, max_sequence_length=32, pipeline_options={"_auto_resize": False}, steps=3,
        eval_steps=3, sampler={"kind": "flow_sde"}, train_steps={"select": "all"},
    )  # fmt: skip


def test_edits_from_python_with_a_reward_that_compares(kontext, tmp_path):
    picture(seed=5).save(tmp_path / "b.png")
    rows = [
        {"prompt": "make it blue", "image": picture(), "edit_region": [0, 0, 16, 16]},
        {"prompt": "make it red", "images": [str(tmp_path / "b.png")], "edit_region": [0, 0, 16, 16]},
    ]
    data = {"data": {"allow_outside": True}}
    outputs = kontext.generate(rows, count=2, **data)
    assert [[image.size for image in each] for each in outputs] == [[(32, 32)] * 2] * 2
    seen = []

    def reference_seen(completions, reference):
        seen.extend([(image.size, image.mode) for images in reference for image in images])
        return [0.0, 1.0] * (len(completions) // 2)

    kontext.train(
        rows, ["preservation", reference_seen], recipe="flow_grpo_fast", run_dir=tmp_path / "run", training=SIZES,
        report=lambda step, metrics: None, **data,
    )  # fmt: skip
    assert seen == [((32, 32), "RGB")] * 4
    (folder,) = (tmp_path / "run" / "rollouts").glob("step-*")
    kept = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert all(len(row["media"]) == 1 and set(row["components"]) == {"preservation", "reference_seen"} for row in kept)
    page = write_report(tmp_path / "run").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    shown = [group for section in json.loads(data)["sections"].values() for group in section["groups"]]
    assert [len(group["media"]) for group in shown] == [1, 1], "what an edit starts from"
