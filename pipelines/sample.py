"""`mmrl sample`: what a checkpoint, or a model that is not trained yet, does on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from mmrl.pipelines.evaluating import policy_of
from mmrl.pipelines.run import open_prompts, reward_panel, surroundings_of
from mmrl.pipelines.sizing import image_sizing
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.rollout.actor import Actor, score_rows
from mmrl.training.run_log import save_rollouts


@torch.no_grad()
def sample_run(
    checkpoint: str | Path, out: Path, prompts: int, count: int, overrides: Sequence[str] = (), *, trust: bool = False
) -> Path:  # fmt: skip
    """Greedy for one sample a prompt, drawn for several; rows with rewards in `out/rows.jsonl`."""
    config, policy = policy_of(checkpoint, overrides, trust=trust)
    with reward_panel(config) as panel, ExitStack() as stack:
        data = open_prompts(
            config.data.eval or config.data.train, config.data, prompts, panel=panel, sizing=image_sizing(config),
            held_out=bool(config.data.eval),
        )  # fmt: skip
        requests = [Request(data[i], count, group=i) for i in range(min(prompts, len(data)))]
        greedy = count == 1 or policy.varied_when_greedy
        actor = Actor(policy, surroundings_of(config, stack))
        rollouts = actor.act(requests, Key(config.training.seed, purpose="sample"), greedy=greedy)
        score_rows(rollouts, panel.score)
    save_rollouts(out, rollouts, policy.action_labels(rollouts), None, None)
    return out
