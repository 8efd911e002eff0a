"""A schedule that is a second policy: exact factors, every token fixed once, and turns that leave the other alone."""

from __future__ import annotations

import pytest
import torch

from mmrl.batch import KINDS
from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.masked.policy import MaskedDiffusionConfig
from mmrl.policies.masked.schedule import ScheduleConfig, bin_log_probs, fill
from mmrl.policies.masked.scheduled import ScheduledMaskedPolicy
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.stages import NEEDS
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.policies.masked.test_policy import policy, requests, tokenizer


def scheduled(**schedule) -> ScheduledMaskedPolicy:
    plain = policy()
    config = {"max_new_tokens": 6, "block": 3, "schedule": ScheduleConfig(**{"tokens": (1, 2), **schedule})}
    return ScheduledMaskedPolicy(plain.inner.model, tokenizer(), MaskedDiffusionConfig(**config))


def one_bigram(canvas):
    """Logits that depend on the token before: 4 tokens and a mask, 4."""
    table = torch.tensor([[0.0, 1, 2, 0], [1, 0, 0, 1], [0, 3, 0, 1], [2, 2, 0, 0], [1, 0.5, 0.2, 0.1]])
    before = torch.cat([torch.full_like(canvas[:, :1], 4), canvas[:, :-1]], 1)
    return table[before]


@pytest.mark.parametrize("tokens", [(1,), (2,), (1, 3)])
def test_every_position_is_fixed_once_and_counts_are_the_schedule_s(tokens):
    config = ScheduleConfig(tokens=tokens, temperatures=(1.0,))
    table = torch.zeros(config.steps(7, 4), len(tokens)).log_softmax(-1)
    noise = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    filled = fill(one_bigram, table, config, torch.full((5, 7), 4), 4, noise, noise)
    assert bool((filled.when >= 0).all()) and bool((filled.tokens < 4).all())
    for row in range(5):
        for s, chosen in enumerate(filled.bins[row].tolist()):
            fixed = int((filled.when[row] == s).sum())
            assert fixed == 0 if chosen < 0 else 1 <= fixed <= tokens[chosen]
    assert bool((filled.when[:, :4].amax(1) < filled.when[:, 4:].amin(1)).all()), "block by block"


def test_choices_have_the_odds_of_the_table():
    table = torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log()
    bins = torch.tensor([[1, 0], [0, -1]])
    assert bin_log_probs(table, bins).exp().tolist() == [[pytest.approx(0.8), 0.5], [pytest.approx(0.2), 1.0]]
    config, many = ScheduleConfig(tokens=(1,), temperatures=(0.5, 1.0)), 4000
    noise = [torch.rand(many, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    filled = fill(one_bigram, table, config, torch.full((many, 2), 4), 2, *noise)
    assert float(filled.bins[:, 0].float().mean()) == pytest.approx(0.8, abs=0.03)
    warm = (one_bigram(torch.full((1, 2), 4))[0, 0] / torch.tensor([[0.5], [1.0]])).softmax(-1)
    for temperature in (0, 1):
        first = filled.tokens[(filled.bins[:, 0] == temperature) & (filled.when[:, 0] == 0), 0]
        if len(first) > 500:
            share = torch.bincount(first, minlength=4) / len(first)
            assert torch.allclose(share, warm[temperature], atol=0.04)


def test_training_scores_what_was_drawn_and_rows_say_which_action_is_which():
    actor = scheduled()
    rows = actor.rollout(requests("abc", "defgh"), Key(3))
    steps = actor.config.schedule.steps(6, 3)
    assert rows.mask.shape == (6, steps + 6) and torch.equal(rows.owner >= 0, rows.mask)
    assert rows.columns["kind"].unique().tolist() == sorted((KINDS.index("masked"), KINDS.index("schedule")))
    old, new, mask = actor.replayed(rows)
    assert (new - old).abs()[mask].max() < 1e-5 and bool((old[~mask] == 0).all())
    few = torch.tensor([4, 1])
    assert torch.allclose(actor.evaluate(rows.index(few)).log_probs, old[few], atol=1e-5), "whatever the micro-batch"
    alone = actor.rollout(requests("defgh"), Key(3))
    assert torch.equal(alone.replay["tokens"], rows.replay["tokens"][3:]), "whoever shares the batch"


def test_of_one_bin_the_schedule_learns_nothing():
    actor = scheduled(tokens=(2,), temperatures=(1.0,), alternate=0)
    actor.evaluate(actor.rollout(requests("abc"), Key(3))).log_probs.sum().backward()
    assert float(actor.inner.schedule.grad.abs().max()) == 0


def test_in_turns_one_learns_and_the_other_stays_bit_for_bit(tmp_path):
    """Four batches: model, schedule, model, schedule; the moments of the one that waits stay too."""

    def vowels(outputs, prompts) -> Scores:
        reward = torch.tensor([float(sum(c in "aei" for c in text)) for text in outputs])
        return Scores({"vowels": reward}, reward, (reward > 0).float())

    actor, seen = scheduled(), []

    def note(step, metrics):
        seen.append({n: v.clone() for n, v in actor.trainable_state().items()})

    seen.append({n: v.clone() for n, v in actor.trainable_state().items()})
    config = TrainingConfig(steps=4, prompts_per_step=2, group_size=4, learning_rate=1e-2, save_every=2)
    objective = Objective.of(load_recipe("co_grpo").objective)
    prompts = [request.prompt for request in requests("abc", "def", "ghi", "jab")]
    Trainer(actor, objective, prompts, vowels, config, tmp_path, report=note).train()
    for step in range(4):
        moved = {name for name in seen[0] if not torch.equal(seen[step][name], seen[step + 1][name])}
        assert moved == {"schedule"} if step % 2 else moved and "schedule" not in moved
    again = scheduled()
    Trainer(again, Objective.of(load_recipe("co_grpo").objective), prompts, vowels, config, tmp_path / "b").train(
        tmp_path / "checkpoints" / "step-000002"
    )
    assert all(torch.equal(value, again.trainable_state()[name]) for name, value in seen[-1].items())


def test_one_mean_over_both_kinds_is_refused():
    settings = MaskedDiffusionConfig(schedule=ScheduleConfig())
    with pytest.raises(ConfigError, match=r"objective\.kinds"):
        ScheduledMaskedPolicy.check_objective(Objective.of({}), settings)
    ScheduledMaskedPolicy.check_objective(Objective.of(load_recipe("co_grpo").objective), settings)


def test_there_is_no_reference_of_a_schedule():
    actor = scheduled()
    rows = actor.rollout(requests("abc"), Key(3))
    with pytest.raises(PolicyError, match="keeps no reference weights"):
        actor.evaluate(rows, [NEEDS["ref_log_probs"]], weights="reference")
