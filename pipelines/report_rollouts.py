"""The rollouts of a run as its report shows them: groups, members, credit, and small pictures of large ones."""

from __future__ import annotations

import base64
import io
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError, MMRLError
from mmrl.media import VideoSampling
from mmrl.pipelines import palette
from mmrl.rollout.origins import PROMPT
from mmrl.shown import tell

NAMES = re.compile(r"(step|eval)-\d+")
SHOWN_FRAMES = 6
"""Of a prompt's clip; they play as a flip-book."""
LARGEST_SIDE = 320
"""Pixels of a picture inside the page; a click shows the file."""
LARGEST_FILM = 2**19
"""Bytes of a generated video that plays from inside the page; a larger one plays from its file."""


def inside(run: Path, path: Path) -> Path:
    """`path`, which must not lead out of the run, through links neither. Raises ConfigError."""
    if not path.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{path} leads outside the run; it is not read")
    return path


def saved_folders(run: Path) -> list[Path]:
    """`rollouts/step-N` and `rollouts/eval-N` that are whole, by step, an evaluation behind its step."""
    found = (run / "rollouts").glob("*-*")
    whole = [p for p in found if NAMES.fullmatch(p.name) and (p / "rows.jsonl").is_file()]
    return sorted(whole, key=lambda p: (int(p.name.partition("-")[2]), p.name.startswith("eval")))


def title_of(folder: Path) -> str:
    kind, _, number = folder.name.partition("-")
    return f"{'Held-out prompts after' if kind == 'eval' else 'Rollouts of'} step {int(number)}"


def read_groups(folder: Path) -> list[list[dict[str, Any]]]:
    """Rows by group, the best first; each action with its `share` of the folder's largest credit, in percent."""
    rows = [json.loads(line) for line in inside(folder, folder / "rows.jsonl").read_text().splitlines()]
    largest = max((abs(a.get("credit") or 0.0) for row in rows for a in row["actions"]), default=0.0)
    for row in rows:
        row["components"] = unprefixed(row["components"])
        for action in row["actions"]:
            credit = action.get("credit") or 0.0
            action["share"] = round(100 * credit / largest, 1) if largest else 0.0

    def worth(row: dict[str, Any]) -> float:
        return -(row["reward"] if row["reward"] is not None else float("inf"))

    by_group = groupby(sorted(rows, key=lambda r: r["group"]), key=lambda r: r["group"])
    return [sorted(members, key=worth) for _, members in by_group]


def section(run: Path, folder: Path, *, clips: bool) -> dict[str, Any] | None:
    """What the page shows of a folder, plain data. None, and a line that says so, where no whole run wrote it.

    clips  whether frames of the data set's clips, which lie outside the run, may be read
    """
    from PIL import Image

    refusals = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, SyntaxError, MMRLError)
    try:
        inside(run, folder)
        groups = [_group(folder, members, clips) for members in read_groups(folder)]
        json.dumps(groups, allow_nan=False)  # what a browser could not read would take the whole page along
    except (*refusals, Image.DecompressionBombError) as error:
        tell(f"{folder} is left out: {type(error).__name__}: {error}")
        return None
    return {"name": folder.name, "title": title_of(folder), "credit": folder.name.startswith("step"), "groups": groups}


def _group(folder: Path, members: list[dict[str, Any]], clips: bool) -> dict[str, Any]:
    first = members[0]
    frames = [frame for path in first["videos"] if clips for frame in clip_frames(path)]
    return {
        "prompt": str(first["prompt"]),
        "id": str(first.get("prompt_id", "")),
        "solution": None if first["solution"] is None else str(first["solution"]),
        "media": [_picture(folder, name) for name in first["media"]],
        "clips": [str(path) for path in first["videos"]],
        "frames": [small_uri(frame) for frame in frames],
        "members": [_member(folder, row) for row in members],
    }


def _member(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    films = [_film(folder, name) for name in row.get("films", [])]
    return {
        "reward": None if row["reward"] is None else float(row["reward"]),
        "components": row["components"],
        "finish": row.get("finish"),
        "length": row.get("length"),
        "origin": _origin(row),
        "output": row.get("output"),
        "said": row.get("said"),
        "actions": [[a["label"], a.get("log_prob"), a.get("credit"), a["share"]] for a in row["actions"]],
        "images": [_picture(folder, name) for name in row.get("images", [])],
        "films": films,
        "sounds": [_embedded(folder, name, "audio/wav") for name in row.get("sounds", [])],
    }


def _origin(row: dict[str, Any]) -> str:
    """Where a row comes from, in words; "" for the policy's own under its prompt."""
    if row.get("source", "policy") == "policy" and row.get("saw", PROMPT) == PROMPT:
        return ""
    saw = "" if row.get("saw") == PROMPT else f" that saw {row.get('saw')}"
    return f"{row.get('source')}{saw}; a ratio divides by {row.get('divisor')}"


def _picture(folder: Path, name: str) -> dict[str, Any]:
    """A small picture to show, the file to open, and the size of that."""
    from PIL import Image

    with Image.open(_own(folder, name)) as image:
        return {"small": small_uri(image), "file": f"rollouts/{folder.name}/{name}", "size": list(image.size)}


def _film(folder: Path, name: str) -> dict[str, Any]:
    path = _own(folder, name)
    played = _embedded(folder, name, "video/mp4") if path.stat().st_size <= LARGEST_FILM else None
    return {"played": played, "file": f"rollouts/{folder.name}/{name}"}


def clip_frames(clip: Any, count: int = SHOWN_FRAMES) -> list[Any]:
    """`count` evenly spread frames of a clip, as PIL images; none when the file is gone."""
    if not Path(getattr(clip, "path", clip)).exists():
        return []
    from PIL import Image

    from mmrl.data.video import read_clip

    sampling = VideoSampling(fps=None, min_frames=count, max_frames=count, factor=4, min_pixels=16)
    return [Image.fromarray(frame) for frame in read_clip(clip, sampling).pixels.permute(0, 2, 3, 1).numpy()]


def small_uri(image: Any) -> str:
    """A picture no side of which is longer than LARGEST_SIDE: PNG where it was that small already, else JPEG."""
    if max(image.size) <= LARGEST_SIDE and image.size[0] * image.size[1] <= 128 * 128:
        return data_uri(image)
    small = image.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_uri(image: Any) -> str:
    """A PIL image as PNG inside an address."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _own(folder: Path, name: str) -> Path:
    """A file of the folder's own, by its bare name."""
    path = inside(folder, folder / name)
    if Path(name).name != name:
        raise ConfigError(f"{folder / 'rows.jsonl'} names {name!r}; expected a file beside it")
    return path


def _embedded(folder: Path, name: str, kind: str) -> str:
    return f"data:{kind};base64," + base64.b64encode(_own(folder, name).read_bytes()).decode()


def unprefixed(named: dict[str, Any]) -> dict[str, Any]:
    """`{"compositional/color": 1, "compositional/count": 0}` -> `{"color": 1, "count": 0}`, where all share a head.
    The reward of that name is their sum and stays under it."""
    heads = {name.partition("/")[0] for name in named}
    if len(named) < 2 or len(heads) > 1:
        return named
    return {name.partition("/")[2] or name: value for name, value in named.items()}


def tinted(action: dict[str, Any]) -> str:
    """The colour of an action by its share of the largest credit: blue is made likelier, red less likely."""
    share = action["share"] / 100
    return palette.tint(palette.signed(share), 0.6 * abs(share) ** 0.5)
