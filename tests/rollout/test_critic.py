"""Values of answers in the making, learned from earlier steps."""

import torch

from mmrl.record import Batch
from mmrl.rollout.critic import Critic


def batch(reward, entropy, prompt=None):
    """Rows of two actions."""
    rows = len(reward)
    return Batch(mask=torch.ones(rows, 2).bool(), old_log_probs=torch.full((rows, 2), -0.5), max_length=2,
                 reward=torch.tensor(reward), prompt=torch.tensor(prompt or [3] * rows),
                 columns={"entropy": torch.tensor(entropy)})  # fmt: skip


def test_the_first_step_is_judged_by_nothing():
    assert Critic().make(batch([1.0, 0.0], [[0.1, 0.1], [2.0, 2.0]]))["values"].abs().max() == 0


def test_it_learns_what_goes_wrong_and_the_mean_in_between():
    """Sure answers are right, unsure ones wrong: after some steps values tell them apart before they end."""
    critic = Critic(keep=1.0)
    for _ in range(50):
        critic.make(batch([1.0, 0.0], [[0.0, 0.0], [1.0, 1.0]]))
    values = critic.make(batch([1.0, 0.0, 0.0], [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]))["values"]
    assert (values - torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]])).abs().max() < 0.1


def test_no_outcome_is_its_own_baseline_and_unscored_rows_teach_nothing():
    right, wrong = Critic(), Critic()
    first = [critic.make(batch([r, r], [[1.0, 1.0]] * 2))["values"] for critic, r in ((right, 1.0), (wrong, 0.0))]
    assert torch.equal(*first)
    before = right.state_dict()
    right.make(batch([float("nan")], [[1.0, 1.0]]))
    after = right.state_dict()
    assert after["known"] == before["known"] and after["targets"][0] == 0.9 * before["targets"][0]


def test_it_goes_on_from_its_state():
    critic, other = Critic(), Critic()
    critic.make(batch([1.0, 0.0], [[0.0, 0.5], [1.0, 1.0]], [3, 4]))
    other.load_state_dict(critic.state_dict())
    again = batch([1.0], [[0.2, 0.3]], [4])
    assert torch.equal(critic.make(again)["values"], other.make(again)["values"])
