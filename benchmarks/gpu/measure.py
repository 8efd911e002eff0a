"""What one part reports: seconds a step, memory, FLOPs against what the card could do, and the kernels that took them.

Runs on CUDA and, for the tests, on the CPU, where kernels are operators and memory is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

GIB = 2**30
PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H20": 148e12, "H800": 989e12,
    "B200": 2250e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10G": 70e12,
    "A10": 125e12, "A6000": 155e12, "RTX 6000 Ada": 364e12, "RTX 5090": 210e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12, "T4": 65e12,
}  # fmt: skip
"""Dense bfloat16 (T4: float16) operations a second by the vendor's data sheets, the longer names first."""


def card(device: str) -> dict[str, Any]:
    """The device, and what a matrix product reaches on it."""
    reached = matrix_product_rate(device)
    if device == "cpu":
        return {"name": "cpu", "operations a second, measured": reached}
    found = torch.cuda.get_device_properties(device)
    known = {"name": found.name, "GiB": round(found.total_memory / GIB, 1)}
    known["capability"] = f"{found.major}.{found.minor}"
    return known | {"cuda": torch.version.cuda, "operations a second, measured": reached} | _sheet(found.name)


def _sheet(name: str) -> dict[str, Any]:
    known = next((peak for part, peak in PEAKS.items() if all(word in name for word in part.split())), None)
    return {} if known is None else {"operations a second, data sheet": known}


def peak_rate(found: Mapping[str, Any]) -> float:
    """What utilization is a share of: the data sheet's, or what a matrix product reached where none is known."""
    return found.get("operations a second, data sheet", found["operations a second, measured"])


def matrix_product_rate(device: str, repeats: int = 20) -> float:
    """Operations a second of a large bfloat16 product, the best of `repeats`; float32 and small on a CPU."""
    size, dtype = (512, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, best = torch.randn(size, size, device=device, dtype=dtype), 0.0
    for _ in range(repeats):
        settle(device)
        start = time.perf_counter()
        _ = a @ a
        settle(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def settle(device: str) -> None:
    """Wait for what was asked of the device."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def train_steps(
    trainer: Any, steps: int, device: str, warmed: Callable[[], None] = lambda: None
) -> dict[str, Any]:  # fmt: skip
    """One step to warm up, `steps` timed, one more under the profiler; `warmed` is called after the first."""
    _step(trainer)
    warmed()
    begun = _peak(device, reset=True)
    seconds, stages = [], []
    for _ in range(steps):
        settle(device)
        start = time.perf_counter()
        metrics = _step(trainer)
        settle(device)
        seconds.append(time.perf_counter() - start)
        stages.append({k.removeprefix("seconds/"): round(v, 4) for k, v in metrics.items() if k.startswith("seconds/")})
    measured: dict[str, Any] = {"seconds a step": median(seconds), "all seconds": [round(s, 4) for s in seconds]}
    measured |= {"stages": stages[-1], "peak GiB": _peak(device), "peak GiB, first step": begun}
    return measured | {"top kernels": top_kernels(lambda: _step(trainer), device)}


def _step(trainer: Any) -> dict[str, Any]:
    metrics = trainer.train_step()
    trainer.step += 1
    return metrics


def _peak(device: str, reset: bool = False) -> float | None:
    if device == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated(device) / GIB
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return round(peak, 2)


def top_kernels(work: Callable[[], Any], device: str, count: int = 5) -> list[dict[str, Any]]:
    """The `count` kernels (on a CPU: operators) that took most time of `work`, each with its share of all."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[kind]) as profiled:
        work()
        settle(device)
    name = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    events = [e for e in profiled.key_averages() if not (e.is_user_annotation or e.key.startswith("Optimizer."))]
    events.sort(key=lambda e: -getattr(e, name))
    total = sum(getattr(e, name) for e in events) or 1
    return [
        {"kernel": e.key[:120], "share": round(getattr(e, name) / total, 4), "calls": e.count}
        | {"milliseconds": round(getattr(e, name) / 1000, 3)}
        for e in events[:count]
    ]
