"""`mmrl`: train, evaluate, sample, and everything one wants to know before spending GPU hours.

Heavy libraries are imported inside the commands, so that `mmrl --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmrl.errors import ConfigError, MMRLError
from mmrl.pipelines import cache_commands, run_commands, serve_commands, trajectory
from mmrl.pipelines.overriding import OVERRIDES, config_and_overrides, names_a_configuration, overrides_of
from mmrl.pipelines.run_commands import Modality, Trust, console, known_modality, say
from mmrl.policies.registry import MODALITIES
from mmrl.shown import rounded, shown

if TYPE_CHECKING:
    from mmrl.pipelines.config import RunConfig
    from mmrl.training.trainer import Result

app = typer.Typer(
    name="mmrl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reinforcement learning for vision-language models, video LLMs and flow-matching generators.",
)
app.add_typer(cache_commands.app, name="cache")
app.command()(trajectory.extrapolate)
app.command()(trajectory.weights)


def _version(asked: bool) -> None:
    if asked:
        from mmrl import __version__

        print(f"mmrl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Reinforcement learning for vision-language models, video LLMs and flow-matching generators."""


@app.command(context_settings=OVERRIDES)
def train(
    context: typer.Context,
    modality: Modality,
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped one such as 'demo'.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A run directory or checkpoint to continue, with its own configuration.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Train a policy. Further arguments override the configuration: `training.steps=200 --policy.model NAME`."""
    from mmrl.pipelines.config import read_config, which_configuration
    from mmrl.pipelines.former import refuse_former
    from mmrl.pipelines.progress import progress, quiet_libraries
    from mmrl.pipelines.run import train as run
    from mmrl.pipelines.trust import require
    from mmrl.training.resume import run_folder

    config, changes = config_and_overrides(config, context.args)
    root = None if resume is None else run_folder(resume)
    if config is None and root is None:
        raise ConfigError(f"{which_configuration(modality)}; or a run to continue, with --resume RUN")
    if root is not None:
        refuse_former(root, resume)
    settings = read_config(config or root / "config.yaml", changes, modality)
    if root is not None and config is None:
        require(read_config(root / "config.yaml", (), modality), settings, root, trust)
    if root is not None and not any(change.startswith("run_dir=") for change in changes):
        settings = settings.model_copy(update={"run_dir": str(root)})
    main = os.environ.get("RANK", "0") == "0"
    if main and config is not None:
        _print_overruled(config, changes, modality)
    if main:
        _print_unplaced(settings)
    quiet_libraries()
    with progress(settings, console) as live:
        result = run(settings, resume=resume, report=live, kept=live.kept, began=live.began)
    if main:
        _print_result(result.folder or settings.directory, result)
    if result.interrupted:
        raise typer.Exit(128 + (result.signal or 0))


def _print_overruled(config: str, changes: list[str], modality: str) -> None:
    from mmrl.pipelines.config import overruled

    if note := overruled(config, changes, modality):
        say(note)


def _print_unplaced(settings: RunConfig) -> None:
    from mmrl.pipelines.config import Placement
    from mmrl.placed import placed

    if settings.placement != Placement() and placed() is None:
        say("placement: is for mmrl launch --ray; here each process writes and scores for itself")


def _print_result(folder: Path, result: Result) -> None:
    if result.interrupted and result.steps == 0:
        say("interrupted before the first step; nothing to save")
        return
    if result.start == result.steps and not result.interrupted:
        say(f"{folder} is at step {result.steps} already; give it more with training.steps=...")
        return
    for name in ("success", "reward"):
        if name in result.before and name in result.after:
            say(f"held-out {name}: {result.before[name]:.3f} -> {result.after[name]:.3f}")
    if result.not_acted:
        say(result.not_acted)
    if result.ended:
        say(f"ended after step {result.steps}: {result.ended}")
    verb = f"interrupted after step {result.steps}, saved; continue with --resume" if result.interrupted else "run in"
    say(f"{verb} {folder}")


@app.command(context_settings=OVERRIDES)
def sweep(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped comparison such as 'flow'.")],
) -> None:
    """Train several recipes from one start at equal cost: one table, one plot. `recipes=[awm,crd] seeds=[0] out=DIR`"""
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.pipelines.sweep import compare, read_comparison

    asked = read_comparison(plan, overrides_of(context.args))
    quiet_libraries()
    compare(asked)
    say((Path(asked.out) / "comparison.md").read_text().rstrip())
    say(f"table, plot and curves in {asked.out}")


@app.command(context_settings=OVERRIDES)
def bridge(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="A YAML file: docs/strategies.md has one.")],
) -> None:
    """A strong model learns from labels, a small one from it, and then from labels itself: four runs, one folder.

    `stages.teacher=null` takes the teacher as it is; what the folder holds already is not run again.
    """
    from mmrl.pipelines.bridge import cross, read_bridge
    from mmrl.pipelines.progress import quiet_libraries

    asked = read_bridge(plan, overrides_of(context.args))
    quiet_libraries()
    say(cross(asked))


Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODALITY [CONFIG]",
        help="A run directory for its newest checkpoint, or a checkpoint; or a modality and a configuration: its model "
        "before any training.",
    ),
]


@app.command(context_settings=OVERRIDES)
def evaluate(
    context: typer.Context,
    target: Target,
    samples: Annotated[int | None, typer.Option(min=1, help="Of each prompt; several give pass@k.")] = None,
    base: Annotated[
        bool | None,
        typer.Option(help="Of a run, score the model it began with, too; done where --samples asks for pass@k."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Held-out scores of a checkpoint or an untrained model, as JSON."""
    from mmrl.pipelines.evaluating import evaluate_run
    from mmrl.pipelines.progress import quiet_libraries

    quiet_libraries()
    changes = _with_a_name(target, context.args)
    base = (samples or 1) > 1 if base is None else base
    scores = evaluate_run(target, changes, trust=trust, samples=samples, base=base)
    print(json.dumps(rounded(scores), indent=1))


@app.command(context_settings=OVERRIDES)
def sample(
    context: typer.Context,
    target: Target,
    out: Annotated[Path, typer.Option(help="Folder for rows.jsonl and images.")] = Path("samples"),
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 8,
    count: Annotated[int, typer.Option(help="Samples of each prompt.")] = 1,
    trust: Trust = False,
) -> None:
    """Let a checkpoint or an untrained model act on held-out prompts and save what it did."""
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.pipelines.sample import sample_run

    quiet_libraries()
    folder = sample_run(target, out, prompts, count, _with_a_name(target, context.args), trust=trust)
    say(f"samples in {folder}")


def _with_a_name(target: str, arguments: list[str]) -> list[str]:
    """Overrides; behind a modality the first word may name a configuration."""
    named = arguments[:1] if target in MODALITIES and arguments and names_a_configuration(arguments[0]) else []
    return [*named, *overrides_of(arguments[len(named) :])]


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory for its last one.")],
    folder: Annotated[Path, typer.Argument(help="Where the weights go.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Leave an adapter as it is, for peft and policy.adapter=...")
    ] = False,
    trust: Trust = False,
) -> None:
    """The Hugging Face layout: whole weights with adapters folded in, for programs that know neither mmrl nor peft."""
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.pipelines.publishing import export as write_weights

    quiet_libraries()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; name a new folder")
    write_weights(checkpoint, folder, adapter=adapter, trust=trust)
    say(f"weights in {folder}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method: formula, defaults, needs, source.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="All methods as a JSON list, or the one as an object.")
    ] = False,
) -> None:
    """Every method: stages, needs, modalities, paper, confidence."""
    from mmrl.pipelines.methods import describe, method_json, method_table, methods_json

    if as_json:
        print(json.dumps(method_json(name) if name else methods_json(), indent=1))
    elif name:
        say(describe(name))
    else:
        console.print(method_table(console.width))


@app.command("from-trl")
def from_trl(
    file: Annotated[Path, typer.Argument(help="A script that makes a GRPOTrainer, or its YAML.")],
    processes: Annotated[int, typer.Option(min=1, help="Processes of the TRL run.")] = 1,
) -> None:
    """A TRL run as a configuration of ours, with a comment for each thing that is not carried over. Runs nothing."""
    from mmrl.pipelines.from_trl import convert_file

    print(convert_file(file, processes).to_yaml(), end="")


@app.command(context_settings=OVERRIDES)
def plan(
    context: typer.Context,
    modality: Modality,
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped one such as 'demo'.")
    ] = None,
    card: Annotated[
        float | None, typer.Option(help="GiB of a card: settings of a generator that fit it are proposed.")
    ] = None,
) -> None:
    """Batch arithmetic, forward passes and a memory estimate, before anything is loaded."""
    from mmrl.pipelines.config import read_config, which_configuration
    from mmrl.pipelines.plan import plan_run

    config, changes = config_and_overrides(config, context.args)
    if config is None:
        raise ConfigError(which_configuration(modality))
    _print_overruled(config, changes, modality)
    say(plan_run(read_config(config, changes, modality), card))


@app.command(context_settings=OVERRIDES)
def calibrate(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Argument(help="A YAML file of a flow run, or the name of a shipped one.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each moves every level a little.")] = 20,
    samples: Annotated[int, typer.Option(min=2, help="Rollouts a round, each of a prompt drawn from the data.")] = 64,
    allowed: Annotated[
        float | None, typer.Option(help="Samples by which gains and losses may differ: a fifth of them.")
    ] = None,
) -> None:
    """Noise levels of a generator's denoising steps, by the rewards they explore (DenseGRPO). Prints the setting."""
    from mmrl.pipelines.calibrating import calibrate as run
    from mmrl.pipelines.config import read_config, which_configuration
    from mmrl.pipelines.progress import quiet_libraries

    config, changes = config_and_overrides(config, context.args)
    if config is None:
        raise ConfigError(which_configuration("flow"))
    quiet_libraries()
    settings = read_config(config, changes, "flow")
    levels = run(settings, rounds=rounds, samples=samples, allowed=allowed, tell=say)
    say(f"policy.sampler.levels={levels}")


@app.command(context_settings=OVERRIDES)
def check(
    data: Annotated[
        str,
        typer.Argument(help="A JSONL or parquet file, a datasets directory, world:NAME; a modality; a model's folder."),
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="After a modality, the configuration whose data and rewards are meant. Then overrides, such as "
            "data.media_root=photos data.columns.prompt=question.",
        ),
    ] = None,
) -> None:
    """Read every row of a data set, or of a configuration's data, and say what is wrong with it, row by row.

    Of a model's folder, what `mmrl doctor` says of it.
    """
    from mmrl.pipelines.checking import check_configured, check_file
    from mmrl.pipelines.config import which_configuration

    if any((Path(data) / name).is_file() for name in ("config.json", "model_index.json")):
        doctor(data, video=False, repair=False)
        return
    if data in MODALITIES:
        if not rest or not names_a_configuration(rest[0]):
            raise ConfigError(which_configuration(data))
        reports, rewards = check_configured(data, rest[0], overrides_of(rest[1:]))
    else:
        reports, rewards = check_file(data, overrides_of(rest or []))
    for report in reports:
        say(str(report))
    say(rewards)
    if any(report.problems for report in reports):
        raise typer.Exit(1)


app.command()(run_commands.report)
app.command()(run_commands.compare)
app.command()(run_commands.push)
app.command(context_settings=OVERRIDES)(run_commands.autonpo)
app.command(context_settings=OVERRIDES)(run_commands.preferences)
app.command(context_settings=OVERRIDES)(run_commands.sar)


app.command("serve-rewards")(serve_commands.serve_rewards)
app.command("serve-samples")(serve_commands.serve_samples)
app.command("serve-engine", context_settings=OVERRIDES)(serve_commands.serve_engine)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Another seed, another run.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the three runs go.")] = Path("runs/demo"),
    only: Annotated[
        str | None, typer.Option(metavar="|".join(MODALITIES), callback=known_modality, help="Train one modality only.")
    ] = None,
) -> None:
    """Train three tiny models of three modalities for real, and print held-out scores before and after."""
    from mmrl.pipelines.demo import run_demo

    run_demo(out, seed, [only] if only else None, console)


@app.command(context_settings={**OVERRIDES, "help_option_names": []}, add_help_option=False)
def launch(context: typer.Context) -> None:
    """`accelerate launch`, several processes: `mmrl launch --num_processes 8 -m mmrl train vlm CONFIG`.

    `mmrl launch --ray vlm CONFIG` has Ray place trainers, engines and reward workers, as `placement:` says.
    """
    if context.args[:1] == ["--ray"]:
        from mmrl.pipelines.ray_launch import launch as launch_on_ray

        raise typer.Exit(launch_on_ray(context.args[1:]))
    import torch
    from accelerate.commands.accelerate_cli import main as accelerate

    from mmrl.pipelines.launching import for_accelerate

    sys.argv = ["accelerate", "launch", *for_accelerate(context.args, torch.accelerator.device_count())]
    accelerate()


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A model to look at in place of the machine.")] = None,
    video: Annotated[bool, typer.Option(help="Show the model clips too.")] = False,
    repair: Annotated[bool, typer.Option(help="Let every program here import a torchvision built for CUDA.")] = False,
) -> None:
    """What this machine has, what is missing, and how to mend it; or how a MODEL would be trained."""
    from mmrl import _torchvision
    from mmrl.pipelines.config import where_it_is
    from mmrl.pipelines.doctor import doctor as diagnose
    from mmrl.pipelines.doctor import examined, render
    from mmrl.pipelines.masked_report import is_masked_model, masked_report
    from mmrl.pipelines.progress import quiet_libraries
    from mmrl.policies.generation.families.doctor import is_pipeline

    quiet_libraries()
    model = model and where_it_is(model)
    if repair:
        written = _torchvision.repair_environment()
        say(f"written: {written}" if written else "torchvision needs no repair")
    if model is not None and is_masked_model(model):
        console.print(masked_report(model))
    elif model is not None and not is_pipeline(model):
        from mmrl.pipelines.model_report import model_report

        console.print(model_report(model, video=video))
    else:
        console.print(render(diagnose() if model is None else examined(model)))


def main() -> None:
    """Errors the user can mend come out as one line; anything else keeps its traceback."""
    # Before torch loads OpenMP. Threads that spin for a core another process holds made a step ten times slower;
    # threads that sleep at once made decoding half as fast. So they spin for some 40 microseconds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000")}
    try:
        app()
    except MMRLError as error:
        _end(str(error), error)
    except BrokenPipeError:  # whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        _end(f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}", error)


def _end(message: str, error: Exception) -> None:
    print(f"mmrl: {shown('; '.join([message, *getattr(error, '__notes__', ())]))}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
