"""`mmrl bridge PLAN`: a strong model learns from labels, a small one from it, and then from labels itself.

Four runs in one folder, each from the weights of the one before; a stage that has its weights there is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmrl.errors import ConfigError, unknown
from mmrl.pipelines.config import RunConfig, merge, override, read_config, set_dotted
from mmrl.pipelines.run import load_run, train
from mmrl.policies.base import Policy
from mmrl.settings import Section, read_section, read_yaml_file
from mmrl.shown import tell
from mmrl.training.bridge import LABELLED, STAGES, NoLongerFalling
from mmrl.training.evaluation import Score
from mmrl.training.storage import write_atomically
from mmrl.training.tracking import read_metrics

DEFAULTS: dict[str, dict[str, Any]] = {
    "teacher": {"recipe": "grpo"},
    "warm_up": {"recipe": "teacher_answers"},
    "distil": {"recipe": "opd"},
    "student": {"recipe": "grpo"},
}


class Falling(Section):
    """When the third stage is done: see `NoLongerFalling`."""

    window: int = Field(20, ge=1)
    least: float = Field(0.02, ge=0, lt=1)


class Bridge(Section):
    """What is crossed.

    teacher  policy section of the strong model; student: of the small one, of the same family and vocabulary
    common   the configuration of every run: data, rewards, training
    stages   {teacher, warm_up, distil, student: what differs}; null leaves a stage out
    until    the third stage ends where the KL to the teacher no longer falls, or with its steps
    out      folder of the runs
    """

    modality: Literal["vlm", "video"] = "vlm"
    teacher: dict[str, Any]
    student: dict[str, Any]
    common: dict[str, Any]
    stages: dict[str, dict[str, Any] | None] = {}
    until: Falling = Falling()
    out: str = "runs/bridge"

    def asked(self) -> list[str]:
        """The stages that are run, in their order, which is fixed."""
        if strange := next((name for name in self.stages if name not in STAGES), None):
            raise ConfigError(f"bridge: {unknown('stage', strange, STAGES)}")
        return [name for name in STAGES if self.stages.get(name, {}) is not None]

    def config(self, name: str, teacher: dict[str, Any], student: dict[str, Any]) -> RunConfig:
        """Of one stage, from these weights. Stages without labels score nothing, held-out prompts included."""
        values = merge(merge(self.common, DEFAULTS[name]), self.stages.get(name) or {})
        values["policy"] = merge(values.get("policy", {}), teacher if name == "teacher" else student)
        forced = [f"run_dir={self.folder(name)}"]
        if name not in LABELLED:
            values["policy"]["teacher"] = {k: v for k, v in teacher.items() if k in ("model", "adapter", "dtype")}
            values["rewards"], values["data"] = [{"name": "unlabelled"}], {**values.get("data", {}), "eval": None}
        return read_config(values, forced, self.modality)

    def folder(self, name: str) -> Path:
        return Path(self.out) / name

    def weights(self, name: str) -> Path:
        return Path(self.out) / f"{name}-weights"


def read_bridge(source: str | Path, overrides: Sequence[str] = ()) -> Bridge:
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"{source}: no such file; expected a plan with teacher, student, common (docs/strategies.md)")
    values = read_yaml_file(path) or {}
    for text in overrides:
        set_dotted(values, *override(text))
    return read_section(Bridge, values, str(path))


def cross(plan: Bridge, report: Callable[[str], None] = tell) -> str:
    """Run what is missing; returns a line a stage, and writes `bridge.json` into `plan.out`."""
    asked = plan.asked()
    for name in asked:
        plan.config(name, plan.teacher, plan.student)  # refuse what is wrong before anything is spent
    if "distil" in asked and "warm_up" not in asked:
        report("without a warm-up the teacher judges answers that it would hardly write; distillation may be slow")
    teacher, student, told = dict(plan.teacher), dict(plan.student), {}
    for name in asked:
        if not (plan.weights(name) / "stage.json").is_file():
            _run(plan, name, plan.config(name, teacher, student), report)
        told[name] = json.loads((plan.weights(name) / "stage.json").read_text())
        if name == "teacher":
            teacher = _from(teacher, plan.weights(name))
        else:
            student = _from(student, plan.weights(name))
    write_atomically(Path(plan.out) / "bridge.json", json.dumps(told, indent=1))
    return "\n".join([*map(_said, told.items()), f"the small model's weights are in {plan.weights(asked[-1])}"])


def _run(plan: Bridge, name: str, config: RunConfig, report: Callable[[str], None]) -> None:
    """One stage, its weights, and what it used."""
    until: Callable[[Policy, Score, ExitStack], list[NoLongerFalling]] | None = None
    if name == "distil":
        falling = NoLongerFalling(plan.until.window, plan.until.least)
        until = lambda *_: [falling]  # noqa: E731
    known = config.directory if (config.directory / "checkpoints").is_dir() else None
    report(f"stage {name}: {config.recipe} of {config.policy['model']}")
    result = train(config, resume=known, monitors=until)
    if result.interrupted:
        report(f"interrupted in stage {name} after step {result.steps}; the same command goes on")
        raise SystemExit(128 + (result.signal or 0))
    load_run(config.directory)[1].save_pretrained(plan.weights(name), merged=True)
    metrics = read_metrics(config.directory / "metrics.jsonl")
    labels = sum(m["rollouts"] for m in metrics) if name in LABELLED else 0
    kls = [m["teacher/kl"] for m in metrics if "teacher/kl" in m]
    told: dict[str, Any] = {"recipe": config.recipe, "steps": result.steps, "labels_read": labels}
    told |= {"ended": result.ended, "teacher_kl": [kls[0], kls[-1]] if kls else None}
    told |= {when: getattr(result, when).get("success") for when in ("before", "after")}
    write_atomically(plan.weights(name) / "stage.json", json.dumps(told, indent=1))


def _from(policy: dict[str, Any], weights: Path) -> dict[str, Any]:
    """The section of a policy that goes on from weights that are whole: adapters are folded in, new ones begin."""
    return {k: v for k, v in policy.items() if k != "adapter"} | {"model": str(weights)}


def _said(stage: tuple[str, dict[str, Any]]) -> str:
    name, told = stage
    scores = (
        f", held-out success {told['before']:.3f} -> {told['after']:.3f}"
        if told["before"] is not None and told["after"] is not None else ""
    )  # fmt: skip
    kl = f", KL to the teacher {told['teacher_kl'][0]:.3f} -> {told['teacher_kl'][1]:.3f}" if told["teacher_kl"] else ""
    ended = f" ({told['ended']})" if told["ended"] else ""
    return f"{name}: {told['recipe']}, {told['steps']} steps, {told['labels_read']:,} labels read{scores}{kl}{ended}"
