"""From a configuration to a trained run: the one place where policy, data, rewards and trainer meet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.columns import missing
from mmrl.errors import ConfigError, DataError, MMRLError
from mmrl.objective import Objective
from mmrl.pipelines.callbacks import Callbacks
from mmrl.pipelines.config import DataConfig, RunConfig, read_config
from mmrl.pipelines.fitting import refuse_readers, refuse_strange, refuse_unasked
from mmrl.pipelines.folders import in_its_own_folder
from mmrl.pipelines.former import read_saved
from mmrl.pipelines.going_on import start_of
from mmrl.pipelines.model_card import model_card, model_of
from mmrl.pipelines.overlap import shared_with_sft
from mmrl.pipelines.readiness import clip_reader, counters, few_rows, leaving_out, made_ready, of_rewards, without_truth
from mmrl.pipelines.reporting import each, noting_the_model, telling
from mmrl.pipelines.sizing import image_sizing
from mmrl.pipelines.steady import steady
from mmrl.pipelines.trust import made_here, remember, require
from mmrl.policies import quantized
from mmrl.policies.base import Policy
from mmrl.policies.registry import MODALITIES, policy_class
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Here, Surroundings, made_by
from mmrl.rollout.environments.opening import environment_of
from mmrl.rollout.nesting import Nested, on_offer
from mmrl.selection.prompts import Sampler
from mmrl.shown import tell
from mmrl.stages import Bound
from mmrl.training import checkpoint
from mmrl.training.distributed import gather_objects, make_accelerator, together
from mmrl.training.learners import learner_of
from mmrl.training.made import check_data, with_numbers
from mmrl.training.monitors import Monitor
from mmrl.training.passes import plan_passes
from mmrl.training.peers import together_to_the_end
from mmrl.training.pieces import refuse_pieces
from mmrl.training.resume import (
    check_folder,
    checked,
    finish_going_back,
    fresh_start,
    go_back,
    is_checkpoint,
    newest_whole,
    run_folder,
)
from mmrl.training.run_lock import RunLock
from mmrl.training.storage import write_atomically
from mmrl.training.threads import monitors_of
from mmrl.training.trackers import Tracker, open_trackers
from mmrl.training.tracking import environment
from mmrl.training.trainer import Kept, Report, Result
from mmrl.training.watch import WatchConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmrl.data.images import Sizing
    from mmrl.rewards.panel import RewardPanel

Monitors = Callable[[Policy, Callable, ExitStack], Sequence[Monitor]]
"""(policy, what trains scores with, what is closed at the end) -> who looks on."""
LONGEST_REASON = 300
SHOWN_MISSING = 2
CHECKED_PROMPTS = 32
"""Prompts read through before a model is loaded; `mmrl check` reads them all."""


def check_config(config: RunConfig, made: Mapping[str, str] | None = None) -> Objective:
    """Everything that can be refused before a model is loaded; returns the bound objective.

    made  {column: who makes it} of rewards that the configuration does not name; None where nobody can know
    """
    kind: type[Policy] = config.policy_class
    settings = config.policy_settings()
    if getattr(settings, "dtype", "") == "float16" and getattr(settings, "lora", None) is None:
        raise ConfigError(
            "policy.dtype=float16 would train float16 weights, whose gradients vanish or overflow without scaling; "
            "choose policy.dtype=bfloat16, policy.dtype=float32 with policy.autocast=float16, or policy.lora"
        )
    quantized.refuse(settings)
    kind.columns_of(settings)
    config.training.optimizer.refuse_missing()
    learner_of(config.learner)
    objective = Objective.of(config.objective)
    strategies = Nested.of(config.rollout)
    whole = [Bound.of("prompts", config.prompts), *strategies.bounds]
    refuse_strange(config.modality, kind.modalities_of(settings), objective, whole)
    plan = plan_passes(objective, kind, strategies, settings)
    refuse_pieces(kind, objective, plan.update, config.training.micro_batch_actions)
    if waits := [line for bound in (*objective.stages, *strategies.bounds) for line in bound.waits]:
        raise ConfigError(f"recipe {config.recipe!r} leaves something to you: {'; '.join(waits)}")
    read = strategies.reads(objective.columns)
    if made is not None and (nobody := missing(read, {**makers_of(config), **made}, on_offer())):
        more = f"; and {len(nobody) - SHOWN_MISSING} more" if len(nobody) > SHOWN_MISSING else ""
        raise ConfigError(f"recipe {config.recipe!r} cannot train here: {'; '.join(nobody[:SHOWN_MISSING])}{more}")
    refuse_readers(config.rewards, kind.stretches_of(settings))
    if config.environment is not None:
        _check_environment(config, kind)
    return objective


def _check_environment(config: RunConfig, kind: type[Policy]) -> None:
    bound = environment_of(config.environment or "")
    if config.modality not in bound.spec.modalities or kind.converse is Policy.converse:
        able = [m for m in bound.spec.modalities if policy_class(m).converse is not Policy.converse]
        raise ConfigError(f"environment {bound.name!r} is for {', '.join(able)}, not for {config.modality!r}")
    if reason := kind.no_turns(config.policy_settings()):
        raise ConfigError(reason)


def surroundings_of(config: RunConfig, stack: ExitStack) -> Surroundings | None:
    """The environment of a configuration at work, until `stack` closes; None where there is none."""
    if config.environment is None:
        return None
    from mmrl.pipelines.environments import Apart

    settings = config.environment_run
    if not settings.isolated:
        return Here(environment_of(config.environment).state, ceiling=settings.lost_ceiling)
    apart = Apart(config.environment, workers=settings.workers, timeout=settings.timeout, ceiling=settings.lost_ceiling)
    stack.callback(apart.close)
    return apart


def makers_of(config: RunConfig) -> dict[str, str]:
    """{column: who makes it}, as far as the configuration declares it; forward passes aside."""
    kind: type[Policy] = config.policy_class
    makers = kind.columns_of(config.policy_settings())
    for bound in Nested.of(config.rollout).bounds:
        makers |= {name: f"rollout {bound.name!r}" for name in (*bound.state.columns, *bound.state.made)}
    if config.environment is not None:
        bound = environment_of(config.environment)
        makers |= {name: f"environment {bound.name!r}" for name in made_by(bound.state)}
    makers |= {name: "the data set" for name in config.data.numbers}
    return makers | {name: f"reward {spec.name!r}" for spec in config.rewards for name in spec.makes}


def open_prompts(
    spec: Any,
    data: DataConfig,
    limit: int | None = None,
    *,
    panel: RewardPanel | None = None,
    sizing: Sizing | None = None,
    held_out: bool = False,
) -> Sequence[Prompt]:
    """The prompts of a specification. `panel`: the rewards that read them; `sizing`: how the model sizes images."""
    from mmrl.data.datasets import open_dataset

    options = row_options(data, panel, sizing, held_out)
    prompts = open_dataset(spec, **options, limit=limit)
    return prompts if held_out else leaving_out(prompts, data)


def row_options(
    data: DataConfig, panel: RewardPanel | None = None, sizing: Sizing | None = None, held_out: bool = False
) -> dict[str, Any]:
    """How rows are read, for `open_dataset` and `check_dataset` alike."""
    from mmrl.data.sources import HELD_OUT, TRAIN

    names = ("columns", "format", "media_root", "allow_outside", "allow_urls", "template", "system")
    options = {name: getattr(data, name) for name in (*names, "task", "ignore", "repeats")}
    members = panel.members if panel is not None else ()
    read = [name for member in members for name in (*member.columns.required, *member.columns.optional)]
    return options | {"elsewhere": read, "sizing": sizing, "splits": HELD_OUT if held_out else TRAIN}


def build_policy(config: RunConfig) -> Policy:
    kind: type[Policy] = config.policy_class
    settings = config.policy_settings()
    parts = {"read_clip": clip_reader(config.cache)} if "video" in kind.reads else {}
    try:
        return kind.from_config(settings, seed=config.training.seed, **parts)
    except (ValueError, ImportError, KeyError, OSError) as error:  # what libraries raise for a name they do not know
        raise ConfigError(f"policy: {model_of(config)} cannot be loaded: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + '...'}"


def reward_panel(config: RunConfig, rewards: Sequence = ()):
    """The rewards of the configuration, or these: names, mappings, or functions."""
    from mmrl.rewards.panel import RewardPanel

    rewards = rewards or config.rewards
    if not rewards:
        raise ConfigError("no rewards: name at least one, as in `rewards: [{name: accuracy}]`")
    settings = config.reward_run
    return RewardPanel(
        rewards,
        workers=settings.workers,
        default_timeout=settings.timeout,
        unscored_ceiling=settings.unscored_ceiling,
        budget=settings.budget,
    )


def check_prompts(panel, prompts: Sequence[Prompt], reads: frozenset[str]) -> None:
    """Refuse, before anything is spent, prompts that some reward could never score or the policy never read.

    The truths of all rows are read, by what `mmrl check` reads them with; media of the first prompts only, and of a
    world that draws its prompts all but those are trusted.
    """
    check_truths(panel, prompts)
    for index in range(min(len(prompts), CHECKED_PROMPTS)):
        prompt = prompts[index]
        with told_where(prompts):
            panel.check([prompt])
            unread = {"image": prompt.images, "video": prompt.videos}
            for kind in (k for k, media in unread.items() if media and k not in reads):
                readers = " or ".join(m for m in MODALITIES if kind in policy_class(m).reads)
                raise DataError(f"prompt {prompt.id!r} has {kind}s, which this policy does not read; {readers} would")


def check_truths(panel, prompts: Sequence[Prompt]) -> None:
    """Refuse the first row that some reward could never score; no media is opened."""
    from mmrl.data.prompts import Prompts

    if isinstance(prompts, list | tuple):
        panel.check(prompts)
    if not isinstance(prompts, Prompts):
        return
    with told_where(prompts):
        for index, name in enumerate(prompts.ids()):
            columns = prompts.columns(index)
            if columns is None:
                return
            panel.check([Prompt(name, [], columns=dict(columns))])


@contextmanager
def told_where(*prompts: Sequence[Prompt]) -> Iterator[None]:
    """Errors know prompts by their id; those met in this block say where in the data a prompt stands, too."""
    from mmrl.data.prompts import Prompts

    try:
        yield
    except MMRLError as error:
        named = re.search(r"prompt '([^']+)'", str(error))
        for data in (p for p in prompts if named and isinstance(p, Prompts)):
            known = data.ids()
            if named[1] in known and (place := data.where(known.index(named[1]))):
                error.add_note(f"that prompt is {place}")
                break
        raise


def train(
    config: RunConfig, *, resume: str | Path | None = None, policy: Policy | None = None,
    prompts: Sequence[Prompt] | None = None, eval_prompts: Sequence[Prompt] | None = None,
    score: Callable | None = None, made: Mapping[str, str] | None = None, callbacks: Sequence[Any] = (),
    report: Report = lambda step, metrics: None, kept: Kept = lambda step, folder: None,
    began: Callable[[RunConfig], None] = lambda config: None, monitors: Monitors | None = None,
) -> Result:  # fmt: skip
    """Train as configured. What is passed in (a policy, prompts, a score function) is used instead of built.

    resume  a run directory or a checkpoint; what the run did after it is set aside
    began   called with the configuration once the data is open, and `training.data_epochs` is so many steps
    made    {column that stage functions read: who makes it} of a `score` that is passed in
    callbacks  objects that hear of the run after those of the configuration
    monitors  who looks on, in place of the watch that the configuration asks for
    """
    made = {} if score is None and made is None else made
    objective, learner = check_config(config, made), learner_of(config.learner)
    if resume and learner.func.go_on:
        raise ConfigError(f"--resume: this learner keeps no checkpoints; {learner.func.go_on}")
    accelerator = make_accelerator(config.training.sharding, config.patience)
    with ExitStack() as stack:
        stack.enter_context(together_to_the_end())
        config = config if resume else together(lambda: in_its_own_folder(config, accelerator), accelerator)
        folder = config.directory
        start = _begin(config, resume, accelerator, stack)
        notes: list[str] = []
        ready = partial(_opened, config, objective, stack, notes, prompts, eval_prompts, score)
        prompts, eval_prompts, score = together(ready, accelerator)
        config = config.model_copy(update={"training": config.training.for_rows(len(prompts))})
        began(config)
        listeners = [*config.callbacks, *callbacks] if accelerator.is_main_process else ()
        told_to = together(lambda: Callbacks(listeners), accelerator)
        score = with_numbers(score, config.data.numbers)
        policy = policy or together(lambda: build_policy(config), accelerator)
        given = (leaving_out(prompts, config.data), eval_prompts or ())
        prompts, eval_prompts = (made_ready(p, policy, config.data.workers, stack) for p in given)
        sampler: Sampler = Bound.of("prompts", config.prompts).state
        trainer = learner(
            policy, objective, prompts, score, config.training, folder, eval_prompts=eval_prompts,
            report=each(telling(notes, noting_the_model(report, policy, folder)), told_to.step),
            accelerator=accelerator, counters=partial(counters, policy, prompts, accelerator), sampler=sampler,
            rollout=config.rollout, environment=surroundings_of(config, stack), kept=each(kept, told_to.rollouts),
        )  # fmt: skip
        policy.card = lambda: model_card(config, trainer.before, trainer.after, trainer.step)
        looking_on = monitors or partial(_watching, config, eval_prompts or (), folder)
        trainer.monitors = [*looking_on(policy, score, stack), *monitors_of(config.training.threads)]
        told = {"train": described(given[0])} | ({"eval": described(given[1])} if given[1] else {})
        trainer.trackers = together(lambda: _open_folder(config, start, told, accelerator, stack), accelerator)
        told_to.tell("begin", config)
        with told_where(*given):
            result = trainer.train(start)
        card = model_card(config, result.before, result.after, result.steps)
        policy.card = lambda: card  # which no longer holds the trainer, and its optimizer
        told_to.tell("end", result)
        if accelerator.is_main_process and result.after:
            summary = {"before": result.before, "after": result.after, "steps": result.steps}
            write_atomically(folder / "result.json", json.dumps(summary, indent=1))
    return replace(result, folder=folder)


def _watching(
    config: RunConfig, prompts: Sequence[Prompt], folder: Path, policy: Policy, score: Callable, stack: ExitStack
) -> list[Monitor]:
    """The watch over the run of who draws, if it has held-out prompts; no other run has one."""
    if policy.painter is None or not config.watch.every or not len(prompts):
        return []
    from mmrl.pipelines.watching import watch_of

    return [watch_of(config.watch, policy, score, prompts, held_out_panel(config, config.watch, stack), folder=folder)]


def held_out_panel(config: RunConfig, watch: WatchConfig, stack: ExitStack) -> RewardPanel | None:
    """The rewards of a watch, until `stack` closes; None where it has none."""
    from mmrl.pipelines.watching import placed

    panel = placed("watch.rewards", lambda: reward_panel(config, watch.rewards)) if watch.rewards else None
    if panel is not None:
        stack.callback(panel.close)
    return panel


def _opened(
    config: RunConfig, objective: Objective, stack: ExitStack, notes: list[str],
    prompts: Sequence[Prompt] | None, eval_prompts: Sequence[Prompt] | None, score: Callable | None,
) -> tuple[Sequence[Prompt], Sequence[Prompt] | None, Callable]:  # fmt: skip
    """What is not given, opened, and checked before a model is loaded: prompts, held-out ones, and who scores. What is
    worth a line and no error joins `notes`, which are told once the first step is made."""
    panel = None
    if score is None:
        panel = reward_panel(config)
        stack.callback(panel.close)
        panel.load()
        score = panel.score
    read = {"panel": panel, "sizing": image_sizing(config)}
    if prompts is None:
        prompts = open_prompts(config.data.train, config.data, config.data.limit, **read)
    if eval_prompts is None and config.data.eval:
        eval_prompts = open_prompts(config.data.eval, config.data, config.data.eval_limit, **read, held_out=True)
    if panel is not None:
        for rows in (prompts, eval_prompts or ()):
            check_prompts(panel, rows, config.policy_class.reads)
    for rows in (prompts, eval_prompts or ()):
        refuse_unasked(config.policy_class.asks_for(config.policy_settings()), rows)
    notes += [*few_rows(config, prompts), *without_truth(config, prompts)]
    notes += of_rewards(config, panel, prompts) if panel is not None else ()
    notes += shared_with_sft(config.data, prompts, partial(open_prompts, data=config.data))
    strategies = Nested.of(config.rollout)
    if config.data.numbers or any(hasattr(b.state, "data_columns") for b in strategies.bounds):
        first = [prompts[i] for i in range(min(len(prompts), CHECKED_PROMPTS))]
        check_data(first, config.data.numbers, strategies, objective.columns)
    return prompts, eval_prompts, score


def _begin(
    config: RunConfig, resume: str | Path | None, accelerator: Accelerator, stack: ExitStack
) -> Path | None:  # fmt: skip
    """Lock the run directory, and find the checkpoint to go on from: None for a run from its start.

    The first rank looks, and all do what it found.
    """

    def look() -> Path | None:
        if not accelerator.is_main_process:
            return None
        folder = config.directory
        check_folder(folder, made_here=made_here(folder))
        stack.callback(RunLock(folder).release)
        finish_going_back(folder)
        start = start_of(config, Path(resume)) if resume else None
        if start is None or start.parent.parent.resolve() != folder.resolve():
            fresh_start(folder)
        elif (aside := go_back(folder, checkpoint.step_of(start))) is not None:
            tell(f"what {folder} did after {start.name} is set aside in {aside}")
        return start

    start = gather_objects(together(look, accelerator), accelerator)[0]
    return None if start is None else Path(start)


def described(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What a run writes down of its data: where it lies, the data formats of its rows, how many repeat another."""
    names = ("source", "format", "repeated")
    return {"rows": len(prompts)} | {name: getattr(prompts, name) for name in names if hasattr(prompts, name)}


def _open_folder(
    config: RunConfig, start: Path | None, told: dict[str, Any], accelerator: Accelerator, stack: ExitStack
) -> list[Tracker]:  # fmt: skip
    """Write down what this run is, and go on with its metrics after `start`. The first rank's business."""
    if not accelerator.is_main_process:
        return []
    folder = config.directory
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=1))  # which marks it as a run
    remember(config, folder)
    write_atomically(folder / "config.yaml", config.to_yaml())
    write_atomically(folder / "data.json", json.dumps(told, indent=1))
    if start is not None:
        checkpoint.adopt(folder)
    step = checkpoint.step_of(start) if start else 0
    trackers = open_trackers(config.tracking, folder, config.model_dump(mode="json"), step)
    for tracker in trackers:
        stack.callback(tracker.close)
    return trackers


def _checkpoint_of(path: Path) -> Path:
    """The checkpoint a command acts with: the one named, or the newest whole one of a run."""
    if is_checkpoint(path):
        return checked(path, weights_only=True)
    return newest_whole(path, weights_only=True) or checkpoint.latest(path)


def run_of(checkpoint_path: str | Path) -> tuple[RunConfig, Path]:
    """The configuration a checkpoint was trained with, and the checkpoint (a run directory means its last)."""
    path = steady(run_folder(Path(checkpoint_path)), lambda: _checkpoint_of(Path(checkpoint_path)))
    run = path.parent.parent
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: no config.yaml beside checkpoints/; {checkpoint_path} is not part of a run")
    return read_saved(run / "config.yaml"), path


def load_run(path: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> tuple[RunConfig, Policy]:
    """The policy as the checkpoint left it: see `load_checkpoint`."""
    return load_checkpoint(path, overrides, trust=trust)[:2]


def load_checkpoint(
    given: str | Path, overrides: Sequence[str] = (), *, trust: bool = False
) -> tuple[RunConfig, Policy, dict[str, Any]]:
    """Configuration, policy and `state.json` of one checkpoint: of a run, also one that trains, its newest.

    trust  the run's configuration may name code and open doors that this user never trained with
    """
    saved, path = run_of(given)
    config = read_config(saved.model_dump(mode="json"), overrides) if overrides else saved
    require(saved, config, path.parent.parent, trust)
    policy = build_policy(config)
    state = steady(path.parent.parent, lambda: checkpoint.load_weights(_checkpoint_of(Path(given)), policy))
    return config, policy, state
