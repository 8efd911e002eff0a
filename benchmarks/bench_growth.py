"""The law by which the cost of a step grows: with image tokens, new tokens and the group, beside TRL at its corners.

One axis at a time from a step of 2 prompts x 8 responses, 256 image tokens and 64 new tokens, everything trained. Every
cell is a process of its own that takes an untimed step and `--steps` timed ones. Along an axis seconds grow as
size^exponent, by least squares of logarithms over the axis, and between its last two cells; the same of the operations
that must be done once (`flops.step_floor`), which no program can grow slower than. Two corners are measured with
gradient checkpointing on both sides as well, for their peak memory.

The table can be made in parts: the result file is written after every cell, `--cells "base" "new tokens 256"` measures
these alone and keeps what the file has of the others, `--missing` measures those it has not, `--minutes 5` begins none
later than that. Two threads want a file of their own: `--threads 2 --out benchmarks/results/two_threads`. Exponents are
fitted where an axis is whole. docs/speed.md shows both tables (`make docs`).

With one thread processor seconds are compared, which other processes change least; with more it is seconds of the
clock, on both sides and with the floor, since threads that wait for one another spin: such a table wants a quiet
machine. `--at-once` lets both sides step at the same time and takes TRL's first step for it: shorter on a busy machine,
and for one thread only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.bench_group import line
from benchmarks.bench_vlm import CHECKPOINTING, MEMBERS, NEW, prepare
from benchmarks.bench_vlm import MODULE as STEPS_OF
from benchmarks.measuring import MIB, Report, Worker, alternate, target, workers

AXES: dict[str, list[int]] = {
    "image tokens": [64, 256, 1024, 4096],
    "new tokens": [64, 256, 1024],
    "G": [4, 8, 16, 32],
}
BASE = {"image tokens": 256, "new tokens": NEW, "G": MEMBERS}
WANTED = {"new tokens 256": 4.0, "new tokens 1024": 3.0, "image tokens 1024": 12.0}
"""How many times faster than TRL with one thread: the corners TRL is asked for."""
WANTED_BY_MORE = {"image tokens 1024": 10.0}
"""With more threads."""
FLOOR = {"image tokens 1024": 1.5}
"""At most how many times the floor."""
CORNERS = ("base", *WANTED, "image tokens 64", "G 4", "G 32")
"""Where TRL is measured as well: the ends of each axis, but for 4,096 image tokens, where it encodes 16 pictures of
16,384 patches forward and backward."""
SHARE, OF_SHARE = 0.5, "new tokens 1024"
"""Of TRL's peak: the whole process's, libraries included."""
CHECKPOINTED = {"image tokens 1024": 0.3, "new tokens 1024": 0.5}
"""With gradient checkpointing on both sides: at most which share of TRL's peak after loading."""
TINY = {"image tokens": [4, 16], "new tokens": [4, 8], "G": [2, 4]}
TINY_BASE = {"image tokens": 4, "new tokens": 4, "G": 2}
OLDER = {"seconds of": "processor"}
"""What a row of an older file does not say."""
PIXELS = 28
"""Of a side of what becomes one image token."""
PLANNED = 0.2

Cell = dict[str, int]


def cells(axes: dict[str, list[int]], base: Cell) -> dict[str, Cell]:
    """{name: cell}, the base once and then every other size of each axis."""
    named = {"base": base}
    for axis, sizes in axes.items():
        named |= {f"{axis} {size}": base | {axis: size} for size in sizes if size != base[axis]}
    return named | {f"{name}{CHECKPOINTING}": named[name] for name in CHECKPOINTED if name in named}


def exponent(sizes: list[int], values: list[float]) -> float:
    """b of value = a size^b, by least squares of logarithms."""
    logs = [math.log(v) for v in values]
    spread = [math.log(s) for s in sizes]
    x, y = sum(spread) / len(spread), sum(logs) / len(logs)
    over = sum((s - x) * (v - y) for s, v in zip(spread, logs, strict=True))
    return over / sum((s - x) ** 2 for s in spread)


def measure(options: argparse.Namespace) -> None:
    if options.at_once and options.threads > 1:
        raise SystemExit("--at-once: seconds of the clock of two that step at the same time say nothing; --threads 1")
    axes, base = (TINY, TINY_BASE) if options.tiny else (AXES, BASE)
    if options.quick:
        axes = {axis: sizes[:2] for axis, sizes in axes.items()}
    asked = cells(axes, base)
    if unknown := [name for name in options.cells or [] if name not in asked]:
        raise SystemExit(f"--cells: no {', '.join(unknown)}; there are {', '.join(asked)}")
    found = kept(options)
    now = [n for n in options.cells or asked if not (options.missing and n in found)]
    report, began = Report("bench_growth", options), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pictures = prepare(Path(folder), sorted({side(asked[name]) for name in now})) if now else {}
        given = {"folder": folder, "model": f"{folder}/model", "train_vision": True}
        for name in now:
            if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
                break
            cell, again = asked[name], name.endswith(CHECKPOINTING)
            corner = (name in CORNERS or again or options.tiny) and not options.ours
            spec = given | {"members": cell["G"], "new": cell["new tokens"], "pictures": pictures[side(cell)]}
            found[name] = of_cell(name, cell, spec | {"checkpointing": again}, options, beside=corner)
            report.keep("growth", beside_the_floor({n: found[n] for n in asked if n in found}))
            print(f"{name}: {found[name]['ours']:.4g} s of the {found[name]['seconds of']}", flush=True)
    show(report, {n: found[n] for n in asked if n in found}, asked, axes, base)


def show(
    report: Report, rows: dict[str, dict[str, Any]], asked: dict[str, Cell], axes: dict[str, list[int]], base: Cell
) -> None:
    """Print and write what there is; name the cells that are missing."""
    report.table("growth", beside_the_floor(rows))
    report.table(
        "seconds = a size^exponent", [law(a, s, base, rows) for a, s in axes.items() if whole(a, s, base, rows)]
    )
    report.targets(targets(rows, report.options.threads))
    report.write()
    if missing := [name for name in asked if name not in rows]:
        print(f"\nnot measured yet: {', '.join(missing)}; --missing measures them")


def beside_the_floor(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """With the distance from the floor, at one rate for all cells: a busy machine only lowers it."""
    rate = max((row["GFLOP/s"] for row in rows.values()), default=0.0)
    for row in rows.values():
        row |= {"floor, s": round(row["floor, GFLOP"] / rate, 4)}
        row |= {"times the floor": round(row["ours"] * rate / row["floor, GFLOP"], 2)}
    return list(rows.values())


def kept(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{cell: row} of the result file, where only some cells are measured."""
    file = options.out / "bench_growth.json"
    if not (options.cells or options.missing) or not file.exists():
        return {}
    content = json.loads(file.read_text())
    if (threads := content["machine"]["threads"]) != options.threads:
        raise SystemExit(f"{file} was measured with {threads} threads; --threads {options.threads} wants another --out")
    return {row["cell"]: OLDER | {"ours": row["processor seconds"]} | row for row in content["growth"]}


def side(cell: Cell) -> int:
    """Pixels of a square picture that has so many tokens."""
    return PIXELS * math.isqrt(cell["image tokens"])


def of_cell(
    name: str, cell: Cell, spec: dict[str, Any], options: argparse.Namespace, *, beside: bool
) -> dict[str, Any]:
    """Our step, and where it is installed TRL's in turn with it."""
    who = ["ours", "TRL"] if beside and importlib.util.find_spec("trl") else ["ours"]
    with workers(STEPS_OF, {one: spec | {"kind": one} for one in who}, options.threads) as running:
        replies = at_once(running) if options.at_once else alternate(running, options.steps or 1)
        floor = running["ours"].ask("floor")
        ready = {one: worker.ready["peak_mib"] for one, worker in running.items()}
    taken = {one: {key: median(r[key] for r in replies[one]) for key in ("seconds", "cpu_seconds")} for one in who}
    peak = {one: max(r["peak_mib"] for r in replies[one]) for one in who}
    of, key = ("processor", "cpu_seconds") if options.threads == 1 else ("clock", "seconds")
    ours = taken["ours"][key]
    row: dict[str, Any] = {"cell": name, "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), **cell}
    row |= {"load": measuring.load()[:1], "seconds": round(taken["ours"]["seconds"], 3)}
    row |= {"processor seconds": round(taken["ours"]["cpu_seconds"], 3)}
    row |= {"rollout of the clock": round(replies["ours"][-1]["seconds/rollout"], 3)}
    row |= {"seconds of": of, "ours": round(ours, 3)}
    row |= {"floor, GFLOP": round(floor["floor"]["total"] / 1e9, 4), "GFLOP/s": round(floor["rate"] / 1e9, 1)}
    row |= {"MiB": round(peak["ours"]), "loaded": round(ready["ours"]), "planned, MiB": round(floor["planned"] / MIB)}
    if "TRL" in who:
        row |= {"TRL": round(taken["TRL"][key], 3), "TRL, MiB": round(peak["TRL"])}
        row |= {"TRL, loaded": round(ready["TRL"])}
        row |= {"times": round(taken["TRL"][key] / ours, 2), "share": round(peak["ours"] / peak["TRL"], 3)}
        after = {one: peak[one] - ready[one] for one in who}
        row |= {"share after loading": round(after["ours"] / after["TRL"], 3)}
    return row


def at_once(running: dict[str, Worker]) -> dict[str, list[dict[str, Any]]]:
    """A step of all, then another of ours: in its first it checks itself, and keeps no prefill yet."""
    for worker in running.values():
        worker.send("step")
    first = {one: [worker.reply()] for one, worker in running.items()}
    return first | {"ours": [running["ours"].ask("step")]}


def whole(axis: str, sizes: list[int], base: Cell, rows: dict[str, dict[str, Any]]) -> bool:
    return {"base" if size == base[axis] else f"{axis} {size}" for size in sizes} <= rows.keys()


def law(axis: str, sizes: list[int], base: Cell, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    along = [rows["base" if size == base[axis] else f"{axis} {size}"] for size in sizes]
    row: dict[str, Any] = {"axis": axis, "sizes": sizes, "from": sizes[0], "to": sizes[-1]}
    for what, key in (("exponent", "ours"), ("of the floor", "floor, GFLOP")):
        values = [one[key] for one in along]
        row[what] = round(exponent(sizes, values), 3)
        row[f"{what}, last two"] = round(exponent(sizes[-2:], values[-2:]), 3)
    a, b, explained = line(sizes, [one["ours"] for one in along])
    return row | {"a of a + b size": round(a, 4), "b": round(b, 6), "r squared": round(explained, 4)}


def targets(rows: dict[str, dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    wanted = WANTED if threads == 1 else WANTED_BY_MORE
    met = [target(f"{n}: times faster than TRL", w, rows[n]["times"]) for n, w in wanted.items() if _has(rows, n)]
    far = {n: rows[n]["times the floor"] for n in FLOOR if n in rows}
    met += [target(f"{n}: times the floor", FLOOR[n], found, at_most=True) for n, found in far.items()]
    if _has(rows, OF_SHARE):
        met.append(target(f"{OF_SHARE}: share of TRL's peak", SHARE, rows[OF_SHARE]["share"], at_most=True))
    off = [abs(row["planned, MiB"] / row["MiB"] - 1) for row in rows.values() if "planned, MiB" in row]
    if off:
        met.append(target("`mmrl plan`: worst share it is off a peak", PLANNED, round(max(off), 3), at_most=True))
    for name, wanted in CHECKPOINTED.items():
        if _has(rows, again := f"{name}{CHECKPOINTING}"):
            what = f"{again}: share of TRL's peak after loading"
            met.append(target(what, wanted, rows[again]["share after loading"], at_most=True))
    return met


def _has(rows: dict[str, dict[str, Any]], name: str) -> bool:
    return "times" in rows.get(name, {})


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_growth", __doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--ours", action="store_true", help="without TRL")
    parser.add_argument("--cells", nargs="+", help="these alone; the result file's others stay")
    parser.add_argument("--missing", action="store_true", help="only cells that the result file has not; others stay")
    parser.add_argument("--minutes", type=float, help="begin no cell later than this")
    parser.add_argument("--at-once", action="store_true", help="both sides at the same time, TRL's first step counts")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that run at all: for the tests")
    measure(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
