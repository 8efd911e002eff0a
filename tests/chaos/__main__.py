"""`make chaos`: the trials of docs/reliability.md, and its table written anew. About ten minutes on two cores.

python -m tests.chaos [--quick] [--only KIND] [--seed N] [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tests.chaos import caches, configurations, damage, disks, foreign, kills, media, ranks, rewards
from tests.chaos.trials import Ground, Tally

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- trials: written by `make chaos` -->", "<!-- /trials -->"
EVERY = 10**6
"""More file operations than a run has."""


def plan(quick: bool, seed: int) -> dict[str, Callable[[Ground], list[Tally]]]:
    """What is tried, by kind; `quick` takes a few of each."""
    few = quick
    return {
        "kills": lambda g: [
            kills.fresh(g, range(seed % 5 + 1, EVERY, 50 if few else 5)),
            kills.going_back(g, range(seed % 5 + 1, EVERY, 80 if few else 8)),
        ],
        "disks": lambda g: [
            disks.full(g, range(seed % 5 + 1, EVERY, 50 if few else 8)),
            disks.cut(g, range(2_000, 200_000, 90_000 if few else 14_000)),
        ],
        "damage": lambda g: [damage.newest(g, 3 if few else 30, seed)],
        "foreign": lambda g: foreign.prepared(g, range(seed % 5, EVERY, 50 if few else 5)),
        "ranks": lambda g: ranks.fail(g, 10 if few else 100, seed),
        "configurations": lambda g: [
            *configurations.mutate(30 if few else 300, seed),
            *configurations.mutate_recipes(g.root / "recipes", 1 if few else 8, seed),
        ],
        "media": lambda g: [
            *media.fuzz(g.root / "media", 50 if few else 1000, seed),
            *media.clips(g.root / "clips", 25 if few else 500, seed),
        ],
        "caches": lambda g: caches.damaged(8 if few else 1),
        "rewards": lambda g: rewards.misbehave(g.root / "rewards"),
    }


SHARES = (("kills", "disks", "foreign", "configurations"), ("ranks", "damage", "media", "caches", "rewards"))
"""What each of the two processes tries."""


def run(names: Sequence[str], quick: bool, seed: int) -> Iterator[Tally]:
    trials = plan(quick, seed)
    with tempfile.TemporaryDirectory(prefix="mmrl-chaos-") as root:
        ground = Ground(Path(root))
        for name in names:
            began = time.monotonic()
            yield from trials[name](ground)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def run_shared(quick: bool, seed: int) -> Iterator[Tally]:
    """Every kind, in two processes; in the order in which they come out."""
    options = ["--json", "--seed", str(seed), *(["--quick"] if quick else [])]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", *options, *(f"--only={name}" for name in share)],
            stdout=subprocess.PIPE, text=True,
        )
        for share in SHARES
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        for line in process.stdout:
            yield Tally(**json.loads(line))
        if process.wait() not in (0, 1):
            raise SystemExit(f"a process of the trials ended with {process.returncode}")


def table(tallies: list[Tally]) -> str:
    rows = [f"| {t.kind} | {t.trials:,} | {t.trials - len(t.lost):,} |" for t in tallies]
    return "\n".join(["| kind | trials | held |", "| --- | --- | --- |", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind")
    parser.add_argument("--only", action="append", default=[], choices=list(plan(True, 0)), metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each kind")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tallies = []
    for tally in run(asked.only, asked.quick, asked.seed) if asked.only else run_shared(asked.quick, asked.seed):
        tallies.append(tally)
        if asked.json:
            print(json.dumps(asdict(tally)), flush=True)
            continue
        print(f"{tally.trials - len(tally.lost):5,} of {tally.trials:5,}  {tally.kind}", flush=True)
        for problem in tally.lost[:10]:
            print(f"       {problem}", flush=True)
    if asked.write and not asked.only:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{table(tallies)}\n{END}{after}")
    sys.exit(1 if any(t.lost for t in tallies) else 0)


if __name__ == "__main__":
    main()
