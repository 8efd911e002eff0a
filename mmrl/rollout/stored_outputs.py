"""Groups of outputs that were made before, with the rewards they were given then: training without sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrl.errors import ConfigError, DataError, got
from mmrl.media import read_film, read_sound
from mmrl.policies.images import open_image
from mmrl.record import Answer, Prompt, Rollouts, Stored
from mmrl.rollout.origins import brought
from mmrl.rollout.plan import Given, Plan, Step, Strategy
from mmrl.shown import tell
from mmrl.stages import FLOW, stage

OUTPUTS = {"films": "video", "sounds": "sound", "images": "picture"}
"""Columns with the file of an output. A video's row has pictures of its frames too, so that column is the last."""
PASSES = 50
"""Times that as many rows as the data set has may be drawn for one step before a prompt with outputs must turn up."""


@dataclass(frozen=True)
class Kept:
    """path  of the output; column: of `OUTPUTS`, what it is; reward, components: as they were stored"""

    path: Path
    column: str
    reward: float
    components: Mapping[str, float]


@stage(
    "rollout",
    "stored_outputs",
    method="gdro_offline",
    paper="GDRO: group-level reward post-training suitable for diffusion models, arXiv 2601.02036",
    formula="a group is `training.group_size` of the outputs stored of its prompt, with their stored rewards",
    modalities=FLOW,
    confidence="partly",
    waits=("folders",),
)
class StoredOutputs(Strategy):
    """Nothing is sampled and nothing is scored: groups are drawn from outputs that were made and scored before.

    folders  with a `rows.jsonl` of {prompt_id, images: [file], reward}, as `mmrl sample ... --count 16` writes it, or
             of runs, whose saved rollouts are taken; `films: [file]` is a video, `sounds: [file]` a sound, and
             `components` of a row are its rewards by name

    Prompts of the data set with fewer than `training.group_size` such outputs are passed over, and a line says how
    many; k of them are drawn anew each time a prompt comes up (the paper: k of 16). Needs `policy.likelihood=matching`,
    whose losses ask for no log-prob of whoever sampled. Source: as of score objective `gdro`.
    """

    origins = (brought("replay"),)

    def __init__(self, *, folders: str | Sequence[str] = ()) -> None:
        self.folders = (folders,) if isinstance(folders, str) else tuple(folders)
        self.kept = stored_in([Path(folder) for folder in self.folders])
        self._ids: list[str] = []
        self._able: set[int] | None = None

    def meet(self, prompts: Sequence[Prompt]) -> None:
        self._ids = [prompt.id for prompt in prompts]

    def ask(self, step: Step) -> Plan:
        """Prompts as stage 1 draws them, those without outputs passed over."""
        able = self._enough(step.group_size)
        chosen: list[int] = []
        left = PASSES * len(self._ids)
        while (missing := step.prompts_per_step - len(chosen)) and left > 0:
            chosen += [index for index in step.draw(missing) if index in able]
            left -= missing
        if missing:
            raise DataError(
                f"rollout 'stored_outputs': only {len(chosen)} of {step.prompts_per_step} prompts a step have stored "
                "outputs, however many are drawn; name a data set or prompt selection of those that have"
            )
        keys = [step.key.at(member=place, purpose="stored outputs") for place in range(len(chosen))]
        notes = [(key.number, step.group_size) for key in keys]
        return Plan(given=[Given("replay", index=i, note=note) for i, note in zip(chosen, notes, strict=True)])

    def _enough(self, size: int) -> set[int]:
        """Rows of the data set with outputs for a group."""
        if self._able is None:
            self._able = {i for i, name in enumerate(self._ids) if len(self.kept.get(name, ())) >= size}
            if not self._able:
                known = f"those stored are of {sorted(self.kept)[:3]}, the data set begins {self._ids[:3]}"
                raise DataError(
                    f"rollout 'stored_outputs': no prompt of the data set has {size} stored outputs "
                    f"(training.group_size); {known}"
                )
            if without := len(self._ids) - len(self._able):
                tell(f"{without} of {len(self._ids)} prompts have fewer than {size} stored outputs and are passed over")
        return self._able

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer] | list[Stored]:
        seed, size = given.note
        found = self.kept[prompt.id]
        drawn = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:size]
        return [_opened(found[place], prompt) for place in sorted(drawn.tolist())]


def _opened(kept: Kept, prompt: Prompt) -> Stored:
    read = {"films": read_film, "sounds": read_sound}.get(kept.column)
    output = open_image(kept.path, prompt) if read is None else read(kept.path)
    return Stored(output, kept.reward, kept.components)


def stored_in(folders: Sequence[Path]) -> dict[str, list[Kept]]:
    """{id of a prompt: its outputs}, in the order of folders and lines; without a reward they are told and left out."""
    found: dict[str, list[Kept]] = {}
    unscored = 0
    for folder in folders:
        for path in _tables(folder):
            for place, row in _lines(path):
                if row["reward"] is None:
                    unscored += 1
                    continue
                found.setdefault(str(row["prompt_id"]), []).append(_read(path, place, row))
    if unscored:
        tell(f"{unscored} stored outputs have no reward and are left out")
    return found


def _tables(folder: Path) -> list[Path]:
    own = folder / "rows.jsonl"
    tables = [own] if own.is_file() else sorted(folder.glob("rollouts/step-*/rows.jsonl"))
    if not tables:
        raise ConfigError(
            f"rollout 'stored_outputs': folders={folder}: neither a rows.jsonl nor rollouts/step-*/rows.jsonl in it; "
            "expected what `mmrl sample` or a run wrote"
        )
    return tables


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}") from None
        missing = [n for n in ("prompt_id", "reward") if not isinstance(row, dict) or n not in row]
        if not missing and not any(n in row for n in OUTPUTS):
            missing = ["images"]
        if missing:
            raise DataError(f"{path}, line {number}: no {missing[0]!r}; expected {{prompt_id, images: [file], reward}}")
        yield number, row


def _read(path: Path, number: int, row: Mapping[str, Any]) -> Kept:
    name = next(n for n in OUTPUTS if n in row)
    where, files, reward = f"{path}, line {number}", row[name], row["reward"]
    if not isinstance(files, list) or len(files) != 1 or not isinstance(files[0], str):
        raise DataError(f"{where}: {name}: expected the file of one {OUTPUTS[name]}, got {got(files)}")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise DataError(f"{where}: reward: expected a finite number or null, got {got(reward)}")
    output = path.parent / files[0]
    if not output.is_file():
        raise DataError(f"{where}: {name}: no file {output}")
    told = row.get("components") or {}
    if not isinstance(told, Mapping):
        raise DataError(f"{where}: components: expected {{name: number}}, got {got(told)}")
    parts = {str(n): float(v) for n, v in told.items() if isinstance(v, int | float)}
    return Kept(output, name, float(reward), parts)


__all__ = ["Kept", "StoredOutputs", "stored_in"]
