"""Does a policy learn to use a tool, and is it the tool that helps? `python -m benchmarks.accept_environments`

Two worlds whose questions cannot be answered from what is shown at first, each with a tiny base that knows the tool's
call and hardly makes it: `fine_print` with `zoom` and `flashes` with `frames`. For each world and seed three trainings
with the shipped configuration, which differ in the environment alone:

    tool   the environment                        held-out success must rise by `GAIN`
    none   no environment                         held-out success must stay within `NEAR` of chance
    blank  calls are followed, nothing is shown   held-out success must rise by less than `BLANK_GAIN`

and the policy that was trained with the tool is shown blanks at last: within `NEAR` of chance again. The tool's
training must take less than `SECONDS` of processor time. Worlds, verifier, seeds, budget and limits were fixed before
anything was tuned on them. The result is printed and written as JSON; the exit code is 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
SECONDS = 180.0
GAIN, NEAR, BLANK_GAIN = 0.10, 0.05, 0.03


@dataclass(frozen=True)
class Task:
    """A configuration, the share of a guess that is right, and the environment that shows nothing."""

    modality: str
    config: str
    chance: float
    blank: str


TASKS = {
    "zoom": Task("vlm", "zoom", 1 / 10, "benchmarks.blank:BlankCrops"),
    "frames": Task("video", "frames", 1 / 8, "benchmarks.blank:BlankFrames"),
}
ARMS = ("tool", "none", "blank")


def environment_of(task: Task, arm: str, config: Any) -> Any:
    """The environment of an arm: the configuration's own, none, or the one that shows nothing."""
    if arm == "none":
        return None
    return config.environment if arm == "tool" else {**config.environment, "name": task.blank}


def trained(task: Task, arm: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One training, with what held-out success and calls came to and the processor time it took."""
    from mmrl.pipelines.config import read_config
    from mmrl.pipelines.evaluating import evaluate_run
    from mmrl.pipelines.run import train
    from mmrl.training.tracking import read_metrics

    run = folder / f"{task.config}-{arm}-{seed}"
    config = read_config(task.config, [f"training.seed={seed}", f"run_dir={run}", *overrides], task.modality)
    blank = environment_of(task, "blank", config)
    config = config.model_copy(update={"environment": environment_of(task, arm, config)})
    begun, start = processor_seconds(), time.perf_counter()
    result = train(config)
    if result.interrupted:
        raise SystemExit(f"{run.name}: signal {result.signal} ended it after {result.steps} steps; run it again")
    seconds, wall = processor_seconds() - begun, time.perf_counter() - start
    last = read_metrics(run / "metrics.jsonl")[-1]
    row = {
        "command": " ".join(["python -m benchmarks.accept_environments --task", task.config, "--arm", arm, "--seed",
                             str(seed), *overrides]),
        "before": result.before["success"], "after": result.after["success"],
        "gain": result.after["success"] - result.before["success"],
        "processor_seconds": round(seconds, 1), "wall_seconds": round(wall, 1),
        "call_rate": last.get("environment/call_rate", 0.0), "calls_held_out": result.after.get("calls", 0.0),
    }  # fmt: skip
    if arm == "tool":
        row["shown_blanks"] = evaluate_run(run, [f"environment={json.dumps(blank)}"])["success"]
    return row


def processor_seconds() -> float:
    """Of this process and of those it started and waited for."""
    import resource

    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def misses(task: Task, arms: dict[str, dict[str, Any]]) -> list[str]:
    """The limits that were missed, in words."""
    found = []
    if "tool" in arms:
        tool = arms["tool"]
        gain = tool["after"] - tool["before"]
        found += [f"tool: gain {gain:+.3f}, expected {GAIN:+.2f} or more"] if gain < GAIN else []
        if tool["processor_seconds"] >= SECONDS:
            found.append(f"tool: {tool['processor_seconds']:.0f} s of processor time, expected less than {SECONDS:.0f}")
        if abs(tool["shown_blanks"] - task.chance) > NEAR:
            found.append(f"tool, shown blanks: {tool['shown_blanks']:.3f}, expected {task.chance:.3f} +- {NEAR}")
    if "none" in arms and abs(arms["none"]["after"] - task.chance) > NEAR:
        found.append(f"none: {arms['none']['after']:.3f}, expected {task.chance:.3f} +- {NEAR}")
    if "blank" in arms and (gain := arms["blank"]["after"] - arms["blank"]["before"]) >= BLANK_GAIN:
        found.append(f"blank: gain {gain:+.3f}, expected less than {BLANK_GAIN:+.2f}")
    return found


def main(arguments: list[str] | None = None) -> int:
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.accept_environments", description=__doc__)
    parser.add_argument("--task", choices=TASKS, action="append", help="default: all")
    parser.add_argument("--arm", choices=ARMS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, action="append", help=f"default: {SEEDS}")
    parser.add_argument("--out", type=Path, help="put the results there as JSON, beside those of other arms and seeds")
    parser.add_argument("overrides", nargs="*", help="key.sub=value, as `mmrl train` takes them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in options.task or TASKS:
        for seed in options.seed or SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                arms = {
                    arm: trained(TASKS[name], arm, seed, Path(folder), options.overrides) for arm in options.arm or ARMS
                }
            found = {"arms": arms, "missed": misses(TASKS[name], arms)}
            results[f"{name} seed {seed}"] = found
            print(json.dumps({f"{name} seed {seed}": found}, indent=1), flush=True)
            if options.out:
                options.out.write_text(json.dumps(added(options.out, name, seed, arms), indent=1))
    return int(any(found["missed"] for found in results.values()))


def added(path: Path, name: str, seed: int, arms: dict[str, Any]) -> dict[str, Any]:
    """What the file holds already, with these arms of a task and seed put in."""
    held = json.loads(path.read_text()) if path.exists() else {}
    together = {**held.get(f"{name} seed {seed}", {}).get("arms", {}), **arms}
    held[f"{name} seed {seed}"] = {"arms": together, "missed": misses(TASKS[name], together)}
    return dict(sorted(held.items()))


if __name__ == "__main__":
    sys.exit(main())
