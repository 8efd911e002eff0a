"""Recipes: `configs/recipes/NAME.yaml` composes stage functions into one published method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mmrl import plugins
from mmrl.errors import ConfigError, got, unknown
from mmrl.settings import Section, read_section, read_yaml, read_yaml_file
from mmrl.stages import RENAMED

ENDINGS = (".yaml", ".yml")


class PaperUpdates(Section):
    """How often the authors step the optimizer on one rollout batch.

    count    optimizer steps of one pass over the batch
    prompts  of the batch, where it is known
    epochs   passes over it
    source   where the numbers stand; "ours" for a choice of this project
    """

    count: int = Field(1, ge=1)
    prompts: int | None = Field(None, ge=1)
    epochs: int = Field(1, ge=1)
    source: str = "ours"

    def __str__(self) -> str:
        batch = f" of {self.prompts} prompts" if self.prompts else ""
        epochs = f", {self.epochs} epochs" if self.epochs > 1 else ""
        return f"{self.count} optimizer step{'s' * (self.count > 1)} a rollout batch{batch}{epochs} ({self.source})"


class Recipe(Section):
    """One published method with its paper's defaults. `policy` and `training` are suggestions a user's
    configuration overrides; `prompts` is the sampler, `rollout` the strategies, `environment` who answers between turns
    and `learner` what learns, where the method brings its own; `updates` are its paper's, which `training.updates:
    auto` follows as far as a smaller batch allows.

    rewards     those that the method itself reads a column of: beside the configuration's own, unless it names them

    confidence  how far it was checked, as of a stage function (`mmrl.stages.stage`)
    deviates    one sentence for each thing in which it is known to differ from its source
    """

    method: str
    title: str
    paper: str
    confidence: Literal["verified", "partly", "reconstructed", "ours"]
    modalities: list[str] = ["vlm", "video", "flow"]
    summary: str = ""
    deviates: list[str] = []
    prompts: str | dict[str, Any] = "shuffled"
    rollout: list[str | dict[str, Any]] = []
    environment: str | dict[str, Any] | None = None
    learner: str | dict[str, Any] = "gradient"
    updates: PaperUpdates = PaperUpdates()
    rewards: list[dict[str, Any]] = []
    objective: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    training: dict[str, Any] = {}

    @field_validator("rewards")
    @classmethod
    def _named(cls, rewards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for place, reward in enumerate(rewards):
            if not isinstance(reward.get("name"), str):
                raise ValueError(f"entry {place} names no reward")
        return rewards

    def beside(self, rewards: Sequence[Any]) -> list[dict[str, Any]]:
        """The rewards of the method that are not among `rewards`: names, mappings or functions. One whose columns
        others make already stays away. One that only brings a column, with weight 0, is worth something where a run
        names no other: a run needs a reward to look at."""
        named = [r.get("name") if isinstance(r, Mapping) else getattr(r, "name", r) for r in rewards]
        made = {column for r in rewards if isinstance(r, Mapping) for column in _columns(r)}
        own = [dict(reward) for reward in self.rewards if reward["name"] not in named]
        own = [r for r in own if not _columns(r) or not made.issuperset(_columns(r))]
        return own if named else [r | {"weight": r.get("weight", 1.0) or 1.0} for r in own]


def _columns(reward: Mapping[str, Any]) -> list[str]:
    """What a reward says it makes. What is no list of names is refused where rewards are read."""
    columns = reward.get("columns")
    return [each for each in columns if isinstance(each, str)] if isinstance(columns, list | tuple) else []


def recipe_names() -> list[str]:
    folder = resources.files("mmrl") / "configs" / "recipes"
    return sorted(Path(str(f)).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


@cache
def _read(name: str) -> Recipe:
    if name not in recipe_names():
        raise ConfigError(unknown("recipe", name, recipe_names()))
    text = (resources.files("mmrl") / "configs" / "recipes" / f"{name}.yaml").read_text()
    return read_section(Recipe, read_yaml(text), f"recipes/{name}.yaml")


def load_recipe(name: str) -> Recipe:
    """A fresh copy of a shipped recipe, by its name or a former one, or the one in a `.yaml` file; an unknown name
    raises with the nearest one."""
    if not isinstance(name, str):
        raise ConfigError(f"recipe: expected the name of one, such as grpo, got {got(name)}")
    if not is_file(name):
        beside = [f"{name}{end}" for end in ENDINGS if Path(f"{name}{end}").is_file()]
        if beside and name not in (*recipe_names(), *RENAMED):
            raise ConfigError(f"unknown recipe {got(name)}; a file of your own goes by its whole name: {beside[0]}")
        return _read(RENAMED.get(name, name)).model_copy(deep=True)
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"recipe {got(name)}: no such file")
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {name}: expected a mapping of keys, got {type(values).__name__}")
    return read_section(Recipe, plugins.absolute(values, [path.parent]), str(path))


def is_file(name: str) -> bool:
    """Whether a recipe is named by its file."""
    return name.endswith(ENDINGS)
