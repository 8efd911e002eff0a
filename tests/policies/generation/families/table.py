"""`make generators`: every variant of every family against its pipeline; writes docs/generators.md.

python -m tests.policies.generation.families.table [NAME ...]   names print their rows only
"""

from __future__ import annotations

import sys
import time
import warnings
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


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, faults = [], []
    for case in CASES:
        if names and not any(name in case.name for name in names):
            continue
        start = time.perf_counter()
        found = measure(case)
        rows.append(row(case, found, type(case.pipeline()).__name__))
        faults += [f"{case.name}: {', '.join(found.faults())}"] if found.faults() else []
        print(f"{rows[-1]}  {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{len(rows)} variants, {len(faults)} at fault", *faults, sep="\n")
    if not names and not faults:
        table = "\n".join([f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}", *rows])
        before, _, rest = PAGE.read_text().partition(START)
        PAGE.write_text(f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}")
        print(f"written: {PAGE.name}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
