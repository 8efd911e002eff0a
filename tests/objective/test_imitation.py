"""PA-RL: who is imitated, and that the loss is the supervised one."""

import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import compute
from mmrl.objective.advantages.imitation import pa_rl
from mmrl.objective.matching_objectives.imitation import imitation
from mmrl.record import Batch, Evaluation


def rows(rewards, group, **fields):
    mask = torch.ones(len(rewards), 2, dtype=torch.bool)
    return Batch(mask=mask, old_log_probs=torch.full((len(rewards), 2), -1.0), reward=torch.tensor(rewards),
                 group=torch.tensor(group), **fields)  # fmt: skip


def test_the_best_alone_is_imitated_and_among_equals_the_first():
    batch = rows([0.0, 2.0, 2.0, 1.0, 3.0, 3.0], [0, 0, 0, 0, 1, 1])
    assert pa_rl(batch).tolist() == [0, 4, 0, 0, 0, 0], "and nobody of a group whose members are all alike"


def test_worked_numbers_of_the_softmax():
    """Of 1, 0 and log 3 - 1 the two best; exp(1) : exp(log 3 - 1) is e : 3/e, at tau 1."""
    batch = rows([0.0, 1.0, math.log(3) - 1], [0, 0, 0])
    share = math.e / (math.e + 3 / math.e)
    expected = torch.tensor([0.0, 3 * share, 3 * (1 - share)])
    torch.testing.assert_close(pa_rl(batch, keep=2, temperature=1.0), expected)


def test_unscored_rows_and_those_that_do_not_count_are_no_targets():
    batch = rows([math.nan, 1.0, 0.0, 5.0], [0, 0, 0, 0])
    batch.counted = torch.tensor([True, True, True, False])
    assert pa_rl(batch).tolist() == [0, 2, 0, 0]
    assert pa_rl(batch, temperature=0.5, keep=4).isfinite().all()


def test_the_loss_is_the_likelihood_of_the_winners():
    """Two prompts of two: the gradient is that of the mean over prompts of the winner's mean -lp."""
    old = torch.full((4, 2), -1.0)
    new = old.clone().requires_grad_()
    group, reward = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.0, 0.2, 0.3])
    batch = {"mask": torch.ones(4, 2), "old_log_probs": old, "reward": reward, "group": group}
    compute("pa_rl", batch, new).backward()
    torch.testing.assert_close(new.grad, -torch.tensor([[1.0, 1], [0, 0], [0, 0], [1, 1]]) / 4)


def test_outputs_are_learned_by_the_loss_of_pre_training():
    """Weights 2 and 0 of losses 0.5 and 3 at two draws."""
    batch = rows([1.0, 0.0], [0, 0], columns={"draw_times": torch.full((2, 2), 0.5)})
    batch.advantage = torch.tensor([[2.0, 2.0], [0.0, 0.0]])
    loss = torch.tensor([[0.5, 0.25], [3.0, 3.0]])
    found = imitation(Evaluation(batch.old_log_probs, {"matching_loss": loss}), batch)
    assert found.tolist() == [[-1.0, -0.5], [0.0, 0.0]]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"temperature": 0.0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="at least 1, and above 0"):
        pa_rl(rows([0.0, 1.0], [0, 0]), **wrong)
