"""Credit from a teacher beside the policy: OPD, its control variate, and offline rows (HNPG)."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.credit.distillation import hnpg, opd, vopd
from mmrl.policies.language.teacher import value_of
from mmrl.record import Batch
from tests.rollout.plans import rows

STUDENT, TEACHER = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()


def taught(drawn: list[int], value: float = 0.0) -> Batch:
    """Rows of one token each, as the student drew them."""
    made = rows([0.0] * len(drawn), [0] * len(drawn))
    made.mask, made.loss_mask = torch.ones(len(drawn), 1, dtype=torch.bool), torch.ones(len(drawn), 1)
    made.old_log_probs = STUDENT[drawn].log()[:, None]
    key = {"teacher_log_probs": TEACHER[drawn].log()[:, None], "teacher_value": torch.full((len(drawn), 1), value)}
    made.columns |= key
    return made


def slopes(advantage: torch.Tensor) -> torch.Tensor:
    """(3, 3) the gradient of each token's A log p by the logits."""
    return advantage * (torch.eye(3).double() - STUDENT)


def test_a_token_is_worth_what_the_teacher_finds_it_likelier():
    advantage, mask = opd(torch.full((3, 1), 7.0).double(), taught([0, 1, 2]))
    assert advantage[:, 0].tolist() == pytest.approx((TEACHER / STUDENT).log().tolist()) and mask.all()
    both, _ = opd(torch.full((3, 1), 7.0).double(), taught([0, 1, 2]), reward=1.0, teacher=0.5)
    assert both[1, 0] == pytest.approx(7.0), "the second token is as likely to both"


def test_a_teacher_who_is_the_student_says_nothing():
    batch = taught([0, 2])
    batch.columns["teacher_log_probs"] = batch.old_log_probs
    assert not opd(torch.ones(2, 1).double(), batch)[0].any()


def test_one_token_cannot_say_everything():
    batch = taught([0])
    batch.columns["teacher_log_probs"] = torch.full((1, 1), -500.0).double()
    assert opd(torch.zeros(1, 1).double(), batch, bound=4.0)[0].item() == -4
    with pytest.raises(ConfigError, match="bound=0"):
        opd(torch.zeros(1, 1), batch, bound=0)


def test_the_value_is_the_negative_reverse_kl():
    assert value_of(STUDENT.log(), TEACHER.log()).item() == pytest.approx(-0.2749, abs=1e-4)
    whole = value_of(STUDENT.log(), TEACHER.log(), top_k=3).item()
    assert whole == pytest.approx(value_of(STUDENT.log(), TEACHER.log()).item())
    assert value_of(STUDENT.log(), TEACHER.log(), top_k=1).item() == pytest.approx(0.5 * torch.tensor(0.4).log().item())


def test_the_baseline_leaves_the_gradient_where_it_was():
    """E[A] = 0, and the mean gradient by the logits is (-.3207, .0825, .2382) with and without."""
    value = value_of(STUDENT.log(), TEACHER.log()).item()
    plain, _ = opd(torch.zeros(3, 1).double(), taught([0, 1, 2]))
    own, _ = vopd(torch.zeros(3, 1).double(), taught([0, 1, 2], value))
    assert (STUDENT @ own).item() == pytest.approx(0, abs=1e-7)
    for advantage in (plain, own):
        assert (STUDENT @ slopes(advantage)).tolist() == pytest.approx([-0.3207, 0.0825, 0.2382], abs=1e-4)


def test_its_variance_is_not_always_smaller():
    """Of this pair the trace of the gradient's variance grows, .1577 to .2075; that is said where the method is."""
    value = value_of(STUDENT.log(), TEACHER.log()).item()
    traces = []
    for credit, batch in ((opd, taught([0, 1, 2])), (vopd, taught([0, 1, 2], value))):
        each = slopes(credit(torch.zeros(3, 1).double(), batch)[0])
        mean = STUDENT @ each
        traces.append((STUDENT @ (each - mean).square().sum(1)).item())
    assert traces == pytest.approx([0.1577, 0.2075], abs=1e-4)


def test_offline_rows_add_what_they_did_better():
    batch = rows([1, 0, 1, 0], [0] * 4, columns={"expert": torch.tensor([0.0, 0, 1, 1])})
    advantage = torch.tensor([[1.0], [-1.0], [5.0], [-3.0]])
    batch.loss_mask = torch.ones(4, 1)
    assert hnpg(advantage, batch)[0].flatten().tolist() == pytest.approx([1, -1, 0.2, 0])
    assert hnpg(advantage, batch, share=0)[0].flatten().tolist() == [1, -1, 0, 0], "the method without it"
    with pytest.raises(ConfigError, match="share=-1"):
        hnpg(advantage, batch, share=-1)
