"""`mmrl autonpo`: a run that looks for where it stops getting better, and goes on with its later self as a guide.

    RUN/autonpo.json        what was done: the moment and its reason, the guides that were tried, the one that was taken
    RUN/guides/N.jsonl      right answers of the guide of intervention N, by prompt

All in one run directory: what was run ahead is set aside there, as a resume from an earlier checkpoint does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from mmrl.errors import ConfigError
from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.readiness import made_ready
from mmrl.pipelines.run import build_policy, open_prompts, reward_panel, surroundings_of, train
from mmrl.pipelines.sizing import image_sizing
from mmrl.policies.base import Policy
from mmrl.randomness import Key
from mmrl.record import Answer, Prompt, Request, Rollouts
from mmrl.rollout.actor import Actor, score_rows
from mmrl.rollout.hints import worth
from mmrl.settings import Section
from mmrl.shown import tell
from mmrl.training.checkpoint import checkpoints, load_weights
from mmrl.training.distributed import make_accelerator
from mmrl.training.evaluation import Score
from mmrl.training.near_future import Guide, Trigger, best_guide, variance_cost
from mmrl.training.storage import write_atomically

TOLD, GUIDES = "autonpo.json", "guides"


class NearFuture(Section):
    """When to intervene, and how.

    window, slope, entropy, ahead  as of `Trigger`
    mixed    steps after the roll-back in which the guide's answers join
    below    only groups of a lower mean take one (and only such prompts are asked of a guide)
    prompts  how many of the data set a guide is tried on, from the front; samples of each
    times    interventions, at most
    """

    window: int = Field(20, ge=2)
    slope: float = 0.0
    entropy: float = Field(0.0, ge=0)
    ahead: int = Field(20, ge=1)
    mixed: int = Field(20, ge=1)
    below: float = Field(0.25, gt=0, le=1)
    prompts: int = Field(256, ge=1)
    samples: int = Field(4, ge=1)
    times: int = Field(3, ge=1)


class Until:
    """A monitor that ends a run after a step."""

    def __init__(self, step: int):
        self.step, self.ended = step, ""

    def begin(self, step: int) -> None:
        self.ended = ""

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        self.ended = f"the guide has helped for long enough (to step {self.step})" if step >= self.step else ""
        return {}


def run_with_guides(config: RunConfig, asked: NearFuture, report: Callable[[str], None] = tell) -> str:
    """Train to the end of the configuration; returns a line for each intervention."""
    every = config.training.save_every
    if not 0 < every <= min(asked.window, asked.ahead):
        raise ConfigError(
            f"autonpo: training.save_every={every}: expected 1 to {min(asked.window, asked.ahead)}, so that there is a "
            "checkpoint to roll back to before the moment, and one to be the guide after it"
        )
    kept = max(config.training.keep_checkpoints, asked.ahead // every + 2)
    config = config.model_copy(update={"training": config.training.model_copy(update={"keep_checkpoints": kept})})
    told: list[dict[str, Any]] = _read(config.directory)
    start: Path | None = None
    while True:
        held = checkpoints(config.directory)
        start = start or (held[-1][1] if held else None)
        at = int(start.name.rpartition("-")[2]) if start is not None else 0
        mixing = bool(told) and at < told[-1]["until"]
        monitor: Until | Trigger = Until(told[-1]["until"]) if mixing else _trigger(asked, told)
        phase = _mixed(config, asked, len(told)) if mixing else config
        result = train(phase, resume=start, monitors=_only(monitor))
        config = config.model_copy(update={"run_dir": str(result.folder)})
        if result.interrupted:
            report(f"interrupted after step {result.steps}; the same command goes on")
            raise SystemExit(128 + (result.signal or 0))
        start = None
        if isinstance(monitor, Trigger) and monitor.fired is not None and result.steps > monitor.fired:
            told.append(choose(config, monitor, asked, len(told) + 1))
            start = Path(told[-1].pop("checkpoint")) if told[-1]["guide"] is not None else None
            write_atomically(config.directory / TOLD, json.dumps(told, indent=1))
            report(said(told[-1]))
        elif not (isinstance(monitor, Until) and monitor.ended and result.steps < config.training.steps):
            break
    return "\n".join([*map(said, told), f"run in {config.directory}, {result.steps} steps"])


def _only(monitor: Until | Trigger) -> Callable[[Policy, Score, ExitStack], list[Until | Trigger]]:
    return lambda *_: [monitor]


def _trigger(asked: NearFuture, told: list[dict[str, Any]]) -> Until | Trigger:
    """Who looks on while no guide helps; nobody once there were enough interventions."""
    if len(told) >= asked.times:
        return Until(10**9)
    return Trigger(window=asked.window, slope=asked.slope, entropy=asked.entropy, ahead=asked.ahead)


def _mixed(config: RunConfig, asked: NearFuture, number: int) -> RunConfig:
    """The run with the guide's answers in the places of wrong ones; what else its groups come of stays."""
    slot = {"name": "offline_slot", "answers": str(_table(config, number)), "below": asked.below, "replaces": "worst",
            "verified": True}  # fmt: skip
    others = [c for c in config.rollout if (c if isinstance(c, str) else c.get("name")) != "offline_slot"]
    return config.model_copy(update={"rollout": [slot, *others]})


def _table(config: RunConfig, number: int) -> Path:
    return config.directory / GUIDES / f"{number}.jsonl"


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / TOLD
    return json.loads(path.read_text()) if path.is_file() else []


@torch.no_grad()
def choose(config: RunConfig, trigger: Trigger, asked: NearFuture, number: int) -> dict[str, Any]:
    """Try the checkpoints after the moment on prompts that fail at it; the best one's right answers are kept."""
    assert trigger.fired is not None
    held = checkpoints(config.directory)
    base = [(step, path) for step, path in held if step <= trigger.fired]
    if not base:
        raise ConfigError(f"autonpo: no checkpoint of {config.directory} from before step {trigger.fired} is left")
    (then, path), later = base[-1], [(step, at) for step, at in held if step > base[-1][0]]
    told: dict[str, Any] = {"fired": trigger.fired, "why": trigger.why, "rolled_back_to": then, "guide": None,
                            "checkpoint": str(path), "until": then, "tried": []}  # fmt: skip
    with ExitStack() as stack:
        trial = _Trial(config, asked, stack)
        trial.weights(path)
        failed = trial.failing(trial.answers(trial.prompts, purpose="autonpo base"))
        told["failing"] = len(failed)
        right: dict[int, Rollouts] = {}
        guides: list[Guide] = []
        for step, at in later if failed else ():
            trial.weights(at)
            rows = trial.answers(failed, purpose="autonpo guide")
            right[step] = rows.index((worth(rows).nan_to_num(0) > 0).nonzero().squeeze(1))
        trial.weights(path)
        for step, rows in right.items():
            guides.append(Guide(step, len(set(rows.group.tolist())) / len(failed), trial.cost(rows)))
    told["tried"] = [{"step": g.step, "quality": g.quality, "cost": g.cost, "signal": g.signal()} for g in guides]
    if (best := best_guide(guides)) is not None:
        told |= {"guide": best.step, "until": min(then + asked.mixed, config.training.steps)}
        told["answers"] = _write(_table(config, number), right[best.step])
    else:
        told["until"] = held[-1][0]  # nothing to learn from: the run goes on from where it is
    return told


class _Trial:
    """A policy that takes the weights of checkpoints in turn, and answers the first prompts of the run."""

    def __init__(self, config: RunConfig, asked: NearFuture, stack: ExitStack):
        self.policy, self.asked, self.config = build_policy(config), asked, config
        self.policy.module = make_accelerator().prepare(self.policy.module)
        self.panel = reward_panel(config)
        stack.callback(self.panel.close)
        most = min(asked.prompts, config.data.limit or asked.prompts)
        opened = open_prompts(config.data.train, config.data, most, panel=self.panel, sizing=image_sizing(config))
        self.prompts: Sequence[Prompt] = made_ready(opened, self.policy, config.data.workers, stack)
        self.actor = Actor(self.policy, surroundings_of(config, stack))

    def weights(self, path: Path) -> None:
        load_weights(path, self.policy)
        self.policy.after_update()

    def answers(self, prompts: Sequence[Prompt], purpose: str) -> Rollouts:
        """Scored, `samples` of each; the group is the place among `prompts`."""
        parts, size = [], self.config.training.eval_batch_size
        for start in range(0, len(prompts), size):
            places = range(start, min(start + size, len(prompts)))
            rows = self.actor.act([Request(prompts[i], self.asked.samples, group=i) for i in places],
                                  Key(self.config.training.seed, purpose=purpose))  # fmt: skip
            score_rows(rows, self.panel.score)
            parts.append(rows)
        return Rollouts.concatenate(parts)

    def failing(self, rows: Rollouts) -> list[Prompt]:
        value, group = worth(rows).nan_to_num(0), rows.group
        return [self.prompts[g] for g in range(len(self.prompts)) if float(value[group == g].mean()) < self.asked.below]

    def cost(self, rows: Rollouts) -> float:
        """V of a guide's right rows under the weights that are in now; 0 where it has none."""
        if not len(rows):
            return 0.0
        prompts = [rows.prompts[i] for i in rows.prompt.tolist()]
        answers: list[str | Answer] = [Answer(ids) for ids in _tokens(rows)]
        here = self.policy.written(prompts, answers)
        return variance_cost(here.old_log_probs[here.mask], rows.old_log_probs[rows.mask])


def _tokens(rows: Rollouts) -> list[torch.Tensor]:
    return [ids[mask].cpu() for ids, mask in zip(rows.actions, rows.mask, strict=True)]


def _write(path: Path, rows: Rollouts) -> int:
    """The first right answer to each prompt; returns how many."""
    lines: dict[str, str] = {}
    for place, ids, text in zip(rows.prompt.tolist(), _tokens(rows), rows.outputs, strict=True):
        name = rows.prompts[place].id
        lines.setdefault(name, json.dumps({"id": name, "tokens": ids.tolist(), "text": str(text)}))
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "".join(line + "\n" for line in lines.values()))
    return len(lines)


def said(told: dict[str, Any]) -> str:
    moment = f"step {told['fired']}: {told['why']}; {told['failing']} prompts fail at step {told['rolled_back_to']}"
    if told["guide"] is None:
        return f"{moment}, and no checkpoint ahead solves one: the run goes on"
    best = next(t for t in told["tried"] if t["step"] == told["guide"])
    return (
        f"{moment}; step {told['guide']} solves {best['quality']:.0%} of them at a cost of {best['cost']:.3f}, the "
        f"best of {len(told['tried'])}: rolled back, and {told['answers']} of its answers help to step {told['until']}"
    )
