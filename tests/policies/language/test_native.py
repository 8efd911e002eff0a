"""Steps of decoding in C: the numbers of the steps that PyTorch's kernels write, and what is not written so."""

from types import SimpleNamespace

import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.policies.adapters import LoraConfig
from mmrl.policies.language.fast import lean, merged, native
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

    def test_weights_that_are_moved_between_steps_are_followed_or_refused(self):
        model, first = toy(), torch.full((2,), 9)
        model.parameters, prefix, tokens = model.core.parameters, prompts(model, [9], [0, 0]), torch.tensor([1, 2])
        writer, still = native.Native(model, first, 4, 1), native.Native(model, first, 4, 1)
        with torch.no_grad():
            assert torch.equal(writer.logits(tokens, first, prefix), still.logits(tokens, first, prefix))
            expected = still.logits(tokens, first + 1, prefix)
            for weight in model.core.parameters():
                weight.data = weight.data.clone()
            assert torch.equal(writer.logits(tokens, first + 1, prefix), expected)
        moved = model.core.model.layers[1].self_attn.q_proj.weight
        moved.data = moved.data.T.contiguous().T
        with pytest.raises(PolicyError, match="weights were moved while rows were written, and weights are not all"):
            writer.logits(tokens, first + 2, prefix)
        moved.untyped_storage().resize_(0)
        with pytest.raises(PolicyError, match="weights were moved"):
            writer.logits(tokens, first + 2, prefix)

    def test_tokens_of_other_rows_are_refused(self):
        model, first = toy(), torch.full((2,), 9)
        writer, prefix = native.Native(model, first, 4, 1), prompts(model, [9], [0, 0])
        with pytest.raises(ValueError, match=r"tokens \(3,\) of torch\.int64; expected \(2,\)"):
            writer.logits(torch.tensor([1, 2, 3]), first, prefix)
        with pytest.raises(ValueError, match=r"of torch\.int32"):
            writer.logits(torch.tensor([1, 2], dtype=torch.int32), first, prefix)

    def test_defaults_of_the_process_do_not_matter(self):
        model, first = toy(), torch.full((2,), 9)
        prefix = prompts(model, [9], [0, 0])
        expected = native.Native(model, first, 1, 1).logits(torch.tensor([1, 2]), first, prefix)
        writer = native.Native(model, first, 1, 1)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert torch.equal(writer.logits(torch.tensor([1, 2]), first, prefix), expected)
        finally:
            torch.set_default_dtype(torch.float32)


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


class TestAdapters:
    """Weights with their adapters in them, for as long as a decoding takes."""

    @staticmethod
    def filled(policy, seed=0):
        for name, weight in policy.inner.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(len(name) + seed))
        return policy

    def test_are_as_near_to_the_truth_as_the_modules_and_scored_as_they_were_written(self, make_policy):
        policy = self.filled(make_policy("qwen2_5_vl", lora=LoraConfig(rank=2, rslora=True, dropout=0.5)))
        for turn in range(2):  # and after an update with what it made of the adapters
            one, other = policy.rollout(requests(mixed_prompts()), Key(3)), through_modules(policy)
            assert policy.inner.decodes_by == "native" and torch.equal(one.actions, other.actions)
            assert (one.old_log_probs - other.old_log_probs).abs().max() < CLOSE
            truth = in_float64(policy, one)
            off, modules_off = ((r.old_log_probs.double() - truth)[one.mask] for r in (one, other))
            assert 0 < off.square().mean().sqrt() < 1.5 * modules_off.square().mean().sqrt()
            policy.module.eval()
            gap = (policy.evaluate(one).log_probs - one.old_log_probs)[one.mask]
            assert gap.abs().max() < CLOSE
            self.filled(policy, seed=turn + 1)

    def test_two_at_once_one_switched_off_and_one_merged(self, make_policy):
        policy = self.filled(make_policy("qwen3_vl", lora=LoraConfig(rank=2, targets=["q_proj", "up_proj"])))
        module = policy.inner.family.decoder(policy.inner.core).layers[1].mlp.up_proj
        x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0))
        policy.inner.model.add_adapter("other", policy.inner.model.peft_config["default"])
        torch.nn.init.normal_(module.lora_B["other"].weight)

        def gap():
            found = torch.nn.functional.linear(x, merged.weight(module), module.base_layer.bias)
            return (found - module(x)).abs().max() / found.abs().max()

        plain = merged.weight(module)
        assert gap() < 1e-6 and not torch.equal(plain, module.base_layer.weight)
        module.set_adapter(["default", "other"])
        assert gap() < 1e-6 and (merged.weight(module) - plain).abs().max() > 0.1
        module.enable_adapters(False)
        assert gap() < 1e-6 and merged.weight(module).data_ptr() == module.base_layer.weight.data_ptr()
        module.enable_adapters(True)
        module.merge()
        assert gap() < 1e-6 and merged.weight(module).data_ptr() == module.base_layer.weight.data_ptr()
        assert merged.refusal([module]) is None
        module._disable_adapters = True  # merged and off: PEFT takes them out when the layer is called
        assert merged.refusal([module]) == merged.NO_SUM


def rows_told(policy):
    rollouts = policy.rollout(requests(mixed_prompts()), Key(3))
    return len(rollouts), policy.counted()


@pytest.fixture
def anew(monkeypatch):
    """The library is looked for again, in the environment that a test makes."""
    native._library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    native._library.cache_clear()


class TestRefusals:
    def test_what_is_switched_off_is_no_fall(self, make_policy):
        rows, told = rows_told(make_policy("qwen3_vl", native_steps=False))
        assert told["rows/written"] == {"lean": rows} and told["rows/fell_back"] == {}

    def test_adapters_that_are_no_sum_are_counted(self, make_policy):
        rows, told = rows_told(make_policy("qwen3_vl", lora=LoraConfig(rank=2, dora=True)))
        assert told["rows/written"] == {"lean": rows}
        assert told["rows/fell_back"] == {f"native: {merged.NO_SUM}": rows}

    def test_copies_that_memory_is_short_of(self, make_policy, monkeypatch):
        policy = make_policy("qwen3_vl", lora=LoraConfig(rank=2))
        layers = policy.inner.family.decoder(policy.inner.core).layers
        copied = sum(merged.base(m).weight.nbytes for y in layers for m in native._projections(y).values())
        monkeypatch.setattr(merged, "memory", lambda: 4 * copied)
        assert native.refusal(policy.inner) is None
        monkeypatch.setattr(merged, "memory", lambda: 4 * copied - 4)
        assert native.refusal(policy.inner) == merged.TOO_MUCH

    def test_a_step_that_does_something_else_is_found_by_its_logits(self, make_policy, monkeypatch):
        logits = native.Native.logits
        monkeypatch.setattr(native.Native, "logits", lambda *given: 1.001 * logits(*given))
        policy = make_policy("qwen3_vl")
        rows, told = rows_told(policy)
        assert policy.inner.natives is False and policy.inner.leans and told["rows/written"] == {"lean": rows}
        assert told["rows/fell_back"] == {"native: steps in C do not give the model's logits": rows}

    @pytest.mark.parametrize("compiler", [None, "#!/bin/sh\n[ $1 = --version ] || { echo no room >&2; exit 1; }\n"])
    def test_a_machine_without_a_compiler_that_works(self, make_policy, anew, tmp_path, compiler):
        if compiler is not None:
            (tmp_path / "cc").write_text(compiler)
            (tmp_path / "cc").chmod(0o755)
        anew.setenv("PATH", f"{tmp_path}")
        anew.delenv("CC", raising=False)
        rows, told = rows_told(make_policy("qwen3_vl"))
        reason = "no C compiler" if compiler is None else "the C compiler failed: no room"
        assert told == {
            "rows/scored": {},
            "rows/written": {"lean": rows},
            "rows/fell_back": {f"native: {reason}": rows},
        }

    def test_no_folder_to_keep_it_in(self, anew, tmp_path):
        (tmp_path / "file").touch()
        anew.setenv("MMRL_CACHE", f"{tmp_path / 'file'}")
        assert native.library(native.NARROW) == "no library: Not a directory"

    def test_nobody_knows_where_home_is(self, anew):
        for name in ("MMRL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            anew.delenv(name, raising=False)

        def home():
            raise RuntimeError("Could not determine home directory.")

        anew.setattr(native.Path, "home", home)
        assert native.library(native.NARROW) == "no library: Could not determine home directory."

    def test_a_file_that_was_cut_short_is_made_again(self, anew, tmp_path):
        anew.setattr(native, "FLAGS", ("-O0", "-fPIC", "-shared", "-lm"))
        anew.setenv("MMRL_CACHE", f"{tmp_path / 'whole'}")
        assert not isinstance(native.library(native.NARROW), str)
        (whole,) = (tmp_path / "whole" / "native").iterdir()
        cut = tmp_path / "cut" / "native" / whole.name
        cut.parent.mkdir(parents=True)
        cut.touch()
        anew.setenv("MMRL_CACHE", f"{tmp_path / 'cut'}")
        native._library.cache_clear()
        assert not isinstance(native.library(native.NARROW), str) and cut.stat().st_size > 0

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
            (lambda layer: setattr(layer.self_attn, "v_proj", torch.nn.Linear(84, 16)), "layers are of several sizes"),
        ],
    )
    def test_other_layers_are_named(self, change, reason):
        model = toy()
        model.parameters = model.core.parameters
        assert native.refusal(model) is None
        change(model.core.model.layers[1])
        assert native.refusal(model) == reason

    def test_sizes_that_the_source_does_not_ask_for(self):
        """It would read behind the end of a weight."""
        model = toy()
        model.parameters = model.core.parameters
        for layer in model.core.model.layers:
            layer.self_attn.v_proj = torch.nn.Linear(84, 16)
        assert native.refusal(model) == "its weights are not of the known sizes"

    def test_heads_and_threads(self, monkeypatch):
        model = toy(size=12)
        model.parameters = model.core.parameters
        assert native.refusal(model) == "the size of a head is no multiple of 8"
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        model = toy()
        model.parameters = model.core.parameters
        assert native.refusal(model) == "more than 4 threads"
