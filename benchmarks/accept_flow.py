"""Does a method beat Flow-GRPO and its fast form at equal model calls? `python -m benchmarks.accept_flow`

The shipped comparison `mmrl sweep flow` (configs/sweep/flow.yaml), judged: world, verifiers, seeds and budget stand in
that file and were fixed before any run at that budget; settings of single methods were chosen with other seeds. For
each candidate and seed, over held-out prompts and without guidance, at the end of the budget:

    gain   its reward less the better of the `BASELINES`' at that seed; every seed must have at least `GAIN`
    sooner processor seconds that `flow_grpo` took for its last reward, over those the candidate took for the same one;
           the mean over seeds is wanted at `SOONER`

The same gain by the verifier that trains nobody is told beside it and is not judged. Runs that the folder holds are
not repeated, so a cut run goes on with the same command. The result is printed and written as JSON; the exit code is 1
where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mmrl.pipelines.sweep import compare, read_comparison
from mmrl.pipelines.sweep_report import reached

BASELINES = ("flow_grpo", "flow_grpo_fast")
CANDIDATES = ("dgpo_direct", "awm", "diffusion_nft", "crd", "branchgrpo_mix", "mix_grpo_flash")
GAIN, SOONER = 0.05, 5.0
Runs = Mapping[int, Sequence[Mapping[str, float]]]


def gains(candidate: Runs, baselines: Sequence[Runs], column: str) -> dict[int, float]:
    """{seed: what the candidate ends above the better baseline}."""
    return {
        seed: round(rows[-1][column] - max(each[seed][-1][column] for each in baselines), 4)
        for seed, rows in candidate.items()
    }


def sooner(candidate: Runs, slow: Runs) -> dict[int, float | None]:
    """{seed: seconds of the slow method's run over those in which the candidate reached its last reward}; None where it
    never did."""
    found: dict[int, float | None] = {}
    for seed, rows in candidate.items():
        seconds = reached([dict(row) for row in rows], slow[seed][-1]["reward"])
        found[seed] = round(slow[seed][-1]["seconds"] / seconds, 2) if seconds else None
    return found


def judged(curves: Mapping[str, Runs]) -> dict[str, Any]:
    """By candidate its gains and how much sooner it was; the best by its least gain, and whether that is enough."""
    baselines = [curves[name] for name in BASELINES]
    each: dict[str, Any] = {}
    for name in curves:
        if name in BASELINES:
            continue
        each[name] = {
            "gain": gains(curves[name], baselines, "reward"),
            "gain_by_the_other_verifier": gains(curves[name], baselines, "held_out"),
            "times_sooner": sooner(curves[name], curves["flow_grpo"]),
        }
    best = max(each, key=lambda name: min(each[name]["gain"].values()))
    times = [value for value in each[best]["times_sooner"].values() if value is not None]
    whole = len(times) == len(each[best]["times_sooner"])
    found = {
        "best": best,
        "least_gain": min(each[best]["gain"].values()),
        "wanted_gain": GAIN,
        "times_sooner": round(fmean(times), 2) if whole else None,
        "wanted_times_sooner": SOONER,
    }
    met = found["least_gain"] >= GAIN and whole and found["times_sooner"] >= SOONER
    return {**found, "met": met, "candidates": each}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accept_flow", description=__doc__)
    parser.add_argument("--folder", default="runs/sweep", help="of the runs; those that are there are read")
    parser.add_argument("--seed", type=int, action="append", help="some of the plan's seeds, which meets nothing")
    parser.add_argument("--out", type=Path, help="results as JSON")
    options = parser.parse_args(arguments)
    plan = read_comparison("flow", [f"out={options.folder}", f"recipes=[{', '.join((*BASELINES, *CANDIDATES))}]"])
    whole = set(plan.seeds)
    plan.seeds = options.seed or plan.seeds
    curves = compare(plan)
    found = judged(curves)
    found["met"] = found["met"] and set(plan.seeds) == whole
    print(json.dumps(found, indent=1))
    if options.out:
        budget = {"budget": plan.budget.model_dump(exclude_none=True), "seeds": plan.seeds}
        options.out.write_text(json.dumps({"judged": found, **budget, "curves": curves}, indent=1) + "\n")
    return int(not found["met"])


if __name__ == "__main__":
    sys.exit(main())
