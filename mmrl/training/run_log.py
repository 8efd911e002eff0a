"""What the model did, kept for people: `rollouts/step-N/rows.jsonl` with outputs, rewards and credit."""

from __future__ import annotations

import json
import math
import os
import wave
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.media import Film, Sound, write_video
from mmrl.policies.images import open_image
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.origins import origins_of
from mmrl.told import Told
from mmrl.training.storage import remove_tree, sync, write_atomically, writing

SHOWN_FRAMES = 16
"""Of a generated video, kept as PNG files beside its mp4, which loses detail."""


def _number(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def rows_to_keep(group: Tensor, reward: Tensor | None, groups: int) -> Tensor:
    """Indices of whole groups of a step, at most `groups`: the first as it comes, then those whose rewards differ most,
    which are the ones that teach. group (B,), reward (B,), NaN where unscored."""
    names = list(dict.fromkeys(group.tolist()))

    def spread(name: int) -> float:
        values = [] if reward is None else [v for v in reward[group == name].tolist() if math.isfinite(v)]
        return max(values) - min(values) if values else 0.0

    chosen = [*names[:1], *sorted(names[1:], key=spread, reverse=True)][:groups]
    return torch.tensor([i for i, name in enumerate(group.tolist()) if name in chosen], dtype=torch.long)


def replace_rollouts(
    folder: Path, rollouts: Rollouts, labels: list[list[str]], batch: Batch | None, weights: Tensor | None
) -> None:
    """`save_rollouts` into a folder of the run's own, which is whole or as it was before."""
    beside = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        remove_tree(beside)
        save_rollouts(beside, rollouts, labels, batch, weights)
        remove_tree(folder)
        os.replace(beside, folder)
        sync(folder.parent)


def save_rollouts(
    folder: Path, rollouts: Rollouts, labels: list[list[str]], batch: Batch | None, weights: Tensor | None
) -> None:
    """Rows with their output, rewards, and per-action credit; media as PNG, mp4 and WAV files beside them.

    batch, weights  the prepared rows, in the order of `rollouts`; None for evaluation samples
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    origins = origins_of(rollouts)
    written: set[str] = set()
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
            **asdict(origins[i]),
            **_spoken(i, rollouts, labels[i]),
            "media": _save_media(folder, f"prompt-{int(rollouts.group[i]):04d}", prompt.images, written, prompt),
            "videos": [str(getattr(v, "path", v)) for v in prompt.videos],
            "reward": None if rollouts.reward is None else _number(rollouts.reward[i]),
            "components": {k: _number(v[i]) for k, v in rollouts.components.items()},
        }
        row |= _saved_output(folder, f"output-{i:04d}", rollouts.outputs[i], written)
        row["actions"] = _actions(i, rollouts, labels[i], batch, weights)
        rows.append(row)
    write_atomically(folder / "rows.jsonl", "".join(json.dumps(r, default=str) + "\n" for r in rows))


def _spoken(i: int, rollouts: Rollouts, labels: list[str]) -> dict[str, Any]:
    """`said`: what was written and shown in turn, where an environment spoke; runs of one placeholder are cut short."""
    extent = int(rollouts.extent[i]) if rollouts.extent is not None else 0
    if "turn" not in rollouts.columns or extent == int(rollouts.length[i]):
        return {}
    said: list[dict[str, str]] = []
    for acted, columns in groupby(range(extent), key=lambda t: bool(rollouts.mask[i, t])):
        words = [labels[t] for t in columns]
        if not acted:
            repeats = ((word, len(list(same))) for word, same in groupby(words))
            words = [f"{word} x {n} " if n > 2 else word * n for word, n in repeats]
        said.append({"who": "policy" if acted else "environment", "text": "".join(words)})
    return {"extent": extent, "said": said}


def _saved_output(folder: Path, stem: str, output: Any, written: set[str]) -> dict[str, Any]:
    """Text in the row; an image, a video with evenly spread frames of it, or a sound in files beside it."""
    if isinstance(output, str):
        return {"output": output}
    if isinstance(output, Told):
        pictures = _save_media(folder, stem, output.pictures, written)
        return {"output": "\n".join(output.texts), "images": pictures, "stretches": len(output)}
    if isinstance(output, Sound):
        return {"output": None, "sounds": [_save_sound(folder / f"{stem}.wav", output)]}
    if not isinstance(output, list):
        return {"output": None, "images": _save_media(folder, stem, [output], written)}
    shown = [output[round(i)] for i in np.linspace(0, len(output) - 1, min(len(output), SHOWN_FRAMES))]
    with writing(folder):
        write_video(folder / f"{stem}.mp4", output, output.fps if isinstance(output, Film) else Film().fps)
    images = _save_media(folder, stem, shown, written)
    return {"output": None, "images": images, "films": [f"{stem}.mp4"], "frames": len(output)}


def _save_sound(path: Path, sound: Sound) -> str:
    """16-bit PCM."""
    samples = np.asarray(sound.samples, dtype=np.float32).clip(-1, 1)
    with writing(path), wave.open(str(path), "wb") as file:
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


def _save_media(
    folder: Path, stem: str, images: list[Any], written: set[str], prompt: Prompt | None = None
) -> list[str]:  # fmt: skip
    """Names of the files; the images of a `prompt`, which may be paths, are written once for all its rows."""
    names = [f"{stem}-{n}.png" for n in range(len(images))]
    for name, image in zip(names, images, strict=True):
        if name not in written:
            opened = image if prompt is None else open_image(image, prompt)
            with writing(folder / name):
                opened.save(folder / name)
            written.add(name)
    return names
