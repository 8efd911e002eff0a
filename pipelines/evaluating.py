"""Held-out scores: of a checkpoint as its run computed them, or of a model that nothing was trained into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.config import RunConfig, read_config, which_configuration
from mmrl.pipelines.readiness import made_ready
from mmrl.pipelines.run import build_policy, load_run, open_prompts, reward_panel, run_of, surroundings_of
from mmrl.pipelines.sizing import image_sizing
from mmrl.pipelines.trust import require
from mmrl.policies.base import Policy
from mmrl.policies.registry import MODALITIES
from mmrl.rollout.actor import Actor
from mmrl.training.checkpoint import load_weights
from mmrl.training.distributed import make_accelerator
from mmrl.training.evaluation import evaluate


def policy_of(target: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> tuple[RunConfig, Policy]:
    """Who acts, and how: of a run or checkpoint; or, where `target` is a modality, the untrained model of the
    configuration that comes first among the overrides, as `mmrl train` would read it."""
    if _is_run(target):
        return load_run(target, overrides, trust=trust)
    named = [o for o in overrides if "=" not in o]
    if len(named) != 1:
        raise ConfigError(f"{which_configuration(str(target))}; or a run directory in place of {target!r}")
    config = read_config(named[0], [o for o in overrides if "=" in o], str(target))
    return config, build_policy(config)


def evaluate_run(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
    samples: int | None = None,
    base: bool = False,
) -> Mapping[str, Any]:
    """Mean reward, components, success and, with several samples, pass@k on the held-out prompts.

    target   a run, a checkpoint, or a modality: see `policy_of`
    samples  of each prompt, in place of the configuration's `training.eval_samples`
    base     of a run: the same of the model as the run began with it, under `base`. Where its pass@k at a large k is
             as good as the trained one's, training made likelier what was there, and found nothing new
    """
    if base and _is_run(target):
        saved, path = run_of(target)
        config = read_config(saved.model_dump(mode="json"), overrides)
        require(saved, config, path.parent.parent, trust)
        policy = build_policy(config)
        before = _scores(target, config, policy, samples)
        load_weights(path, policy)
        return {**_scores(target, config, policy, samples), "base": before}
    config, policy = policy_of(target, overrides, trust=trust)
    return _scores(target, config, policy, samples)


def _is_run(target: str | Path) -> bool:
    return str(target) not in MODALITIES or Path(target).exists()


def _scores(target: str | Path, config: RunConfig, policy: Policy, samples: int | None) -> Mapping[str, float]:
    """Of the policy as it stands, on the held-out prompts of the configuration."""
    if not config.data.eval:
        raise ConfigError(f"{target} has no held-out data: name it with data.eval=...")
    accelerator = make_accelerator()
    policy.module = accelerator.prepare(policy.module)
    with ExitStack() as stack:
        panel = reward_panel(config)
        stack.callback(panel.close)
        sizing, limit = image_sizing(config), config.data.eval_limit
        prompts = open_prompts(config.data.eval, config.data, limit, panel=panel, sizing=sizing, held_out=True)
        scores, _ = evaluate(
            Actor(policy, surroundings_of(config, stack)),
            made_ready(prompts, policy, config.data.workers, stack),
            panel.score,
            batch_size=config.training.eval_batch_size,
            accelerator=accelerator,
            samples=samples or config.training.eval_samples,
        )
    return scores
