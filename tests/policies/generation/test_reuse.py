"""Blocks that are reused: only where nothing is trained, counted as what they cost, and exact where nothing changed."""

import pytest
import torch
from torch import nn

from mmrl.errors import ConfigError
from mmrl.policies.generation.conditions import Conditioned
from mmrl.policies.generation.reuse import Blocks, ReuseConfig, blocks_of, change
from mmrl.randomness import Key
from mmrl.record import Request
from tests.policies.generation.families.cases import CASES
from tests.policies.generation.families.measure import policy_of, prompts_of
from tests.policies.generation.tiny import captions, flow_policy, flow_requests

KEY = Key(4)
WINDOW = {"steps": 10, "train_steps": {"select": "window", "size": 2, "low": 4, "high": 6}, "share_prefix": False}


def test_which_steps_are_reused_by_hand():
    """Ten steps, two whole ones at each end: between them every other one, or two of three."""
    assert [i for i in range(10) if ReuseConfig(every=2).reused(i, 10)] == [2, 4, 6]
    assert [i for i in range(10) if ReuseConfig(every=3).reused(i, 10)] == [2, 3, 5, 6]
    assert [i for i in range(10) if ReuseConfig(every=2, ends=0).reused(i, 10)] == [1, 3, 5, 7]


def velocities(policy, calls):
    """Of one state, asked as `calls` says: (scale of the state, again)."""
    x = KEY.normal(2, *policy.shape)
    encoded = policy.frozen.encode(captions(2), policy.device)
    conditioned = Conditioned.of(encoded, torch.tensor([0, 1]), policy.device)
    with torch.no_grad():
        return [policy.inner.velocity(s * x, torch.tensor([0.6, 0.6]), conditioned, again=a) for s, a in calls]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_did_not_change_is_reused_exactly(guidance):
    """Guided, the second pass of a step reuses what the second pass found, not the first."""
    policy = flow_policy(guidance_scale=guidance)
    plain, whole, same, other = velocities(policy, [(1, None), (1, False), (1, True), (0.9, True)])
    assert torch.equal(plain, whole), "keeping changes nothing"
    assert (same - whole).abs().max() < 1e-5 * whole.abs().max()
    (true,) = velocities(policy, [(0.9, None)])
    assert 1e-4 < (other - true).norm() / true.norm() < 0.5, "another state: near, and not the same"
    assert torch.equal(velocities(policy, [(1, None)])[0], plain), "no block is left changed"


def test_a_chain_that_adds_constants_is_exact_at_any_state():
    class Adds(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value, self.ran = value, 0

        def forward(self, hidden_states, encoder_hidden_states=None):
            self.ran += 1
            return hidden_states + self.value

    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    TransformerBlockRegistry.register(Adds, TransformerBlockMetadata(return_hidden_states_index=0))
    stack = nn.Module()
    stack.blocks = nn.ModuleList([Adds(1.0), Adds(10.0), Adds(100.0)])

    def run(x):
        for block in stack.blocks:
            x = block(x)
        return float(x)

    blocks = Blocks({"transformer": stack})
    with blocks.step(False):
        assert run(torch.zeros(1, 1)) == 111
    with blocks.step(True):
        assert run(torch.full((1, 1), 5.0)) == 116
    assert [block.ran for block in stack.blocks] == [2, 1, 1] and blocks.share == pytest.approx(1 / 3)
    assert not any("forward" in block.__dict__ for block in stack.blocks)


def test_trained_steps_are_whole_and_replay_to_the_same_log_probs():
    """The window takes steps 4 and 5; of 2, 4 and 6, which the schedule would reuse, 2 and 6 are left."""
    policy, plain = flow_policy(reuse={}, **WINDOW), flow_policy(**WINDOW)
    asked = []
    velocity = policy.inner.velocity

    def listening(x, t, conditioned, **how):
        asked.append(how.get("again"))
        return velocity(x, t, conditioned, **how)

    policy.inner.velocity = listening
    rows, whole = policy.rollout(flow_requests(), KEY), plain.rollout(flow_requests(), KEY)
    assert [i for i, again in enumerate(asked) if again] == [2, 6] and len(asked) == 10
    assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-5, "the self-check's comparison"
    assert not torch.equal(rows.replay["latents"], whole.replay["latents"])
    assert (rows.replay["latents"] - whole.replay["latents"]).std() < 0.1 * whole.replay["latents"].std()
    counts = [each.counted()["calls/sampled"] for each in (policy, plain)]
    assert counts == [6 * (8 + 2 / 2), 6 * 10], "two blocks: a reused step is half a call"


def test_the_change_of_a_row_by_hand():
    """mean |(2, 2) - (1, 3)| / mean |(1, 3)| = 1 / 2, and a row that stayed has none."""
    whole = torch.tensor([[1.0, 3.0], [4.0, 4.0]])
    assert change(torch.tensor([[2.0, 2.0], [4.0, 4.0]]), whole).tolist() == [0.5, 0.0]
    assert change(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0.0]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_above_the_threshold_a_row_is_whole_and_below_it_reuses(guidance):
    """Row 0 stays where it was and row 1 moves: under one threshold, one of each, whoever shares the call."""
    policy = flow_policy(guidance_scale=guidance)
    x = KEY.normal(2, *policy.shape)
    encoded = policy.frozen.encode(captions(2), policy.device)
    conditioned = Conditioned.of(encoded, torch.tensor([0, 1]), policy.device)
    moved = x * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
    passes = 1 if guidance == 1 else 2

    def ask(state, **how):
        with torch.no_grad():
            return policy.inner.velocity(state, torch.tensor([0.6, 0.6]), conditioned, **how)

    plain, first = ask(moved), ask(x, again=False)
    policy.counted()
    mixed = ask(moved, again=True, threshold=0.05)
    assert policy.counted()["calls/sampled"] == passes * (2 / 2 + 1), "two blocks: half a call each, and one whole"
    assert torch.allclose(mixed[0], first[0], atol=1e-5) and torch.allclose(mixed[1], plain[1], atol=1e-5)
    again = ask(moved, again=True, threshold=0.05)
    assert policy.counted()["calls/sampled"] == passes, "what the whole call found was kept: nothing moved since"
    assert torch.allclose(again, mixed, atol=1e-5)
    assert not torch.allclose(ask(0.5 * moved, again=True, threshold=1e9)[1], ask(0.5 * moved)[1], atol=1e-3)


def test_a_rollout_by_threshold_is_the_same_whoever_shares_its_batch():
    reuse = {"every": 100, "ends": 0.0, "threshold": 0.6}  # blocks of random weights change much
    policy = flow_policy(reuse=reuse, **WINDOW | {"train_steps": {"select": "window", "size": 1, "high": 1}})
    together = policy.rollout(flow_requests(), KEY)
    counts = policy.counted()["calls/sampled"]
    assert 6 * (2 + 8 / 2) < counts < 6 * (2 + 8 * 3 / 2), "some rows were reused and some were not"
    alone = policy.rollout(flow_requests(prompts=1), KEY)
    assert torch.allclose(alone.replay["latents"], together.replay["latents"][:3], atol=1e-5)


def test_where_noisy_steps_are_reused_the_self_check_decides():
    """A threshold that is never met leaves log-probs as they were; one that always is moves them past any limit."""
    gaps = []
    for threshold in (1e-6, 10.0):
        policy = flow_policy(reuse={"every": 100, "drawn": True, "threshold": threshold}, steps=10)
        old, new, mask = policy.replayed(policy.rollout(flow_requests(), KEY))
        gaps.append(float((new - old).detach().abs()[mask].max()))
    assert gaps[0] < 1e-5 and gaps[1] > 1e-3


def test_evaluation_and_other_rollouts_reuse_nothing():
    with_it, without = flow_policy(reuse={}, **WINDOW), flow_policy(**WINDOW)
    greedy = [p.rollout(flow_requests(), KEY, greedy=True).outputs[0].tobytes() for p in (with_it, without)]
    assert greedy[0] == greedy[1]
    everywhere = [flow_policy(**extra).rollout(flow_requests(), KEY) for extra in ({}, {"reuse": {}})]
    assert torch.equal(everywhere[0].replay["latents"], everywhere[1].replay["latents"]), "all steps draw noise"


def test_an_expert_that_was_not_asked_before_is_asked_whole():
    """Wan 2.2: one transformer for noisy times, one for clean ones; the first step of each is whole."""
    case = next(case for case in CASES if case.name == "Wan 2.2 A14B text")
    policy = policy_of(case, reuse={"every": 100, "ends": 0.0}, train_steps={"select": "window", "size": 1, "high": 1})
    rows = policy.rollout([Request(prompt, 1, group=i) for i, prompt in enumerate(prompts_of(case))], KEY)
    experts = [policy.generator.expert(clock) for clock in policy.generator.clock(policy.times(4)[:-1]).tolist()]
    assert experts == ["transformer", "transformer_2", "transformer_2", "transformer_2"]
    assert policy.counted()["calls/sampled"] == len(rows) * 2 * (3 + 1 / 2), "guided; the last step is whole as ever"


def test_the_self_check_of_matching_methods_sees_whole_steps():
    policy = flow_policy(likelihood="matching", draws={"count": 2}, reuse={}, steps=10)
    rows = policy.rollout(flow_requests(), KEY)
    old, new, mask = policy.replayed(rows)
    assert bool(mask.any()) and (new - old).abs()[mask].max() < 1e-5


def test_a_transformer_whose_blocks_are_not_known_is_refused():
    stack = nn.Module()
    stack.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(ConfigError, match=r"what Linear returns; set policy\.reuse=null"):
        blocks_of(stack)
    with pytest.raises(ConfigError, match="no blocks"):
        blocks_of(nn.Linear(2, 2))


def test_a_family_whose_blocks_are_their_own_is_refused_in_its_first_rollout():
    case = next(case for case in CASES if case.name == "Z-Image-Turbo")
    policy = policy_of(case, reuse={"ends": 0.0}, train_steps={"select": "window", "size": 1, "high": 1})
    with pytest.raises(ConfigError, match=r"ZImageTransformerBlock .* set policy\.reuse=null"):
        policy.rollout([Request(prompt, 1, group=i) for i, prompt in enumerate(prompts_of(case))], KEY)
