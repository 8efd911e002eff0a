"""Where a resume goes on from, and what must not have changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.config import RunConfig, read_config
from mmrl.pipelines.former import refuse_former
from mmrl.pipelines.rates import SIDES
from mmrl.training import checkpoint
from mmrl.training.resume import checked, is_checkpoint, newest_whole, run_folder

SAME = (
    "modality", "recipe", "prompts.name", "environment", "policy.model", "policy.lora", "policy.quantize",
    "policy.turns", "policy.train",
)  # fmt: skip


def start_of(config: RunConfig, resume: Path) -> Path | None:
    """The checkpoint a resume goes on from; None where the run was stopped before its first."""
    if is_checkpoint(resume):
        start: Path | None = checked(resume)
    else:
        start = newest_whole(resume)
    refuse_former(run_folder(resume), start)
    if start is not None:
        _refuse_another_run(config, start)
    elif not (resume / "config.yaml").exists():
        checkpoint.latest(resume)  # which says what a run has
    return start


def _refuse_another_run(config: RunConfig, start: Path) -> None:
    """What the checkpoint's weights and states belong to must not have changed."""
    saved = start.parent.parent / "config.yaml"
    if not saved.is_file():
        return
    then = read_config(saved)
    for key in (
        *SAME,
        *(f"policy.{side}.{name}" for side in SIDES for name in ("modality", "model", "lora", "quantize")),
    ):
        old, new = (_looked_up(c, key) for c in (then, config))
        if old != new:
            raise ConfigError(
                f"{start} belongs to a run with {key}={old!r}, not {new!r}; to start a new run from its weights, "
                f"write them out (mmrl export {start} FOLDER --adapter) and name FOLDER in policy.adapter, "
                "policy.model or, of a generator, policy.transformer"
            )


def _looked_up(config: RunConfig, key: str) -> Any:
    """`prompts.name` is the same for `shuffled` and `{name: shuffled}`."""
    section, *names = key.split(".")
    value = getattr(config, section)
    for name in names:
        value = value if isinstance(value, str) else (value or {}).get(name)
    return value
