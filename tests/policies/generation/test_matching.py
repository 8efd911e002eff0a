"""The matching likelihood: its draws, what is scored against the formula, the self-check, anchors, and runs of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mmrl.errors import ConfigError, PolicyError, SelfCheckError
from mmrl.objective import Objective
from mmrl.objective.regularizers.kl import ANCHOR_KL
from mmrl.policies.anchor import AnchorConfig
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.likelihoods.draws import Draws, draw_noise, draw_times
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.policies.generation.sde import schedule
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Rollouts, Scores
from mmrl.stages import NEEDS, Need
from mmrl.training.config import TrainingConfig
from mmrl.training.passes import plan_passes
from mmrl.training.trainer import Trainer
from tests.policies.generation.tiny import captions, flow_policy, flow_requests, nudge

KEY = Key(7, 3)
MATCHING = {"likelihood": "matching", "draws": {"count": 3}, "lora": {"rank": 4}}
RECIPES = ("awm", "diffusion_nft", "dgpo_direct", "crd", "gdro")


def loss(share: float = 1.0, **options) -> Need:
    options = options | ({"mix": share} if share != 1.0 else {})
    return Need("matching_loss", weights="current", options=tuple(sorted(options.items())))


def gap_to(which: str) -> Need:
    return Need("velocity_gap", weights="current", options=(("to", which),))


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    """Its anchor and its reference are elsewhere, rollouts are guided and training is not."""
    made = flow_policy(guidance_scale=3.0, reference_guidance=2.0, anchor={}, **MATCHING)
    nudge(made)
    made.anchors["anchor"].move(made.inner.trained, 1)
    nudge(made)
    return made


@pytest.fixture(scope="module")
def rolled(policy) -> Rollouts:
    return policy.rollout(flow_requests(), KEY)


class TestDraws:
    TIMES = schedule(10, 3.0)

    def draw(self, member: int = 0, **options) -> torch.Tensor:
        return draw_times(Draws(**options), self.TIMES, Key(1, member=member))

    def test_on_the_schedule(self):
        """Strata: one of each part. Without: different steps. Never t = 0, and never a time that was not sampled."""
        for member in range(20):
            parts = self.draw(member, count=3, first=1, last=10)
            assert [int((t == self.TIMES).nonzero()) // 3 for t in parts - 0] != [0, 0, 0]
            steps = [int((t == self.TIMES).nonzero()) for t in parts]
            assert all(low <= step < high for step, low, high in zip(steps, (1, 4, 7), (4, 7, 10), strict=True))
            others = self.draw(member, count=9, strata=False)
            assert len(set(others.tolist())) == 9 and bool(torch.isin(others, self.TIMES[:-1]).all())

    @pytest.mark.parametrize(("times", "low", "high"), [("uniform", 0.2, 0.6), ("logit_normal", 0.0, 1.0)])
    def test_continuous_times(self, times, low, high):
        """Strata keep their order before the shift; the median of logit-normal times is 1/2, shifted .75."""
        drawn = torch.stack([self.draw(m, count=3, times=times, low=low, high=high, shift=3.0) for m in range(400)])
        assert bool((drawn[:, 0] < drawn[:, 1]).all() and (drawn[:, 1] < drawn[:, 2]).all())
        u = drawn / (3 - 2 * drawn)
        assert u.min() >= low and u.max() <= high
        assert u.median().item() == pytest.approx((low + high) / 2, abs=0.02)

    def test_ranges_that_do_not_fit(self):
        with pytest.raises(ConfigError, match=r"4 times from steps \[8, 10\)"):
            self.draw(count=4, first=8)
        with pytest.raises(ConfigError, match=r"set policy\.draws\.last=10, or policy\.steps=12"):
            self.draw(count=4, last=12)
        with pytest.raises(ConfigError, match="is not below"):
            Draws(low=0.5, high=0.5)

    def test_noise_is_standard_and_of_its_row(self):
        seeds = torch.arange(40)
        noise = draw_noise(seeds, 3, (4, 8, 8))
        assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
        assert torch.equal(draw_noise(seeds[[7]], 3, (4, 8, 8))[0], noise[7])

    @pytest.mark.parametrize(("shared", "times", "noise"), [("each", 6, 6), ("group", 2, 2), ("batch", 1, 2)])
    def test_who_shares(self, shared, times, noise):
        policy = flow_policy(**MATCHING | {"draws": {"count": 3, "times": "uniform", "shared": shared}})
        rollouts = policy.rollout(flow_requests(), KEY)
        assert len(torch.unique(rollouts.replay["draw_times"], dim=0)) == times
        assert len(torch.unique(rollouts.replay["draw_seeds"])) == noise

    def test_rows_do_not_depend_on_the_batch(self, policy, rolled):
        parts = [policy.rollout([replace(r, count=1, first_member=m)], KEY) for r in flow_requests() for m in range(3)]
        for name in ("draw_times", "draw_seeds"):
            assert torch.equal(torch.cat([p.replay[name] for p in parts]), rolled.replay[name])
        assert not torch.equal(policy.rollout(flow_requests(), Key(7, 4)).replay["draw_times"],
                               rolled.replay["draw_times"])  # fmt: skip


class TestScores:
    def velocity(self, policy, rolled, weights="current", guidance=1.0):
        """Velocities, targets and times of all draws, by hand and one state at a time."""
        noise = draw_noise(rolled.replay["draw_seeds"], 3, rolled.replay["clean"].shape[1:])
        found, targets = [], []
        with torch.no_grad(), policy._weights(weights) as module:
            for row in range(len(rolled)):
                entry = rolled.encoded[int(rolled.prompt[row])]
                for draw in range(3):
                    t, e, clean = rolled.replay["draw_times"][row, draw], noise[row, draw], rolled.replay["clean"][row]
                    x = ((1 - t) * clean + t * e)[None]
                    ask = [module.trained, x, t[None]]
                    v = policy.generator.velocity(*ask, [entry.given])
                    if guidance > 1:
                        without = policy.generator.velocity(*ask, [entry.negative])
                        v = without + guidance * (v - without)
                    found.append(v[0])
                    targets.append(e - clean)
        return torch.stack(found), torch.stack(targets)

    def test_every_probe_is_its_formula(self, policy, rolled):
        needs = [loss(), loss(0.3), loss(-0.3, weighted=True, space="clean"), gap_to("reference"), gap_to("anchor")]
        with torch.no_grad():
            found = policy.evaluate(rolled, needs)
        v, target = self.velocity(policy, rolled)
        anchor = self.velocity(policy, rolled, "anchor")[0]
        reference = self.velocity(policy, rolled, "reference", 2.0)[0]
        assert (anchor - v).abs().max() > 1e-3 and (reference - v).abs().max() > 1e-3
        t = rolled.replay["draw_times"].reshape(-1, 1, 1, 1)
        clean = t * (1.3 * anchor - 0.3 * v - target)

        def mean(x):
            return x.flatten(1).mean(1).reshape(-1, 3)

        expected = [
            mean((v - target) ** 2),
            mean((0.7 * anchor + 0.3 * v - target) ** 2),
            mean(clean**2) / mean(clean.abs()),
            mean((v - reference) ** 2),
            mean((v - anchor) ** 2),
        ]
        for need, value in zip(needs, expected, strict=True):
            torch.testing.assert_close(found[need.key], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.log_probs, -expected[0], rtol=1e-4, atol=1e-6)

    def test_passes_with_other_weights(self, policy, rolled):
        values = {}
        for weights in ("old", "anchor", "reference"):
            need = Need("matching_loss", weights=weights)
            with torch.no_grad():
                values[weights] = policy.evaluate(rolled, [need], weights=weights)[need.key]
            v, target = self.velocity(policy, rolled, weights)
            expected = (v - target).square().flatten(1).mean(1).reshape(-1, 3)
            torch.testing.assert_close(values[weights], expected, rtol=1e-4, atol=1e-6)
        assert (values["anchor"] - values["old"]).abs().max() > 1e-4

    def test_gradient_reaches_the_trained_weights_only_and_does_not_depend_on_micro_batches(self, policy, rolled):
        needs = [loss(0.3), gap_to("anchor"), gap_to("reference")]
        gradients = []
        for parts in ([[0, 1, 2, 3, 4, 5]], [[4, 0], [1], [5, 3, 2]]):
            policy.module.zero_grad()
            for part in parts:
                found = policy.evaluate(rolled.index(part), needs)
                sum(found[need.key].sum() for need in needs).backward()
            named = dict(policy.inner.named_parameters())
            assert all(p.grad is None for n, p in named.items() if ".default." not in n)
            gradients.append(torch.cat([p.grad.flatten() for n, p in named.items() if ".default." in n]))
        policy.module.zero_grad()
        assert gradients[0].norm() > 0
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()

    def test_gradient_checkpointing_asks_the_same_weights_again(self, policy, rolled):
        other = flow_policy(
            guidance_scale=3.0, reference_guidance=2.0, anchor={}, gradient_checkpointing=True, **MATCHING
        )
        other.load_trainable_state(policy.trainable_state())
        gradients = []
        for each in (policy, other):
            each.evaluate(rolled, [loss(0.3)])[loss(0.3).key].sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in each.inner.parameters() if p.grad is not None]))
            each.module.zero_grad()
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()

    def test_a_saved_record_is_scored_again(self, policy, rolled, tmp_path):
        rolled.save(tmp_path / "rows")
        with torch.no_grad():
            again = policy.evaluate(Rollouts.load(tmp_path / "rows")).log_probs
            torch.testing.assert_close(again, policy.evaluate(rolled).log_probs)


class TestSelfCheck:
    def worst(self, policy, rollouts) -> tuple[float, int]:
        with torch.no_grad():
            old, new, mask = policy.replayed(rollouts)
        return float(((new - old) * mask).abs().max()), int(mask.sum())

    def test_two_steps_of_four_rows(self):
        policy = flow_policy(guidance_scale=2.0, **MATCHING)
        nudge(policy)
        rollouts = policy.rollout(flow_requests(), KEY)
        gap, count = self.worst(policy, rollouts)
        assert gap < 1e-5 and count == 8
        swapped = replace(rollouts, encoded=rollouts.encoded[::-1])
        assert self.worst(policy, swapped)[0] > 1e-3
        nudge(policy)
        assert self.worst(policy, rollouts)[0] > 1e-3

    def test_in_a_run(self, tmp_path, monkeypatch):
        """A trainer that asks with other guidance than the sampler's is stopped before it moves a weight."""
        from mmrl.policies.generation.scoring import Predicting

        honest = Predicting.current
        monkeypatch.setattr(Predicting, "current", lambda self, *, guided: honest(self, guided=False))
        with pytest.raises(SelfCheckError, match="DIFFERENT"):
            run("awm", tmp_path, guidance_scale=2.0)


class TestAnchor:
    def test_schedule(self):
        """NFT's, its narrow one, and CRD's."""
        assert [AnchorConfig().decay_at(n) for n in (0, 100, 900)] == pytest.approx([0, 0.1, 0.5])
        narrow = AnchorConfig(flat=75, rate=0.0075, hold=0.999)
        assert [narrow.decay_at(n) for n in (74, 75, 115, 500)] == pytest.approx([0, 0, 0.3, 0.999])
        assert AnchorConfig(start=0.25, rate=0.005, hold=0.999).decay_at(10) == pytest.approx(0.3)

    def test_kl_to_an_anchor_is_that_to_the_weights_it_copied(self):
        """every 2: after the first update the anchor is the start, after the second the weights, where the KL is 0."""
        policy = flow_policy(anchor={"moves": "update", "every": 2, "rate": 0.0, "hold": 0.0})
        rollouts = policy.rollout(flow_requests(), KEY)
        policy.after_update()
        nudge(policy)
        needs = [ANCHOR_KL, NEEDS["reference_kl"]]
        first = policy.evaluate(rollouts, needs).columns
        assert (first[ANCHOR_KL.key][rollouts.mask] > 0).all()
        torch.testing.assert_close(first[ANCHOR_KL.key], first[needs[1].key])
        policy.after_update()
        second = policy.evaluate(rollouts, needs).columns
        assert second[ANCHOR_KL.key].abs().max() < 1e-9 < second[needs[1].key].max()

    def test_a_pace_in_updates_wants_moves_by_update(self):
        with pytest.raises(ValueError, match="moves: update"):
            AnchorConfig(every=10)

    @pytest.mark.parametrize("lora", [{"rank": 4}, None])
    def test_moves_as_its_decay_says(self, lora):
        policy = flow_policy(anchor={"start": 0.5, "rate": 0.0}, **MATCHING | {"lora": lora})
        start = {n: own.clone() for n, (own, _) in policy.anchors["anchor"].pairs(policy.inner.trained).items()}
        nudge(policy)
        policy.after_update()
        pairs = policy.anchors["anchor"].pairs(policy.inner.trained)
        assert all(torch.equal(own, start[n]) for n, (own, _) in pairs.items())
        policy.after_batch()
        for name, (own, trained) in pairs.items():
            torch.testing.assert_close(own, (start[name] + trained) / 2)
            assert not own.requires_grad

    @pytest.mark.parametrize("lora", [{"rank": 4}, None])
    def test_rollouts_of_the_anchor_are_those_of_a_policy_with_its_weights(self, lora):
        policy = flow_policy(anchor={"samples": 0}, **MATCHING | {"lora": lora})
        before = policy.rollout(flow_requests(), KEY).replay["clean"]
        nudge(policy)
        assert policy.samples_with == "anchor"
        anchored = policy.rollout(flow_requests(), KEY, weights="anchor").replay["clean"]
        torch.testing.assert_close(anchored, before)
        assert (policy.rollout(flow_requests(), KEY).replay["clean"] - before).abs().max() > 1e-3

    def test_sampling_begins_when_it_is_to(self):
        policy = flow_policy(anchor={"samples": 2, "moves": "update"}, **MATCHING)
        seen = []
        for _ in range(3):
            seen.append(policy.samples_with)
            policy.after_update()
        assert seen == ["current", "current", "anchor"]

    def test_a_merged_export_has_no_anchor(self, tmp_path):
        policy = flow_policy(anchor={}, **MATCHING)
        policy.save_pretrained(tmp_path / "adapter")
        assert "anchor" not in " ".join(p.name for p in (tmp_path / "adapter").rglob("*"))
        nudge(policy)
        from mmrl.policies import adapters

        merged = adapters.merged_copy(policy.inner.transformer)
        assert not [n for n, _ in merged.named_parameters() if "lora" in n]

    def test_a_checkpoint_without_it_is_refused(self):
        with pytest.raises(PolicyError, match=r"no anchor weights.*policy\.anchor"):
            flow_policy(anchor={}, **MATCHING).load_trainable_state(flow_policy(**MATCHING).trainable_state())


class TestRefusals:
    def settings(self, **options) -> FlowPolicyConfig:
        return FlowPolicyConfig(model="tiny", **options)

    def plan(self, objective, **options):
        return plan_passes(Objective.of(objective), FlowPolicy, None, self.settings(**options))

    def test_at_configuration(self):
        recipe = load_recipe("diffusion_nft").objective
        with pytest.raises(ConfigError, match=r"matching_loss.*likelihood=transition.*set policy\.likelihood=matching"):
            self.plan(recipe)
        with pytest.raises(ConfigError, match=r"compares with anchor weights.*policy\.anchor"):
            self.plan(recipe, likelihood="matching")
        with pytest.raises(ConfigError, match="no log-probs, and ratio 'token' reads them"):
            self.plan({}, likelihood="matching")
        with pytest.raises(ConfigError, match=r"'log_probs'.*set policy\.likelihood=transition"):
            self.plan(
                {**recipe, "regularizers": [{"name": "kl", "coefficient": 0.1}]}, likelihood="matching", anchor={}
            )
        with pytest.raises((ConfigError, ValidationError), match=r"unknown likelihood 'macthing'.*matching"):
            self.settings(likelihood="macthing")

    def test_a_language_policy_has_no_draws(self):
        from mmrl.policies.language.vision import VisionPolicy

        with pytest.raises(ConfigError, match=r"needs 'matching_loss'.*offered by: flow"):
            plan_passes(Objective.of(load_recipe("awm").objective), VisionPolicy)

    def test_weights_that_nobody_keeps(self):
        with pytest.raises(PolicyError, match=r"keeps no anchor weights: set policy\.anchor"):
            flow_policy(**MATCHING).rollout(flow_requests(), KEY, weights="anchor")


def score(outputs, prompts) -> Scores:
    """How blue an image is: every seed differs, and it can be learned."""
    import numpy as np

    blue = torch.tensor([float(np.asarray(o)[..., 2].mean()) / 255 for o in outputs])
    return Scores({"blue": blue}, blue, (blue > 0.5).float())


def run(recipe: str, folder: Path, *, steps: int = 2, resume: Path | None = None, save_every=1, **options):
    """`steps` steps of a recipe on the tiny model, with its own settings but for sizes."""
    chosen = load_recipe(recipe)
    settings = {k: v for k, v in chosen.policy.items() if k not in ("steps", "eval_steps", "lora")}
    draws = settings["draws"] | {"count": 2, "first": 0, "last": None}
    policy = flow_policy(**settings | {"draws": draws, "lora": {"rank": 4}, "steps": 4} | options)
    metrics: list[dict] = []
    trainer = Trainer(
        policy, Objective.of(chosen.objective), captions(3), score,
        TrainingConfig(steps=steps, prompts_per_step=2, group_size=4, micro_batch_size=3, learning_rate=1e-3,
                       save_every=save_every, self_check=1e-4),
        folder, report=lambda step, values: metrics.append(values),
    )  # fmt: skip
    trainer.train(resume)
    return policy, metrics


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_two_steps_and_resumes_bit_for_bit(recipe, tmp_path):
    policy, metrics = run(recipe, tmp_path / "whole")
    assert all(0 < m["gradient_norm"] < 1e4 for m in metrics), [m["gradient_norm"] for m in metrics]
    assert metrics[0]["self_check/worst_gap"] < 1e-5
    again, rest = run(recipe, tmp_path / "again", resume=tmp_path / "whole" / "checkpoints" / "step-000001")
    same = {k for k in metrics[1] if not k.startswith(("seconds/", "rate/", "memory/", "self_check/"))}
    assert {k: rest[0][k] for k in same} == {k: metrics[1][k] for k in same}
    state, resumed = policy.trainable_state(), again.trainable_state()
    assert state.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in state.items())


def test_the_anchor_is_another_policy_after_a_step(tmp_path):
    """NFT's anchor after the first update is .001 old and .999 new: its decay counts optimizer steps."""
    policy, _ = run("diffusion_nft", tmp_path, steps=1)
    start = flow_policy(lora={"rank": 4}).trainable_state()
    for name, (own, trained) in policy.anchors["anchor"].pairs(policy.inner.trained).items():
        torch.testing.assert_close(own, 0.001 * start[name] + 0.999 * trained, rtol=1e-5, atol=1e-8)


def test_a_likelihood_and_an_objective_from_a_file(tmp_path):
    """Nothing in the package knows them."""
    mine = Path(__file__).with_name("my_likelihood.py")
    policy = flow_policy(likelihood=f"{mine}:Mine", lora={"rank": 4})
    metrics: list[dict] = []
    Trainer(
        policy, Objective.of({"matching_objective": f"{mine}:halfway"}), captions(3), score,
        TrainingConfig(steps=2, prompts_per_step=2, group_size=4, learning_rate=1e-3, self_check=1e-4), tmp_path,
        report=lambda step, values: metrics.append(values),
    ).train()  # fmt: skip
    assert all(m["gradient_norm"] > 0 for m in metrics)
    assert json.loads((tmp_path / "checkpoints" / "step-000002" / "state.json").read_text())["step"] == 2
    with pytest.raises((ConfigError, ValidationError), match="expected a subclass"):
        FlowPolicyConfig(model="tiny", likelihood=f"{mine}:halfway")
    assert NEEDS["matching_loss"].probe not in policy.likelihood.offers()
