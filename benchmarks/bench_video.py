"""Reading video: a training step on 640x360 H.264 clips with and without the cache, and one clip from it.

The ratio of decoding to model time is that of EasyVideoR1 (arXiv 2604.16893): their step takes 194.5 s, 131.9 s with
cached frames, so decoding is 0.475 of the rest. It is set here by the length of the clips: 16 frames are read of
each, so a longer clip costs the model nothing. Our uncached step decodes once; theirs did so for each pass.
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
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.bench_vlm import one_step, prepare
from benchmarks.measuring import Channel, Report, alternate, ratio, summary, target, workers

MODULE = "benchmarks.bench_video"
WIDTH, HEIGHT, RATE = 640, 360, 30
PROMPTS, FRAMES = 2, 16
RATIO = (194.5 - 131.9) / 131.9
GAIN, READING = 1.47, 20


def write_clip(path: str, seconds: float) -> None:
    """A moving texture, encoded by x264 with its default distance between key frames."""
    import av
    import numpy as np

    texture = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8 + 64, WIDTH // 8 + 64, 3), np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH, HEIGHT, "yuv420p", 1
        for number in range(max(int(seconds * RATE), FRAMES)):
            left, top = 3 * number % 512, 2 * number % 512
            pixels = np.ascontiguousarray(texture[top : top + HEIGHT, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


# -- workers ----------------------------------------------------------------------------------------------------


def make_trainer(spec: dict[str, Any], cache: Any) -> Any:
    """Ours with TRL's objective, on `spec["clips"]`."""
    from functools import partial

    from benchmarks import models
    from mmrl.data.ahead import Ahead
    from mmrl.data.video import read_clip
    from mmrl.media import VideoSampling
    from mmrl.objective import Objective
    from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig
    from mmrl.recipes import load_recipe
    from mmrl.training.config import TrainingConfig
    from mmrl.training.trainer import Trainer

    frames = spec.get("frames", FRAMES)
    sampling = VideoSampling(fps=None, max_frames=frames, max_pixels=spec["pixels"], min_pixels=28 * 28)
    config = VideoPolicyConfig(model=spec["model"], max_new_tokens=spec["new"], sampling=sampling)
    policy = VideoPolicy.from_config(config, read_clip=read_clip if cache is None else partial(read_clip, cache=cache))
    count = spec.get("prompts", PROMPTS)
    rows = count * spec["members"]
    training = TrainingConfig(
        steps=1000, prompts_per_step=count, group_size=spec["members"], micro_batch_size=rows, save_rollouts=0
    )
    objective = Objective.of(load_recipe("trl").objective)
    prompts: Any = _prompts(spec["clips"])
    if spec["reading"] == "ahead":
        prompts = Ahead(prompts, 1, lambda clip: policy.read_clip(clip, policy.sampling))
    return Trainer(policy, objective, prompts, models.score, training, spec["folder"])


def _prompts(clips: list[str]) -> list[Any]:
    from mmrl.record import Prompt

    content = [{"type": "video"}, {"type": "text", "text": "What happens here?"}]
    return [Prompt(f"v{i}", [{"role": "user", "content": content}], [], [clip], {}) for i, clip in enumerate(clips)]


def run_step(spec: dict[str, Any], channel: Channel) -> None:
    """Steps that read from a full cache, decode anew, or find what the step before had decoded ahead."""
    from mmrl.data.cache import VideoCache
    from mmrl.data.video import read_clip

    cache = None if spec["reading"] == "decode" else VideoCache(f"{spec['folder']}/cache-{spec['reading']}")
    trainer = make_trainer(spec, cache)
    policy = trainer.policy
    if spec["reading"] == "cache":
        cache.build(spec["clips"], policy.sampling, workers=1)

    def step() -> dict[str, Any]:
        metrics = one_step(trainer)
        if spec["reading"] == "ahead":
            trainer.collector.prompts.wait()  # its time is this step's, not that of whoever is timed next
        return metrics

    def decode() -> dict[str, Any]:
        return {"each": [_timed(lambda: read_clip(spec["clips"][0], policy.sampling)) for _ in range(4)][1:]}

    channel.serve({"step": step, "decode": decode, "equal": lambda: _equal(trainer, spec["clips"][0])})


def _equal(trainer: Any, clip: str) -> dict[str, Any]:
    """Whether cached frames are those decoded now, bit for bit."""
    from mmrl.data.video import read_clip

    policy = trainer.policy
    stored, fresh = policy.read_clip(clip, policy.sampling), read_clip(clip, policy.sampling)
    return {"equal": bool((stored.pixels == fresh.pixels).all()) and stored.indices == fresh.indices}


def run_reading(spec: dict[str, Any], channel: Channel) -> None:
    """One clip: decoded; read for the first time in a process (checksum of every byte); mapped already."""
    from mmrl.data.cache import VideoCache
    from mmrl.data.video import read_clip
    from mmrl.media import VideoSampling

    sampling = VideoSampling(fps=None, max_frames=FRAMES, max_pixels=spec["pixels"], min_pixels=28 * 28)
    clip, folder = spec["clips"][0], f"{spec['folder']}/cache-reading"
    mapped = VideoCache(folder)
    read_clip(clip, sampling, cache=mapped)

    def step() -> dict[str, Any]:
        return {
            "decode": _timed(lambda: read_clip(clip, sampling).pixels.sum()),
            "first": _timed(lambda: read_clip(clip, sampling, cache=VideoCache(folder)).pixels.sum()),
            "again": _timed(lambda: read_clip(clip, sampling, cache=mapped).pixels.sum()),
        }

    channel.serve({"step": step})


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# -- what is compared -------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    small = options.quick or options.tiny
    steps = options.steps or (2 if small else 5)
    report = Report("bench_video", options)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), [])
        sizes = {"members": 2, "new": 4, "pixels": 56 * 56} if options.tiny else {"members": 8, "new": 64}
        base = {"folder": folder, "model": f"{folder}/model", "pixels": 64 * 32 * 32, **sizes}
        seconds = 1.0 if options.tiny else _clip_seconds(base, options.threads)
        base["clips"] = _clips(folder, seconds, PROMPTS * (steps + 3))
        steps_table(report, base, seconds, steps)
        reading_table(report, base, steps)
    report.write()


def _clip_seconds(base: dict[str, Any], threads: int, rounds: int = 4) -> float:
    """How long a clip must be for decoding to take `RATIO` of the model's time. A decoder skips between key frames,
    so its time is no straight line in the length: the length is corrected until it fits to 3 %."""
    length = 20.0
    for _ in range(rounds):
        clips = _clips(base["folder"], length, PROMPTS)
        specs = {
            "model": base | {"kind": "step", "reading": "cache", "clips": clips},
            "decoder": base | {"kind": "reading", "clips": clips},
        }
        with workers(MODULE, specs, threads) as running:
            replies = alternate(running, 5)
        model = median(r["seconds"] for r in replies["model"])
        decode = PROMPTS * median(r["decode"] for r in replies["decoder"])
        if abs(decode / model / RATIO - 1) < 0.03:
            break
        length = round(length * RATIO * model / decode, 1)
    return length


def _clips(folder: str, seconds: float, count: int) -> list[str]:
    """One clip encoded, the others copies of the file: different for the cache, equal work for the decoder."""
    first = f"{folder}/clip-{seconds}.mp4"
    code = "import sys; from benchmarks.bench_video import write_clip; write_clip(sys.argv[1], float(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, first, str(seconds)], check=True, capture_output=True)
    copies = [f"{folder}/clip-{seconds}-{i}.mp4" for i in range(1, count)]
    for copy in copies:
        shutil.copyfile(first, copy)
    return [first, *copies]


def steps_table(report: Report, base: dict[str, Any], seconds: float, steps: int) -> None:
    specs = {name: base | {"kind": "step", "reading": name} for name in ("cache", "decode", "ahead")}
    with workers(MODULE, specs, report.options.threads) as running:
        replies = alternate(running, steps)
        ready = {name: worker.ready for name, worker in running.items()}
        decode = median(running["decode"].ask("decode")["each"])
        equal = running["cache"].ask("equal")["equal"]
    rows = [{"reading": name, **summary(taken, ready[name])} for name, taken in replies.items()]
    for row in rows:
        compared = ratio(replies["decode"], replies[row["reading"]])
        row |= {"faster than decoding": compared["median"], "faster, range": compared["range"]}
    report.table("a step", rows)
    share = PROMPTS * decode / rows[0]["seconds"]
    setting = {"clip, s": seconds, "frames read": FRAMES, "decode a clip, s": round(decode, 4)}
    setting |= {"decoding / model": round(share, 3), "theirs": round(RATIO, 3), "cached frames equal": equal}
    report.table("setting", [setting])
    report.targets([target("cached over uncached video step", GAIN, rows[0]["faster than decoding"])])


def reading_table(report: Report, base: dict[str, Any], steps: int) -> None:
    with workers(MODULE, {"reading": base | {"kind": "reading"}}, report.options.threads) as running:
        replies = alternate(running, max(steps, 3))["reading"]
    milliseconds = {k: 1000 * median(r[k] for r in replies) for k in ("decode", "first", "again")}
    names = {"decode": "decode", "first": "cache, first time in a process", "again": "cache, mapped already"}
    rows = [
        {"clip read by": names[k], "ms": round(v, 3), "faster than decoding": round(milliseconds["decode"] / v, 1)}
        for k, v in milliseconds.items()
    ]
    report.table("one clip", rows)
    report.targets([target("reading a cached clip over decoding it", READING, rows[1]["faster than decoding"])])


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_video", __doc__)
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that run at all: for the tests")
    options = parser.parse_args(arguments)
    if options.worker:
        os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
        spec = json.loads(options.worker)
        {"step": run_step, "reading": run_reading}[spec["kind"]](spec, Channel())
    else:
        measure(options)


if __name__ == "__main__":
    main()
