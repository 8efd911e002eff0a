"""What notebooks show: pictures with notes, and a run's rollouts with their credit, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.palette import signed
from mmrl.pipelines.report_rollouts import clip_frames, data_uri, read_groups, tinted

__all__ = ["clip_frames", "credit_html", "gallery_html", "read_rollouts"]

CARD = "display:inline-block;vertical-align:top;margin:4px 10px 8px 0;font:13px/1.5 sans-serif;max-width:300px"
PICTURE = "width:{}px;height:{}px;image-rendering:pixelated;border:1px solid #ddd;margin-right:3px"


def gallery_html(items: Iterable[tuple[Sequence[Any], str]], side: int = 96) -> str:
    """Pictures (PIL images) side by side, each item with its note below."""
    cards = []
    for images, note in items:
        pictures = "".join(f'<img src="{data_uri(i)}" style="{PICTURE.format(side, side)}">' for i in images)
        cards.append(f'<div style="{CARD}">{pictures}<div style="white-space:pre-wrap">{escape(note)}</div></div>')
    return "".join(cards)


def read_rollouts(run: str | Path, step: int) -> list[dict[str, Any]]:
    """The groups a run saved at `step`: prompt, solution, pictures, and members with rewards and credit."""
    folder = Path(run) / "rollouts" / f"step-{step:06d}"
    if not folder.exists():
        saved = sorted(int(f.name.removeprefix("step-")) for f in folder.parent.glob("step-*"))
        raise ConfigError(f"{run}: no rollouts of step {step}; saved are those of steps {saved}")
    return [_opened(folder, members) for members in read_groups(folder)]


def _opened(folder: Path, members: list[dict[str, Any]]) -> dict[str, Any]:
    from PIL import Image

    def pictures(names: Sequence[str]) -> list[str]:
        return [data_uri(Image.open(folder / name)) for name in names]

    first = members[0]
    for row in members:
        row["outputs"] = pictures(row.get("images", []))
        for action in row["actions"]:
            action["color"] = tinted(action)
    return {
        "prompt": first["prompt"],
        "solution": first["solution"],
        "media": pictures(first["media"]),
        "frames": [data_uri(frame) for path in first["videos"] for frame in clip_frames(path, 4)],
        "members": members,
    }


def credit_html(rows: Sequence[dict[str, Any]], groups: int = 2) -> str:
    """The first groups, best member first: tokens tinted by credit, denoising steps as bars."""
    parts = []
    for group in rows[:groups]:
        pictures = "".join(
            f'<img src="{uri}" style="{PICTURE.format(96, 96)}">' for uri in (*group["media"], *group["frames"])
        )
        solution = "" if group["solution"] is None else f" → {group['solution']}"
        parts.append(
            f'<div style="font:600 14px sans-serif;margin-top:14px">{escape(group["prompt"] + solution)}</div>'
        )
        parts += [pictures, *map(_member, group["members"])]
    return "".join(parts)


def _member(row: dict[str, Any]) -> str:
    reward = "unscored" if row["reward"] is None else f"{row['reward']:.2f}"
    if not row["outputs"]:
        tokens = "".join(
            f'<span title="credit {a["credit"]}" style="background:{a["color"]};white-space:pre-wrap">'
            f"{escape(a['label'])}</span>"
            for a in row["actions"]
        )
        return f'<div style="font:13px/2 monospace"><b>{reward}</b> &nbsp; {tokens}</div>'
    pictures = "".join(f'<img src="{uri}" style="{PICTURE.format(96, 96)}">' for uri in row["outputs"])
    bars = "".join(_bar(place, action) for place, action in enumerate(row["actions"]))
    svg = f'<svg width="110" height="60"><path d="M0 30H110" stroke="#ccc"/>{bars}</svg>'
    return f'<div style="{CARD}">{pictures}<br>{svg}<br>reward {reward}</div>'


def _bar(place: int, action: dict[str, Any]) -> str:
    height = max(1.0, 0.3 * abs(action["share"]))
    top, ink = 30 - height if action["share"] > 0 else 30, signed(action["share"])
    title = f"<title>{escape(action['label'])}: credit {action['credit']}</title>"
    return f'<rect x="{2 + 11 * place}" y="{top:.1f}" width="9" height="{height:.1f}" fill="{ink}">{title}</rect>'
