"""Run directories that somebody else wrote, or a hand changed: gone on with, or refused in one line; what lies outside
stays as it is and unread."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.evaluating import evaluate_run
from mmrl.pipelines.report import write_report
from mmrl.pipelines.run import train
from mmrl.pipelines.trust import require
from mmrl.training.checkpoint import GOING_BACK, WRITTEN
from mmrl.training.digests import sealed
from tests.chaos.trials import STEPS, Ground, Tally, in_child

Change = Callable[[Path], Any]
SECRET = "what lies outside"
ODD: tuple[Any, ...] = (None, True, -1, 1e308, float("nan"), 10**400, "x", "\x1b[2J", [], [1], {}, {"a": []}, {"": {}})


def _newest(run: Path) -> Path:
    return run / "checkpoints" / f"step-{STEPS:06d}"


def _state(key: str, value: Any) -> Change:
    """Another value in `state.json`, under a digest that fits."""

    def change(run: Path) -> None:
        path = _newest(run) / "state.json"
        state = json.loads(path.read_text())
        state.pop("sha256")
        if value is ...:
            state.pop(key)
        else:
            state[key] = value
        path.write_text(sealed(state))

    return change


def _text(name: str, text: str | bytes) -> Change:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda run: (run / name).write_bytes(content)


def _metrics(value: Any, key: str = "reward/mean") -> Change:
    def change(run: Path) -> None:
        path = run / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, key: value}) + "\n" for row in rows))

    return change


def _replaced(name: str, make: Callable[[Path, Path], Any]) -> Change:
    """A file or folder of the run gives way to what `make(path, outside)` puts there."""

    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, run.parent / "outside")

    return change


def _to_secret(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret")


def _to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _to_nowhere(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "nothing")


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()


def _pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _file(path: Path, outside: Path) -> None:
    path.write_text("x")


def _half_deleted(run: Path) -> None:
    (_newest(run) / "optimizer.safetensors").unlink()
    (_newest(run) / "state.json").unlink()


def changes() -> Iterator[tuple[str, Change]]:
    newest = f"checkpoints/step-{STEPS:06d}"
    for key in ("step", "updates", "policy", "files", "sampler", "objective", "before", "strategies", "acted"):
        for value in (..., *ODD):
            yield f"state.json: {key}={value!r:.20}", _state(key, value)
    for name in ("../../../outside/secret", "/etc/passwd", "a/../../x", "\x00", "trainable.safetensors"):
        yield f"state.json lists {name!r}", _state("files", {name: {"bytes": 1, "sha256": "x"}})
    for key in ("reward/mean", "rollouts", "unscored", "memory/peak_bytes", "eval/reward", "seconds/update", "step"):
        for value in ODD:
            yield f"metrics.jsonl: {key}={value!r:.20}", _metrics(value, key)
    for text in (
        "",
        "\n\n",
        "{",
        "[" * 10**5,
        "\xff\xfe",
        '{"step": 1}' * 3,
        '{"step": ' + "9" * 5000 + "}",
        "\0" * 99,
    ):
        yield f"metrics.jsonl {text[:10]!r}", _text("metrics.jsonl", text.encode("latin-1"))
    for text in ("[1]", "{}", '{"before": 1, "after": [2]}', '{"before": {"success": "x"}, "after": {"success": {}}}'):
        yield f"result.json {text!r}", _text("result.json", text)
    for name, text in ((GOING_BACK, '{"step": -5, "into": "../../outside"}'), (GOING_BACK, '{"step": 1, "into": -1}'),
                       (WRITTEN, '["../outside", "step-000003", 3]'), (WRITTEN, "{")):  # fmt: skip
        yield f"{name} {text!r}", _text(name, text)
    for name in ("metrics.jsonl", "config.yaml", ".lock", "result.json", "report.html", "environment.json", "data.json",
                 "metrics.damaged.txt", f"{newest}/state.json", f"{newest}/trainable.safetensors",
                 f"{newest}/optimizer.safetensors", WRITTEN, GOING_BACK):  # fmt: skip
        for make in (_to_secret, _to_nowhere, _folder, _to_folder, _pipe):
            yield f"{name} {make.__name__.strip('_').replace('_', ' ')}", _replaced(name, make)
    for name in ("checkpoints", "rollouts", "set_aside", newest, "checkpoints/step-000009", "checkpoints/best"):
        for make in (_to_nowhere, _file, _folder, _to_folder):
            yield f"{name} {make.__name__.strip('_').replace('_', ' ')}", _replaced(name, make)
    yield "half deleted", _half_deleted
    yield "a copy under a later name", lambda run: shutil.copytree(_newest(run), run / "checkpoints" / "step-000009")
    yield "an endless name", lambda run: shutil.copytree(_newest(run), run / "checkpoints" / ("step-" + "9" * 200))


def prepared(ground: Ground, numbers: range) -> list[Tally]:
    """The changes of these numbers, and after each: the report, the evaluation, and going on."""
    tally = Tally("a run directory that someone else prepared: report, evaluate, --resume")
    half = ground.fresh("prepared", steps=STEPS, save_every=1)
    in_child(lambda: train(half), ground.root / "prepared" / "log")
    for number, (name, change) in enumerate(changes()):
        if number in numbers:
            tally.count(_tried(ground, half.directory, f"prepared-{number}", name, change))
    return [tally]


def _tried(ground: Ground, half: Path, folder: str, name: str, change: Change) -> str:
    config = ground.fresh(folder, steps=STEPS + 1)
    outside, log = config.directory.parent / "outside", config.directory.parent / "log"
    shutil.copytree(half, config.directory, symlinks=True)
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    before = _seen(outside)
    change(config.directory)
    data = str(config.data.train)
    commands: Mapping[str, Callable[[], Any]] = {
        "report": lambda: write_report(config.directory),
        "evaluate": lambda: evaluate_run(config.directory, [f"data.eval={data}"]),
        "resume": partial(_resume, config),
    }
    problem = ""
    for command, work in commands.items():
        ended = in_child(work, log, 30.0)
        if ended.status != 0 and not ended.in_one_line:
            problem = problem or f"{name}: {command} ended with {ended.status}: {ended.said[-500:]}"
        if "\x1b" in ended.said or SECRET in ended.said:
            problem = problem or f"{name}: {command} said {ended.said[-300:]!r}"
    if _seen(outside) != before:
        problem = problem or f"{name}: wrote outside: {_seen(outside)}"
    page = config.directory / "report.html"
    if page.is_file() and SECRET in page.read_text(errors="replace"):
        problem = problem or f"{name}: the report shows what lies outside"
    shutil.rmtree(config.directory.parent)
    return problem


def _resume(config: RunConfig) -> None:
    """As `mmrl train --resume RUN` does, of a run that this user did not make."""
    require(config, config, config.directory, trust=False)
    train(config, resume=config.directory)


def _seen(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}
