"""PAPO, Q-Hawkeye's perception loss, CalibRL."""

import pytest
import torch

from mmrl.record import Batch, Evaluation
from mmrl.stages import Bound, Need, View


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch_of(shape, **fields) -> Batch:
    columns = fields.pop("columns", {})
    return Batch(
        mask=torch.ones(shape, dtype=torch.bool), old_log_probs=torch.zeros(shape).double(), columns=columns, **fields
    )


class TestImplicitPerception:
    def test_equal_log_probs_give_no_penalty_and_no_gradient(self):
        new = rows([-0.5, -1.0]).requires_grad_()
        batch = batch_of((1, 2), columns={"perturbed_log_probs": new.detach()})
        penalty = Bound.of("regularizer", "papo")(Evaluation(new), batch).sum()
        penalty.backward()
        assert penalty.item() == 0 and (new.grad == 0).all()

    def test_descent_raises_tokens_that_are_likelier_with_the_image(self):
        new = rows([-0.5, -2.0]).requires_grad_()
        masked = rows([-1.5, -1.0])
        batch = batch_of((1, 2), columns={"perturbed_log_probs": masked})
        Bound.of("regularizer", "papo")(Evaluation(new), batch).sum().backward()
        torch.testing.assert_close(-new.grad, 1 - (masked - new.detach()).exp())
        assert new.grad[0, 0] < 0 < new.grad[0, 1]

    def test_a_cap_stops_the_push(self):
        new = rows([-0.1]).requires_grad_()
        batch = batch_of((1, 1), columns={"perturbed_log_probs": rows([-8.0])})
        bound = Bound.of("regularizer", {"name": "papo", "cap": 2.0})
        penalty = bound(Evaluation(new), batch).sum()
        penalty.backward()
        assert penalty.item() == -2.0 and new.grad.item() == 0

    def test_views(self):
        assert Bound.of("regularizer", "papo").needs["perturbed_log_probs"] == Need(
            "log_probs", under=View.of("patch_black", share=0.6, size=14)
        )
        blurred = Bound.of("regularizer", {"name": "q_hawkeye_perception", "view": {"kind": "blur", "radius": 4.0}})
        assert blurred.needs["perturbed_log_probs"].under == View.of("blur", radius=4.0)

    def test_q_hawkeye_fades_out_over_the_first_third_of_the_run(self):
        new, masked = rows([-0.5]), rows([-1.5])
        values = [
            Bound.of("regularizer", "q_hawkeye_perception")(
                Evaluation(new), batch_of((1, 1), columns={"perturbed_log_probs": masked}, step=step, steps=31)
            ).item()
            for step in (0, 5, 10, 30)
        ]
        assert values[1] == pytest.approx(values[0] / 2)
        assert values[2] == pytest.approx(0) and values[3] == 0 and values[0] < 0


class TestExpertBaseline:
    def guided(self, gap, reward, advantage=1.0, expert=None, **parameters):
        expert = torch.full_like(gap, -1.0) if expert is None else expert
        batch = batch_of(
            gap.shape, reward=torch.tensor(reward).double(), columns={"expert_log_probs": expert},
            advantage=torch.full_like(gap, advantage),
        )  # fmt: skip
        new = (gap - 1.0).requires_grad_()
        penalty = Bound.of("regularizer", {"name": "calibrl", **parameters})(Evaluation(new), batch)
        penalty.sum().backward()
        return penalty.detach(), new.grad

    def test_worked_numbers(self):
        penalty, gradient = self.guided(rows([0.4, -0.4], [0.4, -0.4]), [1.0, 0.0])
        torch.testing.assert_close(penalty, rows([-0.2, 0.4], [0.4, -0.2]))
        torch.testing.assert_close(gradient, rows([-0.5, -1.0], [1.0, 0.5]))

    def test_rare_outcomes_weigh_more_and_dead_groups_nothing(self):
        assert self.guided(rows([0.4]), [1.0], advantage=-3.0)[0].item() == pytest.approx(-0.6)
        assert self.guided(rows([0.4]), [1.0], advantage=0.0)[0].item() == 0

    def test_positions_after_the_experts_end_are_left_out(self):
        penalty, gradient = self.guided(rows([0.4, 0.4]), [1.0], expert=rows([-1.0, 0.0]))
        assert penalty[0, 1] == 0 and gradient[0, 1] == 0
