"""Small data sets, rewards and configurations for runs of a few seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mmrl.pipelines.bases.models import tiny_flow, tiny_vlm
from mmrl.training.tracking import read_metrics
from tests.data.clips import write_clip

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (20, 180, 60), "yellow": (230, 210, 40)}
TIMING = ("seconds/", "rate/", "memory/", "cache/")  # of this process: a resumed run reads clips again
SIZES = {"steps": 4, "prompts_per_step": 2, "group_size": 4, "micro_batch_size": 8, "learning_rate": 1e-3}

REWARDS = '''
import os
import time
from pathlib import Path

FOLDER = Path(__file__).parent
CALLS = 0


def wait_if_told():
    """Wait in the call whose number is in the file `hold`, until that file is gone."""
    global CALLS
    CALLS += 1
    hold = FOLDER / "hold"
    if hold.exists() and hold.read_text() == str(CALLS):
        (FOLDER / "held").touch()
        while hold.exists():
            time.sleep(0.01)


def vowels(completions):
    """Share of vowels: every group has a signal, whatever the model says."""
    wait_if_told()
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def redness(completions):
    """Mean red of the generated images, 0 to 1."""
    wait_if_told()
    return [sum(image.convert("RGB").resize((8, 8)).getdata(0)) / (64 * 255) for image in completions]


def shaky(completions, solution):
    """Hangs on one row of the data, dies on another, raises on a third."""
    if "red" in solution:
        time.sleep(600)
    if "blue" in solution:
        os._exit(3)
    if "green" in solution:
        raise ValueError("green is hard")
    return [1.0] * len(completions)
'''


@dataclass(frozen=True)
class Bases:
    root: Path

    def of(self, modality: str) -> Path:
        return self.root / ("flow" if modality == "flow" else "vlm")


def save_bases(root: Path) -> Bases:
    model, processor = tiny_vlm("qwen3_vl", seed=0)
    model.save_pretrained(root / "vlm")
    processor.save_pretrained(root / "vlm")
    tiny_flow(seed=0).save_pretrained(root / "flow")
    return Bases(root)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_data(folder: Path, modality: str) -> Path:
    """Four rows of one's own: images, mp4 files, or prompts alone."""
    rows: list[dict[str, Any]] = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        if modality == "vlm":
            Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
            rows.append(
                {"prompt": "<image>What colour is it?", "image": f"{name}.png", "task": "exact", "solution": name}
            )
        elif modality == "video":
            write_clip(folder / f"{name}.mp4", frames=12 + 4 * number, size=(64, 64))
            rows.append({"prompt": "<video>What happens?", "video": f"{name}.mp4", "task": "exact", "solution": name})
        else:
            rows.append({"prompt": f"a {name} circle"})
    return write_rows(folder / "rows.jsonl", rows)


def policy_of(modality: str) -> dict[str, Any]:
    if modality == "flow":
        return {"max_sequence_length": 16, "steps": 4, "eval_steps": 4, "schedule": "linear"}  # three trained steps
    sampling = {"fps": None, "min_frames": 2, "max_frames": 4, "min_pixels": 1024, "max_pixels": 4096}
    return {"max_new_tokens": 6} | ({"sampling": sampling} if modality == "video" else {})


def write_config(folder: Path, modality: str, bases: Bases, recipe: str, **training: Any) -> Path:
    """A configuration of `modality` on data and a reward written beside it, which runs into `folder/run`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_rewards.py").write_text(REWARDS)
    data = str(write_data(folder, modality))
    reward = "redness" if modality == "flow" else "vowels"
    config = {
        "recipe": recipe,
        "run_dir": str(folder / "run"),
        "policy": {"model": str(bases.of(modality)), **policy_of(modality)},
        "data": {"train": data, "eval": data},
        "rewards": [{"name": f"{folder / 'my_rewards.py'}:{reward}"}],
        "training": {**SIZES, **training},
        "cache": {"root": str(folder / "cache")},
    }
    if modality == "flow":
        config["watch"] = {"every": 0}  # it calls the reward, and tests count these calls
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def timeless(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what depends on the machine's mood."""
    return [{k: v for k, v in m.items() if not k.startswith(TIMING)} for m in read_metrics(run / "metrics.jsonl")]
