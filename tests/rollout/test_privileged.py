"""The policy that was shown a right answer teaches the one that was not."""

import pytest
import torch

from mmrl.objective import Objective
from mmrl.recipes import load_recipe
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.privileged import SOLVED
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import RIGHT, WRONG, hinted_prompts, score_right, taught


@pytest.mark.parametrize("name", ["srpo", "sdpo"])
def test_wrong_answers_are_taught_and_the_distance_to_the_teacher_falls(name, tmp_path):
    """Alone right half of the time, and always where it was shown: the divergence falls, and rights become likelier."""
    prompts = hinted_prompts(2)
    told = [with_text(p, filled(SOLVED, "test", solution=RIGHT), "teacher") for p in prompts]
    pairs = [*((p, t) for p in prompts for t in (RIGHT, WRONG)), *((p, RIGHT) for p in told)]
    policy = taught(pairs, weights=[0.5] * 4 + [1.0] * 2, steps=40)

    def likely(of, text):
        return policy.written(of, [text] * 2).old_log_probs.sum(1).mean().item()

    def apart():
        """How much likelier the wrong answer is to the student than to the teacher, in nats."""
        return likely(prompts, WRONG) - likely(told, WRONG)

    before, distance = likely(prompts, RIGHT), apart()
    recipe, metrics = load_recipe(name), []
    trainer = Trainer(
        policy, Objective.of(recipe.objective), prompts, score_right,
        TrainingConfig(steps=3, prompts_per_step=2, group_size=8, learning_rate=5e-4), tmp_path,
        rollout=recipe.rollout, report=lambda step, values: metrics.append(values),
    )  # fmt: skip
    batch = trainer.collector.collect(0).batch
    assert set(batch.success.tolist()) == {0.0, 1.0}
    trainer.train()
    assert likely(prompts, RIGHT) > before + 0.1 and apart() < distance - 0.5
    assert torch.isfinite(torch.tensor([m["gradient_norm"] for m in metrics if "gradient_norm" in m])).all()
