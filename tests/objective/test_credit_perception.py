"""ToR and VPPO: the specs' worked numbers, exact counts, ties that follow the rollout and not the row."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.perception import trajectory_scale, view_of, visual_dependence
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound, Need, View


def tokens(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def batch_of(old, seed=0, **columns) -> Batch:
    fields = {k: columns.pop(k) for k in ("group", "update", "trained", "mask") if k in columns}
    fields.setdefault("mask", torch.ones(old.shape, dtype=torch.bool))
    return Batch(old_log_probs=old, seed=seed, columns=columns, **fields)


ENTROPY = tokens([3, 0, 0, 2, 0, 0, 0, 0, 0, 0])
DEPENDENCE = tokens([0, 5, 0, 4, 0, 0, 3, 0, 0, 0])


@pytest.mark.parametrize("seed", range(20))
def test_tor_keeps_exactly_three_of_ten_in_each_set_whatever_the_seed(seed):
    batch = batch_of(torch.zeros(1, 10).double(), seed, entropy=ENTROPY, media_free_log_probs=-DEPENDENCE)
    weight, mask = Bound.of("credit", "tor")(torch.ones(1, 10).double(), batch)
    tie = [t for t in range(10) if weight[0, t] == 1 and t not in (0, 3)]
    assert len(tie) == 1, "reasoning: tokens 0, 3 and one of the zeros"
    expected = tokens([1, 0.5, 0, 1, 0, 0, 0.5, 0, 0, 0])
    expected[0, tie] = 1.0
    assert torch.equal(weight, expected)
    assert mask.all(), "every response token stays in the denominator"


def test_tor_ties_differ_between_seeds():
    chosen = set()
    for seed in range(20):
        batch = batch_of(torch.zeros(1, 10).double(), seed, entropy=ENTROPY, media_free_log_probs=-DEPENDENCE)
        weight, _ = Bound.of("credit", "tor")(torch.ones(1, 10).double(), batch)
        chosen.add(tuple((weight == 1).nonzero()[:, 1].tolist()))
    assert len(chosen) > 3


def test_tor_ignores_rows_that_do_not_train_and_padding():
    old = torch.zeros(2, 10).double()
    entropy, free = ENTROPY.repeat(2, 1), -DEPENDENCE.repeat(2, 1)
    entropy[1] = 100.0
    batch = batch_of(old, entropy=entropy, media_free_log_probs=free, trained=torch.tensor([True, False]))
    weight, _ = Bound.of("credit", "tor")(torch.ones(2, 10).double(), batch)
    assert (weight[0] == 1).sum() == 3
    assert (weight[1] == 0).all()


def test_tor_declares_the_truncated_entropy_it_reads():
    needs = Bound.of("credit", {"name": "tor", "entropy_top_p": 0.8}).needs
    assert needs["entropy"] == Need("entropy", options=(("top_p", 0.8),))
    assert needs["media_free_log_probs"].under == View.of("remove_media")


def test_share_outside_0_to_1_is_refused():
    batch = batch_of(torch.zeros(1, 10).double(), entropy=ENTROPY, media_free_log_probs=ENTROPY)
    with pytest.raises(ConfigError, match="reasoning_share=30"):
        Bound.of("credit", {"name": "tor", "reasoning_share": 30})(torch.ones(1, 10), batch)


OLD = tokens([-0.1, -0.5, -0.2, -1, -0.3])
MASKED = tokens([-0.1, -2.5, -0.3, -1, -1.3])


def test_visual_dependence_of_the_worked_row():
    score = visual_dependence(OLD, MASKED, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(score, tokens([0, 1.135335, 0.004837, 0, 0.367879]), atol=1e-6, rtol=0)
    assert score.mean().item() == pytest.approx(0.301610, abs=1e-6)
    absolute = visual_dependence(OLD, MASKED, torch.ones(1, 5, dtype=torch.bool), "abs_log_ratio")
    torch.testing.assert_close(absolute, tokens([0, 2, 0.1, 0, 1]))


def test_visual_dependence_is_bounded_and_its_metric_checked():
    wild = visual_dependence(tokens([0.0, 0.0]), tokens([50.0, -50.0]), torch.ones(1, 2, dtype=torch.bool))
    assert torch.equal(wild, tokens([10.0, 10.0]))
    with pytest.raises(ConfigError, match="k3_sampled"):
        visual_dependence(OLD, MASKED, torch.ones(1, 5, dtype=torch.bool), "k3")


def test_vppo_mask_and_scale_of_the_worked_rows():
    old = torch.cat([OLD, torch.zeros(1, 5).double()])
    masked = torch.cat([MASKED, tokens([0, 0, 0.1, 0, 0])])
    masked[1, 2] = -0.0983
    batch = batch_of(old, perturbed_log_probs=masked)
    advantage, mask = Bound.of("credit", "vppo")(torch.ones(2, 5).double(), batch)
    torch.testing.assert_close(advantage[0], tokens([0, 1.1, 0, 0, 1.1])[0], atol=1e-6, rtol=0)
    assert advantage[1].max().item() == pytest.approx(0.9)
    assert (advantage[1] != 0).sum() == 2, "ceil(.4 * 5) tokens, ties included"
    assert mask.all()


def test_trajectory_scale_has_mean_one_in_each_optimizer_step_by_itself():
    dependence = torch.tensor([0.1, 0.5, 0.3, 7.0, 9.0, 2.0], dtype=torch.float64)
    update = torch.tensor([0, 0, 0, 1, 1, 2])
    scale = trajectory_scale(dependence, update, torch.ones(6, dtype=torch.bool), 0.9)
    for step in (0, 1):
        assert scale[update == step].mean().item() == pytest.approx(1, abs=1e-7)
    assert scale[0] == pytest.approx(0.9) and scale[3] == pytest.approx(0.9)
    assert scale[5] == 1, "a step with one response has no spread"
    together = trajectory_scale(dependence, torch.zeros_like(update), torch.ones(6, dtype=torch.bool), 0.9)
    assert not torch.allclose(scale, together), "negative control: the steps do not share their extremes"


@pytest.mark.parametrize("name", ["tor", "vppo"])
def test_ties_follow_the_rollout_not_the_row(name):
    generator = torch.Generator().manual_seed(3)
    old = -torch.rand(6, 12, generator=generator, dtype=torch.float64).round(decimals=1)
    other = -torch.rand(6, 12, generator=generator, dtype=torch.float64).round(decimals=1)
    mask = torch.arange(12) < torch.tensor([12, 3, 7, 9, 1, 5])[:, None]
    batch = batch_of(
        old * mask, entropy=(old > -0.5).double(), media_free_log_probs=other * mask,
        perturbed_log_probs=other * mask, mask=mask, group=torch.tensor([0, 0, 1, 1, 2, 2]),
    )  # fmt: skip
    advantage = torch.ones(6, 12).double() * mask
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight, _ = Bound.of("credit", name)(advantage, batch)
    shuffled, _ = Bound.of("credit", name)(advantage[order], batch.index(order))
    torch.testing.assert_close(shuffled, straight[order])


def test_a_view_is_named_alone_or_with_options():
    assert view_of("remove_media") == View.of("remove_media")
    assert view_of({"kind": "patch_black", "share": 0.6, "size": 14}) == View.of("patch_black", share=0.6, size=14)
    with pytest.raises(ConfigError, match="expected a kind"):
        view_of({"share": 0.6})


class TestTrajectoryGuided:
    def test_expert_tokens_that_see_the_image_weigh_more(self):
        expert = torch.tensor([False, True])
        batch = batch_of(
            torch.cat([OLD, OLD]), perturbed_log_probs=torch.cat([MASKED, MASKED]), expert=expert
        )  # fmt: skip
        advantage, _ = Bound.of("credit", "tgrl")(torch.ones(2, 5).double(), batch)
        assert torch.equal(advantage[0], torch.ones(5).double())
        torch.testing.assert_close(advantage[1], tokens([1, 2, 1.004260, 1, 1.324028])[0], atol=1e-6, rtol=0)

    def test_the_shaped_ratio_of_expert_rows(self):
        probability = tokens([1.0], [0.1]).log().requires_grad_()
        batch = batch_of(torch.zeros(2, 1).double(), expert=torch.tensor([True, True]))
        batch.advantage = torch.ones(2, 1).double()
        trust = Bound.of("trust_region", "expert_shaped")
        objective = trust(torch.zeros(2, 1).double(), Evaluation(probability), batch)
        assert objective[:, 0].tolist() == pytest.approx([1 / 1.1, 0.5])
        objective.sum().backward()
        # d/dlp p/(p + c) = c p / (p + c)^2
        assert probability.grad[:, 0].tolist() == pytest.approx([0.1 / 1.21, 0.01 / 0.04])

    def test_without_an_expert_it_is_the_plain_clip(self):
        batch = batch_of(torch.zeros(2, 2).double(), expert=torch.tensor([False, False]))
        batch.advantage = tokens([1, -1], [1, -1])
        ratio = tokens([0.5, 0.5], [-0.5, -0.5])
        plain = Bound.of("trust_region", "clip")(ratio, Evaluation(ratio), batch)
        torch.testing.assert_close(Bound.of("trust_region", "expert_shaped")(ratio, Evaluation(ratio), batch), plain)
