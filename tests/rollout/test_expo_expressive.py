"""EXPO with expressive policies: drafts are edited, the base imitates the better, the editor climbs."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.recipes import load_recipe
from mmrl.rollout.edits import EDIT
from mmrl.rollout.expo_expressive import ExpoExpressive
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import RIGHT, WRONG, hinted_prompts, score_right, taught_policy
from tests.rollout.plans import rows, step


def test_each_draft_is_edited_once_and_the_best_of_both_comes_back():
    strategy = ExpoExpressive()
    assert [a.count for a in strategy.ask(step(size=6)).ask] == [3, 3]
    none = torch.zeros(4, dtype=torch.float64)
    drafts = rows([0, 0, 1, 0], [0, 0, 1, 1], member=torch.tensor([0, 1, 0, 1]), columns={"edit": none, "expert": none})
    plan = strategy.join(drafts, step(1))
    assert [(a.group, a.note, a.trains) for a in plan.ask] == [
        (0, 0, "shown"), (0, 1, "shown"), (1, 0, "shown"), (1, 1, "shown"),
    ]  # fmt: skip
    assert not plan.counted.any() and not plan.trained.any(), "drafts neither count nor train"
    edits = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1.0])
    both = rows([0, 0, 0, 0.5, 1, 0, 1, 0], [0] * 4 + [1] * 4, member=torch.tensor([0, 1, 2, 3] * 2),
                columns={"edit": edits, "expert": 0 * edits})  # fmt: skip
    plan = strategy.join(both, step(2))
    assert not plan.ask and [(g.group, g.note) for g in plan.given] == [(0, 3), (1, 0)], "a draft before an equal edit"
    assert plan.counted.tolist() == plan.trained.tolist() == edits.bool().tolist()
    assert not strategy.join(both, step(3)).asks, "once a group"


def test_where_nothing_is_worth_anything_nothing_is_imitated():
    strategy, zeros = ExpoExpressive(), torch.zeros(2, dtype=torch.float64)
    wrong = rows([0, 0], [0, 0], member=torch.tensor([0, 1]), columns={"edit": zeros, "expert": zeros})
    strategy.join(wrong, step(1))
    assert not strategy.join(wrong, step(2)).given
    with pytest.raises(ConfigError, match="a group of at least 4"):
        ExpoExpressive().ask(step(size=3))


def test_the_bare_prompt_learns_what_the_editor_found(tmp_path):
    """The policy is wrong at the bare prompt and right at its own wrong draft: only edits can be right."""
    policy = taught_policy(EDIT.replace("{draft}", WRONG), steps=24, share=1e-4)
    recipe, told = load_recipe("expo_expressive"), []
    objective = {**recipe.objective}
    objective["regularizers"] = [{**objective["regularizers"][0], "coefficient": 1.0}]
    rows_of = policy.written(hinted_prompts(2), [RIGHT] * 2)
    before = policy.evaluate(rows_of, ()).log_probs.sum(1).mean().item()
    settings = TrainingConfig(steps=2, prompts_per_step=2, group_size=8, learning_rate=1e-3, save_every=0)
    Trainer(policy, Objective.of(objective), hinted_prompts(2), score_right, settings, tmp_path,
            rollout=recipe.rollout, report=lambda step, metrics: told.append(metrics)).train()  # fmt: skip
    lines = {line["source"]: line for line in told[0]["rows_by_source"] if line["source"] == "rewritten"}
    assert lines["rewritten"]["trained"] == 2 and lines["rewritten"]["counted"] == 0
    after = policy.evaluate(rows_of, ()).log_probs.sum(1).mean().item()
    assert after > before + 0.5, (before, after)
