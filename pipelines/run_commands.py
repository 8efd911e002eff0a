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


def autonpo(
    context: typer.Context,
    modality: Modality,
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    window: Annotated[int, typer.Option(help="Steps over which the slope of the reward is taken.")] = 20,
    slope: Annotated[float, typer.Option(help="Intervene where it is below this.")] = 0.0,
    entropy: Annotated[float, typer.Option(help="Or where the entropy falls below this; 0: never.")] = 0.0,
    ahead: Annotated[int, typer.Option(help="Steps to run ahead, for checkpoints to choose a guide from.")] = 20,
    mixed: Annotated[int, typer.Option(help="Steps in which the guide's answers join, after the roll-back.")] = 20,
    below: Annotated[float, typer.Option(help="Groups of a lower mean take one.")] = 0.25,
    prompts: Annotated[int, typer.Option(help="Prompts of the data set that a guide is tried on.")] = 256,
    samples: Annotated[int, typer.Option(help="Answers to each of them.")] = 4,
    times: Annotated[int, typer.Option(help="Interventions, at most.")] = 3,
) -> None:
    """Train, and where the run stops getting better, learn from where it would be later (AutoNPO).

    It runs ahead, lets the checkpoints it met answer what fails now, rolls back, and mixes the best one's right answers
    in. Further arguments override the configuration; the same command goes on with a run that was interrupted.
    """
    from mmrl.pipelines.config import read_config
    from mmrl.pipelines.near_future import NearFuture, run_with_guides
    from mmrl.pipelines.overriding import overrides_of
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.settings import read_section

    given = {"window": window, "slope": slope, "entropy": entropy, "ahead": ahead, "mixed": mixed, "below": below,
             "prompts": prompts, "samples": samples, "times": times}  # fmt: skip
    asked = read_section(NearFuture, given, "autonpo")
    settings = read_config(config, overrides_of(context.args), modality)
    quiet_libraries()
    say(run_with_guides(settings, asked))


def preferences(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="Pairs: `prompt`, `chosen`, `rejected`, as TRL has them.")],
    out: Annotated[Path, typer.Argument(help="Where the mended rows go, a JSONL file.")],
    bound: Annotated[float, typer.Option(help="Strength |mean| / std from which the ensemble is sure.")] = 1.0,
    wrong: Annotated[str, typer.Option(help="Of labels it is sure are wrong: flip, soften, drop, keep.")] = "flip",
    unsure: Annotated[str, typer.Option(help="Of labels its members disagree on: the same.")] = "soften",
    smoothing: Annotated[float, typer.Option(help="How likely a softened label is wrong, below .5.")] = 0.2,
    chosen: Annotated[str, typer.Option(help="The column of the chosen answer, as rows are read.")] = "solution",
    rejected: Annotated[str, typer.Option(help="That of the rejected one.")] = "rejected",
) -> None:
    """Say how far two or more rewards agree with the labels of stored pairs, and write the pairs mended.

    Rewards are named by overrides: 'rewards=[{name: my.py:first}, {name: my.py:second}]'. To train on the pairs as they
    are, see recipe secrets_of_rlhf_ii.
    """
    from mmrl.pipelines.config import read_config
    from mmrl.pipelines.overriding import overrides_of
    from mmrl.pipelines.preferences import judged_pairs, write_mended

    treatments = ("flip", "soften", "drop", "keep")
    for name, given in (("--wrong", wrong), ("--unsure", unsure)):
        if given not in treatments:
            raise ConfigError(f"mmrl preferences: {name}: {unknown('treatment', given, treatments)}")
    if not 0 <= smoothing < 0.5 or bound < 0:
        raise ConfigError(
            f"mmrl preferences: --smoothing {smoothing}, --bound {bound}; expected below .5, and 0 or more"
        )
    settings = read_config({"modality": "vlm", "data": {"train": data}}, overrides_of(context.args))
    pairs = judged_pairs(settings, bound=bound, chosen=chosen, rejected=rejected)
    say(write_mended(pairs, out, wrong=wrong, unsure=unsure, smoothing=smoothing))


def sar(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped plan such as 'shapes'.")],
) -> None:
    """Refine a next-scale picture model on its own predictions (SAR), beside as many steps of teacher forcing.

    Prints held-out loss and what free-running samples are worth, of both and of what they began with. `steps=100
    out=DIR` override the plan; the same command goes on with a run that was interrupted.
    """
    from mmrl.pipelines.overriding import overrides_of
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.pipelines.refining import read_refinement, refine

    asked = read_refinement(plan, overrides_of(context.args))
    quiet_libraries()
    say(refine(asked))
