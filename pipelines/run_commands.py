"""Commands on a run that is there: its report, runs side by side, weights to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmrl.errors import ConfigError, unknown
from mmrl.policies.registry import MODALITIES
from mmrl.shown import shown

console = Console()
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code a run from elsewhere names, and read what it names.")
]


def known_modality(modality: str | None) -> str | None:
    if modality is not None and modality not in MODALITIES:
        raise ConfigError(unknown("modality", modality, MODALITIES))
    return modality


Modality = Annotated[str, typer.Argument(metavar="|".join(MODALITIES), callback=known_modality)]


def say(text: str) -> None:
    """Print as it is: a path is not markup, and a line that is wrapped cannot be copied."""
    console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    live: Annotated[
        bool, typer.Option("--live", help="Again and again while the run goes on; the page follows.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Write report.html: curves, what was wrong, rollouts with their rewards, and where the credit went."""
    from mmrl.pipelines.report import watch, write_report

    if live:
        say(f"report in {run / 'report.html'}, written again every few seconds; Ctrl-C ends it")
        watch(run, trust=trust)
        return
    say(f"report in {write_report(run, trust=trust)}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run directories.")],
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("comparison.html"),
) -> None:
    """Lay the curves of runs over each other, beside what their configurations differ in and their held-out scores."""
    from mmrl.pipelines.comparison import read_runs, write_comparison

    compared = read_runs(runs)
    console.print(compared.table())
    say(f"curves in {write_comparison(compared, out)}")


def push(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory for its last one.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; it is made where there is none.")],
    merged: Annotated[bool, typer.Option("--merged", help="Whole weights, adapters folded in.")] = False,
    public: Annotated[bool, typer.Option("--public", help="For everyone to see; private otherwise.")] = False,
    trust: Trust = False,
) -> None:
    """Send a checkpoint's weights and a filled model card to the hub, as whom `hf auth login` says."""
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.pipelines.publishing import push as send

    quiet_libraries()
    say(send(checkpoint, repository, merged=merged, public=public, trust=trust))
