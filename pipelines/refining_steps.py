"""The steps of `mmrl sar`, and the one file from which a stage that was interrupted goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import NonFiniteError, StorageError
from mmrl.pipelines.refining_rows import Rows
from mmrl.policies.scales.refinement import Over, refine
from mmrl.randomness import Key
from mmrl.training.storage import write_atomically

STATE, CURVE, MODEL = "state.safetensors", "metrics.jsonl", "model"
LARGEST_GRADIENT = 2.0
"""Norm above which a gradient is shortened, as in the authors' trainer."""


@dataclass(frozen=True)
class Stage:
    """So many steps in one way; weight 0 is teacher forcing.

    key     with the step it says which rows a step has: both refinements see the same
    before  steps of the stage before
    """

    name: str
    steps: int
    weight: float
    student: Over
    drawn: bool
    batch_size: int
    learning_rate: float
    warm_up: int
    save_every: int
    key: Key
    before: int = 0


def train(
    model: Any, stage: Stage, rows: Rows, folder: Path, start: Path | None, report: Callable[[str], None]
) -> None:  # fmt: skip
    """Train the model in place, from the weights in `start`; what `folder` holds already is not done again."""
    if start is not None and (start / STATE).is_file():
        _load(start / STATE, model, None)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    done = _load(folder / STATE, model, optimizer) if (folder / STATE).is_file() else 0
    if done:
        report(f"{stage.name}: goes on after step {done} of {stage.steps}")
    lines = _lines(folder / CURVE, done)
    model.train()
    for step in range(done, stage.steps):
        lines.append({"step": step + 1, **_step(model, stage, rows, optimizer, step)})
        if (step + 1) % stage.save_every == 0 or step + 1 == stage.steps:
            write_atomically(folder / CURVE, "".join(json.dumps(line) + "\n" for line in lines))
            _save(folder / STATE, model, optimizer, step + 1)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / MODEL)


def _step(model: Any, stage: Stage, rows: Rows, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    key = stage.key.at(step=stage.before + step)
    places = rows.drawn(stage.batch_size, key.at(purpose="rows"))
    texts, pictures = rows.batch(places, key.at(purpose="pictures"))
    with torch.no_grad():
        truth = model.tokens(pictures.to(next(model.parameters()).device))
    drawn = key.at(purpose="own") if stage.drawn else None
    found = refine(model, texts, truth, weight=stage.weight, over=stage.student, key=drawn)
    for group in optimizer.param_groups:
        group["lr"] = stage.learning_rate * min(1.0, (step + 1) / max(stage.warm_up, 1))
    optimizer.zero_grad()
    found.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    if not norm.isfinite():
        raise NonFiniteError(f"{stage.name}, step {step + 1}: loss {found.loss.item()}, gradient norm {norm.item()}")
    optimizer.step()
    parts = {"teacher": found.teacher, "student": found.student}
    return {
        "loss": found.loss.item(), **{name: part.item() for name, part in parts.items() if part is not None},
        "mistaken": found.mistaken, "gradient_norm": norm.item(),
    }  # fmt: skip


def _save(path: Path, model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in model.state_dict().items()}
    for place, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{place}/{name}": value for name, value in moments.items()}
    # Each its own memory: tied weights would be refused.
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(path, lambda file: save_file(whole | {"step": torch.tensor(step)}, file))


def _load(path: Path, model: Any, optimizer: torch.optim.Optimizer | None) -> int:
    """The step it was saved after."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        model.load_state_dict(_under(tensors, "model/"))
    except (SafetensorError, RuntimeError) as error:
        raise StorageError(f"{path}: cannot be gone on with: {' '.join(str(error).split())}") from None
    if optimizer is not None:
        state = optimizer.state_dict()
        for name, value in _under(tensors, "optimizer/").items():
            place, _, moment = name.partition("/")
            state["state"].setdefault(int(place), {})[moment] = value
        optimizer.load_state_dict(state)
    return int(tensors["step"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _lines(path: Path, done: int) -> list[dict[str, Any]]:
    """Those of steps that are in the weights."""
    return [json.loads(line) for line in path.read_text().splitlines()][:done] if path.is_file() else []
