"""Does choosing prompts save rollouts? `python -m benchmarks.accept_selection`

Plain GRPO and GRPO with a sampler train the tiny VLM on coloured shapes of which it can name the colour and nothing
else: two thirds of the prompts ask for a quadrant or a box, and it never gets one right. Shuffling spends most rollouts
on groups that teach nothing. Both arms have the same data, verifier, budget and optimizer, and a constant learning
rate, so that no arm profits from a schedule that ends earlier. For each seed:

    target    the mean over `SEEDS` of plain GRPO's held-out success at the end of the budget
    reached   rollouts until the first of two consecutive evaluations at or above the target

and `reached` must be at most `SHARE` of the budget in every seed. World, verifier, seeds, budget and limit were fixed
before anything ran on them; they are the second set: on a first world, all of `stills`, no sampler passed
(docs/selection.md). `kinds`, which the `vade` arm uses, is an addition of ours. The result is printed and written as
JSON; the exit code is 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
SHARE = 0.70
STEPS, PROMPTS, GROUP, EVERY = 120, 24, 8, 8
WORLD = "world:shapes?split={split}&size={size}&difficulty=1-2&skills=color,position,box"
TRAIN, HELD_OUT = 2048, 384
ARMS: dict[str, Any] = {
    "plain": "shuffled",
    "vade": {"name": "vade", "utility": "even", "kinds": ["skill"]},
    "mmr1_vas": "mmr1_vas",
}
SETTINGS: dict[str, Any] = {
    "recipe": "grpo",
    "policy": {"model": "asset:tiny_vlm", "max_new_tokens": 5},
    "data": {"train": WORLD.format(split="train", size=TRAIN), "eval": WORLD.format(split="test", size=HELD_OUT)},
    "rewards": [{"name": "accuracy"}],
    "training": {
        "steps": STEPS, "prompts_per_step": PROMPTS, "group_size": GROUP, "micro_batch_size": 192,
        "learning_rate": 3.0e-4, "betas": [0.9, 0.99], "schedule": "constant", "warmup_steps": 3,
        "eval_every": EVERY, "eval_batch_size": 256, "save_every": 0,
    },
}  # fmt: skip


def trained(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One training: held-out success after each `EVERY` steps, and the share of groups that taught nothing."""
    from mmrl.pipelines.config import read_config
    from mmrl.pipelines.run import train
    from mmrl.training.tracking import read_metrics

    run = folder / f"{arm}-{seed}"
    config = read_config(SETTINGS | {"prompts": ARMS[arm]}, [f"training.seed={seed}", f"run_dir={run}"], "vlm")
    start = time.process_time()
    result = train(config)
    if result.interrupted:
        raise SystemExit(f"{run.name}: signal {result.signal} ended it after {result.steps} steps; run it again")
    lines = read_metrics(run / "metrics.jsonl")
    curve = {int(line["step"]): line["eval/success"] for line in lines if "eval/success" in line}
    curve[STEPS] = result.after["success"]
    seconds = round(time.process_time() - start)
    dead = [line["signal/zero_variance_fraction"] for line in lines if "signal/zero_variance_fraction" in line]
    return {
        "before": result.before["success"], "curve": curve, "after": result.after["success"],
        "groups_without_spread": round(sum(dead) / len(dead), 3), "processor_seconds": seconds,
    }  # fmt: skip


def reached(curve: dict[int, float], target: float) -> int | None:
    """The step of the first of two consecutive evaluations at or above `target`; None where there is none."""
    steps = sorted(curve)
    return next((a for a, b in pairwise(steps) if curve[a] >= target and curve[b] >= target), None)


def judged(results: dict[str, dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """The target, and by arm and seed the share of the budget that it took."""
    finals = [results[f"plain {seed}"]["after"] for seed in seeds]
    target = sum(finals) / len(finals)
    shares: dict[str, dict[int, float | None]] = {}
    for arm in list(ARMS)[1:]:
        if not all(f"{arm} {seed}" in results for seed in seeds):
            continue
        steps = {seed: reached(results[f"{arm} {seed}"]["curve"], target) for seed in seeds}
        shares[arm] = {seed: None if step is None else round(step / STEPS, 3) for seed, step in steps.items()}
    passed = [arm for arm, each in shares.items() if all(s is not None and s <= SHARE for s in each.values())]
    return {"target": target, "rollouts": STEPS * PROMPTS * GROUP, "share_of_rollouts": shares, "passed": passed}


def main(arguments: list[str] | None = None) -> int:
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.accept_selection", description=__doc__)
    parser.add_argument("--arm", choices=ARMS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, action="append", help=f"default: {SEEDS}")
    parser.add_argument("--out", type=Path, help="results as JSON; those that stand there already are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out, seeds = options.out, options.seed or list(SEEDS)
    results: dict[str, dict[str, Any]] = json.loads(out.read_text())["runs"] if out and out.is_file() else {}
    for result in results.values():
        result["curve"] = {int(step): value for step, value in result["curve"].items()}
    for arm in options.arm or ARMS:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                results[f"{arm} {seed}"] = trained(arm, seed, Path(folder))
            print(json.dumps({f"{arm} {seed}": results[f"{arm} {seed}"]}), flush=True)
            if out:
                out.write_text(json.dumps({"runs": results}, indent=1))
    if not all(f"plain {seed}" in results for seed in SEEDS):
        return 0
    found = judged(results, list(SEEDS))
    print(json.dumps(found, indent=1))
    if out:
        out.write_text(json.dumps({"judged": found, "runs": results}, indent=1))
    return int(not found["passed"])


if __name__ == "__main__":
    sys.exit(main())
