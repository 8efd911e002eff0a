"""Tree search in training: the arithmetic of the search, and groups that are found by it."""

import math
from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.advantages.trees import deepsearch
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.rollout.deepsearch import DeepSearch, Node, backed_up, best_end, puct
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, taught
from tests.rollout.plans import rows, step


class TestArithmetic:
    def test_puct(self):
        """The spec's check: parent visited 10 times, child twice, Q = .1."""
        assert puct(0.2, 2, 10) == pytest.approx(2.2460, abs=1e-4) and puct(0.2, 0, 10) == 0

    def test_right_paths_replace_wrong_ones_and_are_never_replaced(self):
        assert backed_up(0.3, -1, 0.5) == 0.3
        assert backed_up(-0.3, 1, 0.5) == 0.5
        assert backed_up(0.3, 1, 0.5) == pytest.approx(0.8) and backed_up(-0.3, -1, 0.5) == pytest.approx(-0.8)

    def test_of_wrong_ends_the_surest_is_kept_and_any_right_one_before_it(self):
        batch = rows([0.0, 0.0, 0.0], [0, 0, 0])
        batch = replace(batch, old_log_probs=torch.tensor([[-2.0], [-1.0], [-3.0]], dtype=torch.float64))
        ends = [Node(m, 1, ended=True) for m in range(3)]
        assert best_end(ends, {0: False, 1: False, 2: False}, batch).member == 1
        assert best_end(ends, {0: False, 1: False, 2: True}, batch).member == 2

    def test_bad_options_are_refused(self):
        for options in ({"width": 1}, {"solved": 1.0}, {"expansions": 0}, {"select": "best"}):
            with pytest.raises(ConfigError, match="deepsearch"):
                DeepSearch(**options)


def group(rewards, lengths, log_prob=-1.0):
    """A group of rows of the given lengths, all actions of one log-prob."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    worth = torch.tensor(rewards)
    return replace(
        rows(rewards, [0] * len(rewards)), mask=mask, old_log_probs=log_prob * mask.double(), reward=worth,
        success=worth, length=torch.tensor(lengths), owner=None, actions=mask.long(), loss_mask=None,
    )  # fmt: skip


class TestSearch:
    def test_a_group_that_is_solved_often_enough_is_left_alone(self):
        strategy = DeepSearch(segment=2, width=4)
        batch = group([1.0, 1.0, 0.0, 0.0], [4, 4, 4, 4])
        plan = strategy.join(batch, step(1, size=4))
        assert not plan.asks and plan.counted.all()
        assert strategy.make(batch)["node_value"][2].tolist() == pytest.approx([math.tanh(-2 / 3)] * 2 + [-1, -1])

    def test_a_group_that_fails_is_searched_from_its_open_nodes(self):
        strategy = DeepSearch(segment=2, width=3)
        first = group([0.0, 0.0, 0.0], [4, 4, 2])
        plan = strategy.join(first, step(1, size=3))
        (ask,) = plan.ask
        assert (ask.count, ask.start.action) == (2, 2) and ask.start.member in (0, 1), "row 2 has no inner node"
        assert plan.counted.tolist() == [True, False, False], "one wrong end is kept of an expansion"
        second = group([0.0, 0.0, 0.0, 1.0, 0.0], [4, 4, 2, 4, 4])
        plan = strategy.join(second, step(2, size=3))
        assert plan.counted.tolist() == [True, False, False, True, False] and plan.ask
        values = strategy.make(second)["node_value"]
        assert values[3].tolist() == pytest.approx([math.tanh(2 / 3)] * 2 + [1, 1]), "right: above what was wrong below"

    def test_expansions_that_nobody_could_score_end_the_search_too(self):
        """Else a scorer that is down would be asked until the run stops."""
        strategy, unscored = DeepSearch(segment=2, width=2, expansions=3), float("nan")
        rewards, lengths, asked = [0.0, 0.0], [4, 4], 0
        plan = strategy.join(group(rewards, lengths), step(1, size=2))
        while plan.ask and asked < 9:
            rewards, lengths = [*rewards, *[unscored] * plan.ask[0].count], [*lengths, *[4] * plan.ask[0].count]
            asked += 1
            plan = strategy.join(group(rewards, lengths), step(1 + asked, size=2))
        assert asked == 2 and plan.counted.tolist() == [True] + [False] * (len(rewards) - 1)

    def test_uct_goes_down_from_the_root(self):
        strategy = DeepSearch(segment=2, width=3, select="uct")
        (ask,) = strategy.join(group([0.0, 0.0, 0.0], [4, 4, 2]), step(1, size=3)).ask
        assert ask.start.action == 2

    def test_states_are_compared_with_the_chosen_ends(self):
        batch = group([0.0, 1.0], [4, 4])
        values = torch.tensor([[-0.5, -0.5, -1, -1], [0.5, 0.5, 1, 1]], dtype=torch.float64)
        batch = replace(batch, columns={"node_value": values})
        assert deepsearch(batch).tolist() == values.tolist(), "the ends' mean is 0"
        assert deepsearch(batch, std=True)[1, 0] == pytest.approx(0.5, abs=1e-5)
        alone = replace(batch, counted=torch.tensor([False, True]))
        assert deepsearch(alone)[1].tolist() == values[1].tolist() and not deepsearch(alone)[0].any()


def test_what_plain_sampling_misses_is_found_kept_and_replayed(tmp_path):
    """Right is a rare end behind a frequent beginning. The search branches there, and remembers what it found."""
    prompts = hinted_prompts(4)
    pairs = [(p, text) for p in prompts for text in ("cdae", "cdad")]
    policy = taught(pairs, weights=[0.12, 0.88] * 4, steps=40)

    def score(outputs, prompts):
        reward = torch.tensor([float(o == "cdae") for o in outputs])
        return Scores({"right": reward}, reward, reward.clone())

    metrics = []
    trainer = Trainer(
        policy, Objective.of(load_recipe("deepsearch").objective), prompts, score,
        TrainingConfig(steps=1, prompts_per_step=4, group_size=4, learning_rate=1e-3), tmp_path,
        rollout=[{"name": "deepsearch", "segment": 3, "width": 4}],
        report=lambda step, values: metrics.append(values),
    )  # fmt: skip
    found = trainer.collector.collect(0)
    strategy = trainer.strategies.strategies[0]
    batch, searched = found.batch, [g for g, tree in strategy._trees.items() if tree.searched]
    assert searched and strategy.cache, "some group failed at first, and the search solved a prompt"
    for g in searched:
        kept = (batch.group == g) & batch.counted
        assert kept.sum() <= 4 and not batch.trained[(batch.group == g) & ~kept].any()
    fresh = {g: int(((batch.group == g) & (batch.member < 4) & (batch.success == 1)).sum()) for g in searched}
    assert any(fresh[g] == 0 and ((batch.group == g) & batch.counted & (batch.success == 1)).any() for g in searched)
    again = trainer.collector.collect(1)
    replayed = again.batch.source > 0
    assert replayed.sum() >= 1 and (again.batch.success[replayed] == 1).all()
    remembered = again.batch.group[replayed].tolist()
    assert all(int((again.batch.group == g).sum()) == 4 for g in remembered), "a solved prompt is not searched again"
    other = DeepSearch(segment=3, width=4)
    other.load_state_dict(strategy.state_dict())
    assert other.cache == strategy.cache
    trainer.train()
    assert any(m.get("gradient_norm", 0) > 0 for m in metrics)
