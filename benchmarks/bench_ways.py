"""Ways to score a group, beside each other: the packed row, the packed row without kernels for the shared prompt, two
calls, and plain rows. One process, one policy, forward and backward of one group of 8 in turn, by lengths of prompt and
responses. What `shared_prompt: auto` takes (`mmrl.policies.language.layout`) follows these numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks import measuring
from benchmarks.bench_vlm import prepare
from benchmarks.measuring import Channel, Report, timer, workers

MODULE, PIXELS, MEMBERS = "benchmarks.bench_ways", 28, 8
SHAPES = [(64, 64), (1024, 64), (256, 256), (64, 1024), (1024, 512)]
"""(image tokens, new tokens)"""
WAYS = ("packed row", "packed row, prompt copied", "two calls", "plain rows")


def group(spec: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What a worker answers: `step`, processor seconds of each way; `equal`, how far they are from plain rows."""
    import torch

    from benchmarks import models
    from mmrl.policies.language.fast import cascade
    from mmrl.policies.language.layout import Way, lay_out
    from mmrl.policies.language.writing import given_rows

    policy = models.vlm_policy(spec["model"], spec["new"], train_vision=True)
    prompt = models.prompts(spec["pictures"][:1])[0]
    encoded = {prompt.id: policy.encode(prompt)}
    drawn = torch.Generator().manual_seed(0)
    length = spec["new"]
    ids = [torch.randint(300, 1200, (length,), generator=drawn) for _ in range(MEMBERS)]
    rows = given_rows(ids, [prompt] * MEMBERS, encoded, policy.processor.tokenizer, policy.device)
    ways = dict(zip(WAYS, (Way.PACKED, Way.PACKED, Way.TWO_CALLS, Way.PLAIN), strict=True))

    def once(name: str) -> tuple[Any, Any]:
        policy.module.zero_grad(set_to_none=True)
        kernels = cascade.DEVICES if name != WAYS[1] else frozenset()
        with mock.patch.object(cascade, "DEVICES", kernels):
            laid = lay_out(ways[name], rows.encoded, rows, policy.device, policy.family)
            log_probs = policy.module(laid, rows.actions, rows.mask)["log_probs"]
            weights = torch.sin(torch.arange(log_probs.numel()).view_as(log_probs).float())
            (weights * log_probs).sum().backward()
        return log_probs.detach(), torch.cat(
            [p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]
        )

    def step() -> dict[str, Any]:
        taken: dict[str, float] = {}
        for name in WAYS:
            timed = timer()
            once(name)
            taken[name] = timed()["cpu_seconds"]
        return {"taken": taken}

    def equal() -> dict[str, Any]:
        wanted, wanted_grad = once("plain rows")
        found = {name: once(name) for name in WAYS[:-1]}
        return {
            "log_probs": max(float((one - wanted).abs().max()) for one, _ in found.values()),
            "gradients": max(float((grad - wanted_grad).norm() / wanted_grad.norm()) for _, grad in found.values()),
        }

    return {"step": step, "equal": equal}


def measure(options: argparse.Namespace) -> None:
    report, rows = Report("bench_ways", options), []
    shapes = SHAPES[:2] if options.quick else SHAPES
    with tempfile.TemporaryDirectory() as folder:
        sides = {image: PIXELS * math.isqrt(image) for image, _ in shapes}
        pictures = prepare(Path(folder), sorted(set(sides.values())))
        for image, new in shapes:
            spec = {"model": f"{folder}/model", "pictures": pictures[sides[image]], "new": new}
            with workers(MODULE, {"ways": spec}, options.threads) as running:
                found = running["ways"].ask("equal")
                taken = [running["ways"].ask("step")["taken"] for _ in range(options.steps or 3)]
            row = {"image tokens": image, "new tokens": new}
            row |= {f"{name}, s": round(median(one[name] for one in taken), 4) for name in WAYS}
            rows.append(row | {"log-probs differ by": found["log_probs"], "gradients by": found["gradients"]})
            report.keep("processor seconds", rows)
    report.table("processor seconds", rows)
    report.write()


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_ways", __doc__)
    parser.set_defaults(threads=1)
    options = parser.parse_args(arguments)
    if options.worker:
        return Channel().serve(group(json.loads(options.worker)))
    return measure(options)


if __name__ == "__main__":
    main()
