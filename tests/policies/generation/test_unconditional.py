"""What the rollout's unconditional passes found serves the first optimizer step, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrl.objective import Objective
from mmrl.policies.generation.sampling import stored
from mmrl.policies.generation.unconditional import COLUMN
from mmrl.randomness import Key
from mmrl.record import Rollouts, Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.policies.generation.test_trees import tree
from tests.policies.generation.tiny import captions, flow_policy, flow_requests, nudge

KEY = Key(4)
GUIDED = {"guidance_scale": 3.0, "lora": {"rank": 4, "alpha": 8}}


def made(**options):
    policy = flow_policy(**GUIDED | options)
    nudge(policy, 0.05)
    return policy


def scored(policy, rollouts):
    """Log-probs, the gradient of a weighted sum of them, and what was counted."""
    policy.counted()
    policy.module.zero_grad()
    log_probs = policy.evaluate(rollouts).log_probs
    weight = torch.sin(torch.arange(log_probs.numel()).view(log_probs.shape).float()) * rollouts.mask
    (weight * log_probs).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.inner.parameters() if p.grad is not None])
    return log_probs.detach(), gradient, policy.told(policy.counted())


def test_what_is_kept_is_what_the_unconditional_pass_finds_and_the_velocity_is_made_of_it():
    """v = u + 3 (c - u) at every trained state of 4 rows and 5 steps; the last of 6 is the ODE's."""
    policy = made()
    rows = policy.rollout(flow_requests(2), KEY)
    assert rows.replay[COLUMN].shape == rows.replay["latents"].shape and rows.replay[COLUMN].dtype == torch.float32
    row, step = rows.mask.nonzero(as_tuple=True)
    x, kept = (stored(rows.replay[name], row, step) for name in ("latents", COLUMN))
    with torch.no_grad():
        conditioned = policy._conditioned(rows.encoded, rows.prompt[row])
        given, negative = conditioned.listed()
        modules, t = policy.inner.trained, rows.replay["times"][row, step]
        c, u = (torch.cat([policy.generator._once(modules["transformer"], x[i : i + 1], t[i : i + 1], [which[i]])
                           for i in range(len(x))]) for which in (given, negative))  # fmt: skip
        whole = policy.inner.velocity(x, t, conditioned)
    assert (kept - u).abs().max() < 2e-6 * u.abs().max() and (c - u).abs().max() > 1e-3
    assert torch.allclose(whole, kept + 3 * (c - kept), atol=1e-5)


class TestOnFreshRollouts:
    """3 rows of 2 prompts, 5 trained steps each: 30 unconditional velocities."""

    @pytest.fixture(scope="class")
    def both(self):
        return made(), made(reuse_unconditional=False)

    def test_log_probs_and_gradients_are_the_same_and_half_the_calls_are_made(self, both):
        rollouts = [policy.rollout(flow_requests(), KEY) for policy in both]
        assert COLUMN not in rollouts[1].replay
        (log_probs, gradient, counts), (plain, wanted, others) = map(scored, both, rollouts)
        assert (log_probs - plain).abs().max() < 1e-6
        assert (gradient - wanted).norm() < 1e-5 * wanted.norm()
        assert counts["calls/trained"] == 30 and counts["guidance/reused"] == 1.0
        assert others["calls/trained"] == 60 and others["guidance/reused"] == 0.0

    def test_whatever_the_micro_batch(self, both):
        rows = both[0].rollout(flow_requests(), KEY)
        few = rows.index([4, 1])
        log_probs, _, counts = scored(both[0], few)
        assert counts["guidance/reused"] == 1.0
        assert (log_probs - rows.old_log_probs[[4, 1]]).abs().max() < 1e-6

    def test_the_self_check_asks_both_branches(self, both):
        """Spoilt, it moves an update's log-probs, and not those of the check."""
        policy, _ = both
        rows = policy.rollout(flow_requests(), KEY)
        rows.replay[COLUMN] += 0.1
        old, new, mask = policy.replayed(rows)
        assert (new - old)[mask].abs().max() < 1e-5
        assert (scored(policy, rows)[0] - rows.old_log_probs).abs().max() > 1e-3


class TestOnOthers:
    def test_of_weights_that_have_moved_both_branches_are_asked(self):
        """As an optimizer moves them, and as anybody does who writes into them; the stale ones would be far off."""
        policy, plain = made(), made(reuse_unconditional=False)
        rows = policy.rollout(flow_requests(), KEY)
        policy.after_update()
        assert scored(policy, rows)[2]["guidance/reused"] == 0.0, "told of a step"
        rows = policy.rollout(flow_requests(), KEY)
        assert scored(policy, rows)[2]["guidance/reused"] == 1.0
        for each in (policy, plain):
            nudge(each, 0.05)
        log_probs, gradient, counts = scored(policy, rows)
        wanted, slope, _ = scored(plain, rows)
        assert counts["guidance/reused"] == 0.0 and counts["calls/trained"] == 60
        assert (log_probs - wanted).abs().max() < 1e-6 and (gradient - slope).norm() < 1e-5 * slope.norm()
        work = policy.likelihood.work(rows, ())
        conditioned = policy._conditioned(rows.encoded, rows.prompt[work.row])
        stale = policy.inner(work.states, conditioned, policy.likelihood.score)["log_probs"]
        assert (stale - wanted[rows.mask]).abs().max() > 1e-3

    def test_a_pass_with_older_rows_among_them_asks_for_all(self):
        policy = made()
        old = policy.rollout(flow_requests(), KEY)
        nudge(policy, 0.01)
        new = policy.rollout(flow_requests(), Key(5))
        mixed = Rollouts.concatenate([new.index([0, 1]), old.index([2])])
        assert scored(policy, mixed)[2]["guidance/reused"] == 0.0
        assert scored(policy, mixed.index([0, 1]))[2]["guidance/reused"] == 1.0
        again = made()
        assert scored(again, new)[2]["guidance/reused"] == 0.0, "rows of another run, whatever its weights"

    def test_rows_that_begin_in_others_take_theirs_along(self):
        policy, plain = (made(train_steps={"select": "all"}, reuse_unconditional=on) for on in (True, False))
        grown, alone = tree(policy), tree(plain)
        (log_probs, gradient, counts), (wanted, slope, _) = scored(policy, grown), scored(plain, alone)
        assert counts["guidance/reused"] == 1.0
        assert (log_probs - wanted).abs().max() < 1e-6 and (gradient - slope).norm() < 1e-5 * slope.norm()


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance": "through"},
        {"likelihood": "matching", "guidance": "none", "draws": {"count": 2}},
        {"reuse": {"every": 2, "drawn": True}},
        {"behaviour": {"samples": 1}},
        {"lora": {"rank": 4, "dropout": 0.1}},
    ],
)
def test_nothing_is_kept_that_no_update_could_read(options):
    policy = flow_policy(**GUIDED | options)
    assert COLUMN not in policy.rollout(flow_requests(2, 1), KEY).replay


def test_they_lie_where_the_states_lie_and_of_a_window_only():
    policy = made(latents_on="cpu", train_steps={"select": "window", "size": 2, "high": 4})
    rows = policy.rollout(flow_requests(2, 1), KEY)
    assert rows.replay[COLUMN].shape[1] == rows.replay["latents"].shape[1] == 3
    assert scored(policy, rows)[2]["guidance/reused"] == 1.0
    assert COLUMN not in policy.rollout(flow_requests(2, 1), KEY, greedy=True).replay


# -- in a run ----------------------------------------------------------------------------------------------------


def score(outputs, prompts) -> Scores:
    light = torch.tensor([float(np.asarray(each).mean()) / 255 for each in outputs])
    return Scores({"light": light}, light, (light > 0.5).float())


def trainer(folder, **options) -> Trainer:
    """2 optimizer steps a batch, of a group each, in micro-batches of 2 rows."""
    clip = {"name": "clip", "low": 1e-3, "high": 1e-3}
    parts = {"advantage": "grpo", "ratio": "token", "trust_region": clip, "aggregation": "sequence_mean"}
    objective = Objective.of(parts | {"regularizers": [{"name": "gaussian_kl", "coefficient": 0.04}]})
    config = TrainingConfig(
        steps=2, prompts_per_step=2, group_size=4, micro_batch_size=2, learning_rate=1e-3, updates={"count": 2},
        save_rollouts=0, save_every=1,
    )  # fmt: skip
    policy = flow_policy(**GUIDED | {"steps": 4, "ema": {"decay": 0.9}} | options)
    return Trainer(policy, objective, captions(2), score, config, folder)


def numbers(folder, resume=None, **options):
    told = {}
    run = trainer(folder, **options)
    run.report = lambda step, metrics: told.update({step: metrics})
    run.train(resume)
    weights = torch.cat([p.detach().flatten() for p in run.policy.inner.parameters() if p.requires_grad])
    return told, weights


def test_a_run_takes_half_of_them_with_two_optimizer_steps_and_a_resume_repeats_it(tmp_path):
    told, weights = numbers(tmp_path / "on")
    plain, wanted = numbers(tmp_path / "off", reuse_unconditional=False)
    assert [told[s]["guidance/reused"] for s in (1, 2)] == [0.5, 0.5] and plain[1]["guidance/reused"] == 0.0
    assert (weights - wanted).abs().max() < 1e-5 and told[2]["reward/mean"] == pytest.approx(plain[2]["reward/mean"])
    assert told[1]["calls/trained"] == 8 * 3 * 2 * 3 / 4 and plain[1]["calls/trained"] == 8 * 3 * 2
    again, resumed = numbers(tmp_path / "again", resume=tmp_path / "on" / "checkpoints" / "step-000001")
    assert torch.equal(resumed, weights) and again[2]["guidance/reused"] == 0.5
