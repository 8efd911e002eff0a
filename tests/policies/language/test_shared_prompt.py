"""One packed row per micro-batch against plain rows: equal numbers, equal gradients, one prompt computed once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mmrl.errors import ConfigError
from mmrl.policies.language.fast.shared_prompt import ATTENTION, Group, attention, pack, refusal
from mmrl.randomness import Key
from mmrl.record import Rollouts
from mmrl.stages import Need, View
from tests.policies.language.scenes import (
    clip_prompts,
    gradients,
    image_prompt,
    mixed_prompts,
    picture,
    relative_error,
    requests,
)
from tests.policies.language.test_scoring import weighted

LORA = {"rank": 4, "alpha": 8.0}


def ragged(rollouts: Rollouts) -> Rollouts:
    """Responses of unequal length, and groups of unequal size."""
    rows = [r for r in range(len(rollouts)) if r % 7 != 3]
    some = rollouts.index(rows)
    steps = some.mask.shape[1]
    length = torch.tensor([1 + (3 * r) % steps for r in rows])
    mask = some.mask & (torch.arange(steps) < length[:, None])
    return replace(some, length=length, mask=mask)


def both(make, family, rollouts, train=False, **options):
    """Log-probs and gradients of the packed and of the plain path."""
    results = []
    for path in ("on", "off"):
        policy = make(family, shared_prompt=path, **options)
        policy.module.train(train)
        scored = policy.evaluate(rollouts, [Need("entropy", weights="current")])
        (weighted(scored.log_probs) + 0.1 * weighted(next(iter(scored.columns.values())))).backward()
        results.append((scored.log_probs.detach(), gradients(policy)))
    return results


CPU = torch.device("cpu")


class TestEqualsPlainRows:
    @pytest.mark.parametrize(
        "options",
        [{}, {"lora": LORA}, {"lora": LORA, "train_vision": True}, {"train_vision": False}],
        ids=["full", "lora", "lora and vision", "frozen vision"],
    )
    def test_images(self, make_policy, rolled, family, options):
        (packed, got), (plain, wanted) = both(make_policy, family, ragged(rolled[family]), **options)
        assert (packed - plain).abs().max() < 1e-5 and relative_error(got, wanted) < 1e-5

    def test_videos(self, make_video_policy, watched, family):
        (packed, got), (plain, wanted) = both(make_video_policy, family, ragged(watched[family]))
        assert (packed - plain).abs().max() < 1e-5 and relative_error(got, wanted) < 1e-5

    @pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
    def test_gradient_checkpointing(self, make_policy, rolled, family, lora):
        options = {"gradient_checkpointing": True, "lora": lora}
        results = both(make_policy, family, ragged(rolled[family]), train=True, **options)
        (packed, got), (plain, wanted) = results
        assert (packed - plain).abs().max() < 1e-5 and relative_error(got, wanted) < 1e-5

    def test_views_and_reference(self, make_policy, rolled, family):
        policies = [make_policy(family, lora=LORA, shared_prompt=path) for path in ("on", "off")]
        for view in (View.of("patch_black"), View.of("remove_media")):
            packed, plain = (p.evaluate(rolled[family], under=view, weights="reference").log_probs for p in policies)
            assert (packed - plain).abs().max() < 1e-5

    def test_prefixes_and_gaps_between_rows(self, make_policy, rolled, family):
        policies = [make_policy(family, shared_prompt=path) for path in ("on", "off")]
        rows = [15, 0, 9, 2, 1, 14]
        with torch.no_grad():
            packed, plain = (p.evaluate(rolled[family].index(rows)).log_probs for p in policies)
        assert (packed - plain).abs().max() < 1e-5


class TestSlidingWindow:
    """A window shorter than the prompt: prompt and responses see only so far back, as in plain rows."""

    @pytest.fixture(scope="class")
    def windowed(self, tiny):
        from transformers import Qwen2_5_VLForConditionalGeneration

        from mmrl.pipelines.bases.models import fan_in_init
        from mmrl.policies.language.config import LanguagePolicyConfig
        from mmrl.policies.language.vision import VisionPolicy

        def make(_, **options):
            model, processor = tiny("qwen2_5_vl")
            config = model.config
            config.text_config.layer_types = ["sliding_attention", "full_attention"]
            config.text_config.sliding_window = 12
            model = Qwen2_5_VLForConditionalGeneration(config)
            fan_in_init(model, 0)
            return VisionPolicy(model.eval(), processor, LanguagePolicyConfig(model="tiny", **options))

        return make

    def test_is_honoured(self, windowed, rolled):
        rollouts = ragged(rolled["qwen2_5_vl"])
        (packed, got), (plain, wanted) = both(windowed, "", rollouts)
        assert (packed - plain).abs().max() < 1e-5 and relative_error(got, wanted) < 1e-5
        assert (packed - rollouts.old_log_probs)[rollouts.mask].abs().max() > 1e-2, "the window must matter"


class TestAttention:
    def reference(self, query, key, value, prompt, lengths):
        """Each response as its own row after a copy of the prompt."""
        parts, start = [], prompt
        for length in lengths:
            columns = torch.cat([torch.arange(prompt), torch.arange(start, start + length)])
            rows = [t[:, :, columns] for t in (query, key, value)]
            out = nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
            parts.append(out if not parts else out[:, :, prompt:])
            start += length
        return torch.cat(parts, dim=2).transpose(1, 2)

    @pytest.mark.parametrize("lengths", [[3], [2, 5, 1], [4, 4]])
    def test_equals_rows_with_the_prompt_repeated(self, lengths):
        from mmrl.policies.language.fast.shared_prompt import Layout

        total = 6 + sum(lengths)
        query, key, value = torch.randn(1, 4, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
        packed, _ = attention(
            None, query, key, value, None, scaling=8**-0.5, shared_prompt=Layout([Group(0, 6, lengths)])
        )
        assert torch.allclose(packed, self.reference(query, key, value, 6, lengths), atol=1e-6)

    def test_groups_do_not_see_each_other(self):
        """Another group's tokens change nothing, bit for bit."""
        from mmrl.policies.language.fast.shared_prompt import Layout

        layout = Layout([Group(0, 4, [2, 3]), Group(9, 5, [2])])
        states = [torch.randn(1, 2, 16, 8) for _ in range(3)]
        changed = [t.clone() for t in states]
        for t in changed:
            t[:, :, 9:] += 1
        one, other = (attention(None, *s, None, scaling=8**-0.5, shared_prompt=layout)[0] for s in (states, changed))
        assert torch.equal(one[:, :9], other[:, :9]) and not torch.equal(one[:, 9:], other[:, 9:])

    def test_members_do_not_see_each_other(self):
        from mmrl.policies.language.fast.shared_prompt import Layout

        layout = Layout([Group(0, 4, [3, 3])])
        states = [torch.randn(1, 2, 10, 8) for _ in range(3)]
        changed = [t.clone() for t in states]
        for t in changed:
            t[:, :, 7:] += 1
        one, other = (attention(None, *s, None, scaling=8**-0.5, shared_prompt=layout)[0] for s in (states, changed))
        assert torch.equal(one[:, :7], other[:, :7])


class TestLayout:
    def test_no_padding_and_each_prompt_once(self, policies, rolled, family):
        rollouts, kind = ragged(rolled[family]), policies[family].family
        packed = pack(rollouts.encoded, rollouts.prompt, rollouts.actions, rollouts.length, CPU, kind)
        tokens = sum(map(len, rollouts.encoded)) + int(rollouts.length.sum())
        assert packed.inputs["input_ids"].shape == (1, tokens)
        assert packed.inputs["image_grid_thw"].shape[0] == 4

    def test_positions_are_those_of_plain_rows(self, policies, rolled):
        rollouts, kind = rolled["qwen3_vl"].index([0, 1]), policies["qwen3_vl"].family
        packed = pack(rollouts.encoded, rollouts.prompt, rollouts.actions, rollouts.length, CPU, kind)
        positions, prompt = packed.inputs["position_ids"][:, 0], len(rollouts.encoded[0])
        first, second = positions[:, prompt : prompt + 10], positions[:, prompt + 10 :]
        assert torch.equal(first, second)
        assert first[0].tolist() == list(
            range(rollouts.encoded[0].next_position, rollouts.encoded[0].next_position + 10)
        )

    def test_first_tokens_are_predicted_by_the_last_prompt_token(self, policies, rolled):
        rollouts, kind = rolled["qwen3_vl"].index([0, 1, 2]), policies["qwen3_vl"].family
        packed = pack(rollouts.encoded, rollouts.prompt, rollouts.actions, rollouts.length, CPU, kind)
        prompt = len(rollouts.encoded[0])
        assert packed.where[:, 0].tolist() == [prompt - 1] * 3
        assert packed.where[:, 1].tolist() == [prompt, prompt + 10, prompt + 20]

    def test_the_decoder_and_the_tower_see_each_prompt_once(self, make_policy, rolled, family):
        seen = {}
        for path in ("on", "off"):
            policy, tokens = make_policy(family, shared_prompt=path), []
            visual = policy.inner.core.model.visual
            visual.register_forward_pre_hook(lambda _, args, tokens=tokens: tokens.append(len(args[0])))
            policy.evaluate(rolled[family], weights="old")
            seen[path] = sum(tokens)
        assert seen["off"] == 4 * seen["on"] > 0


class TestWhereItIsNotExact:
    def test_auto_takes_it_and_off_does_not(self, make_policy):
        for path, shared in (("auto", True), ("on", True), ("off", False)):
            policy = make_policy(shared_prompt=path)
            assert policy.inner.shared is shared
            assert (policy.inner.core.model.language_model.config._attn_implementation == ATTENTION) is shared

    def test_linear_attention_is_refused_with_the_reason(self, tiny):
        model, _ = tiny()
        model.config.text_config.layer_types = ["linear_attention", "full_attention"]
        assert "layers of type linear_attention carry state" in refusal(model, "sdpa")

    def test_other_attention_backends_take_plain_rows(self, make_policy, rolled):
        eager = make_policy(attention="eager")
        assert eager.inner.shared is False and eager.inner.core.config._attn_implementation == "eager"
        assert (
            eager.evaluate(rolled["qwen3_vl"], weights="old").log_probs - rolled["qwen3_vl"].old_log_probs
        ).abs().max() < 1e-5
        with pytest.raises(ConfigError, match="shared_prompt: on, but attention is 'eager'"):
            make_policy(attention="eager", shared_prompt="on")

    def test_dropout_in_attention_is_refused(self, tiny):
        model, _ = tiny()
        model.config.text_config.attention_dropout = 0.1
        assert refusal(model, "sdpa") is None  # what the configuration says was turned off in the layers
        model.model.language_model.layers[0].self_attn.attention_dropout = 0.1
        assert "attention_dropout is 0.1" in refusal(model, "sdpa")


def test_the_saved_configuration_names_no_attention_of_ours(make_policy, tmp_path):
    make_policy(shared_prompt="on").save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_a_wrong_image_is_seen_by_the_packed_row_too(make_policy, family):
    policy = make_policy(family, shared_prompt="on")
    prompts = [image_prompt("a", picture("red")), image_prompt("b", picture("blue", spots=3))]
    rollouts = policy.rollout(requests(prompts), Key(0))
    with torch.no_grad():
        swapped = policy.evaluate(replace(rollouts, encoded=rollouts.encoded[::-1])).log_probs
    assert ((swapped - rollouts.old_log_probs).abs().amax(1) > 1e-2).all()


def test_scenes_are_ragged_enough(rolled, watched):
    """The equalities above cover unequal prompts, responses and groups."""
    for rollouts in (ragged(rolled["qwen3_vl"]), ragged(watched["qwen3_vl"])):
        assert len(set(map(len, rollouts.encoded))) > 3 and len(set(rollouts.length.tolist())) > 3
        assert len(set(rollouts.prompt.bincount().tolist())) > 1
    assert len(mixed_prompts()) == 4 and len(clip_prompts()) == 5
