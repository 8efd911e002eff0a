"""What the model did, kept for people: `rollouts/step-N/rows.jsonl` with outputs, rewards and credit."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmrl.media import Sound
from mmrl.record import Batch, Rollouts
from mmrl.training.tracking import write_atomically

SHOWN_FRAMES = 16
"""Of a generated video, kept as files."""


def _number(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def save_rollouts(
    folder: Path, rollouts: Rollouts, labels: list[list[str]], batch: Batch | None, weights: Tensor | None
) -> None:
    """Rows with their output, rewards, and per-action credit; media as PNG files beside them.

    batch, weights  the prepared rows, in the order of `rollouts`; None for evaluation samples
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(len(rollouts)):
        prompt = rollouts.prompts[int(rollouts.prompt[i])]
        row: dict[str, Any] = {
            "prompt": prompt.marked,
            "prompt_id": prompt.id,
            "group": int(rollouts.group[i]),
            "member": int(rollouts.member[i]),
            "solution": prompt.columns.get("solution"),
            "finish": rollouts.finish[i],
            "length": int(rollouts.length[i]),
            "media": _save_media(folder, f"prompt-{int(rollouts.group[i]):04d}", prompt.images),
            "videos": [str(getattr(v, "path", v)) for v in prompt.videos],
            "reward": None if rollouts.reward is None else _number(rollouts.reward[i]),
            "components": {k: _number(v[i]) for k, v in rollouts.components.items()},
        }
        row |= _saved_output(folder, f"output-{i:04d}", rollouts.outputs[i])
        row["actions"] = _actions(i, rollouts, labels[i], batch, weights)
        rows.append(row)
    write_atomically(folder / "rows.jsonl", "".join(json.dumps(r, default=str) + "\n" for r in rows))


def _saved_output(folder: Path, stem: str, output: Any) -> dict[str, Any]:
    """Text in the row; an image, evenly spread frames of a video, or a sound in files beside it."""
    if isinstance(output, str):
        return {"output": output}
    if isinstance(output, Sound):
        return {"output": None, "sounds": [_save_sound(folder / f"{stem}.wav", output)]}
    frames = output if isinstance(output, list) else [output]
    shown = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(len(frames), SHOWN_FRAMES))]
    count = {"frames": len(frames)} if isinstance(output, list) else {}
    return {"output": None, "images": _save_media(folder, stem, shown), **count}


def _save_sound(path: Path, sound: Sound) -> str:
    """16-bit PCM."""
    samples = np.asarray(sound.samples, dtype=np.float32).clip(-1, 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    return path.name


def _actions(i: int, rollouts: Rollouts, labels: list[str], batch: Batch | None, weights: Tensor | None) -> list[dict]:
    actions = []
    for t in range(rollouts.mask.shape[1]):
        if not bool(rollouts.mask[i, t]):
            continue
        action: dict[str, Any] = {"label": labels[t], "log_prob": _number(rollouts.old_log_probs[i, t])}
        if batch is not None and weights is not None:
            action["advantage"] = _number(batch.advantage[i, t])
            action["credit"] = _number(weights[i, t] * batch.advantage[i, t])
        actions.append(action)
    return actions


def _save_media(folder: Path, stem: str, images: list[Any]) -> list[str]:
    names = []
    for n, image in enumerate(images):
        name = f"{stem}-{n}.png"
        if not (folder / name).exists():
            image.save(folder / name)
        names.append(name)
    return names
