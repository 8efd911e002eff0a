"""The demo of the vision-language model, written by vLLM: half of its steps are enough to see it learn."""

from __future__ import annotations

import pytest

from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import train
from mmrl.training.tracking import read_metrics


@pytest.mark.timeout(1500)
def test_the_demo_learns_and_the_engine_follows(tmp_path):
    """`mmrl train vlm demo engine=vllm`: held-out accuracy gains .15, every tenth step is checked to rounding."""
    changes = ["engine=vllm", "training.steps=140", "training.check_every=10", f"run_dir={tmp_path / 'run'}"]
    result = train(read_config("demo", changes, "vlm"))
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    gaps = [m["engine/gap_max"] for m in metrics if "engine/gap_max" in m]
    print(f"success {result.before['success']:.3f} -> {result.after['success']:.3f}, worst gap {max(gaps):.1e}")
    assert result.after["success"] - result.before["success"] > 0.15
    assert len(gaps) == 14 and max(gaps) < 1e-4
