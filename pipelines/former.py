"""Runs of the version before. Their weights are read: evaluated, sampled from, exported. Going on with one is refused.

Their draws were numbered otherwise and a rollout batch served one optimizer step, so what followed would be no run of
either version. A configuration of that version has `training.updates_per_step`, which every one of its runs wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.config import RunConfig, read_config
from mmrl.policies.registry import policy_class
from mmrl.recipes import load_recipe
from mmrl.settings import Section, read_yaml_file
from mmrl.stages import RENAMED

MARK = "updates_per_step"


def written_before(config: Path) -> bool:
    """Whether a run's `config.yaml` is of the version before."""
    return config.is_file() and _is_former(read_yaml_file(config))


def read_saved(config: Path) -> RunConfig:
    """The configuration a run was trained with, whichever version wrote it."""
    values = read_yaml_file(config)
    return read_config(_translated(values) if _is_former(values) else config)


def refuse_former(run: Path, checkpoint: Path | None = None) -> None:
    """ConfigError for a run of the version before, which says how its weights go on."""
    if not written_before(run / "config.yaml"):
        return
    raise ConfigError(
        f"{run} was written by the version before, whose draws and updates were others, and cannot be gone on with; "
        f"write its weights out (mmrl export {checkpoint or run} FOLDER --adapter) and name FOLDER in policy.adapter, "
        "policy.model or, of a generator, policy.transformer of a new run"
    )


def _is_former(values: Any) -> bool:
    training = values.get("training") if isinstance(values, dict) else None
    return isinstance(training, dict) and MARK in training


def _translated(values: dict[str, Any]) -> dict[str, Any]:
    """The same policy and the same evaluation in today's keys."""
    training, policy = dict(values["training"]), dict(values.get("policy") or {})
    training["updates"] = {"count": training.pop(MARK)}
    training.pop("max_refills", None)  # of rollouts in training alone, which is over
    if values["modality"] == "flow":
        policy.pop("text_cache", None)
        policy.setdefault("schedule", "linear")
    return {**values, "training": training, "policy": _without_today_s(values, policy)}


def _without_today_s(values: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    """`policy` and, for what today's recipe asks and that version's did not, the defaults: it was trained without."""
    recipe, fields = load_recipe(_recipe(values)), policy_class(values["modality"]).config_type.model_fields
    asked = {key: fields[key].get_default(call_default_factory=True) for key in recipe.policy if key in fields}
    return {k: v.model_dump() if isinstance(v, Section) else v for k, v in asked.items()} | policy


def _recipe(values: dict[str, Any]) -> str:
    name = values.get("recipe", "grpo")
    return RENAMED.get(name, name)
