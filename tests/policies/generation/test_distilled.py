"""A distilled adapter samples and does not train: rollouts are those of base and adapter, all else is the base's."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config, shipped_asset
from mmrl.pipelines.run import train
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from tests.policies.generation.tiny import flow_policy, flow_requests, nudge

KEY = Key(5)
FEW = {"likelihood": "matching", "draws": {"count": 2}, "steps": 3, "lora": {"rank": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """One that does something, as this library saves it: in PEFT's layout and, beside it, in diffusers'."""
    folder = tmp_path_factory.mktemp("fast")
    policy = flow_policy(lora={"rank": 2, "alpha": 6})
    nudge(policy, 0.3)
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def diffusers_layout(adapter, tmp_path):
    shutil.copy(adapter / "pytorch_lora_weights.safetensors", tmp_path)
    return tmp_path


def clean(policy):
    return policy.rollout(flow_requests(), KEY).replay["clean"]


def test_rollouts_are_those_of_base_and_adapter_in_either_layout(adapter, diffusers_layout):
    started = clean(flow_policy(adapter=str(adapter), **FEW | {"lora": None}))
    beside = clean(flow_policy(distilled={"adapter": str(adapter)}, **FEW))
    other = clean(flow_policy(distilled={"adapter": str(diffusers_layout)}, **FEW))
    plain = clean(flow_policy(**FEW))
    assert torch.allclose(beside, started, atol=1e-5) and torch.allclose(other, started, atol=1e-5)
    assert (plain - started).abs().max() > 0.05
    half = clean(flow_policy(distilled={"adapter": str(adapter), "scale": 0.5}, **FEW))
    assert (half - started).abs().max() > 0.01 and (half - plain).abs().max() > 0.01


@pytest.mark.parametrize("anchor", [None, {"samples": 0}])
def test_training_and_evaluation_do_not_know_of_it(adapter, anchor):
    policy = flow_policy(distilled={"adapter": str(adapter)}, anchor=anchor, **FEW)
    plain = flow_policy(anchor=anchor, **FEW)
    for each in (policy, plain):
        nudge(each, 0.05)
    rows = policy.rollout(flow_requests(), KEY)
    old, new, mask = policy.replayed(rows)
    assert bool(mask.any()) and (new - old).abs()[mask].max() < 1e-5, "the self-check asks as sampling did"
    losses = [each.evaluate(rows).log_probs for each in (policy, plain)]
    assert torch.equal(*losses) and losses[0].requires_grad
    greedy = [each.rollout(flow_requests(), KEY, greedy=True).outputs[0].tobytes() for each in (policy, plain)]
    assert greedy[0] == greedy[1]
    assert policy.trainable_state().keys() == plain.trainable_state().keys()
    losses[0].sum().backward()
    moved = {n for n, p in policy.inner.named_parameters() if p.grad is not None}
    assert moved and not any("distilled" in name for name in moved)


def test_what_is_saved_is_what_was_trained(adapter, tmp_path):
    policy = flow_policy(distilled={"adapter": str(adapter)}, **FEW)
    policy.rollout(flow_requests(), KEY)
    policy.save_pretrained(tmp_path / "adapter")
    again = flow_policy(adapter=str(tmp_path / "adapter"), **FEW | {"lora": None})
    assert not (tmp_path / "adapter" / "distilled").exists()
    assert torch.allclose(clean(again), clean(flow_policy(**FEW)), atol=1e-6)


def test_the_shipped_configuration_trains_the_base_on_rollouts_of_few_steps(tmp_path):
    small = ["training.steps=2", "training.prompts_per_step=4", "training.group_size=2", "training.save_every=0",
             "data.workers=0", "data.eval=null", f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    told = []
    base = FlowPolicy.from_config(FlowPolicyConfig(model=str(shipped_asset("tiny_flow")), lora={"rank": 2, "alpha": 6}))
    nudge(base, 0.02)
    base.save_pretrained(tmp_path / "fits")
    small.append(f"policy.distilled.adapter={tmp_path / 'fits'}")
    train(read_config("few_steps", small, "flow"), report=lambda step, m: told.append(m))
    assert [m["calls/sampled"] for m in told] == [8 * 4, 8 * 4] and all(m["gradient_norm"] > 0 for m in told)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"likelihood": "transition"}, r"ratio compares the two; set policy\.likelihood=matching"),
        ({"lora": None}, "an adapter lies beside another"),
    ],
)
def test_where_it_cannot_be_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        FlowPolicyConfig(model="tiny", **FEW | {"distilled": {"adapter": "fast"}} | options)


def test_an_adapter_that_cannot_be_read_or_does_not_fit_is_named(adapter, tmp_path):
    for place, says in ((tmp_path / "nowhere", "there is nothing"), (tmp_path, "")):
        with pytest.raises(ConfigError, match=rf"policy\.distilled\.adapter: .*{says}"):
            flow_policy(distilled={"adapter": str(place)}, **FEW)
    state = load_file(adapter / "pytorch_lora_weights.safetensors")
    wider = {name: torch.cat([value, value], dim=int("lora_A" in name)) for name, value in state.items()}
    save_file(wider, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ConfigError, match=r"policy\.distilled\.adapter: .* does not fit transformer: .*size mismatch"):
        flow_policy(distilled={"adapter": str(tmp_path)}, **FEW)
