"""The least a step can take on this machine: what has to be done once, at the rates its parts reach here by themselves.

`flops.step_floor` divides all operations by the rate of one large square product. Writing is not made of such products:
a step of it multiplies a few rows with every weight, and reads all keys and values written before. Here each part is
counted and timed alone, at the shapes of the growth table's cells (2 prompts x 8 responses, 256 image tokens), best of
many, one thread: no Python, norm, activation, softmax of logits, draw or optimizer is in it. Beside it stand ours and
TRL's seconds of `bench_growth.json`, and what a program without any other cost could be ahead of TRL.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.bench_vlm import MEMBERS, PROMPTS
from benchmarks.measuring import Report

ROWS, PROMPT, PATCHES = PROMPTS * MEMBERS, 282, 1024
PASS = 4
"""Responses that go through an update together."""
LENGTHS = (64, 256, 1024)


def best(work: Callable[[], Any], seconds: float) -> float:
    """Processor seconds of the fastest of the runs that fit in `seconds`, five at least."""
    found, until, runs = float("inf"), time.monotonic() + seconds, 0
    while runs < 5 or time.monotonic() < until:
        start = time.process_time()
        work()
        found, runs = min(found, time.process_time() - start), runs + 1
    return found


def config() -> Any:
    from benchmarks.models import HIDDEN, LAYERS, VISION_HIDDEN, VISION_LAYERS
    from mmrl.pipelines.bases.models import build_tiny_qwen2_5_vl, tiny_processor

    tokenizer = tiny_processor("qwen2_5_vl").tokenizer
    made = build_tiny_qwen2_5_vl(tokenizer, hidden=HIDDEN, layers=LAYERS, vision_hidden=VISION_HIDDEN).config
    made.vision_config.patch_size, made.vision_config.depth, made.vision_config.window_size = 14, VISION_LAYERS, 112
    made.vision_config.fullatt_block_indexes = [VISION_LAYERS - 1]
    return made


def weights(text: Any) -> list[tuple[int, int, int]]:
    """(how often, in, out) of each product of a token with the decoder and its head."""
    h, m, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    k = text.num_key_value_heads * (h // text.num_attention_heads)
    each = [(2 * layers, h, h), (2 * layers, h, k), (2 * layers, h, m), (layers, m, h)]
    return [*each, (1, h, text.vocab_size)]


def products(text: Any, rows: int, seconds: float, *, backward: bool) -> float:
    """Of `rows` tokens with all weights; with their gradients and the weights'."""
    import torch

    shapes = [(i, o) for count, i, o in weights(text) for _ in range(count)]
    made = [(torch.randn(rows, i), torch.randn(o, i), torch.randn(rows, o)) for i, o in shapes]

    def run() -> None:
        for x, w, g in made:
            _ = x @ w.T
            if backward:
                _, _ = g @ w, g.T @ x

    return best(run, seconds)


def reading(text: Any, tokens: int, seconds: float) -> float:
    """Of the keys and values of so many own tokens a row, all layers, once: a sum reads each number and no more."""
    import torch

    size = text.hidden_size // text.num_attention_heads
    kept = torch.randn(text.num_hidden_layers, 2, ROWS, text.num_key_value_heads, tokens, size)
    return best(kept.sum, seconds)


def attention(text: Any, new: int, seconds: float) -> float:
    """Of an update's pass over `PASS` responses, one layer, forward and backward: prompt and own tokens."""
    import torch

    from mmrl.policies.language.fast import cascade

    heads, keys = text.num_attention_heads, text.num_key_value_heads
    size = text.hidden_size // heads
    q, k, v = (torch.randn(1, h, PASS * new, size) for h in (heads, keys, keys))
    prompt = [torch.randn(1, keys, PROMPT, size) for _ in range(2)]
    own = [t.view(-1, PASS, new, size).transpose(0, 1) for t in (q, k, v)]

    def run() -> None:
        for (one, two, three), causal in (([q, *prompt], False), (own, True)):
            out, lse = cascade.kernel(one, two, three, causal, size**-0.5)
            cascade._kernel_backward(out, one, two, three, out, lse, causal, size**-0.5)

    return best(run, seconds)


def parts(shape: Any, new: int, seconds: float) -> dict[str, float]:
    from benchmarks.flops import Sizes, matmul_rate, step_floor

    text = shape.get_text_config()
    layers, passes = text.num_hidden_layers, ROWS / PASS
    once = step_floor(shape, Sizes(PROMPTS, MEMBERS, PROMPT, new, PATCHES), True)
    on_prompt = 4.0 * ROWS * new * PROMPT * text.hidden_size * layers
    rate = matmul_rate()
    return {
        "prompts and pictures": (once["vision"] + once["prompt"]) / rate,
        "writing: products": new * products(text, ROWS, seconds, backward=False),
        "writing: keys and values read": new * reading(text, max(new // 2, 1), seconds),
        "writing: attention to prompts": on_prompt / rate,
        "update: products": passes * products(text, PASS * new, seconds, backward=True),
        "update: attention": passes * layers * attention(text, new, seconds),
    }


def measure(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    report, rows, shape = Report("bench_floor", options), [], config()
    file = measuring.RESULTS / "bench_growth.json"
    cells = {c["cell"]: c for c in json.loads(Path(file).read_text())["growth"]} if file.exists() else {}
    for new in LENGTHS:
        found = parts(shape, new, options.seconds)
        total = sum(found.values())
        row = {"new tokens": new, **{name: round(value, 3) for name, value in found.items()}, "floor": round(total, 3)}
        cell = cells.get("base" if new == 64 else f"new tokens {new}", {})
        if "TRL" in cell:
            row |= {"ours": cell["processor seconds"], "TRL": cell["TRL"]}
            row |= {"times the floor": round(cell["processor seconds"] / total, 2)}
            row |= {"TRL / floor": round(cell["TRL"] / total, 2)}
        rows.append(row)
        report.keep("seconds", rows)
    report.table("seconds", rows)
    report.write()


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_floor", __doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each part that is timed")
    measure(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
