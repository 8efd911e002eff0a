"""The flow policy: replay equals rollout, exact sharing, refusals, one forward, probes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.base import Policy
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Batch, Prompt, Request, Rollouts
from mmrl.stages import NEEDS, Need, View
from mmrl.training.passes import plan_passes
from tests.policies.generation.tiny import captions, flow_pipeline, flow_policy, flow_requests, nudge

SAMPLERS = ("flow_sde", "dance_sde", "cps", "sage_sde")
KEY = Key(7, 3)


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    """Guidance and moved adapters, so that a skipped pass or a forgotten adapter shows."""
    made = flow_policy(guidance_scale=3.0, keep_means=True)
    nudge(made)
    return made


@pytest.fixture(scope="module")
def rolled(policy) -> Rollouts:
    return policy.rollout(flow_requests(), KEY)


def gap(policy: FlowPolicy, rollouts: Rollouts) -> float:
    with torch.no_grad():
        return (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs).abs().max().item()


class TestReplayEqualsRollout:
    @pytest.mark.parametrize("kind", SAMPLERS)
    def test_ratio_is_one_before_the_first_update(self, kind):
        policy = flow_policy(sampler={"kind": kind}, guidance_scale=2.0)
        nudge(policy)
        rollouts = policy.rollout(flow_requests(), KEY)
        assert gap(policy, rollouts) < 1e-5
        assert rollouts.mask.sum(1).tolist() == [5] * 6
        nudge(policy)
        assert gap(policy, rollouts) > 1e-4

    @pytest.mark.parametrize(
        "steps",
        [
            {"select": "fraction", "fraction": 0.5},
            {"select": "window", "size": 2, "low": 1},
            {"select": "one", "branches": 2},
        ],
    )
    def test_for_every_choice_of_steps(self, steps):
        policy = flow_policy(train_steps=steps, same_initial_noise=True)
        nudge(policy)
        rollouts = policy.rollout(flow_requests(10), KEY)
        assert gap(policy, rollouts) < 1e-5
        assert rollouts.replay["latents"].shape[1] <= {"fraction": 6, "window": 3, "one": 2}[steps["select"]]

    @pytest.mark.parametrize("storage", ["float16", "bfloat16"])
    def test_rounding_of_stored_latents_is_in_the_log_probs(self, storage):
        policy = flow_policy(latent_dtype=storage)
        rollouts = policy.rollout(flow_requests(), KEY)
        assert str(rollouts.replay["latents"].dtype) == f"torch.{storage}"
        assert gap(policy, rollouts) < 1e-5

    def test_states_kept_on_the_cpu_are_the_same_numbers(self, rolled):
        kept = flow_policy(guidance_scale=3.0, keep_means=True, latents_on="cpu")
        nudge(kept)
        again = kept.rollout(flow_requests(), KEY)
        assert all(again.replay[name].device.type == "cpu" for name in ("latents", "means"))
        assert torch.equal(again.replay["latents"], rolled.replay["latents"])
        assert torch.equal(again.replay["means"], rolled.replay["means"]) and gap(kept, again) < 1e-5

    def test_with_gradient_checkpointing_and_another_chunk_size(self, policy, rolled):
        chunked = flow_policy(guidance_scale=3.0, keep_means=True, transformer_batch=4, gradient_checkpointing=True)
        nudge(chunked)
        assert gap(chunked, rolled) < 1e-5
        gradients = []
        for each in (policy, chunked):
            each.evaluate(rolled).log_probs.sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in each.module.parameters() if p.requires_grad]))
            each.module.zero_grad()
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()

    def test_a_wrong_prompt_shows(self, policy, rolled):
        assert gap(policy, replace(rolled, encoded=rolled.encoded[::-1])) > 1e-4

    def test_a_saved_record_is_scored_again(self, policy, rolled, tmp_path):
        rolled.save(tmp_path / "rows")
        assert gap(policy, Rollouts.load(tmp_path / "rows")) < 1e-5

    def test_index_and_concatenate_keep_the_replay(self, policy, rolled):
        assert gap(policy, rolled.index([4, 1])) < 1e-5
        assert gap(policy, Rollouts.concatenate([rolled.index([5]), rolled.index([0, 2])])) < 1e-5


class TestKeyedNoise:
    def test_rows_do_not_depend_on_the_batch(self, policy, rolled):
        first, second = flow_requests()
        parts = [
            Request(first.prompt, 2, 0),
            replace(second, count=1),
            Request(first.prompt, 1, 0, first_member=2),
            Request(second.prompt, 2, 1, first_member=1),
        ]
        split = Rollouts.concatenate([policy.rollout([r], KEY) for r in parts]).index([0, 1, 3, 2, 4, 5])
        assert split.member.tolist() == rolled.member.tolist()
        torch.testing.assert_close(split.replay["latents"], rolled.replay["latents"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(split.old_log_probs, rolled.old_log_probs, rtol=0, atol=1e-5)

    def test_another_step_is_another_draw(self, policy, rolled):
        other = policy.rollout(flow_requests(), Key(7, 4))
        assert (other.replay["latents"] - rolled.replay["latents"]).abs().max() > 0.5

    def test_members_differ_unless_they_share_the_start(self, rolled):
        starts = rolled.replay["latents"][:, 0]
        assert (starts[0] - starts[1]).abs().max() > 0.5
        shared = flow_policy(same_initial_noise=True).rollout(flow_requests(), KEY)
        starts = shared.replay["latents"][:, 0]
        assert torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[3])


class TestSharedPrefix:
    WINDOW = {"select": "window", "size": 2, "low": 2, "high": 4}

    def counted(self, **options) -> tuple[Rollouts, int]:
        policy = flow_policy(same_initial_noise=True, **options)
        nudge(policy)
        rows, call = [], policy.inner.transformer.forward
        policy.inner.transformer.forward = lambda **inputs: rows.append(len(inputs["hidden_states"])) or call(**inputs)
        count = 10 if options["train_steps"]["select"] == "one" else 4
        return policy.rollout(flow_requests(count), KEY), sum(rows)

    # window: each prompt pays its prefix once, each row the rest; one: a row of step k pays S - k calls, each
    # prompt one trunk up to the last branching step
    @pytest.mark.parametrize(
        ("steps", "calls_expected"),
        [
            (WINDOW, 2 * 2 + 8 * 4),
            ({"select": "one", "branches": 2}, 2 * 4 + 2 * 2 * sum(6 - k for k in range(5))),
        ],
    )
    def test_equals_the_plain_path_with_fewer_calls(self, steps, calls_expected):
        shared, calls = self.counted(train_steps=steps)
        plain, plain_calls = self.counted(train_steps=steps, share_prefix=False)
        torch.testing.assert_close(shared.replay["latents"], plain.replay["latents"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(shared.old_log_probs, plain.old_log_probs, rtol=0, atol=1e-5)
        assert plain_calls == len(plain) * 6
        assert calls == calls_expected

    def test_branches_of_one_step_leave_the_same_state(self):
        rollouts, _ = self.counted(train_steps={"select": "one", "branches": 2})
        before, after = rollouts.replay["latents"][:, 0], rollouts.replay["latents"][:, 1]
        branch = rollouts.columns[Need("branch").key]
        for group in (0, 1):
            for b in branch[rollouts.group == group].unique():
                pair = ((rollouts.group == group) & (branch == b)).nonzero().squeeze(1).tolist()
                assert len(pair) == 2 and torch.equal(before[pair[0]], before[pair[1]])
                assert (after[pair[0]] - after[pair[1]]).abs().max() > 0.1


class TestSampling:
    def test_greedy_is_the_ode_and_draws_nothing(self, policy):
        rollouts = policy.rollout(flow_requests(), KEY, greedy=True)
        assert not rollouts.mask.any() and rollouts.actions.shape == (6, 8)
        assert rollouts.replay == {} and rollouts.columns == {}
        with pytest.raises(PolicyError, match="ODE sampler"):
            policy.evaluate(rollouts)

    def test_low_noise_approaches_the_ode(self):
        import numpy as np

        ode = flow_policy(eval_steps=6).rollout(flow_requests(), KEY, greedy=True).outputs
        quiet = flow_policy(sampler={"kind": "flow_sde", "level": 1e-3}).rollout(flow_requests(), KEY).outputs
        loud = flow_policy(sampler={"kind": "flow_sde", "level": 0.7}).rollout(flow_requests(), KEY).outputs
        away = lambda a, b: max(np.abs(np.int16(x) - np.int16(y)).max() for x, y in zip(a, b, strict=True))  # noqa: E731
        assert away(ode, quiet) <= 2 < 20 < away(ode, loud)

    def test_the_ode_sampler_is_the_pipelines_own(self):
        """Same noise through StableDiffusion3Pipeline itself, which sets its own schedule."""
        import numpy as np

        policy = flow_policy(eval_steps=5, guidance_scale=2.5, schedule="pipeline")
        ours = policy.rollout(flow_requests(1, 1), KEY, greedy=True)
        start = KEY.at(prompt="p0", member=0, purpose="initial").normal(1, *policy.shape)
        pipeline = flow_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline(
            prompt=captions(1)[0].text, latents=start, guidance_scale=2.5, height=16, width=16, output_type="np",
            num_inference_steps=5, max_sequence_length=16,
        ).images[0]  # fmt: skip
        assert np.abs(np.asarray(ours.outputs[0]) / 255 - theirs).max() < 0.005

    def test_text_embeddings_are_cached_and_exact(self):
        policy = flow_policy()
        prompt = captions(1)[0]
        first = policy.encode(prompt)
        assert policy.encode(prompt) is first
        policy.frozen._kept.limit = first.nbytes  # room for one
        policy.encode(captions(2)[1])
        again = policy.encode(prompt)
        assert again is not first
        assert torch.equal(again.given["encoder_hidden_states"], first.given["encoder_hidden_states"])

    def test_guidance_one_skips_the_unconditional_pass(self):
        rows = {}
        for scale in (1.0, 2.0):
            policy, calls = flow_policy(guidance_scale=scale, reuse_unconditional=False), []
            call = policy.inner.transformer.forward
            policy.inner.transformer.forward = lambda call=call, calls=calls, **x: calls.append(1) or call(**x)
            rollouts = policy.rollout(flow_requests(), KEY)
            policy.evaluate(rollouts)
            rows[scale] = len(calls)
        assert rows[2.0] == 2 * rows[1.0]

    def test_hints_are_sampled_under_and_scored_without(self, policy):
        prompt, other = captions(2)
        hinted = policy.rollout([Request(prompt, 2, 0, shown=other)], KEY)
        assert hinted.replay["shown"].all() and not policy.rollout([Request(prompt, 2, 0)], KEY).replay["shown"].any()
        assert gap(policy, hinted) > 1e-4
        assert hinted.prompts[0].id == prompt.id


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"guidance_scale": 1.0}, "guidance=3"),
            ({"sampler": {"kind": "dance_sde"}}, "kind=1"),
            ({"sampler": {"level": 0.8}}, "level=0.7"),
            ({"reduction": "sum"}, "sum=0"),
            ({"normalised": False}, "normalised=1"),
        ],
    )
    def test_another_policy_than_the_one_that_sampled(self, rolled, change, name):
        other = flow_policy(**({"guidance_scale": 3.0} | change))
        with pytest.raises(PolicyError, match=name):
            other.evaluate(rolled)

    def test_prefixes_media_and_views(self, policy, rolled):
        prompt = captions(1)[0]
        with pytest.raises(PolicyError, match="prefix"):
            policy.rollout([Request(prompt, 1, 0, prefix=torch.zeros(2))], KEY)
        picture = [Image.new("RGB", (8, 8))]
        with pytest.raises(PolicyError, match=r"1 condition image.*takes 0"):
            policy.rollout([Request(replace(prompt, images=picture), 1, 0)], KEY)
        with pytest.raises(PolicyError, match="view"):
            policy.evaluate(rolled, under=View.of("remove_media"))

    def test_no_noise_nothing_to_train(self):
        with pytest.raises(ConfigError, match="draws no noise"):
            flow_policy(sampler={"kind": "flow_sde", "level": 0.0}).rollout(flow_requests(), KEY)

    def test_sizes_name_the_nearest(self):
        with pytest.raises(ConfigError, match="nearest is 20"):
            flow_policy(height=19)

    def test_token_probes_are_refused_before_anything_loads(self):
        for name in ("durian", "tor", "vppo"):
            with pytest.raises(ConfigError, match="flow policy does not offer"):
                plan_passes(Objective.of(load_recipe(name).objective), FlowPolicy)

    def test_other_pipelines(self):
        pipeline = flow_pipeline()
        pipeline.transformer = torch.nn.Linear(2, 2)
        with pytest.raises(ConfigError, match="StableDiffusion3"):
            FlowPolicy(pipeline, flow_policy().config)

    def test_mean_shift_wants_kept_means(self):
        policy = flow_policy()
        rollouts = policy.rollout(flow_requests(), KEY)
        with pytest.raises(PolicyError, match="keep_means"):
            policy.evaluate(rollouts, [NEEDS["mean_shift"]])


class TestProbes:
    def test_schedule_columns_need_no_pass(self, policy, rolled):
        call, policy.inner.transformer.forward = policy.inner.transformer.forward, None
        try:
            names = ("step_std", "step_sizes", "step_equalizer", "branch")
            seen = policy.evaluate(rolled, [NEEDS[n] for n in names], weights="old")
        finally:
            policy.inner.transformer.forward = call
        std = seen.columns[NEEDS["step_std"].key]
        assert torch.equal(std != 0, rolled.mask) and torch.equal(seen.log_probs, rolled.old_log_probs)
        torch.testing.assert_close(seen.columns[NEEDS["step_sizes"].key][0], torch.tensor([1 / 6] * 5 + [0]))

    def test_reference_kl_is_zero_at_the_start_and_has_a_gradient_away_from_it(self):
        policy = flow_policy()
        rollouts = policy.rollout(flow_requests(), KEY)
        need = NEEDS["reference_kl"]
        assert policy.evaluate(rollouts, [need]).columns[need.key].abs().max() == 0
        nudge(policy)
        kl = policy.evaluate(rollouts, [need]).columns[need.key]
        assert (kl[rollouts.mask] > 0).all() and (kl[~rollouts.mask] == 0).all()
        kl.sum().backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.module.parameters())

    @pytest.mark.parametrize("lora", [True, False])
    def test_reference_kl_against_two_models(self, lora):
        """The KL inside the forward equals the one computed from a second, untouched model."""
        options = {} if lora else {"lora": None}
        policy = flow_policy(kl="velocity_mse", **options)
        rollouts = policy.rollout(flow_requests(), KEY)
        _ = policy._frozen_reference if not lora else None
        nudge(policy)
        need = NEEDS["reference_kl"]
        kl = policy.evaluate(rollouts, [need]).columns[need.key][rollouts.mask]
        rows, steps = rollouts.mask.nonzero(as_tuple=True)
        text = policy._conditioned(rollouts.encoded, rollouts.prompt[rows])
        x, t = rollouts.replay["latents"][rows, steps].float(), rollouts.replay["times"][rows, steps]
        base = flow_policy(lora=None)
        with torch.no_grad():
            difference = policy.inner.velocity(x, t, text) - base.inner.velocity(x, t, text)
        torch.testing.assert_close(kl, (difference**2).flatten(1).mean(1))

    def test_legacy_kl_is_h_times_the_exact_one(self):
        values = {}
        for kind in ("exact", "legacy_no_dt"):
            policy = flow_policy(kl=kind)
            rollouts = policy.rollout(flow_requests(), KEY)
            nudge(policy)
            need = NEEDS["reference_kl"]
            values[kind] = policy.evaluate(rollouts, [need]).columns[need.key]
        torch.testing.assert_close(values["legacy_no_dt"], values["exact"] / 6)

    def test_reference_log_probs_are_the_base_models(self, policy, rolled):
        need = NEEDS["ref_log_probs"]
        seen = policy.evaluate(rolled, [need], weights="reference")
        base = flow_policy(guidance_scale=3.0)
        with torch.no_grad():
            torch.testing.assert_close(seen.columns[need.key], base.evaluate(rolled).log_probs)

    def test_mean_shift_is_zero_then_half_the_squared_drift(self, policy, rolled):
        need = NEEDS["mean_shift"]
        with torch.no_grad():
            assert policy.evaluate(rolled, [need]).columns[need.key].max() < 1e-9
            moved = flow_policy(guidance_scale=3.0, keep_means=True)
            nudge(moved, 0.03)
            shift = moved.evaluate(rolled, [need])
        # E[lp_new - lp_old] = -shift under the rollout's own noise: the sampled drift scatters around it
        drift = (shift.log_probs - rolled.old_log_probs)[rolled.mask]
        b = shift.columns[need.key][rolled.mask]
        assert (b > 0).all()
        assert ((drift + b).mean() / drift.std()).abs() < 1.0

    def test_probes_offered_are_the_ones_answered(self):
        for name in ("step_std", "step_sizes", "step_equalizer", "branch", "reference_kl", "mean_shift"):
            FlowPolicy.check_need(NEEDS[name], name)


class TestStepOutputs:
    def test_every_trained_state_is_finished_by_the_ode(self, policy, rolled):
        images, addresses = policy.step_outputs(rolled)
        assert len(images) == int(rolled.mask.sum()) == 30
        assert torch.equal(addresses, rolled.mask.nonzero())

    def test_the_first_state_leads_to_the_greedy_image(self):
        """Before step 0 the state is the start noise: its ODE image is the deterministic sampler's."""
        import numpy as np

        policy = flow_policy(eval_steps=6)
        rollouts = policy.rollout(flow_requests(), KEY)
        images, addresses = policy.step_outputs(rollouts)
        greedy = policy.rollout(flow_requests(), KEY, greedy=True).outputs
        firsts = [images[i] for i in range(len(images)) if addresses[i, 1] == 0]
        for first, image in zip(firsts, greedy, strict=True):
            assert np.abs(np.int16(first) - np.int16(image)).max() <= 1

    def test_one_step_outputs_are_where_the_velocity_points(self, policy, rolled):
        """x - t v, decoded: one transformer call a state, whatever remains of the schedule."""
        rows, calls, real = [], [], policy.frozen.decode
        policy.frozen.decode = lambda latents, conditioned: rows.append(latents) or real(latents, conditioned)
        forward = policy.inner.velocity
        policy.inner.velocity = lambda x, t, c: calls.append((x, t, v := forward(x, t, c))) or v
        try:
            images, addresses = policy.step_outputs(rolled, projection="one_step")
        finally:
            del policy.inner.velocity, policy.frozen.decode
        assert torch.equal(addresses, rolled.mask.nonzero()) and len(images) == len(addresses)
        x, t, v = (torch.cat([call[i] for call in calls]) for i in range(3))
        assert len(x) == len(images)
        clean = (x - t.reshape(-1, 1, 1, 1) * v).float()
        assert {tuple(c.flatten()[:3].tolist()) for c in clean} == {tuple(c.flatten()[:3].tolist()) for c in rows[0]}


class TestModule:
    def test_training_calls_the_wrapped_module_once(self):
        """DDP and FSDP see one forward, whatever the number of steps, chunks and passes."""
        policy = flow_policy(transformer_batch=4, guidance_scale=2.0)
        rollouts = policy.rollout(flow_requests(), KEY)
        calls = []

        class Wrapper(torch.nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

            def forward(self, *inputs):
                calls.append(1)
                return self.module(*inputs)

        policy.module = Wrapper(policy.module)
        seen = policy.evaluate(rollouts, [NEEDS["reference_kl"]])
        assert calls == [1] and seen.log_probs.shape == rollouts.mask.shape
        with torch.no_grad():
            policy.evaluate(rollouts)
        assert calls == [1]

    def test_what_leaves_the_forward_is_one_number_per_step(self, policy, rolled):
        sizes = []
        handle = policy.module.register_forward_hook(lambda m, i, out: sizes.extend(v.shape for v in out.values()))
        policy.evaluate(rolled, [NEEDS["reference_kl"], NEEDS["mean_shift"]])
        handle.remove()
        assert sizes == [(30,)] * 3

    def test_only_adapters_train(self, policy):
        trained = [n for n, p in policy.module.named_parameters() if p.requires_grad]
        assert trained and all("lora_" in n for n in trained)
        full = flow_policy(lora=None)
        assert all(p.requires_grad for p in full.module.parameters())
        assert not any(p.requires_grad for p in full.pipeline.vae.parameters())

    def test_micro_batches_cover_the_rows(self, policy, rolled):
        parts = policy.micro_batches(rolled, torch.tensor([5, 0, 3, 2]), 3)
        assert [len(p) for p in parts] == [3, 1]
        assert sorted(torch.cat(parts).tolist()) == [0, 2, 3, 5]

    def test_trainable_state_goes_back(self, policy, rolled):
        other = flow_policy(guidance_scale=3.0)
        other.load_trainable_state(policy.trainable_state())
        assert gap(other, rolled) < 1e-5


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("trust", ["clip", "sapo"])
def test_text_functions_run_unchanged_on_denoising_steps(policy, rolled, ratio, trust):
    reward = torch.tensor([1.0, 0, 0.5, 0.2, 0.9, 0])
    batch = Batch.of(replace(rolled, reward=reward), max_length=policy.max_actions)
    objective = Objective.of({"advantage": "grpo", "ratio": ratio, "trust_region": trust})
    batch, weights = objective.prepare(batch)
    loss = objective.loss(policy.evaluate(rolled), batch, weights).loss
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in policy.module.parameters() if p.grad is not None]).norm()
    policy.module.zero_grad()
    assert norm > 1e-4
    if trust == "clip":  # at ratio 1 the objective is the advantage, which adds up to 0 over a group
        assert abs(loss.item()) < 1e-4


def test_the_contract_is_whole():
    assert issubclass(FlowPolicy, Policy) and not FlowPolicy.__abstractmethods__
    labels = flow_policy().action_labels(flow_policy().rollout(flow_requests(1, 1), KEY))
    assert labels == [["t=1.000", "t=0.833", "t=0.667", "t=0.500", "t=0.333", "t=0.167"]]
    given = flow_policy().encode(Prompt("x", [{"role": "user", "content": "a"}])).given
    assert given["encoder_hidden_states"].dim() == 3
