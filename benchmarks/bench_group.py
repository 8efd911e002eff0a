"""What one more rollout in a group costs: the time of a step as a + b G, at 1,024 image tokens and 64 new tokens.

`b` should be the cost of response tokens alone: prompt and picture are in `a`. So it is compared with the `b` of the
same step without any picture, where nothing but response tokens grows, and with plain rows, where all of it does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.bench_vlm import NEW, make_trainer, one_step, prepare
from benchmarks.measuring import Channel, Report, workers

MODULE = "benchmarks.bench_group"
VARIANTS = {
    "shared prompt": {"picture": True, "options": {}},
    "no picture": {"picture": False, "options": {}},
    "plain rows": {"picture": True, "options": {"shared_prompt": "off"}},
}


def run(spec: dict[str, Any], channel: Channel) -> None:
    trainers = {str(g): make_trainer({**spec, "members": g}) for g in spec["sizes"]}
    steps = {name: lambda trainer=trainer: one_step(trainer) for name, trainer in trainers.items()}
    channel.serve({**steps, "tokens": lambda: _tokens(next(iter(trainers.values())), spec)})


def _tokens(trainer: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Length of the prompt, and the FLOPs a response needs after it: decoded, then forward and backward."""
    from benchmarks.flops import response_forward

    length = len(trainer.policy.encode(trainer.collector.prompts[0]))
    text = trainer.policy.inner.core.config.get_text_config()
    return {"prompt": length, "response_gflop": 4 * response_forward(text, length, spec["new"]) / 1e9}


def line(sizes: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """Least squares of seconds = a + b G: (a, b, share of variance explained)."""
    mean_x, mean_y = sum(sizes) / len(sizes), sum(seconds) / len(seconds)
    spread = sum((x - mean_x) ** 2 for x in sizes)
    b = sum((x - mean_x) * (y - mean_y) for x, y in zip(sizes, seconds, strict=True)) / spread
    a = mean_y - b * mean_x
    rest = sum((y - a - b * x) ** 2 for x, y in zip(sizes, seconds, strict=True))
    total = sum((y - mean_y) ** 2 for y in seconds)
    return a, b, 1 - rest / total if total else 1.0


def measure(options: argparse.Namespace) -> None:
    small = options.quick or options.tiny
    steps = options.steps or (1 if small else 3)
    sizes = [2, 4] if options.tiny else [4, 8, 16, 32]
    side, new = (56, 4) if options.tiny else (448 if options.quick else 896, NEW)
    report = Report("bench_group", options)
    with tempfile.TemporaryDirectory() as folder:
        picture = prepare(Path(folder), [side])[side][0]
        base = {"folder": folder, "model": f"{folder}/model", "new": new, "prompts": 1, "checkpointing": False}
        base |= {"train_vision": True}
        specs = {}
        for name, variant in VARIANTS.items():
            asked = sizes[:2] if name == "plain rows" else sizes  # plain rows of 32 would take minutes
            pictures = [picture if variant["picture"] else None]
            specs[name] = base | {"sizes": asked, "pictures": pictures, "options": variant["options"]}
        with workers(MODULE, specs, options.threads) as running:
            replies: dict[tuple[str, int], list[dict[str, Any]]] = {}
            for turn in range(steps + 1):
                for name, worker in running.items():
                    for g in specs[name]["sizes"]:
                        reply = worker.ask(str(g))
                        if turn:  # the first is a warm-up
                            replies.setdefault((name, g), []).append(reply)
            tokens = {name: worker.ask("tokens") for name, worker in running.items()}
    report.table("seconds a step", _times(specs, replies))
    report.table("seconds = a + b G", _fits(specs, replies, tokens))
    report.write()


def _times(specs: dict, replies: dict) -> list[dict[str, Any]]:
    rows = []
    for (name, g), taken in replies.items():
        seconds = [r["seconds"] for r in taken]
        row = {"variant": name, "G": g, "seconds": round(median(seconds), 4), "range": [min(seconds), max(seconds)]}
        rows.append(row | {"processor seconds": round(median(r["cpu_seconds"] for r in taken), 4)})
    return rows


def _fits(specs: dict, replies: dict, tokens: dict) -> list[dict[str, Any]]:
    """Of processor seconds: a loaded machine moves them least, and with one thread both agree on an idle one."""
    rows = []
    for name, spec in specs.items():
        of_size = [median(r["cpu_seconds"] for r in replies[name, g]) for g in spec["sizes"]]
        a, b, explained = line(spec["sizes"], of_size)
        row = {"variant": name, "prompt tokens": tokens[name]["prompt"], "a": round(a, 4), "b": round(b, 4)}
        row |= {"r squared": round(explained, 4), "response, GFLOP": round(tokens[name]["response_gflop"], 3)}
        rows.append(row)
    alone = rows[list(specs).index("no picture")]
    for row in rows:
        row["b / b without picture"] = round(row["b"] / alone["b"], 3)
        row["the same in FLOPs"] = round(row["response, GFLOP"] / alone["response, GFLOP"], 3)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_group", __doc__)
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that run at all: for the tests")
    options = parser.parse_args(arguments)
    if options.worker:
        run(json.loads(options.worker), Channel())
    else:
        measure(options)


if __name__ == "__main__":
    main()
