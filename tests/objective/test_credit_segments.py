"""Steps, markers, spans and functional tokens: worked numbers and what must stay untouched."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective, compute
from mmrl.objective.credit.segments import flagged_spans, marker_end
from mmrl.record import Batch
from mmrl.stages import Bound


def rows(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def batch_of(shape, **fields) -> Batch:
    columns = {k: v for k, v in fields.items() if k not in Batch.__dataclass_fields__}
    known = {k: v for k, v in fields.items() if k in Batch.__dataclass_fields__}
    known.setdefault("mask", torch.ones(shape, dtype=torch.bool))
    known.setdefault("group", torch.zeros(shape[0], dtype=torch.long))
    known.setdefault("reward", torch.zeros(shape[0]).double())
    return Batch(old_log_probs=torch.zeros(shape).double(), columns=columns, **known)


def credit(name: str, batch: Batch, advantage=None, **parameters):
    advantage = torch.zeros(batch.mask.shape).double() if advantage is None else advantage
    return Bound.of("credit", {"name": name, **parameters})(advantage, batch)


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected).double(), atol=atol, rtol=0)


LONG = torch.long


class TestStates:
    def batch(self, **fields):
        """Three rollouts of two steps of two tokens; the first steps share a state, the second steps do not."""
        return batch_of(
            (3, 4), segment=rows(*[[0, 0, 1, 1]] * 3, dtype=LONG),
            state=rows([7, 7, 1, 1], [7, 7, 2, 2], [7, 7, 3, 3], dtype=LONG), **fields,
        )  # fmt: skip

    def test_gigpo_compares_steps_of_one_state(self):
        batch = self.batch(action_reward=rows([1, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 0]))
        result, _ = credit("gigpo", batch, rewards="action_reward")
        close(result, [[0.5, 0.5, 0, 0], [0, 0, 0, 0], [-0.5, -0.5, 0, 0]])

    def test_gigpo_discounts_the_outcome_to_earlier_steps_and_adds_to_the_episode(self):
        batch = self.batch(reward=torch.tensor([1.0, 0, 0]).double())
        result, _ = credit("gigpo", batch, torch.full((3, 4), 0.25).double(), gamma=0.9, weight=2.0)
        close(result[:, 0], [0.25 + 2 * (0.9 - 0.3), 0.25 - 0.6, 0.25 - 0.6])
        close(result[:, 2], [0.25] * 3)

    def test_rebel_normalises_both_returns_in_the_pool(self):
        batch = self.batch(action_reward=rows([1, 0, 0, 0], [0] * 4, [0] * 4), belief_reward=torch.zeros(3, 4).double())
        batch.columns["belief"] = batch.columns.pop("state")
        result, _ = credit("rebel", batch)
        close(result[:, 0], [0.5 * 1.154701, -0.5 * 0.577350, -0.5 * 0.577350], atol=1e-5)
        assert (result[:, 2:] == 0).all(), "a belief stated once adds exactly 0"

    def test_rlvmr_compares_steps_of_one_tag_across_positions(self):
        batch = self.batch(tag=rows([1, 1, 2, 2], [2, 2, 1, 1], [3, 3, 3, 3], dtype=LONG))
        batch.columns["action_reward"] = rows([1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0])
        result, _ = credit("rlvmr", batch, std=False)
        close(result, [[0.5, 0.5, 0, 0], [0, 0, -0.5, -0.5], [0, 0, 0, 0]])

    def test_graph_grpo_counts_a_rollout_once_for_a_choice(self):
        batch = self.batch(reward=torch.tensor([1.0, 0, 0.5]).double())
        batch.columns["choice"] = rows([1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3], dtype=LONG)
        result, _ = credit("graph_grpo", batch)
        close(result, [[0, 0, 0, 0], [0, 0, -0.25, -0.25], [-0.25, -0.25, 0, 0]])

    def test_salt_averages_shared_steps_and_keeps_the_sum(self):
        batch = self.batch(actions=rows([1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3, 4], dtype=LONG))
        batch.columns["state"] = rows([7, 7, 1, 1], [7, 7, 1, 1], [7, 7, 1, 1], dtype=LONG)
        advantage = rows([1.0] * 4, [-1.0] * 4, [0.0] * 4)
        result, _ = credit("salt", batch, advantage)
        close(result, [[0, 0, 0.5, 0.5], [0, 0, -1, -1], [0, 0, 0.5, 0.5]])
        close(result.sum(), advantage.sum().item())

    def test_salt_without_shared_steps_is_the_advantage(self):
        batch = self.batch(actions=torch.arange(12).view(3, 4))
        advantage = rows([1.0] * 4, [-1.0] * 4, [0.5] * 4)
        assert torch.equal(credit("salt", batch, advantage)[0], advantage)

    def test_members_of_other_groups_and_unscored_rows_do_not_count(self):
        batch = self.batch(
            reward=torch.tensor([1.0, 0, float("nan")]).double(), group=torch.tensor([0, 1, 0]),
        )  # fmt: skip
        result, _ = credit("gigpo", batch)
        assert (result == 0).all(), "one counted member in each group: every pool is a singleton"


class TestMarker:
    ids = rows([1, 8, 9, 4, 5], [8, 9, 2, 8, 9], [1, 2, 3, 4, 5], dtype=LONG)

    def test_the_first_marker_counts_and_must_be_sampled(self):
        mask = torch.ones(3, 5, dtype=torch.bool)
        assert marker_end(self.ids, mask, (8, 9)).tolist() == [2, 1, -1]
        mask[1, 0] = False
        assert marker_end(self.ids, mask, (8, 9)).tolist() == [2, 4, -1]
        assert marker_end(self.ids, mask, (1,) * 9).tolist() == [-1, -1, -1]

    def test_worked_example(self):
        ids = rows([1, 9, 2], [9, 1, 2], [1, 9, 2], [1, 9, 2], dtype=LONG)
        parts = {"retrieval": torch.tensor([1.0, 0, 1, 0]).double(), "answer": torch.tensor([0.0, 0, 1, 1]).double()}
        result, _ = credit("dynframe_sd_grpo", batch_of((4, 3), actions=ids, components=parts), marker=[9])
        half = 0.866024
        close(result, [[half, half, -half], [-half] * 3, [half] * 3, [-half, -half, half]], atol=1e-5)

    def test_without_a_marker_the_answer_decides_and_retrieval_counts_as_zero(self):
        ids = rows([1, 9, 2], [1, 1, 2], dtype=LONG)
        parts = {"retrieval": torch.tensor([1.0, 1.0]).double(), "answer": torch.tensor([0.0, 1]).double()}
        result, _ = credit("dynframe_sd_grpo", batch_of((2, 3), actions=ids, components=parts), marker=[9])
        close(result.sign(), [[1, 1, -1], [1, 1, 1]])

    def test_turns_split_as_the_marker_does(self):
        ids = rows([1, 9, 2], [9, 1, 2], [1, 9, 2], [1, 1, 2], dtype=LONG)
        turn = rows([0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]).double()
        parts = {"retrieval": torch.tensor([1.0, 0, 1, 0]).double(), "answer": torch.tensor([0.0, 0, 1, 1]).double()}
        by_marker, _ = credit("dynframe_sd_grpo", batch_of((4, 3), actions=ids, components=parts), marker=[9])
        by_turn, _ = credit("dynframe_turns", batch_of((4, 3), turn=turn, components=parts))
        close(by_turn, by_marker.tolist())
        own = batch_of((4, 3), turn=turn, fetched=parts.pop("retrieval"), components=parts)
        close(credit("dynframe_turns", own, retrieval="fetched")[0], by_marker.tolist())

    def test_it_asks_for_its_marker_and_components(self):
        with pytest.raises(ConfigError, match="marker"):
            credit("dynframe_sd_grpo", batch_of((1, 3), actions=self.ids[:1, :3]))
        with pytest.raises(ConfigError, match="retrieval"):
            credit("dynframe_sd_grpo", batch_of((1, 3), actions=self.ids[:1, :3]), marker=[9])


class TestFlaggedSpans:
    def test_perceval_worked_numbers(self):
        batch = batch_of((2, 2), flagged_tokens=rows([1, 0], [1, 0]))
        result, mask = credit("perceval", batch, rows([1.0, 1], [-1, -1]))
        close(result, [[0.9, 1], [-1.1, -1]])
        assert mask.all()
        close(credit("perceval", batch, torch.zeros(2, 2).double())[0], [[0.0, 0], [0, 0]])

    def test_spans_cover_every_token_they_touch_at_their_first_occurrence(self):
        pieces = ["The", " red", " ca", "t", " and", " red", " cat"]
        assert flagged_spans(pieces, ["red cat"]) == [False, True, True, True, False, False, False]
        assert flagged_spans(pieces, ["blue dog", ""]) == [False] * 7
        assert flagged_spans(pieces, ["cat and"]) == [False, False, True, True, True, False, False]


class TestFunctionalTokens:
    def test_it_is_the_auxiliary_loss_under_the_token_mean(self):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 5, (4, 25), generator=generator)
        old = -torch.rand(4, 25, generator=generator).double()
        batch = {
            "mask": torch.ones(4, 25, dtype=torch.bool), "old_log_probs": old, "actions": ids,
            "group": torch.tensor([0, 0, 1, 1]), "reward": torch.tensor([1.0, 0, 1, 0.5]).double(),
        }  # fmt: skip
        new = old + 0.3 * torch.randn(4, 25, generator=generator).double()
        plain = {"advantage": "grpo", "trust_region": "clip", "aggregation": "token_mean"}
        anchored = {**plain, "credit": [{"name": "atlas_la_grpo", "tokens": [3], "alpha": 0.2}]}
        prepared, _ = Objective.of(plain).prepare(Batch(**batch))
        ratio = (new - old).exp()
        surrogate = -torch.minimum(ratio * prepared.advantage, ratio.clamp(0.8, 1.2) * prepared.advantage)
        expected = compute(plain, batch, new) + 0.2 * surrogate[ids == 3].mean()
        torch.testing.assert_close(compute(anchored, batch, new), expected)

    def test_no_functional_token_changes_nothing(self):
        batch = batch_of((1, 3), actions=rows([1, 2, 3], dtype=LONG))
        close(credit("atlas_la_grpo", batch, torch.ones(1, 3).double(), tokens=[9])[0], [[1.0, 1, 1]])
        with pytest.raises(ConfigError, match="tokens"):
            credit("atlas_la_grpo", batch)

    def test_each_optimizer_step_counts_its_own_tokens(self):
        batch = batch_of((2, 4), actions=rows([3, 0, 0, 0], [3, 3, 0, 0], dtype=LONG), update=torch.tensor([0, 1]))
        result, _ = credit("atlas_la_grpo", batch, torch.ones(2, 4).double(), tokens=[3], alpha=0.1)
        close(result[:, 0], [1.4, 1.2])
