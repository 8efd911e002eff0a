"""The bar a run shows while it trains: reward, success, seconds a step."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmrl.pipelines.config import RunConfig
from mmrl.shown import shown
from mmrl.training.trainer import Report

LOW_SIGNAL = 0.25
SHOWN_CAUSES = 5
SECONDS_BETWEEN_LINES = 10.0
"""Of a run whose output is a file."""


def quiet_libraries() -> None:
    """transformers and diffusers draw no bars for loading and saving, and what they warn developers of stays out of
    users' sight; downloads keep their bars."""
    from diffusers.utils import logging as diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers

    for library in ("transformers", "diffusers", "peft", "huggingface_hub"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    downloads_shown = not are_progress_bars_disabled()
    transformers.disable_progress_bar()
    diffusers.disable_progress_bar()
    if downloads_shown:
        enable_progress_bars()


@contextmanager
def progress(config: RunConfig, console: Console) -> Iterator[Report]:
    """Yields the `report(step, metrics)` a trainer calls; silent on all ranks but the first."""
    if os.environ.get("RANK", "0") != "0":
        yield lambda step, metrics: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=console.is_jupyter) as bar:
        task = bar.add_task(f"{config.modality} {Path(config.recipe).stem}", total=config.training.steps, note="")
        lines = Lines(config.training.steps, console)

        def report(step: int, metrics: dict[str, Any]) -> None:
            bar.update(task, completed=step, note=scores(metrics, ""))
            lines(step, metrics)

        try:
            yield report
        except BaseException:
            bar.update(task, visible=bar.tasks[task].completed > 0)  # of a run that never began, the error says all
            raise


class Lines:
    """What is told besides the bar: held-out scores, what is wrong, and, where nobody watches a bar, how it goes."""

    def __init__(self, steps: int, console: Console):
        self.steps, self.console, self.warned, self.told = steps, console, False, 0.0
        self.slower: set[str] = set()
        self.no_bar = console.is_jupyter or not console.is_terminal

    def __call__(self, step: int, metrics: dict[str, Any]) -> None:
        held_out = scores(metrics, "eval/")
        if held_out and step < self.steps:
            self._say(f"step {step}: held-out {held_out}")
        elif self.no_bar and time.monotonic() - self.told > SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            self._say(f"step {step} of {self.steps}: {scores(metrics, '')}")
        if not self.warned and metrics["signal/active_fraction"] < LOW_SIGNAL:
            self.warned = True
            self._say(low_signal_sentence(metrics))
        fell_back = metrics.get("rows/fell_back", {})
        for reason in sorted(fell_back.keys() - self.slower):
            self.slower.add(reason)
            self._say(f"step {step}: {fell_back[reason]} rows took a slower way: {reason}")
        for reason in metrics.get("skipped", ()):
            self._say(f"left out, as training.skip_nonfinite says: {reason}")
        if metrics["unscored"]:
            causes = sorted(metrics["unscored"].items(), key=lambda item: -item[1])
            shown = ", ".join(f"{cause} ({n})" for cause, n in causes[:SHOWN_CAUSES])
            more = f", and {len(causes) - SHOWN_CAUSES} more causes" if len(causes) > SHOWN_CAUSES else ""
            self._say(f"step {step}: unscored rollouts: {shown}{more}")

    def _say(self, line: str) -> None:
        self.console.print(shown(line), markup=False, highlight=False, soft_wrap=True)


def scores(metrics: dict[str, Any], prefix: str) -> str:
    """`reward 0.413  success 0.250`, as far as the metrics know them."""
    names = {"reward": f"{prefix}reward" if prefix else "reward/mean", "success": f"{prefix}success"}
    return "  ".join(f"{name} {metrics[key]:.3f}" for name, key in names.items() if key in metrics)


def low_signal_sentence(metrics: dict[str, Any]) -> str:
    """Why little is learned, in plain words."""
    active, flat = metrics["signal/active_fraction"], metrics["signal/zero_variance_fraction"]
    return (
        f"only {active:.0%} of the rollouts carry a learning signal ({flat:.0%} are in groups whose members all scored "
        "the same): make prompts easier or harder, raise training.group_size, or use a recipe with dynamic sampling"
    )
