"""What was taken from the text is kept: only where nothing is trained, and exact where the picture did not change."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.reuse import ReuseConfig
from mmrl.randomness import Key
from mmrl.record import Request
from tests.policies.generation.families.cases import CASES
from tests.policies.generation.families.measure import policy_of, prompts_of
from tests.policies.generation.tiny import flow_policy, flow_requests

KEY = Key(4)
WAN = next(case for case in CASES if case.name == "Wan 2.1 text")
WINDOW = {"steps": 10, "schedule": "linear", "shift": 1.0, "share_prefix": False,
          "train_steps": {"select": "window", "size": 2, "low": 4, "high": 6}}  # fmt: skip


def requests():
    return [Request(prompts_of(WAN)[0], 1, group=0)]


def test_which_steps_ask_by_hand():
    """Ten steps, two at each end that always ask: one of three between them, beside every other one for the blocks."""
    config = ReuseConfig(every=2, text=3)
    assert [i for i in range(10) if config.text_reused(i, 10)] == [2, 3, 5, 6]
    assert [i for i in range(10) if config.reused(i, 10)] == [2, 4, 6]
    assert not any(ReuseConfig(every=None, text=2).reused(i, 10) for i in range(10))


def test_of_an_equal_state_it_is_exact_and_of_a_near_one_near():
    """Guided, each of the two passes keeps its own."""
    policy = policy_of(WAN)
    x = KEY.normal(2, *policy.shape)
    encoded = policy.frozen.encode(prompts_of(WAN)[:2], policy.device)
    conditioned = Conditioned.of(encoded, torch.tensor([0, 1]), policy.device)

    def ask(state, text):
        with torch.no_grad():
            return policy.inner.velocity(state, torch.tensor([0.6, 0.6]), conditioned, text=text)

    plain, first, same = ask(x, None), ask(x, False), ask(x, True)
    assert torch.equal(plain, first) and torch.equal(same, first)
    near, true = ask(0.9 * x, True), ask(0.9 * x, None)
    assert 0 < (near - true).norm() < 0.2 * true.norm()
    assert torch.equal(ask(x, None), plain), "no attention is left changed"


def test_trained_steps_ask_and_replay_to_the_same_log_probs():
    """The window takes steps 4 and 5; of 2, 3, 5 and 6 that the schedule would reuse, 2, 3 and 6 are left."""
    policy, plain = (policy_of(WAN, **WINDOW, reuse=reuse) for reuse in ({"every": None, "text": 3}, None))
    rows, whole = policy.rollout(requests(), KEY), plain.rollout(requests(), KEY)
    cache = policy.inner.prompts
    layers, passes = len(cache.parts), 2 if policy.generator.asked.guided else 1
    calls = len(policy.inner._chunks(torch.ones(len(rows)), policy._conditioned(rows.encoded, rows.prompt))) * passes
    assert cache.asked == layers * calls * (10 - 3)
    assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-5, "the self-check's comparison"
    gap = rows.replay["latents"] - whole.replay["latents"]
    assert 0 < gap.std() < 0.1 * whole.replay["latents"].std()


def test_beside_reused_blocks_and_evaluation():
    policy, plain = (policy_of(WAN, **WINDOW, reuse=reuse) for reuse in ({"every": 2, "text": 3}, None))
    rows = policy.rollout(requests(), KEY)
    assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-5
    greedy = [each.rollout(requests(), KEY, greedy=True).outputs[0] for each in (policy, plain)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*greedy, strict=True))


def test_where_noisy_steps_are_reused_the_self_check_sees_it():
    policy = policy_of(WAN, steps=10, schedule="linear", shift=1.0, reuse={"every": None, "text": 4, "drawn": True})
    old, new, mask = policy.replayed(policy.rollout(requests(), KEY))
    assert float((new - old).detach().abs()[mask].max()) > 1e-6


def test_what_has_no_map_or_reuses_nothing_is_refused():
    policy = flow_policy(reuse={"every": None, "text": 2}, **WINDOW | {"shift": None})
    with pytest.raises(ConfigError, match=r"SD3Transformer2DModel|PeftModel.* set policy\.reuse\.text=null"):
        policy.rollout(flow_requests(), KEY)
    for wrong, says in (({"every": None}, "reuse nothing"), ({"text": 2, "threshold": 0.1}, "text=null")):
        with pytest.raises(ConfigError, match=says):
            ReuseConfig(**wrong)
