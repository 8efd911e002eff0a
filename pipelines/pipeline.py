"""What the three pipelines share: load a model, train it, generate, evaluate, save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from rich.console import Console

from mmrl.errors import ConfigError, got
from mmrl.pipelines.config import RunConfig, merge, read_config, read_values
from mmrl.pipelines.in_python import in_python
from mmrl.pipelines.progress import Live, progress
from mmrl.pipelines.readiness import clip_reader, made_ready, of_rewards, tell_all
from mmrl.pipelines.run import (
    build_policy,
    check_prompts,
    open_prompts,
    reward_panel,
    surroundings_of,
)
from mmrl.pipelines.run import train as train_run
from mmrl.pipelines.sizing import image_sizing
from mmrl.plugins import reference_of
from mmrl.policies.base import Policy
from mmrl.policies.sharding import writes_files
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Prompt, Request
from mmrl.rewards.panel import RewardPanel, RewardSpec
from mmrl.rollout.actor import Actor
from mmrl.training.trainer import Report, Result

Dataset = str | Path | Sequence[Prompt] | Sequence[Mapping[str, Any]]
Reward = str | Mapping[str, Any] | RewardSpec | Callable
Rewards = Reward | Sequence[Reward]


class Pipeline:
    """A policy and everything one does with it. Use `VLMPipeline`, `VideoPipeline` or `FlowPipeline`."""

    modality: ClassVar[str]

    def __init__(
        self, policy: Policy, settings: Mapping[str, Any], seed: int = 0, environment: Any = None,
        base: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        """base: a configuration whose recipe, rewards, training and so on hold where a call says nothing else."""
        self.policy = policy
        self.base = dict(base or {})
        self.settings = dict(settings)  # what the policy has
        self.asked = dict(settings)  # what was asked for here, which no recipe changes
        self.seed = seed
        self.trained = False
        self.environment = environment

    @classmethod
    @in_python()
    def from_pretrained(
        cls, model: str | Path, *, config: str | Path | None = None, seed: int = 0, environment: Any = None,
        **policy: Any,
    ) -> Self:  # fmt: skip
        """Load a hub name or local path. `config`, a shipped name such as "grpo" or a YAML file, makes this the job of
        `mmrl train MODALITY CONFIG`: its policy here, its recipe, rewards and training in `train`, each until a call
        says otherwise. `policy` are fields of the configuration's `policy:` section, such as
        `lora={"rank": 32}`, `dtype="bfloat16"`, `adapter="path/to/adapter"`. `environment` answers between turns,
        wherever this pipeline acts: a name, "file.py:Class", or {name: ..., parameter: ...}."""
        pipe = cls.unloaded(model, config=config, seed=seed, environment=environment, **policy)
        pipe.policy = build_policy(RunConfig(modality=cls.modality, policy=pipe.settings, training={"seed": seed}))
        return pipe

    @classmethod
    def unloaded(
        cls, model: str | Path, *, config: str | Path | None = None, seed: int = 0, environment: Any = None,
        **policy: Any,
    ) -> Self:  # fmt: skip
        """`from_pretrained`, without its policy yet."""
        base = read_values(config, cls.modality) if config is not None else {}
        settings = merge(base.pop("policy", {}), {**({"model": str(model)} if str(model) else {}), **policy})
        base["data"] = {k: v for k, v in base.get("data", {}).items() if k not in ("train", "eval")}
        return cls(cast(Policy, None), settings, seed, environment, base)

    @in_python()
    def train(
        self, dataset: Dataset, rewards: Rewards = (), *, recipe: str | None = None,
        eval_dataset: Dataset | None = None, run_dir: str | Path | None = None, resume: str | Path | None = None,
        report: Report | None = None, callbacks: Sequence[Any] = (), **sections: Any,
    ) -> Result:  # fmt: skip
        """Fine-tune in place. What the recipe says of the policy (sampler, guidance, adapters) holds where
        `from_pretrained` was not told otherwise; the model is loaded again for it, if need be.

        dataset   a path, "world:NAME", rows as dicts, or Prompts
        rewards   names, {name, weight, options}, or functions with TRL's signature; none: those of `config`
        recipe    none: that of `config`, else grpo
        report    called with (step, metrics) after every step; default: a progress bar
        callbacks  objects of yours with `begin`, `step`, `rollouts` or `end`, or what the configuration names them by
        sections  further parts of the configuration: `training={"steps": 200}`, `objective={...}`, `data={...}`
        """
        named = [c for c in callbacks if isinstance(c, (str, Mapping))]
        listeners = [c for c in callbacks if not isinstance(c, (str, Mapping))]
        config = self._config(recipe, run_dir, {**sections, "callbacks": named} if named else sections)
        rewards = _each(rewards)
        rewards = [*rewards, *load_recipe(config.recipe).beside(rewards)] if rewards else _specs(config)
        self.environment = config.environment
        panel = self._panel(rewards, config)
        try:
            panel.load()
            prompts = self._prompts(dataset, config, panel)
            held_out = self._prompts(eval_dataset, config, panel, held_out=True) if eval_dataset is not None else None
            for each in (prompts, held_out or ()):
                check_prompts(panel, each, type(self.policy).reads)
            tell_all(of_rewards(config, panel, prompts))
            config = self._named(config, dataset, eval_dataset, rewards)
            self._settle(config)
            with progress(config, Console()) if report is None else nullcontext(report) as shown:
                self.trained = True
                live = shown if isinstance(shown, Live) else Live(config.training.steps, Console(quiet=True))
                return train_run(
                    config, resume=resume, policy=self.policy, prompts=prompts, eval_prompts=held_out,
                    score=panel.score, made=panel.makes, report=shown,
                    kept=live.kept, began=live.began, callbacks=listeners,
                )  # fmt: skip
        finally:
            panel.close()

    @in_python()
    def generate(
        self, prompts: Dataset | str, *, count: int = 1, seed: int = 0, greedy: bool | None = None, **sections: Any
    ) -> list[list[Any]]:
        """`count` outputs of each prompt: texts, or PIL images. One is greedy unless asked otherwise; generators
        always use their ODE sampler, from another initial noise each. `data={"allow_outside": True}` and the like
        say how rows are read."""
        config = self._config(None, None, sections)
        rows = self._prompts(prompts, config)
        requests = [Request(p, count, group=i) for i, p in enumerate(rows)]
        greedy = (count == 1 or self.policy.varied_when_greedy) if greedy is None else greedy
        with torch.no_grad(), ExitStack() as stack:
            actor = Actor(self.policy, surroundings_of(config, stack))
            outputs = actor.act(requests, Key(seed, purpose="generate"), greedy=greedy).outputs
        return [outputs[i * count : (i + 1) * count] for i in range(len(rows))]

    @in_python()
    def evaluate(
        self, dataset: Dataset, rewards: Rewards = (), *, samples: int = 1, batch_size: int = 64, **sections: Any
    ) -> dict[str, float]:
        """Mean reward, components, success and, with several samples, pass@k."""
        from mmrl.training.distributed import make_accelerator
        from mmrl.training.evaluation import evaluate

        config = self._config(None, None, sections)
        with ExitStack() as stack:
            panel = self._panel(_each(rewards) or _specs(config), config)
            stack.callback(panel.close)
            prompts = self._prompts(dataset, config, panel, held_out=True)
            prompts = made_ready(prompts, self.policy, config.data.workers, stack)
            scores, _ = evaluate(
                Actor(self.policy, surroundings_of(config, stack)), prompts, panel.score, batch_size=batch_size,
                accelerator=make_accelerator(), samples=samples,
            )  # fmt: skip
        return scores

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        """An adapter or full weights in the Hugging Face layout; `merged` folds an adapter into the weights. Of a
        pipeline that was trained, with the card of its run."""
        self.policy.save_pretrained(directory, merged=merged)
        if self.policy.card is not None and writes_files():
            (Path(directory) / "README.md").write_text(self.policy.card())

    def _config(self, recipe: str | None, run_dir: str | Path | None, sections: Mapping[str, Any]) -> RunConfig:
        base = {"recipe": "grpo", **self.base, "policy": self.asked}
        base |= {"recipe": recipe} if recipe is not None else {}
        base |= {"environment": self.environment} if self.environment is not None else {}
        values = merge(base, dict(sections))
        if run_dir is not None:
            values["run_dir"] = str(run_dir)
        return read_config(values, modality=self.modality)

    def _settle(self, config: RunConfig) -> None:
        """Have the policy that `config` describes, and read clips through its cache."""
        wanted, loaded = config.policy_settings(), self.policy.config
        changed = [k for k in type(wanted).model_fields if getattr(wanted, k) != getattr(loaded, k)]
        if changed and self.trained:
            asked = ", ".join(f"{k}={getattr(wanted, k)!r}, not {getattr(loaded, k)!r}" for k in changed)
            raise ConfigError(
                f"recipe {config.recipe!r} and this configuration ask for {asked}, with which this pipeline was "
                "trained; save it and load it as the model or adapter of another, or pass the old values"
            )
        if changed:
            seeded = config.training.model_copy(update={"seed": self.seed})
            del self.policy  # two may not fit into memory
            self.policy = build_policy(config.model_copy(update={"training": seeded}))
        elif hasattr(self.policy, "read_clip"):
            self.policy.read_clip = clip_reader(config.cache)
        self.settings = dict(config.policy)

    def _panel(self, rewards: Sequence[Reward], config: RunConfig):
        if not rewards:
            raise ConfigError("no rewards: pass names such as 'accuracy', or functions with TRL's signature")
        return reward_panel(config, rewards)

    def _prompts(
        self, dataset: Dataset | str, config: RunConfig, panel: RewardPanel | None = None, held_out: bool = False
    ) -> Sequence[Prompt]:
        if not isinstance(dataset, (str, Path)) and len(dataset) and isinstance(dataset[0], Prompt):
            return cast(Sequence[Prompt], dataset)  # the first tells: opening all would read every image
        sizing = image_sizing(config)
        return open_prompts(dataset, config.data, config.data.limit, panel=panel, sizing=sizing, held_out=held_out)

    @staticmethod
    def _named(
        config: RunConfig, dataset: Dataset, eval_dataset: Dataset | None, rewards: Sequence[Reward]
    ) -> RunConfig:
        """The run's configuration with what has a name: data sets, and rewards unless one is known to this process
        alone."""
        paths = {"train": dataset, "eval": eval_dataset}
        kept = {k: str(v) for k, v in paths.items() if isinstance(v, (str, Path))}
        named_by = [reference_of(r) if callable(r) else r for r in rewards]
        specs = [{"name": r} if isinstance(r, str) else r for r in named_by if r is not None]
        named = [RewardSpec.model_validate(spec) for spec in specs] if len(specs) == len(rewards) else []
        data = config.data.model_copy(update=kept)
        return config.model_copy(update={"data": data, "rewards": named})


def _each(rewards: Any) -> list[Any]:
    """Rewards as a list; one that stands alone is a list of one."""

    def is_one(value: Any) -> bool:
        return isinstance(value, str | Mapping | RewardSpec) or callable(value)

    every = [rewards] if is_one(rewards) or not isinstance(rewards, Iterable | None) else list(rewards or ())
    for reward in every:
        if not is_one(reward):
            raise ConfigError(f"rewards: {got(reward)} is no name, no mapping with one, and no function")
    return every


def _specs(config: RunConfig) -> list[Any]:
    """The rewards of a configuration, as a call would name them."""
    return [spec.model_dump() for spec in config.rewards]
