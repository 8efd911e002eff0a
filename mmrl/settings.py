"""The base of every typed configuration section: unknown keys are errors with the nearest match."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mmrl.errors import ConfigError, unknown


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: PyYAML follows 1.1, in which `1e-4` is text and `off` is false."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not (tag.endswith(":bool") and first in "yYnNoO")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain data, nothing else. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


ELSEWHERE = {
    "num_generations": "training.group_size",
    "max_steps": "training.steps",
    "logging_steps": "every step, in metrics.jsonl",
    "save_steps": "training.save_every",
    "eval_steps": "training.eval_every",
    "save_total_limit": "training.keep_checkpoints",
    "lr_scheduler_type": "training.schedule",
    "per_device_train_batch_size": "training.micro_batch_size, which never changes the loss",
    "gradient_accumulation_steps": "worked out from training.prompts_per_step, group_size and micro_batch_size",
    "bf16": "policy.dtype=bfloat16, or policy.autocast=bfloat16",
    "beta": "objective.regularizers=[{name: kl, coefficient: ...}]",
    "epsilon_high": "objective.trust_region.high",
    "loss_type": "recipe, or objective.aggregation",
    "scale_rewards": "objective.advantage: dr_grpo does not scale",
    "max_completion_length": "policy.max_new_tokens",
    "max_prompt_length": "policy.max_prompt_tokens",
    "reward_funcs": "rewards",
    "reward_weights": "`weight` in rewards",
    "output_dir": "run_dir",
    "report_to": "tracking",
    "peft_config": "policy.lora",
}
"""Where names that TRL's users know are found here."""
MOVED = {"max_refills": "`rounds` of the rollout strategy: rollout={name: dynamic_sampling, rounds: 4}"}
"""Keys of earlier versions, and what stands in their place."""


class Section(BaseModel):
    """A typed part of the configuration file. Subclasses list fields, defaults and how to choose them."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    found = f"; what TRL calls {key} is {ELSEWHERE[key]}" if key in ELSEWHERE else ""
                    found += f"; it is now {MOVED[key]}" if key in MOVED else ""
                    raise ConfigError(f"{cls.__name__}: {unknown('key', key, cls.model_fields)}{found}")
        return values


def read_section(kind: type[Section], values: dict[str, Any], where: str = "") -> Any:
    """Validate, turning pydantic's report into one line per mistake: key, expected, received."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for e in error.errors():
            key = ".".join(str(p) for p in (*([where] if where else []), *e["loc"]))
            lines.append(f"{key}: {e['msg']}, got {e['input']!r}")
        raise ConfigError("; ".join(lines)) from None
