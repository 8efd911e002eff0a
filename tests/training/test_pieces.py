"""Updates in pieces of rows: the same gradient whatever the split, and refusals where rows must stay whole."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.record import Prompt, Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.pieces import pieces
from mmrl.training.trainer import Trainer
from tests.policies.generation.test_policy import flow_policy, nudge
from tests.training.tiny import make_policy, make_prompts, score_vowels


def score(outputs, prompts) -> Scores:
    reward = torch.tensor([float(torch.tensor(list(o.convert("L").getdata())).float().std()) for o in outputs])
    return Scores({"spread": reward}, reward, torch.full_like(reward, float("nan")))


def after_one_step(tmp_path, objective, actions, rollout=()):
    policy = flow_policy(train_steps={"select": "all"})
    nudge(policy)
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(["one red dot", "a cat"])]
    settings = {
        "steps": 1,
        "prompts_per_step": 2,
        "group_size": 3,
        "learning_rate": 1e-3,
        "micro_batch_actions": actions,
    }
    lines = []
    trainer = Trainer(
        policy, Objective.of(objective), prompts, score, TrainingConfig(**settings, updates={"count": 2}), tmp_path,
        rollout=rollout, report=lambda step, metrics: lines.append(metrics),
    )  # fmt: skip
    trainer.train()
    return {n: p.detach().clone() for n, p in policy.inner.named_parameters() if p.requires_grad}, lines[0]


OBJECTIVES = {
    "clip": {"advantage": "grpo", "trust_region": {"name": "clip", "low": 1e-3, "high": 1e-3}},
    "sequence": {"ratio": "sequence", "aggregation": "sequence_mean"},
}


@pytest.mark.parametrize("name", ["clip", "sequence"])
def test_pieces_add_up_to_the_whole(tmp_path, name):
    whole, metrics = after_one_step(tmp_path / "whole", OBJECTIVES[name], None)
    split, other = after_one_step(tmp_path / "split", OBJECTIVES[name], 4)
    for key in ("gradient_norm", "ratio/mean", "ratio/clip_fraction", "reward/mean"):
        assert other[key] == pytest.approx(metrics[key], rel=1e-4, abs=1e-7), key
    for key, value in whole.items():
        assert (value - split[key]).abs().mean() < 2e-5, key


def test_a_tree_may_be_split_freely(tmp_path):
    branching = {"name": "branching", "at": [2]}
    _, metrics = after_one_step(tmp_path / "whole", OBJECTIVES["clip"], None, branching)
    _, other = after_one_step(tmp_path / "split", OBJECTIVES["clip"], 5, branching)
    assert other["rollouts"] == 12 and other["gradient_norm"] == pytest.approx(metrics["gradient_norm"], rel=1e-4)


def test_pieces_hold_every_moving_action_once():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    moving = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    seen = torch.zeros(2, 4)
    parts = list(pieces(mask, moving, 4))
    for rows, some in parts:
        assert 0 < int(some.sum()) <= 4
        seen[rows] += some
    assert len(parts) == 2 and torch.equal(seen.bool(), mask & moving) and seen.max() == 1


def test_rows_that_must_stay_whole_are_refused(tmp_path):
    config = TrainingConfig(micro_batch_actions=4)
    with pytest.raises(ConfigError, match="computes the actions of a row together"):
        Trainer(make_policy(), Objective.of({}), make_prompts(8), score_vowels, config, tmp_path)
    exact = {"regularizers": [{"name": "gaussian_kl", "coefficient": 0.1}]}
    prompts = [Prompt("p", [{"role": "user", "content": "a cat"}])]
    with pytest.raises(ConfigError, match="keeps rows whole"):
        Trainer(flow_policy(), Objective.of(exact), prompts, score, config, tmp_path)
