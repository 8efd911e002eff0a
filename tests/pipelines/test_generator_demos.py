"""The demos of clips and of edits, cut to two small steps: trained, kept, scored again and shown."""

import json

import pytest

from mmrl.pipelines.config import read_config
from mmrl.pipelines.report import write_report
from mmrl.pipelines.run import train
from mmrl.training.tracking import read_metrics
from tests.pipelines.test_report import browse

SMALL = (
    "training.steps=2", "training.prompts_per_step=2", "training.group_size=4", "training.micro_batch_size=8",
    "training.save_rollouts_every=1", "data.eval_limit=16", "policy.steps=4", "policy.eval_steps=6",
)  # fmt: skip
OWN = {"video_demo": ["training.updates.count=2"], "edit_demo": ["policy.train_steps.high=3"]}
SHOWN = {"video_demo": "<video", "edit_demo": 'alt="condition image"'}
KEPT = {"video_demo": ".mp4", "edit_demo": ".png"}


@pytest.mark.parametrize("name", KEPT)
def test_a_short_demo_trains_and_shows_what_it_drew(name, tmp_path, chromium):
    config = read_config(name, [*SMALL, *OWN[name], f"run_dir={tmp_path / 'run'}"], "flow")
    result = train(config, report=lambda step, metrics: None)
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(m["gradient_norm"] > 0 and m["self_check/worst_gap"] < 1e-4 for m in steps[:1])
    assert 0 < result.before["reward"] < 1 and 0 < result.after["reward"] < 1
    rows = [
        json.loads(line)
        for path in (tmp_path / "run" / "rollouts").glob("step-*/rows.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(rows) == 16 and any(row["reward"] > 0 for row in rows)
    files = {path.suffix for path in (tmp_path / "run" / "rollouts").rglob("*") if path.is_file()}
    assert KEPT[name] in files
    dom = browse(chromium, "--dump-dom", write_report(tmp_path / "run").as_uri())
    assert SHOWN[name] in dom
