"""Scoring: chunks against all logits at once, the policy against the plain model, and what must not matter."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmrl.errors import PolicyError
from mmrl.policies.language.log_probs import Distribution, score_rows, score_rows_at_once, top_p_entropy
from mmrl.randomness import Key
from mmrl.record import Rollouts
from mmrl.stages import Need
from tests.policies.language.scenes import (
    gradients,
    image_prompt,
    mixed_prompts,
    picture,
    relative_error,
    requests,
)

H, HP = Need("entropy"), Need("entropy", options=(("top_p", 0.95),))
ASKED = (H, HP)


class TestChunks:
    @pytest.mark.parametrize("rows", [1, 7, 64, 1000])
    @pytest.mark.parametrize(
        "distribution",
        [Distribution(), Distribution(temperature=0.7, suppressed=(0, 5)), Distribution(soft_cap=3.0)],
        ids=["plain", "tempered", "capped"],
    )
    def test_equal_all_logits_at_once_in_value_and_gradient(self, rows, distribution):
        results = []
        for score in (lambda *a: score_rows(*a, rows=rows), score_rows_at_once):
            torch.manual_seed(0)
            head, hidden = nn.Linear(16, 50, bias=False), torch.randn(64, 16, requires_grad=True)
            nn.init.normal_(head.weight, std=0.5)
            numbers = score(hidden, torch.arange(64) % 40 + 6, head, distribution, ASKED)
            weight = torch.linspace(-1, 1, 64)
            ((numbers["log_probs"] + 0.3 * numbers[H.key] + 0.1 * numbers[HP.key]) * weight).sum().backward()
            results.append((numbers, {"hidden": hidden.grad, "head": head.weight.grad}))
        (got, got_grads), (wanted, wanted_grads) = results
        for name in wanted:
            assert torch.allclose(got[name], wanted[name], atol=1e-5)
        assert relative_error(got_grads, wanted_grads) < 1e-5

    def test_no_rows_give_no_numbers_and_no_gradient(self):
        head, hidden = nn.Linear(4, 9), torch.zeros(0, 4, requires_grad=True)
        numbers = score_rows(hidden, torch.zeros(0, dtype=torch.long), head, Distribution(), ASKED)
        assert all(v.shape == (0,) for v in numbers.values())
        numbers["log_probs"].sum().backward()
        assert head.weight.grad.abs().sum() == 0

    def test_half_precision_logits_are_normalised_in_float32(self):
        head = nn.Linear(16, 50, bias=False).to(torch.bfloat16)
        hidden = torch.randn(8, 16, dtype=torch.bfloat16)
        numbers = score_rows(hidden, torch.arange(8), head, Distribution(), ASKED)
        wanted = torch.log_softmax(head(hidden).float(), -1)[torch.arange(8), torch.arange(8)]
        assert numbers["log_probs"].dtype == torch.float32 and torch.allclose(numbers["log_probs"], wanted, atol=1e-6)

    def test_suppressed_ids_leave_no_nan(self):
        chunk = Distribution(suppressed=(1,))(torch.tensor([[1.0, 9.0, 1.0]]))
        numbers = score_rows_at_once(chunk, torch.tensor([0]), nn.Identity(), Distribution(), ASKED)
        assert numbers["log_probs"].item() == pytest.approx(-0.693147, abs=1e-6)
        assert numbers[H.key].item() == pytest.approx(0.693147, abs=1e-6)

    def test_top_p_entropy_by_hand(self):
        """.6 + .3 reach .85; renormalised 2/3, 1/3: entropy .636514. One token kept: exactly 0, not nearly."""
        logits = torch.log(torch.tensor([[0.6, 0.3, 0.06, 0.04], [0.97, 0.01, 0.01, 0.01]]))
        assert top_p_entropy(logits, 0.85).tolist() == pytest.approx([0.636514, 0.0], abs=1e-6)
        assert top_p_entropy(logits, 0.95)[1] == 0


def naive_log_probs(policy, rollouts: Rollouts) -> torch.Tensor:
    """(B, T) from the plain model: one row at a time, unpadded, all logits, no help from the policy."""
    out = torch.zeros_like(rollouts.old_log_probs)
    for row in range(len(rollouts)):
        entry, length = rollouts.encoded[rollouts.prompt[row]], int(rollouts.length[row])
        actions = rollouts.actions[row, :length]
        types = torch.cat([entry.token_types, torch.zeros(length).to(entry.token_types)])
        logits = policy.inner.core(
            input_ids=torch.cat([entry.ids, actions])[None], mm_token_type_ids=types[None], **entry.media
        ).logits[0, len(entry) - 1 : -1]
        logits[:, list(policy.family.suppressed)] = -torch.inf
        out[row, :length] = torch.log_softmax(logits, -1)[torch.arange(length), actions]
    return out * rollouts.mask


def weighted(log_probs: torch.Tensor) -> torch.Tensor:
    return (log_probs * torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)).sum()


def test_log_probs_and_gradients_equal_the_plain_model(make_policy, rolled, family):
    policy, rollouts = make_policy(family, logit_rows=7), rolled[family]
    scored = policy.evaluate(rollouts).log_probs
    weighted(scored).backward()
    got = gradients(policy)
    naive = naive_log_probs(policy, rollouts)
    weighted(naive).backward()
    assert (scored - naive).abs().max() < 1e-5
    assert relative_error(got, gradients(policy)) < 1e-5


def test_checkpointing_changes_nothing(make_policy, rolled, family):
    results = []
    for on in (False, True):
        policy = make_policy(family, gradient_checkpointing=on)
        policy.module.train()
        weighted(policy.evaluate(rolled[family]).log_probs).backward()
        results.append(gradients(policy))
    assert relative_error(*results) < 1e-6


def test_bfloat16_stays_close(make_policy, rolled, family):
    """Not exact: rollout and scoring round differently. The bound is the documented one."""
    policy = make_policy(family, autocast="bfloat16")
    rollouts = policy.rollout(requests(mixed_prompts()), Key(3))
    with torch.no_grad():
        difference = (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs).abs()
    assert difference.max() < 0.15 and difference[rollouts.mask].mean() < 0.02


class TestWhatMustNotMatter:
    def score(self, policy, rollouts, rows):
        with torch.no_grad():
            return policy.evaluate(rollouts.index(rows)).log_probs

    def test_left_padding_and_neighbours(self, policies, rolled, family):
        together = self.score(policies[family], rolled[family], list(range(16)))
        for row in range(16):
            alone = self.score(policies[family], rolled[family], [row])
            assert torch.allclose(alone[0], together[row], atol=1e-5)

    def test_an_image_free_row_among_images(self, policies, rolled, family):
        with_it = self.score(policies[family], rolled[family], [0, 8, 4])
        without = self.score(policies[family], rolled[family], [0, 4])
        assert torch.allclose(with_it[[0, 2]], without, atol=1e-5)

    def test_the_order_of_rows(self, policies, rolled, family):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(
            self.score(policies[family], rolled[family], order),
            self.score(policies[family], rolled[family], list(range(16)))[order],
            atol=1e-5,
        )

    def test_tokens_outside_a_row_length(self, policies, rolled, family):
        rollouts = rolled[family]
        short = replace(rollouts, length=rollouts.length - 4, mask=rollouts.mask & (torch.arange(10) < 6))
        noisy = replace(short, actions=short.actions.clone())
        noisy.actions[:, 6:] = 3
        rows = list(range(16))
        assert torch.equal(self.score(policies[family], short, rows), self.score(policies[family], noisy, rows))


def test_actions_past_a_row_are_refused(policies, rolled):
    """They would be scored after tokens that nobody sees: other actions need another extent."""
    policy, rows = policies["qwen3_vl"], rolled["qwen3_vl"]
    wrong = replace(rows, extent=rows.extent - (torch.arange(len(rows)) == 1).long())
    with pytest.raises(PolicyError, match=r"row 1 has an action in column \d+, but its extent is \d+"):
        policy.evaluate(wrong)


class TestTheImageMatters:
    """The negative control of every equality above: a wrong image must be seen."""

    def test_swapping_the_images_of_groups_changes_their_log_probs(self, policies, family):
        policy = policies[family]
        prompts = [image_prompt("a", picture("red")), image_prompt("b", picture("blue", spots=3))]
        rollouts = policy.rollout(requests(prompts), Key(0))
        swapped = replace(rollouts, encoded=rollouts.encoded[::-1])
        with torch.no_grad():
            difference = (policy.evaluate(swapped).log_probs - rollouts.old_log_probs).abs().amax(1)
        assert (difference > 1e-2).all()

    def test_swapping_two_images_of_one_prompt_changes_them_too(self, policies, family):
        policy = policies[family]
        images = picture("red"), picture("blue", spots=3)
        rollouts = policy.rollout(requests([image_prompt("a", *images)]), Key(0))
        swapped = replace(rollouts, encoded=[policy.encode(image_prompt("a", *images[::-1]))])
        with torch.no_grad():
            difference = (policy.evaluate(swapped).log_probs - rollouts.old_log_probs).abs().amax(1)
        assert (difference > 1e-2).all()

    def test_dropping_the_token_types_would_be_caught(self, policies, rolled):
        """Qwen2.5-VL computes wrong positions in silence without them; ours come from them."""
        policy, rollouts = policies["qwen2_5_vl"], rolled["qwen2_5_vl"].index([0])
        entry = rollouts.encoded[0]
        wrong = replace(entry, positions=torch.arange(len(entry)).expand(3, -1), next_position=len(entry))
        with torch.no_grad():
            scored = policy.evaluate(replace(rollouts, encoded=[wrong])).log_probs
        assert (scored - rollouts.old_log_probs).abs().max() > 1e-3


def test_a_batch_without_images_still_trains_the_tower_with_zero(make_policy, rolled, family):
    """Otherwise a rank without images waits for the others' gradients for ever."""
    policy = make_policy(family)
    text_only = rolled[family].index([8, 9])
    scored = policy.evaluate(text_only).log_probs
    scored.sum().backward()
    assert all(p.grad is not None for p in policy.module.parameters())
    assert all((p.grad == 0).all() for p in policy.inner.core.model.visual.parameters())
    assert (scored - text_only.old_log_probs).abs().max() < 1e-5


def test_several_needs_share_one_pass(make_policy, rolled, family):
    policy, calls = make_policy(family), []
    policy.inner.core.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    needs = [Need("entropy"), Need("entropy", options=(("top_p", 0.95),)), Need("visual_entropy"), Need("log_probs")]
    evaluation = policy.evaluate(rolled[family], needs, weights="old")
    assert len(calls) == 1
    assert set(evaluation.columns) == {n.key for n in needs}
    assert torch.equal(evaluation[Need("log_probs").key], evaluation.log_probs)
    truncated, full = evaluation[needs[1].key], evaluation[needs[0].key]
    mask = rolled[family].mask
    assert (truncated <= full + 1e-5)[mask].all() and (full[mask] > 0).all() and (full[~mask] == 0).all()


def test_a_prompt_wise_need_alone_does_not_run_the_decoder(make_policy, rolled):
    policy, calls = make_policy(), []
    policy.inner.core.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    evaluation = policy.evaluate(rolled["qwen3_vl"], [Need("visual_entropy")], weights="old")
    assert not calls and evaluation[Need("visual_entropy").key].shape == (16,)


def test_only_current_weights_carry_gradient(policies, rolled):
    policy, rollouts = policies["qwen3_vl"], rolled["qwen3_vl"]
    assert policy.evaluate(rollouts).log_probs.requires_grad
    for weights in ("old", "reference"):
        assert not policy.evaluate(rollouts, weights=weights).log_probs.requires_grad


class TestMicroBatches:
    def test_a_prompt_stays_together_and_every_row_comes_once(self, policies, rolled):
        rollouts = rolled["qwen3_vl"]
        batches = policies["qwen3_vl"].micro_batches(rollouts, torch.arange(16), 8)
        assert sorted(torch.cat(batches).tolist()) == list(range(16))
        assert [sorted(set(rollouts.prompt[b].tolist())) for b in batches] == [[0, 1], [2, 3]]

    def test_never_more_rows_than_allowed(self, policies, rolled):
        for size in (1, 3, 4, 5, 16):
            batches = policies["qwen3_vl"].micro_batches(rolled["qwen3_vl"], torch.arange(16), size)
            assert max(map(len, batches)) <= size and sum(map(len, batches)) == 16

    def test_only_the_rows_asked_for(self, policies, rolled):
        batches = policies["qwen3_vl"].micro_batches(rolled["qwen3_vl"], torch.tensor([1, 6, 7]), 2)
        assert [sorted(b.tolist()) for b in batches] == [[6, 7], [1]]
