"""Whose run this is: what a run from elsewhere could do here is asked for before it is done.

A configuration may name code (rewards, `trust_remote_code`) and let media leave their folder. Whoever trains with it
has chosen that, and it is remembered for this user on this machine. `evaluate`, `sample`, `export` and a bare
`--resume` take their configuration from a run directory, which may have come from anyone: doors that this user never
opened stay shut.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.config import RunConfig
from mmrl.settings import read_section

VARIABLE = "MMRL_TRUST"
SHOWN_DOORS = 3
_CODE = re.compile(r".+\.py:\w+|(?!asset:|world:)\w+(\.\w+)*:\w+")


def doors(config: RunConfig) -> list[str]:
    """What the configuration would run or read that is not mmrl's own, one line each."""
    from mmrl.rewards.panel import PRESETS, RewardSpec
    from mmrl.rewards.registry import registered

    found = []
    watching = [
        read_section(RewardSpec, {"name": spec} if isinstance(spec, str) else spec, f"watch.rewards.{index}")
        for index, spec in enumerate(config.watch.rewards)
    ]
    rewards = [*config.rewards, *(spec for spec in watching if spec not in config.rewards)]
    for spec in rewards:
        if spec.name not in registered() and spec.name not in PRESETS:
            found.append(f"runs the reward {_absolute(spec.name)} with {json.dumps(spec.options, sort_keys=True)}")
    for spec in rewards:
        if spec.python is not None:
            found.append(f"runs the reward {spec.name} by the program {Path(spec.python).expanduser()}")
        if address := spec.options.get("url"):
            key = f", with the key in {spec.options['key_env']}" if spec.options.get("key_env") else ""
            found.append(f"sends prompts, answers and media to {address}{key}")
    if config.policy.get("trust_remote_code"):
        found.append(f"runs the code that comes with the model {config.policy.get('model')}")
    named = " and ".join(map(str, (config.data.train, config.data.eval, *config.data.sft)))
    if config.data.allow_outside:
        found.append(f"reads media from anywhere that {named} name")
    if config.data.allow_urls:
        found.append(f"fetches addresses that {named} name")
    rest = config.model_dump(mode="json", exclude={"rewards", "data", "run_dir"})
    return found + [f"runs {_absolute(text)}" for text in _texts(rest) if _CODE.fullmatch(text)]


def remember(config: RunConfig, run: Path) -> None:
    """This user trains with this configuration into this directory. Where that cannot be written down, `--trust` is
    asked for later."""
    for what in (*doors(config), _made(run)):
        path = _entry(what)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(what)
        except OSError:
            return


def require(saved: RunConfig, asked: RunConfig, run: Path, trust: bool) -> None:
    """ConfigError for doors of a run's own configuration that this user never opened; overrides are the user's own.

    Links that lead out of a run count too, where it was not made here: what is read or written there is not the run's.
    """
    if trust or _always():
        return
    if not made_here(run) and (link := _leads_out(run)) is not None:
        raise ConfigError(f"{link} leads outside the run; if you trust whoever made it, add --trust (or {VARIABLE}=1)")
    shut = [door for door in doors(asked) if door in doors(saved) and not _entry(door).exists()]
    if shut:
        more = f"; and {len(shut) - SHOWN_DOORS} more" if len(shut) > SHOWN_DOORS else ""
        raise ConfigError(
            f"{run}/config.yaml {'; '.join(shut[:SHOWN_DOORS])}{more}; if you trust whoever made this run, add --trust "
            f"(or set {VARIABLE}=1)"
        )


def _leads_out(run: Path) -> Path | None:
    """The first link of a run, of its checkpoints or in them, that points elsewhere."""
    inside = run.resolve()
    below = [*run.glob("*"), *run.glob(".*"), *run.glob("checkpoints/*"), *run.glob("checkpoints/*/*")]
    return next((p for p in sorted(below) if p.is_symlink() and not p.resolve().is_relative_to(inside)), None)


def made_here(run: Path) -> bool:
    """Whether this user trained into this directory."""
    return _always() or _entry(_made(run)).exists()


def _made(run: Path) -> str:
    return f"made {run.resolve()}"


def _entry(what: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "mmrl" / "trusted" / hashlib.sha256(what.encode(errors="replace")).hexdigest()


def _always() -> bool:
    return os.environ.get(VARIABLE, "") == "1"


def _absolute(name: str) -> str:
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).expanduser().resolve()}:{attribute}" if place.endswith(".py") else name


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
