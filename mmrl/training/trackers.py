"""Where numbers and rollouts go besides `metrics.jsonl`: wandb and tensorboard, on request."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mmrl.errors import ConfigError
from mmrl.settings import Section
from mmrl.training.storage import write_atomically
from mmrl.training.tracking import JsonLines

TrackerName = Literal["wandb", "tensorboard"]
LONGEST_CELL = 2000
"""Characters of a prompt or an answer in a table."""
LONGEST_SIDE = 512
"""Pixels of a picture or clip as it is sent."""
MILLISECONDS = 125
"""A frame of a clip in tensorboard, which shows animated GIFs."""


class TrackerSpec(Section):
    """A tracker: `tracking: [wandb]`, or with names of one's own.

    project  of wandb; null: what WANDB_PROJECT says, or mmrl
    run      the run's name; null: what WANDB_NAME says, or the name of its folder
    entity   of wandb: the user or team; null: the one logged in
    tags     of wandb
    """

    name: TrackerName
    project: str | None = None
    run: str | None = None
    entity: str | None = None
    tags: list[str] = []


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, Any]) -> None: ...

    def show(self, step: int, folder: Path) -> None:
        """Rollouts of a step, as `run_log.save_rollouts` wrote them into the folder."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Completion:
    """A row of `rows.jsonl`, with the files beside it. reward: None where it is unscored."""

    prompt: str
    output: str
    reward: float | None
    components: dict[str, float | None]
    solution: str
    finish: str
    group: int
    images: list[Path]
    films: list[Path]
    sounds: list[Path]

    @property
    def score(self) -> str:
        return "unscored" if self.reward is None else f"{self.reward:.3f}"


def read_completions(folder: Path) -> list[Completion]:
    lines = (folder / "rows.jsonl").read_text().splitlines()

    def completion(row: dict[str, Any]) -> Completion:
        files: dict[str, Any] = {
            kind: [folder / name for name in row.get(kind, ())] for kind in ("images", "films", "sounds")
        }
        told = {k: row[k] for k in ("prompt", "reward", "components", "finish", "group")}
        solution = "" if row.get("solution") is None else str(row["solution"])
        return Completion(output=row["output"] or "", solution=solution, **told, **files)

    return [completion(json.loads(line)) for line in lines]


def kind_of(folder: Path) -> str:
    """`rollouts` of training, `held_out` of an evaluation."""
    return "held_out" if folder.name.startswith("eval-") else "rollouts"


class Tensorboard:
    """Scalars; completions as a table; pictures and clips, clips as GIFs; findings as text."""

    def __init__(self, folder: Path, spec: TrackerSpec, resumed_step: int = 0):
        """Steps past `resumed_step` are hidden: a resumed run writes them again."""
        from torch.utils.tensorboard import SummaryWriter

        purge = resumed_step + 1 if resumed_step else None
        under = folder / "tensorboard" / spec.run if spec.run else folder / "tensorboard"
        self.writer = SummaryWriter(str(under), purge_step=purge)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, step)
        if found := metrics.get("diagnosis"):
            self.writer.add_text("diagnosis", "\n\n".join(f"**{n}**: {said}" for n, said in found.items()), step)

    def show(self, step: int, folder: Path) -> None:
        completions, kind = read_completions(folder), kind_of(folder)
        self.writer.add_text(f"{kind}/completions", markdown_table(completions), step)
        for number, each in enumerate(completions):
            shown = [gif(film, each.images) for film in each.films] or [picture(p) for p in each.images]
            for encoded, width, height in shown:
                self._image(f"{kind}/{number:03d}_reward_{each.score}", encoded, width, height, step)
        self.writer.flush()

    def _image(self, tag: str, encoded: bytes, width: int, height: int, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def close(self) -> None:
        self.writer.close()


def markdown_table(completions: Sequence[Completion]) -> str:
    """What tensorboard renders; markup in texts is shown, never rendered."""

    def cell(text: str) -> str:
        cut = text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]} ... ({len(text):,} characters)"
        return html.escape(cut).replace("|", "&#124;").replace("\n", "<br>")

    lines = ["| group | prompt | answer | solution | reward | finish |", "| --- | --- | --- | --- | --- | --- |"]
    for c in completions:
        answer = c.output or ", ".join(p.name for p in (*c.films, *c.images[: 0 if c.films else None], *c.sounds))
        lines.append(f"| {c.group} | {cell(c.prompt)} | {cell(answer)} | {cell(c.solution)} | {c.score} | {c.finish} |")
    return "\n".join(lines)


def picture(path: Path) -> tuple[bytes, int, int]:
    """(PNG, width, height), no side longer than LONGEST_SIDE."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "png")
    return buffer.getvalue(), *small.size


def gif(film: Path, frames: Sequence[Path]) -> tuple[bytes, int, int]:
    """An animated GIF of the frames that were kept beside the film."""
    from PIL import Image

    opened = []
    for path in frames:
        with Image.open(path) as image:
            opened.append(image.convert("RGB"))
        opened[-1].thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    opened[0].save(buffer, "gif", save_all=True, append_images=opened[1:], duration=MILLISECONDS, loop=0)
    return buffer.getvalue(), *opened[0].size


class Wandb:
    """A run of the project that the configuration names, or WANDB_PROJECT, or `mmrl`; wandb reads its other variables
    itself."""

    def __init__(self, folder: Path, spec: TrackerSpec, config: dict[str, Any], resumed_step: int = 0):
        import wandb

        known = folder / "wandb" / "run_id"
        self.run = wandb.init(
            project=spec.project or os.environ.get("WANDB_PROJECT", "mmrl"), entity=spec.entity,
            name=spec.run or os.environ.get("WANDB_NAME", folder.name), tags=spec.tags or None,
            id=known.read_text() if resumed_step and known.exists() else None, resume="allow",
            dir=str(folder), config=config,
        )  # fmt: skip
        write_atomically(known, self.run.id)
        self.waiting: dict[str, Any] = {}

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """With the rollouts of this step, which wandb takes in the same call."""
        shown, self.waiting = self.waiting, {}
        self.run.log({**metrics, **shown}, step=step)

    def show(self, step: int, folder: Path) -> None:
        import wandb

        completions, kind = read_completions(folder), kind_of(folder)
        names = list(dict.fromkeys(n for c in completions for n in c.components))
        makers = {
            "films": lambda path, caption=None: wandb.Video(str(path), caption=caption, format="mp4"),
            "images": lambda path, caption=None: wandb.Image(str(path), caption=caption),
            "sounds": lambda path, caption=None: wandb.Audio(str(path), caption=caption),
        }
        kinds = [k for k in makers if any(getattr(c, k) for c in completions)]  # a column takes one kind of value
        table = wandb.Table(columns=["group", "prompt", "answer", *kinds, "solution", "reward", *names, "finish"])
        for c in completions:
            media = [makers[k](getattr(c, k)[0]) if getattr(c, k) else None for k in kinds]
            parts = [c.components.get(n) for n in names]
            table.add_data(c.group, c.prompt, c.output, *media, c.solution, c.reward, *parts, c.finish)
        self.waiting[f"{kind}/completions"] = table
        filmed, pictured = [c for c in completions if c.films], [c for c in completions if c.images and not c.films]
        for name, chosen in (("films", filmed), ("images", pictured)):
            if chosen:  # beside the table, which alone shows the media in it
                told = [f"{c.score}: {c.prompt}" for c in chosen]
                shown = [makers[name](getattr(c, name)[0], caption) for c, caption in zip(chosen, told, strict=True)]
                self.waiting[f"{kind}/{name}"] = shown

    def close(self) -> None:
        if self.waiting:  # of an evaluation before the first step
            self.run.log(self.waiting)
        self.run.finish()


def open_trackers(
    specs: Sequence[TrackerSpec], folder: Path, config: dict[str, Any], resumed_step: int
) -> list[Tracker]:
    trackers: list[Tracker] = [JsonLines(folder / "metrics.jsonl", resumed_step)]
    for spec in specs:
        try:
            if spec.name == "tensorboard":
                trackers.append(Tensorboard(folder, spec, resumed_step))
            else:
                trackers.append(Wandb(folder, spec, config, resumed_step))
        except ImportError as error:
            raise ConfigError(f"tracking: {spec.name} is not installed; pip install 'mmrl[tracking]'") from error
    return trackers
