"""PROPS: what was chosen too seldom comes next, by counts or by the policy that the paper's loss moves."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.rollout.props import Props, behaviour_probs, low_discrepancy_choice, props_loss
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, score_right
from tests.rollout.plans import rows, step
from tests.training.tiny import make_policy


def test_what_lacks_most_comes_next():
    assert low_discrepancy_choice([3, 1], [0.5, 0.5]) == 1
    assert low_discrepancy_choice([0, 0, 0], [0.0, 0.5, 0.5]) == 1, "never one of probability 0; the first of equals"


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_after_any_number_of_draws_each_count_is_within_one_of_its_share(weights):
    probs, counts = [w / sum(weights) for w in weights], [0] * len(weights)
    for n in range(1, 60):
        counts[low_discrepancy_choice(counts, probs)] += 1
        assert all(abs(c - n * p) <= 1 + 1e-9 for c, p in zip(counts, probs, strict=True))


def test_the_loss_by_hand_and_that_it_lets_go_below_the_clip():
    logs = torch.tensor([0.5, 2.0]).log().requires_grad_()
    loss = props_loss(logs, torch.zeros(2), clip=0.3)
    assert loss.item() == pytest.approx((0.7 + 2.0) / 2)
    loss.backward()
    assert logs.grad.tolist() == pytest.approx([0.0, 1.0]), "0.5 is below 1 - e: nothing pushes it further"


def test_over_sampled_actions_become_less_likely_and_what_is_balanced_stays():
    first, second = behaviour_probs([6, 2], [0.5, 0.5])
    assert first < 0.5 < second
    assert behaviour_probs([4, 4], [0.5, 0.5]) == pytest.approx([0.5, 0.5], abs=1e-6)
    assert behaviour_probs([0, 0], [0.3, 0.7]) == pytest.approx([0.3, 0.7])


def test_its_data_looks_more_on_policy_than_chance_makes_it():
    """Squared distance of the shares of 32 draws from the probabilities, over 6 runs."""
    probs, errors = [0.6, 0.3, 0.1], {"behaviour": 0.0, "chance": 0.0}
    for seed in range(6):
        for name in errors:
            counts, generator = [0] * 3, torch.Generator().manual_seed(seed)
            for _ in range(32):
                weights = behaviour_probs(counts, probs) if name == "behaviour" else probs
                counts[int(torch.multinomial(torch.tensor(weights), 1, generator=generator))] += 1
            errors[name] += sum((c / 32 - p) ** 2 for c, p in zip(counts, probs, strict=True))
    assert errors["behaviour"] < 0.5 * errors["chance"], errors


def test_a_group_is_asked_by_wording_and_goes_on_after_a_save():
    strategy = Props(wordings={"plain": "", "slow": "Take your time."}, shares={"plain": 3, "slow": 1})
    plan = strategy.ask(step(size=6))
    assert [(a.count, a.note, a.index) for a in plan.ask] == [(5, None, 0), (5, None, 1)]
    more = strategy.join(rows([0, 0], [0, 1]), step(1))
    assert [(a.group, a.note, a.trains) for a in more.ask] == [(0, 1, "shown"), (1, 1, "shown")]
    with pytest.raises(ConfigError, match="expected 0 or more for each of"):
        Props(shares={"plain": 1})
    with pytest.raises(ConfigError, match="at least two"):
        Props(wordings={"plain": ""})


def test_a_run_counts_what_was_seen_and_a_resumed_one_goes_on(tmp_path):
    def run(folder, steps, resume=None):
        settings = TrainingConfig(steps=steps, prompts_per_step=2, group_size=4, learning_rate=1e-3, save_every=1)
        trainer = Trainer(make_policy(), Objective.of({}), hinted_prompts(2), score_right, settings, folder,
                          rollout="props")  # fmt: skip
        trainer.train(resume)
        return trainer

    whole = run(tmp_path / "whole", 2)
    resumed = run(tmp_path / "part", 2, tmp_path / "whole" / "checkpoints" / "step-000001")
    state = whole.strategies.state_dict()
    assert sorted(state["props"]["taken"]) == [[0, 3, 3, 2], [1, 3, 3, 2]], "8 rollouts of each prompt"
    assert json.dumps(state) == json.dumps(resumed.strategies.state_dict())
    saved = [json.loads(line) for line in (tmp_path / "whole/rollouts/step-000001/rows.jsonl").read_text().splitlines()]
    assert {row["saw"] for row in saved} == {"its prompt", "more than its prompt, trains with it"}
