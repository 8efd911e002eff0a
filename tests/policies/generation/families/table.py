"""`make generators`: every variant of every family against its pipeline; writes docs/generators.md.

python -m tests.policies.generation.families.table [NAME ...]   names print their rows only
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.policies.generation.families.cases import CASES, Case
from tests.policies.generation.families.measure import Measured, measure

PAGE = Path(__file__).parents[4] / "docs" / "generators.md"
START, END = "<!-- measured: make generators -->", "<!-- end of what was measured -->"
HEADINGS = (
    "variant", "pipeline", "guidance", "final latents", "output", "mixed batch", "replayed call", "log-probs", "LoRA",
    "ms a step",
)  # fmt: skip


def row(case: Case, found: Measured, pipeline: str) -> str:
    replayed = "cannot" if found.replayed is None else _small(found.replayed)
    cells = (
        case.name, f"`{pipeline}`", case.guidance, _small(found.final), _small(found.pixels), _small(found.mixed),
        replayed, _small(found.log_probs), _small(found.reloaded), f"{1000 * found.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def measured(index: int) -> tuple[str, str, float]:
    """Row, faults and seconds of a variant, in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case, start = CASES[index], time.perf_counter()
    found = measure(case)
    faults = f"{case.name}: {', '.join(found.faults())}" if found.faults() else ""
    return row(case, found, type(case.pipeline()).__name__), faults, time.perf_counter() - start


def main(names: list[str]) -> int:
    chosen = [i for i, case in enumerate(CASES) if not names or any(name in case.name for name in names)]
    rows, faults = [], []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        for line, fault, seconds in pool.map(measured, chosen):
            rows.append(line)
            faults += [fault] if fault else []
            print(f"{line}  {seconds:.0f} s", flush=True)
    print(f"{len(rows)} variants, {len(faults)} at fault", *faults, sep="\n")
    if not names and not faults:
        table = "\n".join([f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}", *rows])
        before, _, rest = PAGE.read_text().partition(START)
        PAGE.write_text(f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}")
        print(f"written: {PAGE.name}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
