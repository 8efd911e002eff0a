"""What a model and its rewards get of rows on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.data.datasets import PromptDataset, open_dataset


@dataclass
class Shown:
    """One prompt: the text with its places, sizes of the images, names of the videos, and what rewards read."""

    text: str
    images: list[tuple[int, int]] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    solution: Any = None
    task: str | None = None
    options: list[str] | None = None


def opened(folder: Path, *rows: dict, name: str = "rows.jsonl", **options: Any) -> PromptDataset:
    """The data set of these rows, as JSON or parquet."""
    path = folder / name
    if path.suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(list(rows)).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return open_dataset(path, **options)


def shown(data: PromptDataset) -> list[Shown]:
    return [
        Shown(
            p.marked,
            [image.size for image in p.images],
            [v.path.name if hasattr(v, "path") else f"{len(v.paths)} frames" for v in p.videos],
            p.columns.get("solution"),
            p.columns.get("task"),
            p.columns.get("options"),
        )
        for p in data
    ]


def roles(prompt) -> list[str | None]:
    """The role of each medium of a prompt, in order."""
    parts = [p for m in prompt.messages if not isinstance(m["content"], str) for p in m["content"]]
    return [p.get("role") for p in parts if p["type"] != "text"]
