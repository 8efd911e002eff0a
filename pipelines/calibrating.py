"""`mmrl calibrate`: the noise level of each denoising step, for one model, one reward and one schedule (DenseGRPO)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from mmrl.errors import ConfigError, DataError
from mmrl.objective.advantages.denoising import step_gains
from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.run import build_policy, open_prompts, reward_panel
from mmrl.pipelines.sizing import image_sizing
from mmrl.policies.base import Policy
from mmrl.policies.generation.calibration import BALANCED_SHARE, SMALLEST_STEP, calibrated, imbalance
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.rewards.panel import RewardPanel
from mmrl.rollout.actor import score_rows

Told = Callable[[str], None]


def calibrate(
    config: RunConfig, *, rounds: int, samples: int, allowed: float | None = None, by: float = SMALLEST_STEP,
    tell: Told = print,
) -> list[float]:  # fmt: skip
    """One level a step, after `rounds` of `samples` rollouts, each of a prompt drawn from the training data.

    allowed  samples by which gains and losses may differ; None: a fifth of them
    """
    if config.modality != "flow" or config.policy_settings().likelihood != "transition":
        raise ConfigError("mmrl calibrate: noise levels belong to flow policies with policy.likelihood=transition")
    allowed = BALANCED_SHARE * samples if allowed is None else allowed
    config = config.model_copy(update={"policy": {**config.policy, "train_steps": {"select": "all"}}})
    policy = build_policy(config)
    settings = policy.config
    levels = torch.tensor(settings.sampler.levels or (settings.sampler.noise_level,) * settings.steps)
    with ExitStack() as stack:
        panel = reward_panel(config)
        stack.callback(panel.close)
        data = open_prompts(config.data.train, config.data, config.data.limit, panel=panel, sizing=image_sizing(config))
        for turn in range(rounds):
            _use(policy, levels)
            key = Key(config.training.seed, turn, purpose="calibration")
            places = (key.at(purpose="prompts").uniform(samples) * len(data)).long().tolist()
            gains, drawn = _gains(policy, panel, [data[i] for i in places], key, config.training.eval_batch_size)
            off = imbalance(gains, drawn).tolist()
            levels = calibrated(levels, gains, drawn, allowed=allowed, by=by)
            tell(f"round {turn + 1} of {rounds}: imbalance {off} of {samples}, levels {_rounded(levels)}")
    return _rounded(levels)


def _use(policy: Policy, levels: Tensor) -> None:
    sampler = policy.config.sampler
    policy.config.sampler = sampler.model_copy(update={"levels": tuple(_rounded(levels))})


def _rounded(levels: Tensor) -> list[float]:
    return [round(level, 6) for level in levels.tolist()]


@torch.no_grad()
def _gains(
    policy: Policy, panel: RewardPanel, prompts: list[Prompt], key: Key, size: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(N, S) what each step gained, NaN where unscored, and where noise was drawn."""
    gains, drawn = [], []
    counts, distinct = Counter(prompt.id for prompt in prompts), {prompt.id: prompt for prompt in prompts}
    asked = [Request(prompt, counts[name], group=i) for i, (name, prompt) in enumerate(distinct.items())]
    for start in range(0, len(asked), size):
        rollouts = policy.rollout(asked[start : start + size], key)
        score_rows(rollouts, panel.score)
        outputs, addresses = policy.step_outputs(rollouts)
        rows, steps = addresses.cpu().unbind(1)
        worth = panel.score(outputs, [rollouts.prompts[int(rollouts.prompt[r])] for r in rows.tolist()]).reward
        values = torch.zeros(rollouts.mask.shape, dtype=worth.dtype).index_put((rows, steps), worth.cpu())
        gains.append(step_gains(values, rollouts.reward.cpu().to(worth.dtype), rollouts.mask.cpu()))
        drawn.append(rollouts.mask.cpu())
    found = torch.cat(gains)
    if bool(found.isnan().any(1).all()):
        raise DataError("mmrl calibrate: no sample of a round was scored, so no step can be judged")
    return found, torch.cat(drawn)
