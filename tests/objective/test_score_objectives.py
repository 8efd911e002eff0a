"""Worked numbers of the whole-sequence objectives: losses and the gradient of each score."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective import Objective, compute
from mmrl.objective.score_objectives.labels import disco, grao, pacs, real, reg_grpo
from mmrl.objective.score_objectives.pairs import copg, dno, dpo, group_alignment, kto
from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound
from tests.objective.batches import near, random_batch
from tests.objective.small import close, rows


def judged(function, scores: list, rewards: list[float], group: list[int] | None = None, **parameters):
    """Objective and its gradient with respect to the scores."""
    columns = {"expert": torch.tensor(parameters.pop("expert"))} if "expert" in parameters else {}
    advantages = parameters.pop("advantages", None)
    batch, _ = rows(
        [[0.0]] * len(scores), advantages, reward=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor(group or [0] * len(scores)), columns=columns,
    )  # fmt: skip
    s = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    value = function(s, batch, **parameters)
    return value.item(), torch.autograd.grad(value, s)[0]


def test_pacs():
    value, _ = judged(pacs, [0.2, -0.1, 0, 0.3], [1, 0, 0, 1])
    assert value == pytest.approx(-0.598689, abs=1e-6)


def test_pacs_on_policy_is_leave_one_out():
    value, gradient = judged(pacs, [0.0] * 4, [1, 0, 0, 1])
    assert value == pytest.approx(-math.log(2))
    residual = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=torch.float64)
    expected = (residual - (residual.sum() - residual) / 3) / 4
    assert close(gradient, expected)


def test_pacs_variants():
    value, _ = judged(pacs, [0.5, -0.5], [1, 0], baseline="none")
    assert value == pytest.approx(math.log(1 / (1 + math.exp(-0.5))))
    balanced, _ = judged(pacs, [0.0] * 4, [1, 0, 0, 0], balance=True)
    assert balanced == pytest.approx(-math.log(2))
    with pytest.raises(ConfigError, match="baseline"):
        judged(pacs, [0.0, 1.0], [1, 0], baseline="critic")


def test_labels_must_be_binary():
    with pytest.raises(ConfigError, match="labels"):
        judged(pacs, [0.0, 1.0], [1, 0.3])


@pytest.mark.parametrize(
    "tau, loss, weights",
    [(1.0, 1.927274, [0.280013, 0.377978, -0.574443]), (0.5, 2.099340, [0.463613, 0.844758, -1.291313])],
)
def test_real(tau, loss, weights):
    value, gradient = judged(real, [0.2, -0.1, 0.3], [1, 1, 0], tau=tau)
    assert value == pytest.approx(-loss, abs=1e-6)
    assert close(gradient, weights)


def test_real_on_policy_and_single_classes():
    value, _ = judged(real, [0.0] * 5, [1, 1, 0, 0, 0])
    assert value == pytest.approx(-(math.log(3) + math.log(4)))
    skipped, gradient = judged(real, [0.0] * 4, [1, 1, 1, 0], [0, 0, 1, 1])
    assert skipped == pytest.approx(-math.log(4) / 2) and (gradient[:2] == 0).all()
    trained, gradient = judged(real, [0.0] * 2, [1, 1], skip_single_class=False)
    assert trained == pytest.approx(-math.log(3)) and (gradient > 0).all()


def columns(scores: list[float], drift: float = 0.0) -> list[list[float]]:
    return [[s, drift, 1.0] for s in scores]


def test_disco_weighs_hard_negatives():
    value, gradient = judged(disco, columns([1.0, 0.0, 0.5]), [1, 0, 0], tau=1.0)
    expected = 1 - math.log((1 + math.exp(0.5)) / 2)
    assert value == pytest.approx(expected)
    assert close(gradient[:, 0], [1, -0.377541, -0.622459])
    basic, gradient = judged(disco, columns([1.0, 0.0, 0.5]), [1, 0, 0], tau=None)
    assert basic == pytest.approx(0.75) and close(gradient[:, 0], [1, -0.5, -0.5])


@pytest.mark.parametrize(("estimator", "drift"), [("k1", 0.1), ("k3", math.exp(0.2) + math.exp(-0.3) - 2 + 0.1)])
def test_disco_measures_its_constraint_as_asked(estimator, drift):
    batch, _ = rows([[0.0, 0.0]])
    moved = Evaluation(batch.old_log_probs + torch.tensor([[0.2, -0.3]]))
    scores = Bound.of("score", {"name": "disco", "kl": estimator})(moved, batch)
    assert scores[0, 1].item() == pytest.approx(drift, rel=1e-5)
    with pytest.raises(ConfigError, match="'k1' or 'k3'"):
        Bound.of("score", {"name": "disco", "kl": "k2"})(moved, batch)


def test_disco_has_no_difficulty_bias():
    for rewards in ([1, 0, 0, 0], [1, 1, 1, 0]):
        _, gradient = judged(disco, columns([0.1, 0.2, 0.3, 0.4]), rewards, tau=1.0)
        assert gradient[:, 0].clamp(min=0).sum() == pytest.approx(1.0)


def test_disco_counts_prompts_without_both_classes():
    value, gradient = judged(disco, columns([1.0, 0.0, 5.0, 7.0]), [1, 0, 1, 1], [0, 0, 1, 1], tau=None)
    assert value == pytest.approx(0.5) and (gradient[2:, 0] == 0).all()


def test_disco_prices_drift_beyond_the_bound():
    inside, _ = judged(disco, columns([1.0, 0.0], 1e-4), [1, 0], tau=None)
    assert inside == pytest.approx(1.0)
    outside, gradient = judged(disco, columns([1.0, 0.0], 0.0021), [1, 0], tau=None)
    assert outside == pytest.approx(1 - 500 * 0.002**2)
    assert close(gradient[:, 1], [-1e3 * 0.002 / 2] * 2)


def test_disco_wants_its_score():
    with pytest.raises(ConfigError, match="score 'disco'"):
        judged(disco, [0.0, 1.0], [1, 0])


def test_copg():
    value, gradient = judged(copg, [0.4, 0.0], [1, 0], beta=0.1)
    assert value == pytest.approx(0.392) and close(gradient, [0.96, -0.96])
    _, gradient = judged(copg, [10.0, 0.0], [1, 0], beta=0.1)
    assert close(gradient, [0, 0]), "the optimum stands at dr / beta"


def test_reg_grpo():
    target = [0.866025, -0.866025, -0.866025, 0.866025]
    value, _ = judged(reg_grpo, [0.4, 0, -0.2, -0.2], [1, 0, 0, 1], advantages=target, eps=1e-9)
    assert value == pytest.approx(-0.887628, abs=1e-5)
    moved, _ = judged(reg_grpo, [3.8, 3, 2.6, 2.6], [1, 0, 0, 1], advantages=target, eps=1e-9)
    assert moved == pytest.approx(value, abs=1e-6), "P does not change under a positive affine map"
    perfect, _ = judged(reg_grpo, target, [1, 0, 0, 1], advantages=target, eps=1e-9)
    assert perfect == pytest.approx(0, abs=1e-9)


def test_reg_grpo_right_after_sampling():
    target = [0.5, -0.5]
    value, gradient = judged(reg_grpo, [0.0, 0.0], [1, 0], advantages=target, eps=0.01)
    assert value == pytest.approx(-0.25)
    assert close(gradient, [0.5 * 2 / (2 * 0.01), -0.5 * 2 / (2 * 0.01)])
    centred, _ = judged(reg_grpo, [0.4, 0.0], [1, 0], advantages=target, centred_only=True, beta=2.0)
    assert centred == pytest.approx(-0.01)


def test_grao():
    value, gradient = judged(
        grao, [-1, -1.2, -0.9, -2], [0.8, 0.2, 0.5, 0.9], expert=[False, False, False, True]
    )  # fmt: skip
    assert value == pytest.approx(-0.813064, abs=1e-6)
    assert close(gradient, [0.389492, -0.778983, -0.194746, 0.766812])


def test_grao_without_imitation_is_reinforce():
    _, gradient = judged(grao, [-1, -2], [1, 0], expert=[False, False], beta=0.0, contrast=0.0)
    assert close(gradient, [0.5, -0.5])


def test_dno():
    value, _ = judged(dno, [0.0, 0.0], [1, 0])
    assert value == pytest.approx(-math.log(2))
    _, gradient = judged(dno, [0.0, 0.0], [1e-9, 0], temperature=1e6)
    assert close(gradient, [0, 0]), "even preferences are best at equal scores"


def test_dpo_family():
    z = 0.1 * 2.0
    assert judged(dpo, [2.0, 0.0], [1, 0])[0] == pytest.approx(-math.log(1 + math.exp(-z)))
    assert judged(dpo, [2.0, 0.0], [1, 0], loss="ipo")[0] == pytest.approx(-9.0)
    assert judged(dpo, [2.0, 0.0], [1, 0], loss="hinge")[0] == pytest.approx(-(1 - z))
    simpo = judged(dpo, [-0.2, -0.7], [1, 0], beta=2.0, target=0.5)[0]
    assert simpo == pytest.approx(-math.log(1 + math.exp(-(2 * 0.5 - 0.5))))
    assert judged(dpo, [2.0, 0.0], [0.5, 0.4], margin=0.2)[0] == 0
    with pytest.raises(ConfigError, match="loss"):
        judged(dpo, [2.0, 0.0], [1, 0], loss="kto")


def test_pairs_are_averaged_inside_a_prompt_then_over_prompts():
    alone = judged(dpo, [2.0, 0.0], [1, 0])[0]
    both = judged(dpo, [2.0, 0.0, 2.0, 0.0, 0.0], [1, 0, 1, 0, 0], [0, 0, 1, 1, 1])[0]
    assert both == pytest.approx(alone)


def test_kto_pulls_each_label_its_way():
    value, gradient = judged(kto, [0.0, 0.0], [1, 0])
    assert value == pytest.approx(-0.5)
    assert gradient[0] > 0 > gradient[1]


def test_group_alignment():
    value, gradient = judged(group_alignment, [2.0, 0.0], [1, 0], beta=0.1)
    assert value == pytest.approx(-0.598139, abs=1e-6)
    assert close(gradient, [0.045017, -0.045017])
    assert judged(group_alignment, [2.0, 0.0], [1, 1])[0] == 0


def test_a_share_of_policy_gradient_beside_the_whole_sequence_objective():
    batch, new = random_batch(), near(random_batch())
    whole = {"score": "log_ratio", "score_objective": "pacs"}
    a, b, mixed = (compute(c, batch, new) for c in ({}, whole, {**whole, "policy_weight": 0.25}))
    assert torch.allclose(mixed, 0.25 * a + 0.75 * b)
    gradients = [torch.autograd.grad(x, new)[0] for x in (a, b, mixed)]
    assert torch.allclose(gradients[2], 0.25 * gradients[0] + 0.75 * gradients[1])


@pytest.mark.parametrize("name", ["pacs", "real", "copg", "deepvideo_r1", "dpo", "disco", "dno", "kto", "simpo"])
def test_the_gradient_is_that_of_the_reported_loss(name):
    """Against central differences, although the loss that is differentiated is a surrogate."""
    batch = replace(random_batch(), columns={"ref_log_probs": near(random_batch(), 8).detach()})
    batch = replace(batch, advantage=Objective.of({}).prepare(batch)[0].advantage)
    new = near(batch)
    (gradient,) = torch.autograd.grad(compute(name, batch, new), new)
    for row, t in ((0, 0), (3, 0), (5, 0)):
        assert gradient[row, t].item() == pytest.approx(difference(name, batch, new, row, t), abs=1e-6)


def difference(name: str, batch: Batch, new: Tensor, row: int, t: int, step: float = 1e-5) -> float:
    moved = []
    for sign in (1, -1):
        shifted = new.detach().clone()
        shifted[row, t] += sign * step
        moved.append(compute(name, batch, shifted).item())
    return (moved[0] - moved[1]) / (2 * step)
