"""Who learns from a step's rollouts: the gradient of an objective, or something that needs none.

`learner:` of a recipe or configuration names one, as {name: ..., option: ...}. A learner is a `Trainer` with a step of
its own: evaluation, signals, run directory and report stay what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmrl.errors import ConfigError, got, unknown
from mmrl.training.context import ContextTrainer
from mmrl.training.evolution import EvolutionTrainer
from mmrl.training.frozen import FrozenTrainer
from mmrl.training.trainer import Trainer

GRADIENT = "gradient"
LEARNERS: dict[str, type[Trainer]] = {
    GRADIENT: Trainer,
    "essa": EvolutionTrainer,
    "frozen": FrozenTrainer,
    "training_free": ContextTrainer,
}


def learner_of(choice: str | Mapping[str, Any]) -> Any:
    """The class of a choice with its options bound; ConfigError for a name or an option that it has not."""
    values = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in LEARNERS:
        raise ConfigError(f"learner: {unknown('learner', str(name), LEARNERS)}")
    kind = LEARNERS[name]
    options = {} if kind is Trainer else _options(kind)
    for key, value in values.items():
        if key not in options:
            raise ConfigError(f"learner {name!r}: {unknown('option', key, options)}")
        try:
            values[key] = TypeAdapter(options[key].annotation).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"learner {name!r}: {key}: {error.errors()[0]['msg']}, got {got(value)}") from None
    return partial(kind, **values)


def _options(kind: type[Trainer]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(kind, eval_str=True).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
