"""The card that ships beside a base, and the command line its training scripts share."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mmrl.errors import DataError

CARD = """# {title}

{about}

- Classes: {classes}
- Parameters: {parameters:,}, stored as float16
- Trained with `{train}` (seed {seed}, {steps}), one CPU thread
- Loads with `{load}`

Held-out score, measured with `{measure}`:

| {head} |
|{rule}
| {values} |
"""


def write_card(folder: Path, scores: Mapping[str, float], **fields: object) -> None:
    """`CARD.md` in `folder`, atomically."""
    text = CARD.format(
        head=" | ".join(scores),
        rule="---|" * len(scores),
        values=" | ".join(f"{value:.3f}" for value in scores.values()),
        **fields,
    )
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, folder / "CARD.md")


def mean_of(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}


def command_line(
    module: str,
    train: Callable[[Path, int], None],
    score: Callable[[Path], dict[str, float]],
    arguments: list[str] | None = None,
) -> None:
    """`--out DIR --seed N` trains, saves and writes the card; `--score DIR` measures what is there."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--out", type=Path, help="folder to write the checkpoint into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", type=Path, metavar="DIR", help="measure this checkpoint instead of training")
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.score is None):
        raise DataError("give either --out DIR to train, or --score DIR to measure")
    torch.set_num_threads(1)  # sums in another order are other weights
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        train(options.out, options.seed)
    print(json.dumps(score(options.score or options.out), indent=1))
