"""`make gpu`: everything that needs a GPU, in parts, each a process of its own with a time limit.

A part that fails or takes too long is named in the table and makes the exit code 1; what the others measured stands
all the same, in `benchmarks/results/gpu/` after each part. No network is used. `--device cpu --size tiny` runs the same
code on narrow models, for the tests: its seconds mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import measuring

RESULTS = measuring.RESULTS / "gpu"
LIMIT = 1450
"""Seconds for all parts: a table and its results are written inside 25 minutes whatever hangs."""
CPU_LIMIT = 600
"""Seconds for each part on a CPU, which other work may share."""
LAST_WORDS = 2000
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
LESS_FRAGMENTED = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@dataclass(frozen=True)
class Part:
    """One process. `seconds` it may take; `kind` and `arguments` say what `work` does in it."""

    name: str
    seconds: int
    kind: str
    arguments: tuple[str, ...] = ()


PARTS = (
    Part("card", 60, "card"),
    Part("tests", 180, "tests"),
    Part("engine", 240, "engine"),
    Part("Qwen2.5-VL-3B, images, LoRA", 130, "language", ("images", "lora")),
    Part("Qwen2.5-VL-3B, images, LoRA, TRL", 150, "trl", ("lora",)),
    Part("Qwen2.5-VL-3B, images, full", 130, "language", ("images", "full")),
    Part("Qwen2.5-VL-3B, clips, LoRA", 150, "language", ("clips", "lora")),
    Part("Qwen2.5-VL-3B, clips, full", 150, "language", ("clips", "full")),
    Part("SD3.5 medium, images", 120, "flow", ("sd3",)),
    Part("Wan 1.3B, clips", 140, "flow", ("wan",)),
)
"""In the order they run. TRL's trainer takes no clips, and has no loss for flow matching."""
SHOWN = (
    "part", "state", "rows", "seconds a step", "tokens a second", "new tokens a second", "images a second",
    "clips a second", "utilization", "peak GiB", "note",
)  # fmt: skip


# -- a part, in its own process ---------------------------------------------------------------------------------


def work(part: Part, device: str, size: str, steps: int, folder: Path) -> dict[str, Any]:
    """What the part measured."""
    import mmrl  # noqa: F401  (before the model libraries)
    from benchmarks.gpu import generation, language, measure

    if part.kind == "card":
        return {"card": measure.card(device)}
    if part.kind == "language":
        return language.run(*part.arguments, size, device, steps, folder)
    if part.kind == "trl":
        return language.run_trl(*part.arguments, size, device, steps, folder)
    return generation.run(*part.arguments, size, device, steps, folder)


def command_of(part: Part, options: argparse.Namespace, result: Path) -> list[str] | str:
    """What runs the part, or why it cannot."""
    if part.kind == "tests":
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    package = {"engine": "vllm", "trl": "trl"}.get(part.kind)
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed"
    if part.kind == "engine":
        asked = ["engine=vllm", "training.steps=3", "training.check_every=1", "data.eval=null"]
        return [sys.executable, "-m", "mmrl", "train", "vlm", "demo", *asked, f"run_dir={run_of(result)}"]
    given = ["--device", options.device, "--size", options.size, "--steps", str(options.steps)]
    return [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, "--result", str(result), *given]


def run_of(result: Path) -> Path:
    """Where the engine's part trains."""
    return result.with_suffix(".run")


def gap_note(run: Path) -> str:
    """What its checks of engine against trainer found."""
    gaps = [json.loads(line).get("engine/gap_max") for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [gap for gap in gaps if gap is not None]
    return f"{len(found)} checks, worst gap {max(found):.1e}"


# -- all parts --------------------------------------------------------------------------------------------------


def run_part(part: Part, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """The part's row: done with its numbers, failed or too slow with its last words, or left out with the reason."""
    row: dict[str, Any] = {"part": part.name}
    if left <= 0 and options.device == "cuda":
        return row | {"state": "failed", "note": f"no time left of {LIMIT} s"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = command_of(part, options, result)
        if isinstance(command, str):
            return row | {"state": "left out", "note": command}
        start, limit = time.perf_counter(), min(part.seconds, left) if options.device == "cuda" else CPU_LIMIT
        code, said = _run(command, options.device, limit)
        row |= {"state": "done" if code == 0 else "failed", "seconds": round(time.perf_counter() - start, 1)}
        if code != 0:
            what = f"took more than {limit:.0f} s" if code is None else f"exit code {code}"
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
            return row | {"note": f"{what}: {last[:160]}", "last words": said[-LAST_WORDS:]}
        if result.exists():
            return row | json.loads(result.read_text())
        if part.kind == "engine":
            return row | {"note": gap_note(run_of(result))}
        return row | {"note": next((line for line in reversed(said.splitlines()) if line.strip()), "")[:160]}


def _run(command: list[str], device: str, seconds: float) -> tuple[int | None, str]:
    """Exit code, None past the time; and what was said. What the part started ends with it."""
    environment = {**os.environ, **QUIET, **LESS_FRAGMENTED, "MMRL_GPU_TESTS": device}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}  # vLLM would compile for minutes
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        said.seek(0)
        return code, said.read()


def with_utilization(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with the share of the card's rate that their model FLOPs took."""
    from benchmarks.gpu.measure import peak_rate

    found = next((r["card"] for r in rows if "card" in r), None)
    for row in rows:
        if found is not None and "FLOPs a second" in row:
            row = row | {"utilization": round(row["FLOPs a second"] / peak_rate(found), 4)}
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text, with the columns that any of them has."""
    rows = [{k: _shown(v) for k, v in row.items()} for row in with_utilization(rows)]
    names = [n for n in SHOWN if any(row.get(n) for row in rows)]
    widths = {n: max(len(n), *(len(row.get(n, "")) for row in rows)) for n in names}
    lines = [names, *([row.get(n, "") for n in names] for row in rows)]
    return "\n".join("  ".join(c.ljust(widths[n]) for n, c in zip(names, line, strict=True)).rstrip() for line in lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_all(parts: tuple[Part, ...], options: argparse.Namespace, write: Callable[[list[dict[str, Any]]], None]) -> int:
    """Run the parts one after another, tell of each as it ends; 0 if none failed."""
    begun, rows = time.monotonic(), []
    with ThreadPoolExecutor(1 if options.device == "cuda" else 2) as pool:  # a GPU is one part's at a time
        for row in pool.map(lambda part: run_part(part, options, LIMIT - (time.monotonic() - begun)), parts):
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
            write(rows)
    print(f"\n{table(rows)}")
    for row in rows:
        for kernel in row.get("top kernels", ()):
            print(f"{row['part']}: {kernel['share']:6.1%} {kernel['milliseconds']:10.1f} ms  {kernel['kernel'][:90]}")
    failed = [row["part"] for row in rows if row["state"] == "failed"]
    print(f"\nfailed: {'; '.join(failed)}" if failed else "\nnothing failed")
    return 1 if failed else 0


def writer(options: argparse.Namespace) -> Callable[[list[dict[str, Any]]], None]:
    """Writes what is known so far to `OUT/SIZE-CARD.json`, whole."""
    content: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"make gpu DEVICE={options.device} SIZE={options.size}",
        "machine": measuring.machine(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))),
        "versions": measuring.versions(),
    }

    def write(rows: list[dict[str, Any]]) -> None:
        rows = list(with_utilization(rows))
        card = next((r["card"]["name"] for r in rows if "card" in r), options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.size}-{card.replace(' ', '-').lower()}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content | {"parts": rows}, indent=1) + "\n")
        os.replace(temporary, path)

    return write


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--size", choices=["full", "tiny"], default="full", help="published sizes, or narrow models")
    made.add_argument("--steps", type=int, help="timed steps of each part, after one to warm up; 3, of tiny ones 1")
    made.add_argument("--only", action="append", help="parts whose name holds this text; may be given again")
    made.add_argument("--out", type=Path, help="folder of the result file")
    made.add_argument("--part", help=argparse.SUPPRESS)
    made.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.steps = options.steps or {"full": 3, "tiny": 1}[options.size]
    if options.part:
        return _in_process(options)
    if options.device == "cuda" and shutil.which("nvidia-smi") is None:
        print("make gpu: no NVIDIA driver here; DEVICE=cpu SIZE=tiny runs the same code on narrow models")
        return 2
    options.out = options.out or (RESULTS if options.device == "cuda" else Path(tempfile.gettempdir(), "mmrl-gpu"))
    chosen = tuple(p for p in PARTS if not options.only or any(o in p.name for o in options.only))
    if not chosen:
        print(f"make gpu: no part's name holds {' or '.join(options.only)}; parts: {', '.join(p.name for p in PARTS)}")
        return 2
    return run_all(chosen, options, writer(options))


def _in_process(options: argparse.Namespace) -> int:
    part = next(p for p in PARTS if p.name == options.part)
    with tempfile.TemporaryDirectory() as folder:
        measured = work(part, options.device, options.size, options.steps, Path(folder))
    options.result.write_text(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
