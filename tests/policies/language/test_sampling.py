"""Decoding: keyed draws, one prefill per prompt, stops, prefixes, and ids that can never be written."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.sampling import SharedCache, choose
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import Request, Rollouts
from tests.policies.language.scenes import generated, image_prompt, mixed_prompts, picture, requests


def push(policy, token: int, amount: float):
    """Bias the head of `policy` towards one token, until the returned handle is removed."""

    def biased(_, __, logits):
        logits = logits.clone()
        logits[..., token] += amount
        return logits

    return policy.inner.head.register_forward_hook(biased)


class TestChoose:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))

    @pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (0.999, 2)])
    def test_inverts_the_cumulative_distribution(self, uniform, token):
        assert choose(self.logits, torch.tensor([uniform], dtype=torch.float64)).item() == token

    def test_never_chooses_probability_zero(self):
        low = torch.finfo(torch.float32).min
        logits = torch.tensor([[low, 0.0, low, 1.0, low]]).expand(3, -1)
        edges = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
        assert set(choose(logits, edges).tolist()) <= {1, 3}

    def test_frequencies_follow_the_distribution(self):
        uniform = Key(0).uniform(20_000)
        drawn = choose(self.logits.expand(20_000, -1), uniform)
        assert torch.allclose(drawn.bincount() / 20_000, torch.tensor([0.5, 0.25, 0.25]), atol=0.01)

    def test_greedy_is_argmax(self):
        assert choose(self.logits, None).item() == 0


def test_greedy_equals_transformers_generate(policies, family):
    policy = policies[family]
    for prompt in mixed_prompts():
        rollouts = policy.rollout([Request(prompt, 1, 0)], Key(0), greedy=True)
        assert rollouts.actions[0].tolist() == generated(policy, rollouts.encoded[0], 10)


def test_sampled_log_probs_agree_with_scoring(policies, rolled, family):
    rollouts = rolled[family]
    with torch.no_grad():
        scored = policies[family].evaluate(rollouts).log_probs
    assert (scored - rollouts.old_log_probs).abs().max() < 1e-5
    assert (rollouts.old_log_probs[~rollouts.mask] == 0).all()


class TestSplits:
    """16 of 16 rows do not depend on how the batch was split."""

    @pytest.fixture(scope="class")
    def stopping(self, make_policy):
        """A policy whose rows end at different lengths, so that decoding compacts its batch."""
        policy = make_policy("qwen3_vl", stop_tokens=list(range(100, 400)))
        return policy, policy.rollout(requests(mixed_prompts()), Key(7))

    def same(self, whole: Rollouts, parts: list[Rollouts]):
        def texts(rollouts: Rollouts) -> dict[tuple[int, int], str]:
            places = zip(rollouts.group.tolist(), rollouts.member.tolist(), strict=True)
            return dict(zip(places, rollouts.outputs, strict=True))

        together = texts(Rollouts.concatenate(parts))
        assert together == texts(whole) and len(together) == 16

    def test_lengths_differ_so_the_test_can_fail(self, stopping):
        _, whole = stopping
        assert len(set(whole.length.tolist())) > 2 and {"stop", "length"} >= set(whole.finish)

    def test_one_prompt_at_a_time(self, stopping):
        policy, whole = stopping
        self.same(whole, [policy.rollout([r], Key(7)) for r in requests(mixed_prompts())])

    def test_one_row_at_a_time(self, stopping):
        policy, whole = stopping
        rows = [replace(r, count=1, first_member=m) for r in requests(mixed_prompts()) for m in range(4)]
        self.same(whole, [policy.rollout([row], Key(7)) for row in rows])

    def test_smaller_decode_batches(self, stopping):
        policy, whole = stopping
        policy.config.decode_rows = 5
        try:
            pieces = policy.rollout(requests(mixed_prompts()), Key(7))
        finally:
            policy.config.decode_rows = 64
        self.same(whole, [pieces])
        assert len(pieces.prompts) == 4 and torch.equal(pieces.prompt, whole.prompt)

    def test_another_step_or_seed_draws_anew(self, stopping):
        policy, whole = stopping
        for key in (Key(8), Key(7, step=1)):
            assert policy.rollout(requests(mixed_prompts()), key).outputs != whole.outputs

    def test_rows_are_ordered_as_asked(self, stopping):
        _, whole = stopping
        assert whole.group.tolist() == [g for g in range(4) for _ in range(4)]
        assert whole.member.tolist() == [0, 1, 2, 3] * 4
        assert whole.prompt.tolist() == whole.group.tolist()


class TestSharedCache:
    """Decoding from one copy of the prompt's cache against decoding from a repeated one."""

    @pytest.mark.parametrize("prompts", [mixed_prompts(), mixed_prompts()[:1]], ids=["four", "one"])
    def test_writes_the_same(self, make_policy, family, prompts):
        asked = [replace(r, count=1 + 3 * (r.group % 2)) for r in requests(prompts)]
        ends = {"stop_tokens": list(range(100, 400))}
        one, other = (make_policy(family, shared_prompt=path, **ends).rollout(asked, Key(2)) for path in ("on", "off"))
        assert one.outputs == other.outputs and one.finish == other.finish
        assert torch.allclose(one.old_log_probs, other.old_log_probs, atol=1e-5)

    def test_is_used_where_every_layer_sees_everything(self, make_policy):
        assert make_policy(shared_prompt="on").inner.shares_prefixes
        assert not make_policy(shared_prompt="off").inner.shares_prefixes

    def test_the_prompt_is_held_once(self, make_policy):
        policy = make_policy()
        contexts = [policy.encode(p) for p in mixed_prompts()[:2]]
        with torch.no_grad():
            state = SharedCache(policy.inner, contexts, torch.tensor([0] * 8 + [1] * 8))
            for _ in range(3):
                state.advance(torch.full((16,), 50))
        assert state.prompts.layers[0].keys.shape[0] == 2
        assert state.cache.layers[0].keys.shape[::2] == (16, 3)


class TestSuppressed:
    def test_placeholders_cannot_be_sampled_even_when_the_model_wants_them(self, make_policy, family):
        policy = make_policy(family)
        pad = policy.family.image_token
        assert pad in policy.family.suppressed and policy.family.video_token in policy.family.suppressed
        hook = push(policy, pad, 50.0)
        rollouts = policy.rollout(requests(mixed_prompts(), 8), Key(0))
        assert not torch.isin(rollouts.actions[rollouts.mask], torch.tensor(policy.family.suppressed)).any()
        with torch.no_grad():
            scored = policy.evaluate(rollouts).log_probs
        hook.remove()
        assert (scored - rollouts.old_log_probs).abs().max() < 1e-5
        assert scored.min() > -40, "the suppressed mass must not enter the normaliser"

    def test_vision_markers_are_suppressed_too(self, policies, family):
        tokenizer = policies[family].processor.tokenizer
        named = tokenizer.convert_ids_to_tokens(list(policies[family].family.suppressed))
        assert set(named) == {"<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"}


class TestEnds:
    def test_end_token_stops_a_row_and_stays_in_it(self, make_policy):
        policy = make_policy()
        end = policy.processor.tokenizer.eos_token_id
        hook = push(policy, end, 100.0)
        rollouts = policy.rollout(requests(mixed_prompts()[:2]), Key(0))
        hook.remove()
        assert rollouts.finish == ["stop"] * 8 and rollouts.length.tolist() == [1] * 8
        assert rollouts.actions[:, 0].tolist() == [end] * 8 and rollouts.mask.all()
        assert rollouts.outputs == [""] * 8

    def test_cut_rows_are_flagged(self, make_policy):
        rollouts = make_policy(max_new_tokens=3).rollout(requests(mixed_prompts()[:1]), Key(0))
        cut = [f for f, n in zip(rollouts.finish, rollouts.length.tolist(), strict=True) if n == 3]
        assert cut and set(cut) == {"length"}

    def test_a_stop_string_ends_the_row(self, make_policy, policies, rolled):
        text = rolled["qwen3_vl"].outputs[0]
        string = text[4:7]
        rollouts = make_policy("qwen3_vl", stop=[string]).rollout(requests(mixed_prompts()), Key(3))
        assert rollouts.finish[0] == "stop" and string in rollouts.outputs[0]
        assert text.startswith(rollouts.outputs[0]) and rollouts.length[0] < rolled["qwen3_vl"].length[0]

    def test_no_end_token_at_all_is_an_error(self, tiny):
        from mmrl.policies.language.stopping import Stopping

        model, processor = tiny()
        model.generation_config.eos_token_id = processor.tokenizer.eos_token = None
        with pytest.raises(ConfigError, match="name no end token"):
            Stopping.of(model, processor.tokenizer, [], [])


class TestPrefix:
    def test_a_replayed_prefix_goes_on_as_the_row_it_came_from(self, policies, rolled, family):
        """The draw at a position is keyed by it, so replaying four tokens of member 2 gives member 2 again."""
        policy, whole = policies[family], rolled[family]
        asked = Request(mixed_prompts()[0], 1, 0, first_member=2, prefix=whole.actions[2, :4])
        again = policy.rollout([asked], Key(3))
        assert again.actions[0].tolist() == whole.actions[2].tolist()
        assert again.mask[0].tolist() == [False] * 4 + [True] * 6
        assert (again.old_log_probs[0, :4] == 0).all()
        assert torch.allclose(again.old_log_probs[0, 4:], whole.old_log_probs[2, 4:], atol=1e-5)

    def test_prefixes_of_unequal_length_are_scored_as_sampled(self, policies, rolled, family):
        policy, whole = policies[family], rolled[family]
        asked = [
            Request(p, 2, g, prefix=whole.actions[4 * g, :g] if g else None) for g, p in enumerate(mixed_prompts())
        ]
        rollouts = policy.rollout(asked, Key(9))
        with torch.no_grad():
            scored = policy.evaluate(rollouts).log_probs
        assert (scored - rollouts.old_log_probs).abs().max() < 1e-5
        assert rollouts.mask.sum(1).tolist() == [10, 10, 9, 9, 8, 8, 7, 7] and rollouts.extent.tolist() == [10] * 8

    def test_a_prefix_that_fills_the_answer_is_an_error(self, policies):
        prefix = torch.zeros(10, dtype=torch.long)
        with pytest.raises(PolicyError, match="prefix of 10 tokens leaves nothing to sample under max_new_tokens=10"):
            policies["qwen3_vl"].rollout([Request(mixed_prompts()[0], 1, 0, prefix=prefix)], Key(0))


def test_a_hinted_prompt_is_sampled_under_but_not_stored(policies, family):
    policy = policies[family]
    plain = image_prompt("p", picture("red"))
    hinted = image_prompt("p", picture("red"), question="What color is the circle? It is red.")
    rollouts = policy.rollout([Request(plain, 2, 0, shown=hinted), Request(plain, 2, 1)], Key(0))
    assert rollouts.replay["shown"].tolist() == [True, True, False, False]
    assert len(rollouts.prompts) == 1 and torch.equal(rollouts.encoded[0].ids, policy.encode(plain).ids)
    with torch.no_grad():
        difference = (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs).abs().amax(1)
    assert (difference[:2] > 1e-3).all() and (difference[2:] < 1e-5).all()


def test_temperature_is_the_same_in_sampling_and_scoring(make_policy):
    policy = make_policy(temperature=0.5)
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    with torch.no_grad():
        cold = policy.evaluate(rollouts).log_probs
        reference = policy.evaluate(rollouts, weights="reference").log_probs
        policy.inner.distribution = replace(policy.inner.distribution, temperature=1.0)
        warm = policy.evaluate(rollouts).log_probs
    assert (reference - cold).abs().max() < 1e-5, "in every pass"
    assert (cold - rollouts.old_log_probs).abs().max() < 1e-5
    assert (warm - rollouts.old_log_probs).abs().max() > 0.1


def test_the_checkpoint_s_generation_settings_change_nothing(tiny):
    """Qwen2.5-VL ships temperature 1e-6 and a repetition penalty: sampled under them, ratios would mean nothing."""
    config = LanguagePolicyConfig(model="tiny", max_new_tokens=6)
    plain, (model, processor) = VisionPolicy(*tiny(), config), tiny()
    model.generation_config.update(
        do_sample=True, temperature=1e-6, top_k=1, top_p=0.001, repetition_penalty=1.5, max_new_tokens=2, min_p=0.9
    )
    theirs = VisionPolicy(model, processor, config)
    one, two = (policy.rollout(requests(mixed_prompts()[:2]), Key(1)) for policy in (plain, theirs))
    assert torch.equal(one.actions, two.actions)
    assert torch.equal(one.old_log_probs, two.old_log_probs)


def test_tags_of_the_tokenizer_stay_in_the_text(tiny):
    """`<think>` is a token of its own in some tokenizers, and what format rewards look for."""
    model, processor = tiny()
    processor.tokenizer.add_tokens(["<think>"])
    model.resize_token_embeddings(len(processor.tokenizer))
    policy = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny", max_new_tokens=3))
    handle = push(policy, processor.tokenizer.convert_tokens_to_ids("<think>"), 100.0)
    rollouts = policy.rollout(requests(mixed_prompts()[:1], 2), Key(0))
    handle.remove()
    assert rollouts.outputs == ["<think><think><think>"] * 2


@pytest.mark.parametrize("truncated", [{"top_p": 0.9}, {"top_k": 20}])
def test_truncated_sampling_is_refused(make_policy, truncated):
    with pytest.raises(ConfigError, match="biases the importance ratios"):
        make_policy(**truncated)


def test_unknown_settings_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        LanguagePolicyConfig(model="m", temprature=1.0)


def test_action_labels_spell_the_response(policies, rolled, family):
    rollouts = rolled[family].index([0, 5])
    rollouts.extent[1] = 3
    labels = policies[family].action_labels(rollouts)
    assert [len(row) for row in labels] == [10, 10] and labels[1][3:] == [""] * 7
    assert policies[family].processor.tokenizer.decode([rollouts.actions[0, 2]]) == labels[0][2]
