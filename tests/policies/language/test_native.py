"""Steps of decoding in C: the numbers of the steps that PyTorch's kernels write, and what is not written so."""

from types import SimpleNamespace

import pytest
import torch

from mmrl.policies.adapters import LoraConfig
from mmrl.policies.language.fast import lean, native
from mmrl.policies.language.fast.shared_decode import SharedPrefix
from mmrl.randomness import Key
from tests.policies.language.scenes import mixed_prompts, requests
from tests.policies.language.test_lean import CLOSE, in_float64, through_modules, without_c

pytestmark = pytest.mark.skipif(isinstance(native.library(native.NARROW), str), reason="no C compiler here")


def toy(heads=4, kv=2, size=16, inner=40):
    """A decoder of two Llama layers, as a `ScoredLanguageModel` shows it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=84, intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=kv, head_dim=size,
        num_hidden_layers=2, vocab_size=50, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    core = LlamaForCausalLM(config).eval()
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return SimpleNamespace(core=core, head=core.lm_head, family=SimpleNamespace(decoder=lambda core: core.model))


def prompts(model, lengths, context, longest=9):
    """Keys and values of left-padded prompts; what is padding must not be read."""
    config, layers = model.core.config, []
    shape = (len(lengths), config.num_key_value_heads, longest, config.head_dim)
    real = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    for _ in range(config.num_hidden_layers):
        filled = [torch.randn(shape).masked_fill(~real[:, None, :, None], 1e4) for _ in range(2)]
        layers.append(SimpleNamespace(keys=filled[0], values=filled[1]))
    return SharedPrefix.of(SimpleNamespace(layers=layers), real, torch.tensor(context))


@torch.no_grad()
def steps_of(kind, model, prefix, context, count, rows=slice(None)):
    """(count, B, V) logits of steps with given tokens."""
    first = 9 + torch.tensor(context)[rows] % 3
    tokens = torch.randint(0, 50, (count, len(context)), generator=torch.Generator().manual_seed(1))
    writer = kind(model, first, count, 1)
    return torch.stack([writer.logits(new[rows], first + step, prefix) for step, new in enumerate(tokens)])


class TestSteps:
    @pytest.mark.parametrize(
        ("heads", "kv", "size"), [(4, 2, 16), (7, 1, 8), (3, 3, 24), (12, 2, 72)], ids=lambda n: str(n)
    )
    def test_are_those_of_the_kernels(self, heads, kv, size):
        """Groups of 1, 2, 6 and 7 queries a key head, sizes that are no multiple of a vector, prompts of unlike
        lengths and groups, more rows than go through together, more tokens than a block or the room at first."""
        model, context = toy(heads, kv, size), [0] * 3 + [1] * 9 + [2] * 6
        prefix = prompts(model, [9, 4, 7], context)
        one, other = (steps_of(kind, model, prefix, context, 150) for kind in (native.Native, lean.Lean))
        assert (one - other).abs().max() < 2e-5 * other.abs().max()

    def test_a_row_is_the_same_whatever_stands_beside_it(self, monkeypatch):
        """To the last bit: among few, among many, and shared by threads."""
        model, context = toy(), [0] * 8 + [1] * 9
        prefix = prompts(model, [9, 4], context)
        monkeypatch.setattr(native, "WIDE", native.NARROW)
        every = steps_of(native.Native, model, prefix, context, 20)
        layers = [SimpleNamespace(keys=y.keys[1:], values=y.values[1:]) for y in prefix.cache.layers]
        second = SharedPrefix.of(SimpleNamespace(layers=layers), torch.arange(9)[None] >= 5, torch.tensor([0, 0]))
        assert torch.equal(steps_of(native.Native, model, second, context, 20, slice(10, 12)), every[:, 10:12])
        torch.set_num_threads(2)
        try:
            assert torch.equal(steps_of(native.Native, model, prefix, context, 20), every)
        finally:
            torch.set_num_threads(1)

    def test_no_more_tokens_than_there_is_room_for(self):
        model, first = toy(), torch.full((2,), 9)
        writer, prefix = native.Native(model, first, 16, 1), prompts(model, [9], [0, 0])
        for step in range(16):
            writer.logits(torch.tensor([1, 2]), first + step, prefix)
        with pytest.raises(IndexError, match="append 16 tokens"):
            writer.logits(torch.tensor([1, 2]), first, prefix)

    def test_what_is_no_number_stays_none(self):
        model = toy()
        prefix = prompts(model, [9], [0, 0])
        prefix.cache.layers[0].keys[0, 0, 3, 2] = float("nan")
        assert steps_of(native.Native, model, prefix, [0, 0], 2).isnan().any(-1).all()


class TestRollouts:
    def test_are_as_near_to_the_truth_as_the_modules(self, policies, rolled, family):
        assert policies[family].inner.decodes_by == "native"
        one, other = rolled[family], through_modules(policies[family])
        assert torch.equal(one.actions, other.actions)
        truth = in_float64(policies[family], one)
        off = [(r.old_log_probs.double() - truth)[one.mask] for r in (one, other)]
        native_off, modules_off = (float(each.square().mean().sqrt()) for each in off)
        assert 0 < native_off < 1.5 * modules_off and off[0].abs().max() < 2.5 * off[1].abs().max()

    def test_rows_leave_when_they_have_finished(self, make_policy):
        policy = make_policy("qwen2_5_vl", stop_tokens=list(range(100, 400)))
        one = policy.rollout(requests(mixed_prompts()), Key(7))
        assert policy.inner.decodes_by == "native" and len(set(one.length.tolist())) > 3
        with without_c(policy):
            other = policy.rollout(requests(mixed_prompts()), Key(7))
        assert torch.equal(one.actions, other.actions) and torch.equal(one.length, other.length)
        assert (one.old_log_probs - other.old_log_probs).abs().max() < CLOSE

    def test_weights_are_the_models_own(self, make_policy):
        policy = make_policy("qwen3_vl")
        policy.rollout(requests(mixed_prompts()), Key(3))
        with torch.no_grad():
            for weight in policy.inner.family.decoder(policy.inner.core).parameters():
                weight.mul_(1.1)
        one = policy.rollout(requests(mixed_prompts()), Key(3))
        gap = (policy.evaluate(one).log_probs - one.old_log_probs)[one.mask]
        assert policy.inner.decodes_by == "native" and gap.abs().max() < CLOSE


def rows_told(policy):
    rollouts = policy.rollout(requests(mixed_prompts()), Key(3))
    return len(rollouts), policy.counted()


class TestRefusals:
    def test_what_is_switched_off_is_no_fall(self, make_policy):
        rows, told = rows_told(make_policy("qwen3_vl", native_steps=False))
        assert told["rows/written"] == {"lean": rows} and told["rows/fell_back"] == {}

    def test_adapters_are_counted(self, make_policy):
        rows, told = rows_told(make_policy("qwen3_vl", lora=LoraConfig(rank=2)))
        assert told["rows/written"] == {"lean": rows}
        assert told["rows/fell_back"] == {"native: projections are no plain linear layers": rows}

    def test_a_step_that_does_something_else_is_found_by_its_logits(self, make_policy, monkeypatch):
        logits = native.Native.logits
        monkeypatch.setattr(native.Native, "logits", lambda *given: 1.001 * logits(*given))
        policy = make_policy("qwen3_vl")
        rows, told = rows_told(policy)
        assert policy.inner.natives is False and policy.inner.leans and told["rows/written"] == {"lean": rows}
        assert told["rows/fell_back"] == {"native: steps in C do not give the model's logits": rows}

    @pytest.mark.parametrize("compiler", [None, "#!/bin/sh\n[ $1 = --version ] || { echo no room >&2; exit 1; }\n"])
    def test_a_machine_without_a_compiler_that_works(self, make_policy, monkeypatch, tmp_path, compiler):
        if compiler is not None:
            (tmp_path / "cc").write_text(compiler)
            (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}")
        monkeypatch.delenv("CC", raising=False)
        native.library.cache_clear()
        try:
            rows, told = rows_told(make_policy("qwen3_vl"))
        finally:
            native.library.cache_clear()
        reason = "no C compiler" if compiler is None else "the C compiler failed: no room"
        assert told == {
            "rows/scored": {},
            "rows/written": {"lean": rows},
            "rows/fell_back": {f"native: {reason}": rows},
        }

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda layer: setattr(layer.mlp, "act_fn", torch.nn.GELU()), "the activation is not SiLU"),
            (lambda layer: setattr(layer.mlp, "up_proj", torch.nn.Linear(84, 41)), "layers are of several sizes"),
            (lambda layer: layer.self_attn.o_proj.double(), "weights are not all float32 and in one piece"),
            (
                lambda layer: setattr(layer.mlp, "down_proj", torch.nn.Identity()),
                "projections are no plain linear layers",
            ),
        ],
    )
    def test_other_layers_are_named(self, change, reason):
        model = toy()
        model.parameters = model.core.parameters
        assert native.refusal(model) is None
        change(model.core.model.layers[1])
        assert native.refusal(model) == reason

    def test_heads_and_threads(self, monkeypatch):
        model = toy(size=12)
        model.parameters = model.core.parameters
        assert native.refusal(model) == "the size of a head is no multiple of 8"
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        model = toy()
        model.parameters = model.core.parameters
        assert native.refusal(model) == "more than 4 threads"
