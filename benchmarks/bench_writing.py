"""Writing answers token by token: a step's milliseconds by how many tokens rows have, each way in turn in one process.

The growth table's model, 2 prompts of 256 image tokens x 8 responses, end tokens suppressed, the same draws. `modules`
goes through the model's own modules, `kernels` writes steps out in PyTorch's kernels (`fast/lean.py`), `native` is one
call of C (`fast/native.py`). Processor time; a step is advancing all rows by a token, the loop around it draws the
token and keeps count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.bench_vlm import MEMBERS, PROMPTS, prepare
from benchmarks.measuring import Report

WAYS = ("modules", "kernels", "native")
AT, AROUND = (32, 128, 256, 512, 1000), 16
"""Own tokens at which a step is told: the median of as many before and behind."""
SIDE = 448


class Writing:
    """Decoding of one batch, whichever way."""

    def __init__(self, folder: Path, pictures: list[str], new: int):
        import torch

        from benchmarks import models
        from mmrl.policies.language import sampling
        from mmrl.randomness import Key

        self.policy = models.vlm_policy(folder / "model", new)
        self.contexts = [self.policy.encode(p) for p in models.prompts(pictures)[:PROMPTS]]
        self.context = torch.arange(PROMPTS).repeat_interleave(MEMBERS)
        self.uniforms = Key(0).uniform(len(self.context), new).double()
        self.budget = torch.full((len(self.context),), new)
        self.steps: list[float] = []
        advance = sampling.SharedCache.advance

        def timed(state: Any, tokens: Any) -> None:
            began = time.process_time()
            advance(state, tokens)
            self.steps.append(time.process_time() - began)

        sampling.SharedCache.advance = timed  # type: ignore[method-assign]

    def once(self, way: str) -> tuple[Any, float]:
        """What is written, and its processor seconds; `steps` are those of its steps."""
        from mmrl.policies.language.sampling import decode

        policy, self.steps = self.policy, []
        policy.inner.native_steps, leans = way == "native", policy.inner.leans
        if way == "modules":
            policy.inner.leans = False
        try:
            with policy.acting():
                began = time.process_time()
                given = (self.contexts, self.context, self.uniforms, self.budget, policy.stopping)
                return decode(policy.inner, *given), time.process_time() - began
        finally:
            policy.inner.leans = leans


def measure(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(options.threads)
    new, rounds = (32, 1) if options.quick else (options.new, options.steps or 2)
    report = Report("bench_writing", options)
    with tempfile.TemporaryDirectory() as folder:
        writing = Writing(Path(folder), prepare(Path(folder), [SIDE])[SIDE], new)
        writing.once("native")  # the first compares ways, and compiles
        if (reason := writing.policy.inner.not_native) is not None:
            raise SystemExit(f"no steps in C here: {reason}")
        taken: dict[str, list[Any]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                made, seconds = writing.once(way)
                taken[way].append((made, seconds, list(writing.steps)))
    report.table("a step", [row(way, found, taken) for way, found in taken.items()])
    report.write()


def row(way: str, found: list[Any], taken: dict[str, list[Any]]) -> dict[str, Any]:
    seconds, reference = [median(s for _, s, _ in taken[one]) for one in (WAYS[0], way)], taken[WAYS[0]][0][0]
    told: dict[str, Any] = {"way": way, "rollout, s": round(seconds[1], 3), "times": round(seconds[0] / seconds[1], 2)}
    for at in AT:
        near = [1000 * step for _, _, steps in found for step in steps[max(at - AROUND, 0) : at + AROUND]]
        if at <= len(found[0][2]):
            told[f"ms at {at}"] = round(median(near), 2)
    steps = [sum(each) for _, _, each in found]
    told["around, ms"] = round(1000 * (seconds[1] - median(steps)) / len(found[0][2]), 2)
    same = (found[0][0].tokens == reference.tokens).long().cumprod(1).bool()
    told["log-probs differ by"] = float(((found[0][0].log_probs - reference.log_probs).abs() * same).max())
    return told | {"rows with other tokens": int((~same[:, -1]).sum())}


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_writing", __doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--new", type=int, default=1024, help="tokens of a response")
    measure(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
