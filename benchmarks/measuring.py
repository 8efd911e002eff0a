"""Timing by alternation: every variant lives in a process of its own, and they take steps in turn.

A loaded machine slows all variants alike, so ratios of neighbouring steps hold where seconds do not. A process of
its own gives each variant its own peak memory. The parent never imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("mmrl", "torch", "transformers", "trl", "diffusers", "peft", "accelerate", "numpy", "av", "decord")
MIB = 2**20


# -- the worker's side ------------------------------------------------------------------------------------------


class Channel:
    """What a worker hears and says. Its standard output is the channel; prints of libraries go to standard error."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> str | None:
        """The next request; None when there will be no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def reply(self, **values: Any) -> None:
        self._replies.write(json.dumps({**values, "peak_mib": peak_mib()}) + "\n")
        self._replies.flush()

    def serve(self, answers: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        """Announce readiness, then answer requests until there are no more. Each answer is timed."""
        self.reply()
        while (request := self.wait()) is not None:
            timed = timer()
            values = answers[request]()
            self.reply(**timed(), **values)


def timer() -> Callable[[], dict[str, float]]:
    """Seconds from now: of the clock, and of the processor (all threads; what a loaded machine changes least)."""
    start, start_cpu = time.perf_counter(), time.process_time()
    return lambda: {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}


def peak_mib() -> float:
    """Peak resident memory of this process. On Linux not `ru_maxrss`, which a child inherits from its parent."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        unit = MIB if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# -- the parent's side ------------------------------------------------------------------------------------------


class Worker:
    """One variant in a process of its own: `ask("step")` -> its reply. `ready`: what it said after loading.

    A `checkout` in its spec is the folder of another checkout of this project, whose code it runs.
    """

    def __init__(self, module: str, spec: Mapping[str, Any], threads: int):
        command = [sys.executable, "-m", module, "--worker", json.dumps(spec)]
        quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        folder = spec.get("checkout")
        if folder is not None:
            environment["PYTHONPATH"] = folder
        self.spec, self.errors = spec, tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, env=environment, cwd=folder, **pipes)
        self.ready: dict[str, Any] = {}

    def ask(self, request: str) -> dict[str, Any]:
        self.send(request)
        return self.reply()

    def send(self, request: str) -> None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.spec} ended with {self.process.returncode}:\n{self.errors.read()[-4000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


@contextmanager
def workers(module: str, specs: Mapping[str, Mapping[str, Any]], threads: int) -> Iterator[dict[str, Worker]]:
    """One worker a variant; all have loaded when the first is asked."""
    with ExitStack() as stack:
        started = {}
        for name, spec in specs.items():
            started[name] = Worker(module, spec, threads)
            stack.callback(started[name].close)
        for worker in started.values():
            worker.ready = worker.reply()
        yield started


def alternate(running: Mapping[str, Worker], steps: int, request: str = "step") -> dict[str, list[dict[str, Any]]]:
    """One untimed step each, then `steps` rounds in which every variant takes one."""
    for worker in running.values():
        worker.ask(request)
    replies: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for _ in range(steps):
        for name, worker in running.items():
            replies[name].append(worker.ask(request))
    return replies


def summary(replies: Sequence[Mapping[str, Any]], ready: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds a step (median and range), peak memory of the process, and what of it came after loading."""
    seconds = [r["seconds"] for r in replies]
    peak = max(r["peak_mib"] for r in replies)
    return {
        "seconds": round(median(seconds), 4),
        "range": [round(min(seconds), 4), round(max(seconds), 4)],
        "cpu_seconds": round(median(r["cpu_seconds"] for r in replies), 4),
        "peak_mib": round(peak, 1),
        "peak_mib_after_loading": round(peak - ready["peak_mib"], 1),
        "all_seconds": [round(s, 4) for s in seconds],
    }


def ratio(slow: Sequence[Mapping[str, Any]], fast: Sequence[Mapping[str, Any]], of: str = "seconds") -> dict[str, Any]:
    """Of neighbouring steps: median and range of slow / fast."""
    ratios = [s[of] / f[of] for s, f in zip(slow, fast, strict=True)]
    return {"median": round(median(ratios), 3), "range": [round(min(ratios), 3), round(max(ratios), 3)]}


def target(what: str, wanted: float, measured: float, *, at_most: bool = False) -> dict[str, Any]:
    met = measured <= wanted if at_most else measured >= wanted
    return {"what": what, "wanted": ("<= " if at_most else ">= ") + f"{wanted:g}", "measured": measured, "met": met}


def parser(name: str, about: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    made.add_argument("--steps", type=int, help="timed steps of each variant; default 3, or 1 with --quick")
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="OMP_NUM_THREADS of the workers")
    made.add_argument("--quick", action="store_true", help="small sizes, one step: a fast look")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


class Report:
    """Collects what a benchmark measured; prints tables and writes `FILE.json`, by default named like it."""

    def __init__(self, name: str, options: argparse.Namespace, file: str | None = None):
        self.file, self.options = file or name, options
        given = [a for a in sys.argv[1:] if not a.startswith("--out")]
        self.content: dict[str, Any] = {
            "benchmark": name,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": " ".join(["python -m benchmarks." + name, *given]),
            "machine": machine(options.threads),
            "versions": versions(),
            "targets": [],
        }

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows as a table and keep them under the title."""
        shown = [{k: _text(v) for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
        names = list(dict.fromkeys(name for row in shown for name in row))
        widths = {n: max(len(n), *(len(row.get(n, "")) for row in shown)) for n in names}
        print(f"\n{title}")
        print("  ".join(n.ljust(widths[n]) for n in names))
        for row in shown:
            print("  ".join(row.get(n, "").ljust(widths[n]) for n in names))
        sys.stdout.flush()
        self.keep(title, rows)

    def keep(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows to the file, unprinted."""
        self.content[title] = list(rows)
        self._save()

    def targets(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.content["targets"] += rows

    def write(self) -> None:
        """The end: how the targets fared."""
        if self.content["targets"]:
            self.table("targets", self.content["targets"])
        else:
            self._save()

    def _save(self) -> None:
        """Atomically, after every table: a benchmark that is stopped leaves what it had measured."""
        self.content["machine"]["load_at_end"] = load()
        self.options.out.mkdir(parents=True, exist_ok=True)
        path = self.options.out / f"{self.file}.json"
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(json.dumps(self.content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def load() -> list[float]:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def machine(threads: int) -> dict[str, Any]:
    """Cores, threads and load: what a reader needs to judge the seconds."""
    return {
        "cores": os.cpu_count(),
        "threads": threads,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_at_start": load(),
    }


def versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
