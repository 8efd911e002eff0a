"""Worked numbers for turns, list items, phases, macro actions, several rewards, and off-policy baselines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import explain
from mmrl.objective.advantages.group import grpo, rloo
from mmrl.objective.advantages.multi_reward import gdpo_decoupled, lightningrl
from mmrl.objective.advantages.off_policy import a_lol, vcpo
from mmrl.objective.advantages.parts import f_grpo, ma_rlhf, macro_actions, rank_grpo, trloo
from mmrl.record import Batch


def of(segment: list[list[int]], rewards: list[list[float]] | None = None, **fields) -> Batch:
    ids = torch.tensor(segment)
    columns = {"segment": ids}
    if rewards is not None:
        columns["action_reward"] = torch.tensor(rewards, dtype=torch.float64)
    fields.setdefault("group", torch.zeros(len(ids), dtype=torch.long))
    return Batch(
        mask=ids >= 0, old_log_probs=torch.zeros(ids.shape, dtype=torch.float64), columns=columns, **fields
    )  # fmt: skip


def close(values, expected, atol=1e-5) -> bool:
    return torch.allclose(values.double(), torch.tensor(expected).double(), atol=atol)


def test_turns_are_compared_with_the_same_turn_of_the_others():
    assert close(trloo(of([[0], [0], [0]], [[3], [1], [2]])), [[1.5], [-1.5], [0]])


def test_one_turn_is_rloo():
    batch = of([[0, 0], [0, -1], [0, 0]], [[0, 3], [1, 0], [0, 2]], reward=torch.tensor([3.0, 1, 2]).double())
    assert torch.allclose(trloo(batch), rloo(batch)[:, None] * batch.mask)


def test_returns_of_turns_add_up_and_a_lone_turn_keeps_its_return():
    batch = of([[0, 0, 1], [0, -1, -1]], [[0, 1, 4], [2, 0, 0]])
    assert close(trloo(batch, discount=0.5), [[1, 1, 4], [-1, 0, 0]])


def test_a_hit_at_rank_three_changes_only_the_first_three_ranks():
    items = [[0, 1, 2, 3]] * 3
    before = rank_grpo(of(items, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]))
    after = rank_grpo(of(items, [[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]))
    changed = (before - after).abs().sum(0) > 1e-9
    assert changed.tolist() == [True, True, True, False]


def test_one_item_is_grpo_and_further_items_get_a_fixed_value():
    batch = of([[0, 0], [0, 0], [0, 1]], [[1, 0], [0, 0], [1, 0]], reward=torch.tensor([1.0, 0, 1]).double())
    advantage = rank_grpo(batch, causal=False, items=1, overflow=-0.7)
    assert torch.allclose(advantage[:, 0], grpo(batch, eps=1e-4))
    assert close(advantage[2], [float(advantage[2, 0]), -0.7])


def test_the_discount_of_ranks():
    """Hits at both ranks are worth 1 + 1/log2(3) from rank one, 1/log2(3) from rank two."""
    advantage = rank_grpo(of([[0, 1]] * 2, [[1, 1], [0, 0]]), eps=0.0)
    assert close(advantage, [[0.7071068, 0.7071068], [-0.7071068, -0.7071068]])


def test_phases_have_their_own_reward():
    parts = {"coverage": torch.tensor([1.0, 0]).double(), "ranking": torch.tensor([0.0, 4]).double()}
    batch = of([[0, 0, 1], [0, 1, 1]], components=parts, reward=torch.zeros(2).double())
    assert close(f_grpo(batch), [[0.5, 0.5, -2], [-0.5, 2, 2]])
    swapped = replace(batch, components={**parts, "ranking": parts["ranking"].flip(0)})
    assert torch.equal(f_grpo(swapped)[batch["segment"] == 0], f_grpo(batch)[batch["segment"] == 0])


def test_an_empty_second_phase_is_gspo_on_the_first():
    parts = {"coverage": torch.tensor([1.0, 0]).double(), "ranking": torch.tensor([0.0, 4]).double()}
    batch = of([[0, 0, 0], [0, 0, -1]], components=parts, reward=parts["coverage"])
    new = batch.old_log_probs + 0.1
    phase = {"advantage": "f_grpo", "ratio": "segment", "aggregation": "sequence_mean"}
    whole = {"advantage": "dr_grpo", "ratio": "sequence", "aggregation": "sequence_mean"}
    assert torch.allclose(explain(phase, batch, new).loss, explain(whole, batch, new).loss)


def test_an_unknown_phase_reward_is_named():
    with pytest.raises(ConfigError, match="did you mean 'coverage'"):
        f_grpo(of([[0]], components={"coverage": torch.zeros(1)}, reward=torch.zeros(1)), rewards=("coverag",))


def test_macro_actions_end_with_a_single_one():
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    assert macro_actions(mask, 3).tolist() == [[0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 1, -1, -1, -1]]


def token_gae(values: list[float], reward: float, discount: float, trace: float) -> list[float]:
    running, following, out = 0.0, 0.0, []
    for t in reversed(range(len(values))):
        delta = (reward if t == len(values) - 1 else 0.0) + discount * following - values[t]
        running = delta + discount * trace * running
        following = values[t]
        out.append(running)
    return out[::-1]


def with_values(values: list[float], reward: float) -> Batch:
    batch = of([[0] * len(values)], reward=torch.tensor([reward]).double())
    return replace(batch, columns={"values": torch.tensor([values], dtype=torch.float64)})


def test_macro_actions_of_one_are_token_gae():
    values = [0.5, 0.2, 0.9, 0.4]
    advantage = ma_rlhf(with_values(values, 1.0), size=1, discount=0.9, trace=0.8)
    assert close(advantage[0], token_gae(values, 1.0, 0.9, 0.8))


def test_one_macro_is_one_advantage_up_to_the_last_action():
    advantage = ma_rlhf(with_values([0.4, 0.6, 0.5, 0.9], 1.0), size=10, discount=1.0, trace=1.0)
    assert close(advantage[0], [0.5, 0.5, 0.5, 0.1])


def rewards_of(first: list[float], second: list[float], **fields) -> Batch:
    rows = len(first)
    parts = {"a": torch.tensor(first).double(), "b": torch.tensor(second).double()}
    return Batch(
        mask=torch.ones(rows, 1, dtype=torch.bool), old_log_probs=torch.zeros(rows, 1).double(),
        group=torch.zeros(rows, dtype=torch.long), reward=parts["a"] + parts["b"], components=parts, **fields,
    )  # fmt: skip


def test_gdpo_keeps_apart_what_the_sum_collapses():
    batch = rewards_of([0, 0, 1, 1], [1, 2, 0, 1])
    assert close(gdpo_decoupled(batch), [-1.13134, 0.468698, -0.468698, 1.13134])
    assert close(grpo(batch), [-0.866, 0.866, -0.866, 0.866], atol=1e-3)


def test_gdpo_before_the_batch_standardisation():
    """One reward that differs gives .707 each, two give 1.414: the sum alone would give .707 in both."""
    for second, expected in (([0, 0], 0.707007), ([0, 1], 1.414014)):
        batch = rewards_of([0, 1], second)
        advantage = gdpo_decoupled(batch)
        raw = torch.tensor([-expected, expected]).double()
        assert torch.allclose(advantage, raw / (raw.std() + 1e-4), atol=1e-5)


def test_a_constant_component_adds_nothing_and_weights_weigh():
    batch = rewards_of([0, 1, 0, 1], [5, 5, 5, 5])
    assert torch.allclose(gdpo_decoupled(batch), gdpo_decoupled(batch, weights={"a": 1.0}))
    mixed = rewards_of([0, 1, 0, 1], [1, 2, 0, 1])
    assert not torch.allclose(gdpo_decoupled(mixed), gdpo_decoupled(mixed, weights={"a": 1.0, "b": 0.1}))


def test_an_easy_reward_may_wait_for_a_hard_one():
    batch = rewards_of([1, 0, 0, 0], [1, 1, 0, 0])
    conditioned = gdpo_decoupled(batch, given={"b": "a"})
    assert conditioned[1] == conditioned[2] != gdpo_decoupled(batch)[1]


def test_gdpo_refuses_an_unknown_component():
    with pytest.raises(ConfigError, match="unknown reward component"):
        gdpo_decoupled(rewards_of([0, 1], [1, 0]), weights={"c": 1.0})


def test_lightningrl_ignores_a_constant_speed():
    parts = {"accuracy": torch.tensor([1.0, 0, 0, 1]).double(), "tokens_per_forward": torch.full((4,), 2.0).double()}
    batch = replace(rewards_of([0] * 4, [0] * 4), components=parts)
    assert close(lightningrl(batch), [1, -1, -1, 1])


def test_vcpo_baseline_of_least_variance():
    batch = replace(
        rewards_of([1, 0, 0, 1], [0] * 4),
        columns={
            "score_gradient_norm": torch.tensor([1.0, 2, 1, 1]).double().sqrt(),
            "sampler_log_probs": -torch.tensor([4.0, 1, 1, 2]).double().log()[:, None],
        },
    )
    assert close(vcpo(batch), [1 - 0.869565, -0.869565, -0.869565, 1 - 0.869565])
    even = replace(batch, columns={"score_gradient_norm": torch.full((4,), 3.0).double()})
    assert close(vcpo(even), [0.5, -0.5, -0.5, 0.5])


def test_a_lol_trains_only_what_beats_the_reference():
    batch = replace(rewards_of([1, 0.2], [0, 0]), columns={"reference_value": torch.tensor([0.5, 0.5]).double()})
    assert close(a_lol(batch), [0.5, 0])
    assert close(a_lol(batch, keep_negative=True), [0.5, -0.3])
