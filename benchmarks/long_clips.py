"""A step on long clips, 64 frames of 640 x 360: cached, and decoded in the step; and what the record holds of them.

    python -m benchmarks.long_clips --threads 1
    python -m benchmarks.long_clips --threads 1 --full     # frames as large as they are, a prompt and 2 responses

Both kinds of step take turns in one process with one model, and clips are decoded in that process, so that the
processor seconds are all there are. A step cannot gain more from the cache than what decoding takes beside the model:
`most` is 1 + decoding / cached step. `--tokens` are those of a pair of frames after the reader has resized them; with
`--full` none are resized (to whole tokens alone), which makes some 9,600 tokens of a clip.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import bench_video, measuring
from benchmarks.bench_vlm import one_step, prepare
from benchmarks.measuring import Channel, Report, alternate, workers

MODULE = "benchmarks.long_clips"
FRAMES, SECONDS, TOKENS = 64, 12.0, 32
FULL = 23 * 13
"""Tokens of a pair of frames of 640 x 360."""
SIDE = 28
"""Pixels of a token: patches of 14, two by two."""


# -- the worker -------------------------------------------------------------------------------------------------


def answers(spec: dict[str, Any]) -> dict[str, Any]:
    """`step`: one of each kind, in processor seconds. `record`: see `recorded`."""
    from mmrl.data.cache import VideoCache
    from mmrl.data.video import read_clip

    cache = VideoCache(f"{spec['folder']}/cache")
    trainer = bench_video.make_trainer(spec | {"reading": "cache"}, cache)
    policy = trainer.policy
    cache.build(spec["clips"], policy.sampling, workers=1, isolate=False)
    clock = {"decoding": 0.0}

    def decoded(clip: Any, sampling: Any) -> Any:
        start = time.process_time()
        frames = read_clip(clip, sampling, isolate=False)
        clock["decoding"] += time.process_time() - start
        return frames

    ways = {"cached": partial(read_clip, cache=cache), "decoding": decoded}

    def step() -> dict[str, Any]:
        taken = {}
        for name, reader in ways.items():
            policy.read_clip, clock["decoding"] = reader, 0.0
            start = time.process_time()
            one_step(trainer)
            taken[name] = time.process_time() - start
        return taken | {"reading": clock["decoding"]}

    return {"step": step, "record": lambda: recorded(trainer, spec["members"])}


def recorded(trainer: Any, members: int) -> dict[str, Any]:
    """Bytes of pixels in the record of a group of one, and of one of `members`; the tokens of the clip."""
    from mmrl.randomness import Key
    from mmrl.record import Request

    prompt, held = trainer.collector.prompts[0], {}
    for count in (1, members):
        rollouts = trainer.policy.rollout([Request(prompt, count, group=0)], Key(0))
        held[count] = sum(t.nbytes for entry in rollouts.encoded for t in entry.media.values())
        tokens = len(rollouts.encoded[0].ids)
    return {"one": held[1], "all": held[members], "prompt tokens": tokens}


# -- what is compared -------------------------------------------------------------------------------------------


def measure(options: Any) -> None:
    small, steps = options.tiny or options.quick, options.steps or 3
    frames, seconds, members = (4, 1.0, 2) if options.tiny else (FRAMES, SECONDS, 2 if options.full else 8)
    report = Report("long_clips", options, "bench_full_clips" if options.full else "bench_long_clips")
    prompts, tokens = (1, FULL) if options.full else (bench_video.PROMPTS, options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), [])
        pixels = (4 if options.tiny else tokens) * SIDE * SIDE
        spec = {
            "folder": folder, "model": f"{folder}/model", "pixels": pixels, "frames": frames, "members": members,
            "new": 4 if small else 64, "prompts": prompts,
            "clips": bench_video._clips(folder, seconds, prompts * (steps + 2)),
        }  # fmt: skip
        with workers(MODULE, {"steps": spec}, options.threads) as running:
            replies = alternate(running, steps)["steps"]
            record = running["steps"].ask("record")
    gains = [reply["decoding"] / reply["cached"] for reply in replies]
    report.table("a step of long clips", [{
        "clip": f"{frames} frames of {seconds:g} s, {bench_video.WIDTH} x {bench_video.HEIGHT}",
        "prompt tokens": record["prompt tokens"],
        "cached, s": round(median(r["cached"] for r in replies), 3),
        "decoding in the step, s": round(median(r["decoding"] for r in replies), 3),
        "of which reading, s": round(median(r["reading"] for r in replies), 3),
        "times faster": round(median(gains), 3), "range": [round(min(gains), 3), round(max(gains), 3)],
        "most": round(median(1 + r["reading"] / r["cached"] for r in replies), 3),
        "pixels in the record, MB": round(record["all"] / 1e6, 2),
        f"group of {members} / of 1": round(record["all"] / record["one"], 3),
    }])  # fmt: skip
    report.write()


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("long_clips", __doc__)
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"tokens of a pair of frames; default {TOKENS}")
    parser.add_argument("--full", action="store_true", help="frames of full size, one prompt, 2 responses")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that run at all: for the tests")
    options = parser.parse_args(arguments)
    if options.worker:
        os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
        Channel().serve(answers(json.loads(options.worker)))
    else:
        measure(options)


if __name__ == "__main__":
    main()
