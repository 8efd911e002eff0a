"""Rows that were hinted, annotated, taught or never judged: Guide, ViSurf, SDPO, SRPO, TTRV."""

import math

import pytest
import torch

from mmrl.objective import Objective
from mmrl.objective.advantages.group import grpo
from mmrl.objective.shaping.outcomes import visurf_label
from mmrl.objective.trust_regions.guided import row_quantile
from mmrl.record import Batch, Evaluation
from mmrl.rewards.label_free import answer_number
from mmrl.rewards.panel import RewardPanel
from mmrl.rollout.hints import with_text
from mmrl.rollout.privileged import right_answer
from mmrl.stages import Bound
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import RIGHT, hinted_prompts, score_right, taught_policy


class TestGuide:
    def test_the_quantile_is_torch_s_inside_the_mask(self):
        values = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False] * 7])
        found = row_quantile(values, mask, 0.9)[:, 0]
        assert found[0] == pytest.approx(torch.quantile(values[0], 0.9).item())
        assert found[1] == pytest.approx(torch.quantile(values[1, :4], 0.9).item()) and found[2] == 0

    def test_worked_weights_and_gradients(self):
        """Probabilities .1 without and .4 with the hint: rho = .25, and so is the row's quantile: weight 1/2."""
        new = torch.tensor([[math.log(0.1)], [math.log(0.3)]], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([[math.log(0.4)], [math.log(0.1)]], dtype=torch.float64)
        hint = torch.tensor([1.0, 0.0])
        batch = Batch(torch.ones(2, 1), old, advantage=torch.ones(2, 1).double(), columns={"hint": hint})
        value = Bound.of("trust_region", "guide")(new - old, Evaluation(new), batch)
        assert value[:, 0].tolist() == pytest.approx([0.5, 1.2])
        (gradient,) = torch.autograd.grad(value.sum(), new)
        assert gradient[:, 0].tolist() == pytest.approx([0.25, 0.0]), "the hinted row learns, the clipped one does not"


class TestViSurf:
    def shaped(self, own: list[float], label: float, **options) -> tuple[list[float], torch.Tensor]:
        reward = torch.tensor([*own, label], dtype=torch.float64)
        expert = torch.tensor([0.0] * len(own) + [1.0])
        batch = Batch(
            torch.ones(len(reward), 1), torch.zeros(len(reward), 1).double(), torch.zeros(len(reward)).long(),
            reward=reward, columns={"expert": expert}, components={"format": torch.full_like(reward, 0.25)},
        )  # fmt: skip
        batch.reward = visurf_label(batch, **options)
        return batch.reward.tolist(), grpo(batch, ddof=0)

    def test_where_nobody_is_right_the_annotation_teaches(self):
        reward, advantage = self.shaped([0, 0, 0, 0], 1)
        assert reward == [0, 0, 0, 0, 1] and advantage.tolist() == pytest.approx([-0.5] * 4 + [2.0], abs=1e-5)

    def test_it_switches_itself_off(self):
        reward, advantage = self.shaped([1, 0, 0, 0], 1)
        assert reward[-1] == 0.25 and advantage[-1] == 0 and advantage[0] > 0 > advantage[1]
        assert self.shaped([0.5, 0, 0, 0], 1)[0][-1] == 1

    def test_it_earns_nothing_for_thinking(self):
        assert self.shaped([0, 0], 1.5, thinking="format", weight=2.0)[0] == [0, 0, 1]


def taught_batch(success: list[float], teacher: list[float], entropy: list[float], group: list[int]) -> Batch:
    needs = Bound.of("credit", "srpo").needs
    rows = len(success)
    return Batch(
        torch.ones(rows, 1), torch.full((rows, 1), -1.0).double(), torch.tensor(group),
        reward=torch.tensor(success).double(), success=torch.tensor(success).double(),
        columns={needs["teacher_log_probs"].key: torch.tensor(teacher).double()[:, None],
                 needs["teacher_entropy"].key: torch.tensor(entropy).double()[:, None]},
    )  # fmt: skip


class TestDistillation:
    def credit(self, name, batch, advantage):
        given = torch.tensor(advantage).double()[:, None]
        after, mask = Bound.of("credit", name)(given, batch)
        return after[:, 0].tolist(), mask[:, 0].tolist()

    def test_wrong_rows_follow_their_teacher_and_right_ones_do_not(self):
        batch = taught_batch([1, 0, 0], [-0.5, -3.0, -1.0], [0, 0, 0], [0, 0, 0])
        after, mask = self.credit("sdpo", batch, [1.0, -1.0, -1.0])
        assert after == pytest.approx([0, -2.0, 0]) and mask == [0, 1, 0], "the last has no teacher"

    def test_routing_and_the_weights_of_a_sure_teacher(self):
        """Entropies 0 and 1 weigh 1.4621 and .5379; the group without a right row keeps its advantage."""
        batch = taught_batch([1, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1])
        after, _ = self.credit("srpo", batch, [0.5, -0.3, -0.2, 0.0])
        assert after == pytest.approx([0.5, 1.462117, 0.537883, 0.0], abs=1e-6)

    def test_the_teacher_sees_a_right_answer_and_the_student_learns_it(self, tmp_path):
        policy, prompts = taught_policy(f"A right answer to this:\n{RIGHT}", share=0.4), hinted_prompts(2)
        settings = TrainingConfig(steps=1, prompts_per_step=2, group_size=6, learning_rate=3e-4)
        trainer = Trainer(
            policy, Objective.of({"advantage": "dr_grpo", "credit": ["sdpo"]}), prompts, score_right, settings,
            tmp_path, rollout=["privileged"],
        )  # fmt: skip
        rollouts = trainer.collector.collect(0).rollouts
        solved = [p for p in rollouts.prompts if "teacher" in p.beside]
        assert solved and all(p.beside["teacher"].text.endswith(RIGHT) for p in solved)
        told = policy.written([with_text(solved[0], f"A right answer to this:\n{RIGHT}", "teacher")], [RIGHT])
        (key,) = [k for k in rollouts.columns if "beside(prompt=teacher)" in k]
        at = [
            i for i, p in enumerate(rollouts.prompt.tolist()) if rollouts.prompts[p] is solved[0] and rollouts.reward[i]
        ]
        width = int(rollouts.length[at[0]])
        assert torch.allclose(rollouts.columns[key][at[0], :width], told.old_log_probs[0, :width], atol=1e-5)
        assert right_answer(rollouts) == RIGHT
        before = policy.written(prompts, [RIGHT] * 2).old_log_probs.sum()
        trainer.train()
        assert policy.written(prompts, [RIGHT] * 2).old_log_probs.sum() > before


class TestLabelFree:
    def shaped(self, answer: list[int], group: list[int], **options) -> list[float]:
        count = len(answer)
        batch = Batch(
            torch.ones(count, 1), torch.zeros(count, 1).double(), torch.tensor(group),
            reward=torch.ones(count).double(), columns={"answer": torch.tensor(answer).float()},
        )  # fmt: skip
        return Bound.of("shaping", {"name": "ttrv", **options})(batch).tolist()

    def test_worked_frequencies(self):
        """A, A, B, A: H = .5623, over log 2: .8113."""
        assert self.shaped([7, 7, 9, 7], [0] * 4) == pytest.approx([0.141541, 0.141541, -0.358459, 0.141541], abs=1e-6)
        assert self.shaped([7, 7, 9, 7], [0] * 4, entropy=0.0) == [0.75, 0.75, 0.25, 0.75]

    def test_no_answer_agrees_with_none(self):
        assert self.shaped([0, 0, 5, 5], [0, 0, 1, 1]) == [0, 0, 1, 1]
        assert self.shaped([0, 5], [0, 0]) == [0, 0.5]

    def test_answers_are_numbered_as_they_read(self):
        say = "<answer>{}</answer>".format
        numbers = [answer_number(text) for text in (say("Red"), say(" red. "), say("blue"), "red", r"so \boxed{red}")]
        assert answer_number("Red", whole=True) == answer_number(say("red")) and not answer_number("Red")
        assert numbers[0] == numbers[1] == numbers[4] != numbers[2] and numbers[3] == 0
        assert float(torch.tensor(float(numbers[0]), dtype=torch.float32)) == numbers[0]

    def test_the_reward_makes_the_column(self):
        outputs = ["<answer>red</answer>", "<answer>RED</answer>", "<answer>blue</answer>", "none"]
        with RewardPanel([{"name": "answer_number", "columns": ["answer"]}]) as panel:
            scores = panel.score(outputs, hinted_prompts(1) * 4)
        assert scores.reward.tolist() == [1, 1, 1, 0] and scores.columns["answer"][0] == scores.columns["answer"][1]
