"""`mmrl sweep`: recipes trained from one start at equal cost, and one table and one plot of what came of it.

Each recipe runs once a seed until its budget is spent: calls of the transformer (a state at a time, once through), or
processor seconds of the training process. What is measured on the way, by `mmrl.training.watch`, is charged to nobody.
Runs that a folder holds already are not repeated, so a comparison can grow by a recipe, and go on after a stop.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mmrl.errors import ConfigError
from mmrl.pipelines.config import RunConfig, merge, override, read_config, set_dotted
from mmrl.pipelines.run import held_out_panel, open_prompts, train
from mmrl.pipelines.shipped import read_plan
from mmrl.pipelines.watching import watch_of
from mmrl.policies.base import Policy
from mmrl.policies.generation.calls import spent
from mmrl.settings import Section, read_section
from mmrl.shown import tell
from mmrl.training.evaluation import Score
from mmrl.training.storage import write_atomically
from mmrl.training.watch import Watch, WatchConfig

ENDLESS = 1_000_000
"""Steps: the budget ends a run."""


class Budget(Section):
    """What a run may spend: `calls` of the transformer, or processor `seconds`. One of the two."""

    calls: float | None = Field(None, gt=0)
    seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.calls is None) == (self.seconds is None):
            raise ConfigError("budget: name either calls or seconds")
        return self

    @property
    def kind(self) -> Literal["calls", "seconds"]:
        return "calls" if self.calls is not None else "seconds"

    @property
    def most(self) -> float:
        return self.calls or self.seconds or 0.0


class Comparison(Section):
    """What is compared.

    seeds         one run each
    budget        of each run
    measurements  along the way, evenly spread over the budget
    watch         on what is measured, and the held-out rewards
    common        the configuration of every run
    recipes       {recipe or a name of yours: what differs}; a name that is no recipe says `recipe: ...` in it
    out           folder of the runs, the table and the plot
    """

    modality: Literal["flow"] = "flow"
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    budget: Budget
    measurements: int = Field(8, ge=1)
    watch: WatchConfig = WatchConfig()
    common: dict[str, Any] = {}
    recipes: dict[str, dict[str, Any]] = Field(min_length=1)
    out: str = "runs/sweep"

    def config(self, name: str, seed: int) -> RunConfig:
        """Of one run: the recipe's own settings, under what is common, under what the plan says of this one."""
        values = merge({"recipe": name, **self.common}, self.recipes[name])
        forced = [f"training.seed={seed}", f"training.steps={ENDLESS}", "training.save_every=0", "watch.every=0"]
        forced += [f"run_dir={self.folder(name, seed)}"]
        return read_config(values, forced, self.modality)

    def folder(self, name: str, seed: int) -> Path:
        return Path(self.out) / "runs" / f"{name}-{seed}"


def read_comparison(source: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """A file, or the name of a shipped plan ("flow"); `recipes=[a, b]` takes these, as it has them."""
    values, path = read_plan(source, "sweep", "shipped comparison")
    for text in overrides:
        key, value = override(text)
        if key == "recipes" and isinstance(value, list):
            value = {name: values.get("recipes", {}).get(name, {}) for name in value}
            values["recipes"] = value
        elif key == "budget":
            values["budget"] = value
        else:
            set_dotted(values, key, value)
    return read_section(Comparison, values, str(path))


class Curve:
    """What a run came to as it spent its budget, and its end. A monitor.

    rows  one a measurement: calls, seconds, step, reward, held_out, pixels, embedding, drift
    """

    def __init__(self, watch: Watch, plan: Comparison):
        self.watching, self.budget = watch, plan.budget
        self.each = plan.budget.most / plan.measurements
        self.calls, self.paused, self.ended = 0.0, 0.0, ""
        self.rows: list[dict[str, float]] = []
        self.began = time.process_time()

    @property
    def seconds(self) -> float:
        return time.process_time() - self.began - self.paused

    def begin(self, step: int) -> None:
        self._measure(step)
        self.began, self.paused = time.process_time(), 0.0

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        self.calls += spent(metrics)
        if self.budget.kind == "calls" and not self.calls:
            raise ConfigError("this policy counts no calls; compare by seconds: budget={seconds: 60}")
        used = self.calls if self.budget.kind == "calls" else self.seconds
        over = used >= self.budget.most
        self.ended = f"the budget of {self.budget.most:g} {self.budget.kind} is spent" if over else ""
        if over or used >= self.each * len(self.rows):
            self._measure(step)
        return {}

    def _measure(self, step: int) -> None:
        before = time.process_time()
        row = {"step": float(step), "calls": self.calls, "seconds": self.seconds} | self.watching.measure()
        self.watching.rows.append(row)
        self.rows.append(row)
        self.paused += time.process_time() - before


def compare(plan: Comparison, report: Callable[[str], None] = tell) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Run what is missing; returns {recipe: {seed: curve}} and writes comparison.{json,md,svg} into `plan.out`."""
    from mmrl.pipelines.sweep_report import write_comparison

    for name in plan.recipes:
        plan.config(name, plan.seeds[0])  # refuse what is wrong before anything is spent
    curves: dict[str, dict[int, list[dict[str, float]]]] = {name: {} for name in plan.recipes}
    for seed in plan.seeds:
        for name in plan.recipes:
            curves[name][seed] = _curve(plan, name, seed, report)
            write_comparison(Path(plan.out), plan.budget.kind, curves)
    return curves


def _curve(plan: Comparison, name: str, seed: int, report: Callable[[str], None]) -> list[dict[str, float]]:
    config, folder = plan.config(name, seed), plan.folder(name, seed)
    path, asked = folder / "curve.json", _asked(plan, config)
    if path.is_file():
        held = json.loads(path.read_text())
        before = _completed(held["asked"], plan, folder)
        if before != asked:
            differ = sorted(k for k in {*asked, *before} if asked.get(k) != before.get(k))
            raise ConfigError(f"{folder} was run with another {', '.join(differ)}; remove it, or name another out=...")
        return held["rows"]
    if folder.exists():
        report(f"{folder} holds a run that was cut short; it begins anew")
        shutil.rmtree(folder)
    kept: list[Curve] = []
    prompts = open_prompts(config.data.eval, config.data, plan.watch.prompts, held_out=True)

    def monitors(policy: Policy, score: Score, stack: ExitStack) -> list[Curve]:
        panel = held_out_panel(config, plan.watch, stack)
        kept.append(Curve(watch_of(plan.watch, policy, score, prompts, panel, folder=None), plan))
        return kept

    quiet = config.model_copy(update={"data": config.data.model_copy(update={"eval": None})})
    result = train(quiet, monitors=monitors)
    if result.interrupted:
        report(f"interrupted in {name}, seed {seed}, after step {result.steps}; the same command runs it again")
        raise SystemExit(128 + (result.signal or 0))
    rows = kept[0].rows
    write_atomically(path, json.dumps({"asked": asked, "rows": rows}, indent=1))
    report(f"{name}, seed {seed}: reward {rows[0]['reward']:.3f} -> {rows[-1]['reward']:.3f}")
    return rows


def _completed(asked: dict[str, Any], plan: Comparison, folder: Path) -> dict[str, Any]:
    """What a kept curve was asked for, with the defaults of settings that did not exist when it ran."""
    ours = ("budget", "measured")
    values = {name: value for name, value in asked.items() if name not in ours}
    try:
        config = read_config(values, [f"run_dir={folder}"], plan.modality)
    except ConfigError:  # it has settings that are gone: those differ
        return asked
    return _told(config) | {name: asked[name] for name in ours}


def _asked(plan: Comparison, config: RunConfig) -> dict[str, Any]:
    """What a curve depends on."""
    measured = plan.watch.model_dump(mode="json") | {"measurements": plan.measurements}
    return _told(config) | {"budget": plan.budget.model_dump(), "measured": measured}


def _told(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {name: value for name, value in values.items() if name not in ("run_dir", "tracking", "watch")}
