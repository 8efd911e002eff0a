"""Steps of decoding written out: the model's own tokens and log-probs, and what it is not known how to write out."""

import copy
from contextlib import contextmanager

import pytest
import torch

from mmrl.policies.adapters import LoraConfig
from mmrl.policies.language.fast import lean
from mmrl.policies.language.fast.shared_decode import PRODUCTS, _on_own
from mmrl.policies.language.fast.written import BLOCK, Growing
from mmrl.policies.language.layout import Way, lay_out
from mmrl.randomness import Key
from tests.policies.language.scenes import mixed_prompts, requests

CLOSE = 1e-5
"""As the other ways agree; with large adapters log-probs of -12 were 5e-6 apart."""


KEY = Key(3)


@contextmanager
def without_c(policy):
    """Steps written out go by PyTorch's kernels."""
    policy.inner.native_steps = False
    try:
        yield policy
    finally:
        policy.inner.native_steps = True


@pytest.fixture(scope="module")
def by_kernels(policies):
    """As `rolled`."""
    rolled = {}
    for family, policy in policies.items():
        with without_c(policy):
            rolled[family] = policy.rollout(requests(mixed_prompts()), KEY)
    return rolled


def through_modules(policy, key=KEY):
    """The same rollout, written through the model's modules."""
    found, policy.inner.leans = policy.inner.leans, False
    try:
        return policy.rollout(requests(mixed_prompts()), key)
    finally:
        policy.inner.leans = found


def in_float64(policy, rollouts):
    """(B, T) log-probs of plain rows through the modules, all but angles and pictures in float64."""
    exact = copy.deepcopy(policy.inner).double().eval()
    for module in exact.modules():
        if hasattr(module, "variance_epsilon"):  # transformers takes norms in float32
            module.forward = lean._norm_of(module)
    rows = lay_out(Way.PLAIN, rollouts.encoded, rollouts, policy.device, policy.family)
    with torch.no_grad():
        logits = exact.head(rows.states(exact, rollouts.mask))
    assert logits.dtype == torch.float64
    logits[:, list(policy.inner.distribution.suppressed)] = -torch.inf
    found = torch.log_softmax(logits, -1).gather(-1, rollouts.actions[rollouts.mask][:, None])
    return torch.zeros(rollouts.mask.shape, dtype=torch.float64).masked_scatter(rollouts.mask, found)


class TestLean:
    def test_is_as_near_to_the_truth_as_the_modules(self, policies, by_kernels, family):
        """What the two are apart is rounding of both: neither is nearer to float64 than the other by half."""
        one, other = by_kernels[family], through_modules(policies[family])
        truth = in_float64(policies[family], one)
        off = [(r.old_log_probs.double() - truth)[one.mask] for r in (one, other)]
        lean_off, modules_off = (float(each.square().mean().sqrt()) for each in off)
        assert 0 < lean_off < 1.5 * modules_off and modules_off < 2e-6
        assert off[0].abs().max() < 2.5 * off[1].abs().max()

    def test_writes_the_tokens_and_log_probs_of_the_modules(self, policies, by_kernels, family):
        """Prompts of unlike lengths, with pictures and without."""
        assert policies[family].inner.leans
        one, other = by_kernels[family], through_modules(policies[family])
        assert torch.equal(one.actions, other.actions)
        assert (one.old_log_probs - other.old_log_probs).abs().max() < CLOSE

    def test_rows_leave_when_they_have_finished(self, make_policy):
        policy = make_policy("qwen2_5_vl", stop_tokens=list(range(100, 400)), native_steps=False)
        one, other = policy.rollout(requests(mixed_prompts()), Key(7)), through_modules(policy, Key(7))
        assert policy.inner.decodes_by == "lean" and len(set(one.length.tolist())) > 3
        assert torch.equal(one.actions, other.actions) and torch.equal(one.length, other.length)
        assert (one.old_log_probs - other.old_log_probs).abs().max() < CLOSE

    def test_adapters_are_called(self, make_policy):
        policy = make_policy("qwen2_5_vl", lora=LoraConfig(rank=2), native_steps=False)
        for name, weight in policy.inner.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
        one, other = policy.rollout(requests(mixed_prompts()), Key(3)), through_modules(policy)
        assert policy.inner.decodes_by == "lean" and torch.equal(one.actions, other.actions)
        assert (one.old_log_probs - other.old_log_probs).abs().max() < CLOSE
        policy.module.eval()
        gap = (policy.evaluate(one).log_probs - one.old_log_probs)[one.mask]
        assert gap.abs().max() < 1e-5

    def test_weights_are_the_models_own(self, make_policy):
        """After an update the next rollout is written with the new ones."""
        policy = make_policy("qwen3_vl", native_steps=False)
        policy.rollout(requests(mixed_prompts()), Key(3))
        with torch.no_grad():
            for weight in policy.inner.family.decoder(policy.inner.core).parameters():
                weight.mul_(1.1)
        one, other = policy.rollout(requests(mixed_prompts()), Key(3)), through_modules(policy)
        assert torch.equal(one.actions, other.actions)
        assert (one.old_log_probs - other.old_log_probs).abs().max() < CLOSE


class TestRefusals:
    def test_hooks_run(self, make_policy):
        policy, seen = make_policy("qwen3_vl"), []
        layer = policy.inner.family.decoder(policy.inner.core).layers[0]
        layer.register_forward_hook(lambda *_: seen.append(1))
        policy.rollout(requests(mixed_prompts()), Key(3))
        told = policy.counted()
        assert len(seen) > 1 and list(told["rows/written"]) == ["shared cache"]
        assert list(told["rows/fell_back"]) == ["lean: its modules have hooks"]

    def test_a_layer_that_does_something_else_is_found_by_its_logits(self, make_policy, monkeypatch):
        """It has the parts of the known kind, and scales what it adds."""
        policy = make_policy("qwen3_vl")
        layer = policy.inner.family.decoder(policy.inner.core).layers[0]
        forward = layer.mlp.forward
        monkeypatch.setattr(layer.mlp, "forward", lambda x: 1.01 * forward(x))
        rollouts = policy.rollout(requests(mixed_prompts()), Key(3))
        told = policy.counted()
        assert policy.inner.leans is False and list(told["rows/written"]) == ["shared cache"]
        assert told["rows/fell_back"] == {"lean: steps written out do not give the model's logits": len(rollouts)}
        gap = (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs)[rollouts.mask]
        assert gap.abs().max() < 1e-5

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda layer: setattr(layer, "extra", torch.nn.Identity()), "its layers have extra more or less"),
            (lambda layer: setattr(layer.self_attn, "gate", torch.nn.Identity()), "its attention is not of"),
            (lambda layer: setattr(layer.mlp, "router", torch.nn.Identity()), "its feed-forward part is not of"),
            (lambda layer: setattr(layer, "input_layernorm", torch.nn.LayerNorm(8)), "its norms are not known"),
        ],
    )
    def test_other_layers_are_named(self, make_policy, change, reason):
        inner = make_policy("qwen3_vl").inner
        assert lean.refusal(inner) is None
        change(inner.family.decoder(inner.core).layers[-1])
        assert lean.refusal(inner).startswith(reason)

    def test_lower_precision_is_no_fall(self, make_policy):
        policy = make_policy("qwen3_vl", autocast="bfloat16")
        policy.rollout(requests(mixed_prompts()), Key(3))
        told = policy.counted()
        assert list(told["rows/written"]) == ["shared cache"] and told["rows/fell_back"] == {}


def test_close_leaves_out_words_that_cannot_be_sampled():
    lowest = torch.finfo(torch.float32).min
    models = torch.tensor([[0.0, 3.0, lowest]])
    assert lean.close(models + torch.tensor([[0.0, 2e-4, -1.0]]), models)
    assert not lean.close(models + torch.tensor([[0.0, 4e-4, 0.0]]), models)
    assert not lean.close(models + torch.tensor([[float("nan"), 0.0, 0.0]]), models)


@pytest.mark.parametrize("tokens", [PRODUCTS - 1, PRODUCTS, 3 * PRODUCTS])
def test_own_tokens_are_attended_to_alike_by_kernel_and_products(tokens):
    """Against a softmax in double precision; scores so large that only differences to the largest can be raised."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(3, 2, n, 8, generator=generator) for n in (4, tokens, tokens))
    out, lse = _on_own(40 * q, k, v, 0.5)
    scores = 20 * q.double() @ k.double().transpose(2, 3)
    assert torch.allclose(lse.double(), scores.logsumexp(-1), rtol=1e-6)
    assert torch.allclose(out.double(), scores.softmax(-1) @ v.double(), atol=2e-5)


def test_growing_appends_and_chooses():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 2, 1, 4, generator=generator) for _ in range(2 * BLOCK)]
    grown = Growing()
    for part in parts:
        written = grown.append(part)
    assert torch.equal(written, torch.cat(parts, dim=2))
    grown.select(torch.tensor([0, 2]))
    after = grown.append(torch.ones(2, 2, 1, 4))
    assert torch.equal(after[:, :, :-1], written[[0, 2]]) and bool((after[:, :, -1] == 1).all())
