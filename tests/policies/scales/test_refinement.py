"""SAR's two passes and its loss, on numbers worked by hand and on the tiny model."""

import math

import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.policies.scales.protocol import agree, checked, draw, write
from mmrl.policies.scales.refinement import refine, sar_loss, staggered, token_loss
from mmrl.randomness import Key
from mmrl.tools import tools


class Counting(torch.nn.Module):
    """Scales of 1, 2 and 2 tokens over two codes. Logits are what inputs say, and these are sums of tokens before."""

    def __init__(self, bias=(0.0, 0.0)):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(bias))
        self.asked = []

    def logits(self, texts, inputs):
        self.asked.append([each.tolist() for each in inputs])
        sums = [torch.zeros(len(texts), 1), *inputs]
        return [
            torch.stack([torch.zeros(len(texts), n), s.expand(-1, n)], -1) + self.bias
            for s, n in zip(sums, (1, 2, 2), strict=False)
        ]

    def next_input(self, tokens):
        return sum(each.sum(1, keepdim=True).float() * 10**scale for scale, each in enumerate(tokens))

    def tokens(self, pictures): ...
    def decode(self, tokens): ...


TRUTH = [torch.tensor([[1]]), torch.tensor([[0, 1]]), torch.tensor([[1, 1]])]
OWN = [torch.tensor([[0]]), torch.tensor([[1, 1]]), torch.tensor([[1, 0]])]


def logits_of(*rows):
    """(1, N, 2) a scale, from the log-odds of code 1."""
    return [torch.tensor([[[0.0, odds] for odds in row]]) for row in rows]


def test_inputs_are_stepped_by_one_scale():
    """Before the last scale shown stand true tokens, and the last is the model's own."""
    model = Counting()
    assert [each.item() for each in staggered(model, TRUTH, TRUTH)] == [1, 1 + 10]
    assert [each.item() for each in staggered(model, TRUTH, OWN)] == [0, 1 + 20]


def test_the_loss_by_hand():
    """log(1 + e^x) is the loss of code 0 at log-odds x, log(1 + e^-x) that of code 1; log 3: three in four."""
    third, even = math.log(3.0), 0.0
    teacher = logits_of([third], [even, even], [third, third])
    student = logits_of([third], [even, third], [third, third])
    loss, forced, free = sar_loss(teacher, TRUTH, student, OWN, weight=0.5)
    sure, half, wrong = math.log(4 / 3), math.log(2), math.log(4)
    assert forced.item() == pytest.approx((3 * sure + 2 * half) / 5)  # a token weighs the same in every scale
    assert free.item() == pytest.approx((half + sure + sure + wrong) / 4)  # against own tokens; no first scale
    assert loss.item() == pytest.approx(forced.item() + 0.5 * free.item())
    _, _, last = sar_loss(teacher, TRUTH, student, OWN, weight=0.5, over="last")
    assert last.item() == pytest.approx((sure + wrong) / 2)


def test_without_the_student_s_part_it_is_teacher_forcing_in_one_pass():
    model = Counting((0.3, -0.2))
    found = refine(model, ["a"], TRUTH, weight=0.0)
    assert found.loss.item() == token_loss(model.logits(["a"], staggered(model, TRUTH, TRUTH)), TRUTH).item()
    assert found.student is None and len(model.asked) == 2  # the line above asked once


def test_a_model_that_predicts_the_truth_is_asked_the_same_twice():
    """Then the two passes have equal inputs, and the student's part is the cross-entropy of scales 2 and 3."""
    model = Counting((0.0, 0.0))
    truth = [torch.tensor([[0]]), torch.tensor([[0, 0]]), torch.tensor([[0, 0]])]
    found = refine(model, ["a"], truth, weight=1.0)
    assert model.asked[0] == model.asked[1] and found.mistaken == 0
    assert found.student.item() == pytest.approx(math.log(2)) == pytest.approx(found.teacher.item())


def test_gradients_stop_at_own_tokens_and_at_the_teacher_behind_them():
    """The student's part moves what the student says, never what it is held against or shown."""
    teacher, student = (logits_of([0.5], [0.1, -0.3], [0.7, 0.2]) for _ in range(2))
    for each in (*teacher, *student):
        each.requires_grad_()
    own = [draw(each, None) for each in teacher]
    _, _, free = sar_loss(teacher, TRUTH, student, own)
    free.backward()
    assert all(each.grad is None for each in teacher) and student[0].grad is None
    assert all(each.grad.abs().sum() > 0 for each in student[1:])
    model = Counting((0.2, 0.1))
    assert not any(each.requires_grad for each in staggered(model, TRUTH, OWN))


def test_the_student_s_part_pulls_towards_own_tokens_and_not_towards_true_ones():
    teacher, student = logits_of([0.5], [1.0, 1.0], [1.0, -1.0]), logits_of([0.5], [0.2, 0.2], [0.2, 0.2])
    student[1].requires_grad_()
    own = [draw(each, None) for each in teacher]
    assert own[1].tolist() == [[1, 1]] != TRUTH[1].tolist()
    sar_loss(teacher, TRUTH, student, own)[2].backward()
    assert (student[1].grad[..., 1] < 0).all()  # more of code 1, where the truth says 0 as well


def test_draws_follow_the_distribution_and_their_key():
    logits = logits_of([math.log(3.0)])[0].expand(1, 4000, 2)
    assert draw(logits, Key(0)).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(draw(logits, Key(0)), draw(logits, Key(0)))
    assert draw(logits, Key(0), temperature=1e-3).all() and draw(logits, None).all()


def test_writing_shows_each_scale_all_that_was_written():
    model = Counting((-1.0, 0.0))  # says 1 everywhere
    tokens = write(model, ["a"], 3, None)
    assert [each.tolist() for each in tokens] == [[[1]], [[1, 1]], [[1, 1]]]
    assert model.asked == [[], [[[1.0]]], [[[1.0]], [[21.0]]]]


def test_what_does_not_fit_is_one_line():
    with pytest.raises(PolicyError, match="model m: Linear has no tokens, logits, next_input, decode"):
        checked(torch.nn.Linear(1, 1), "m")
    with pytest.raises(PolicyError, match="model m: a dict; expected a torch module"):
        checked({}, "m")
    with pytest.raises(PolicyError, match=r"logits of shapes \[\(1, 1, 2\)\] for tokens of shapes"):
        agree(Counting(), logits_of([0.0]), TRUTH)
    with pytest.raises(PolicyError, match="tokens 0 to 7 of scale 1, which has 2 logits"):
        agree(Counting(), logits_of([0.0, 0.0]), [torch.tensor([[0, 7]])])
    with pytest.raises(PolicyError, match="at least two scales"):
        sar_loss(logits_of([0.0]), TRUTH[:1], logits_of([0.0]), OWN[:1])


def test_it_is_listed_with_what_it_leaves_out():
    sar = tools()["sar"]
    assert sar.confidence == "verified" and any("not reproduced" in line for line in sar.deviates)
