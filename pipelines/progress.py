"""The bar a run shows while it trains: reward, success, seconds a step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmrl.pipelines.config import RunConfig
from mmrl.training.trainer import Report

LOW_SIGNAL = 0.25


def quiet_libraries() -> None:
    """transformers and diffusers draw no bars for loading and saving; downloads keep theirs."""
    from diffusers.utils import logging as diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers

    downloads_shown = not are_progress_bars_disabled()
    transformers.disable_progress_bar()
    diffusers.disable_progress_bar()
    if downloads_shown:
        enable_progress_bars()


@contextmanager
def progress(config: RunConfig, console: Console) -> Iterator[Report]:
    """Yields the `report(step, metrics)` a trainer calls; silent on all ranks but the first."""
    quiet_libraries()
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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{config.modality} {config.recipe}", total=config.training.steps, note="")
        warned = False

        def report(step: int, metrics: dict[str, Any]) -> None:
            nonlocal warned
            note = f"reward {metrics.get('reward/mean', float('nan')):.3f}"
            if "success" in metrics:
                note += f"  success {metrics['success']:.3f}"
            bar.update(task, completed=step, note=note)
            if not warned and metrics["signal/active_fraction"] < LOW_SIGNAL:
                warned = True
                console.print(low_signal_sentence(metrics))
            if metrics["unscored"]:
                causes = ", ".join(f"{cause} ({n})" for cause, n in metrics["unscored"].items())
                console.print(f"step {step}: unscored rollouts: {causes}", markup=False)

        yield report


def low_signal_sentence(metrics: dict[str, Any]) -> str:
    """Why little is learned, in plain words."""
    active, flat = metrics["signal/active_fraction"], metrics["signal/zero_variance_fraction"]
    return (
        f"only {active:.0%} of the rollouts carry a learning signal ({flat:.0%} are in groups whose members all scored "
        "the same): make prompts easier or harder, raise training.group_size, or use a recipe with dynamic sampling"
    )
