"""Runs side by side: what differs, scores, and a line for each run."""

import json
import re

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.comparison import read_runs, write_comparison


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, rate, end in (("slow", 1e-6, 0.5), ("fast <b>", 1e-5, 0.75)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [{"step": s, "reward/mean": s * rate, "reward/accuracy/mean": 0.5} for s in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        reward = {"name": "accuracy", "weight": rate, "timeout": None}
        config = {"run_dir": name, "recipe": "grpo", "training": {"learning_rate": rate}, "rewards": [reward]}
        (folder / "config.yaml").write_text(json.dumps(config))
        (folder / "result.json").write_text(json.dumps({"before": {"success": 0.25}, "after": {"success": end}}))
        folders.append(folder)
    return folders


def test_only_what_differs_is_told(runs):
    compared = read_runs(runs)
    assert compared.differences() == {"training.learning_rate": [1e-6, 1e-5], "rewards.accuracy.weight": [1e-6, 1e-5]}
    assert compared.scores() == {"held-out success": ["0.250 -> 0.500", "0.250 -> 0.750"]}


def test_a_chart_has_a_line_for_each_run(runs, mmrl, tmp_path):
    done = mmrl("compare", *runs, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "training.learning_rate" in done.out and "0.250 -> 0.750" in done.out
    text = (tmp_path / "page.html").read_text()
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["Reward", "Held-out: success", "Components: accuracy"]
    assert text.count('class="s0"') == 2 * 3 and "fast &lt;b&gt;" in text and "<b>" not in text


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    (tmp_path / "other").mkdir()
    twin = runs[0].rename(tmp_path / "other" / "slow")
    other = tmp_path / "slow"
    other.mkdir()
    (other / "metrics.jsonl").write_text((twin / "metrics.jsonl").read_text())
    assert [run.name for run in read_runs([twin, other]).runs] == [str(twin), str(other)]


def test_what_is_no_run_is_named(runs, tmp_path):
    with pytest.raises(ConfigError, match="at least two"):
        read_runs(runs[:1])
    with pytest.raises(ConfigError, match="is it a run directory"):
        read_runs([runs[0], tmp_path])


def test_the_page_is_written_where_it_was_asked(runs, tmp_path):
    assert write_comparison(read_runs(runs), tmp_path / "x.html").read_text().startswith("<!doctype html>")
