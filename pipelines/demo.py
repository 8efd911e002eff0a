"""`mmrl demo`: three modalities, one optimizer, held-out scores before and after."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmrl.pipelines.config import read_config
from mmrl.pipelines.progress import progress, quiet_libraries
from mmrl.pipelines.report import write_report
from mmrl.pipelines.run import train
from mmrl.training.storage import write_atomically

METRICS = {"vlm": "success", "video": "success", "flow": "reward", "masked": "success", "joint": "reward"}
SHOWN = ("vlm", "video", "flow")
"""What the demo trains unless one is named: five minutes are enough for three."""


def run_demo(out: Path, seed: int, modalities: list[str] | None, console: Console) -> dict[str, dict]:
    """Train each tiny base with its shipped `demo` configuration; runs and `summary.json` land in `out`. A signal ends
    all of it, with its exit status."""
    quiet_libraries()
    summary = {}
    for modality in modalities or SHOWN:
        folder = out / modality
        shutil.rmtree(folder, ignore_errors=True)
        config = read_config("demo", [f"training.seed={seed}", f"run_dir={folder}"], modality)
        start = time.perf_counter()
        with progress(config, console) as live:
            result = train(config, report=live, kept=live.kept)
        if result.interrupted:
            again = f"mmrl train {modality} --resume {folder}"
            said = f"interrupted in {modality}, after step {result.steps}; it goes on with `{again}`"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
            raise SystemExit(128 + (result.signal or 0))
        metric = METRICS[modality]
        summary[modality] = {
            "metric": f"held-out {metric}",
            "before": round(result.before[metric], 4),
            "after": round(result.after[metric], 4),
            "seconds": round(time.perf_counter() - start, 1),
            "steps": result.steps,
        }
        write_report(folder)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1))
    console.print(_table(summary, seed))
    console.print(f"runs, reports and summary.json are in {out}", markup=False, highlight=False, soft_wrap=True)
    return summary


def _table(summary: dict[str, dict], seed: int) -> Table:
    table = Table("modality", "metric", "before", "after", "gain", "steps", "seconds", title=f"seed {seed}")
    for modality, row in summary.items():
        gain = row["after"] - row["before"]
        table.add_row(
            modality, row["metric"], f"{row['before']:.3f}", f"{row['after']:.3f}", f"{gain:+.3f}",
            str(row["steps"]), f"{row['seconds']:.0f}",
        )  # fmt: skip
    return table
