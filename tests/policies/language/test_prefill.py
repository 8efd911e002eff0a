"""The rollout's pass over a prompt serves the update after it: equal numbers, prompt and picture computed once."""

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.fast import prefill
from mmrl.policies.language.policy import LanguagePolicy
from mmrl.randomness import Key
from mmrl.record import Rollouts
from mmrl.stages import Need, View
from tests.policies.language.scenes import clip_prompts, gradients, mixed_prompts, relative_error, requests
from tests.policies.language.test_scoring import weighted

LORA = {"rank": 4, "alpha": 8.0}
TRAINED = [{}, {"lora": LORA}, {"lora": LORA, "train_vision": True}, {"train_vision": False}]
NAMES = ["full", "lora", "lora and vision", "frozen vision"]


def one_pass_before(policy: LanguagePolicy) -> LanguagePolicy:
    """A policy whose last update scored everything in one pass."""
    policy.load_state_dict({"update_in_one_pass": True})
    return policy


def updated(policy: LanguagePolicy, rollouts: Rollouts, rows=slice(None)) -> tuple[torch.Tensor, dict]:
    """Log-probs and gradients of an update's pass over some rows, with entropy in the loss."""
    policy.module.zero_grad()
    part = rollouts.index(torch.arange(len(rollouts))[rows])
    scored = policy.evaluate(part, [Need("entropy", weights="current")])
    (weighted(scored.log_probs) + 0.1 * weighted(next(iter(scored.columns.values())))).backward()
    return scored.log_probs.detach(), gradients(policy)


def both(make, family, prompts, count=3, **options):
    """(log-probs, gradients) of the update after a rollout that kept its prefills, and of one that ran prompts
    again."""
    results = []
    for reuse in ("auto", "off"):
        policy = one_pass_before(make(family, reuse_prefill=reuse, **options))
        rollouts = policy.rollout(requests(prompts, count), Key(0))
        assert len(policy._kept) == (len(prompts) if reuse == "auto" else 0)
        results.append((rollouts, *updated(policy, rollouts)))
    return results


def tokens_run(policy: LanguagePolicy) -> list[int]:
    """Tokens that pass the decoder from now on, one entry a call."""
    seen: list[int] = []

    def note(_, args, options):
        embedded = options.get("inputs_embeds")
        seen.append(embedded.shape[0] * embedded.shape[1])

    policy.inner.core.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("options", TRAINED, ids=NAMES)
def test_equals_running_prompts_again(make_policy, family, options):
    (one, got, grad), (other, wanted, wanted_grad) = both(make_policy, family, mixed_prompts(), **options)
    assert torch.equal(one.actions, other.actions)
    assert (got - wanted).abs().max() < 1e-5 and relative_error(grad, wanted_grad) < 1e-5


@pytest.mark.parametrize("options", [{}, {"train_vision": False}], ids=["full", "frozen vision"])
def test_equals_running_clips_again(make_video_policy, family, options):
    (_, got, grad), (_, wanted, wanted_grad) = both(make_video_policy, family, clip_prompts(), **options)
    assert (got - wanted).abs().max() < 1e-5 and relative_error(grad, wanted_grad) < 1e-5


def test_the_update_runs_response_tokens_alone(make_policy, family):
    policy = one_pass_before(make_policy(family))
    patches: list[int] = []
    policy.inner.core.model.visual.register_forward_pre_hook(lambda _, args: patches.append(len(args[0])))
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    in_rollout, seen = sum(patches), tokens_run(policy)
    updated(policy, rollouts)
    assert seen == [int(rollouts.length.sum())] and sum(patches) == in_rollout
    updated(policy, rollouts)
    prompts = sum(len(e) for e in rollouts.encoded)
    assert seen[1:] == [int(rollouts.length.sum()) + prompts], "a graph serves one backward pass"


def test_groups_without_signal_leave_the_update(make_policy, family, monkeypatch):
    """Long prompts have a row each: what stays takes its own and leaves the others alone."""
    monkeypatch.setattr(prefill, "PACK", 1)
    policy = one_pass_before(make_policy(family))
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    got, grad = updated(policy, rollouts, slice(2, 7))
    assert len(policy._kept) == len(rollouts.encoded) - 2
    wanted, wanted_grad = updated(policy, rollouts, slice(2, 7))
    assert (got - wanted).abs().max() < 1e-5 and relative_error(grad, wanted_grad) < 1e-5


@pytest.mark.parametrize("pack", [1, 10**6], ids=["a row for each prompt", "one row"])
def test_an_update_in_several_passes_runs_prompts_once(make_policy, family, monkeypatch, pack):
    """Passes of few tokens: log-probs and gradients of one pass, and each prompt runs once, in the rollout."""
    monkeypatch.setattr(prefill, "PACK", pack)
    wanted = both(make_policy, family, mixed_prompts(), pass_tokens=None)[1]
    policy = one_pass_before(make_policy(family, pass_tokens=12))
    rollouts = policy.rollout(requests(mixed_prompts(), 3), Key(0))
    parts = policy.update_passes(rollouts, torch.arange(len(rollouts)), len(rollouts))
    seen = tokens_run(policy)
    policy.module.zero_grad()
    log_probs = torch.zeros_like(rollouts.old_log_probs)
    weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
    for part in parts:
        scored = policy.evaluate(rollouts.index(part), [Need("entropy", weights="current")])
        entropy = next(iter(scored.columns.values()))
        (weights[part] * scored.log_probs + 0.1 * weights[part] * entropy).sum().backward()
        log_probs[part] = scored.log_probs.detach()
    assert len(parts) > 3 and sum(seen) == int(rollouts.length.sum()) and not len(policy._kept)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(rollouts)))
    assert (log_probs - wanted[1]).abs().max() < 1e-5 and relative_error(gradients(policy), wanted[2]) < 1e-5
    assert policy._kept.updates == 1, "they count as one pass, so that the next rollout keeps its prompts as well"


def test_an_update_that_ends_early_is_an_error(make_policy):
    """Gradients that wait for a last pass are not lost in silence."""
    policy = one_pass_before(make_policy(pass_tokens=12))
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    part = policy.update_passes(rollouts, torch.arange(len(rollouts)), len(rollouts))[0]
    policy.evaluate(rollouts.index(part)).log_probs.sum().backward()
    with torch.no_grad():
        next(policy.module.parameters()).add_(0.1)
    with pytest.raises(PolicyError, match="before its last pass"):
        policy.rollout(requests(mixed_prompts()), Key(1))


def test_short_prompts_share_a_row(make_policy, family):
    """Its graph serves one backward pass: prompts of the row that are scored later are run again."""
    policy = one_pass_before(make_policy(family))
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    seen = tokens_run(policy)
    for rows in (slice(0, 8), slice(8, 16)):
        got, grad = updated(policy, rollouts, rows)
        wanted, wanted_grad = updated(policy, rollouts, rows)
        assert (got - wanted).abs().max() < 1e-5 and relative_error(grad, wanted_grad) < 1e-5
    assert seen[0] < seen[1] and seen[2] == seen[3]


def test_rows_end_at_a_number_of_tokens(make_policy, monkeypatch):
    contexts = [make_policy().encode(p) for p in mixed_prompts()]
    monkeypatch.setattr(prefill, "PACK", len(contexts[0]) + len(contexts[1]))
    rows = prefill.packs(contexts)
    assert rows[0] == contexts[:2] and [c for row in rows for c in row] == contexts and prefill.packs([]) == []


def test_prefilled_and_other_prompts_in_one_row(make_policy, family):
    policy = one_pass_before(make_policy(family))
    parts = [policy.rollout(requests(mixed_prompts()[:2]), Key(0))]
    with torch.no_grad():
        parts.append(policy.rollout(requests(mixed_prompts()[2:]), Key(0)))
    rollouts = Rollouts.concatenate(parts)
    seen = tokens_run(policy)
    got, grad = updated(policy, rollouts)
    wanted, wanted_grad = updated(policy, rollouts)
    assert seen[1] - seen[0] == sum(len(e) for e in parts[0].encoded)
    assert (got - wanted).abs().max() < 1e-5 and relative_error(grad, wanted_grad) < 1e-5


def test_never_with_other_weights(make_policy):
    """Whoever writes to a weight: what was made with the old value is not used."""
    policy = one_pass_before(make_policy())
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    with torch.no_grad():
        policy.inner.core.model.language_model.layers[0].mlp.up_proj.weight[0] += 0.3
    got, grad = updated(policy, rollouts)
    wanted, wanted_grad = updated(policy, rollouts)
    assert torch.equal(got, wanted) and relative_error(grad, wanted_grad) < 1e-6
    assert (got - rollouts.old_log_probs)[rollouts.mask].abs().max() > 1e-4, "the change must matter"


def test_passes_without_gradient_and_views_leave_it_to_the_update(make_policy):
    policy = one_pass_before(make_policy())
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    policy.evaluate(rollouts, weights="old")
    policy.evaluate(rollouts, weights="reference")
    policy.evaluate(rollouts, under=View.of("patch_black"))
    assert len(policy._kept) == len(rollouts.encoded)


def test_kept_whatever_memory_it_takes(make_policy, monkeypatch):
    """Asked for by name: each pass of an update takes its own prompts' prefills."""
    monkeypatch.setattr(prefill, "PACK", 1)
    policy = make_policy(reuse_prefill="on")
    optimizer = torch.optim.SGD(policy.module.parameters(), lr=1e-4)
    prompts = len(mixed_prompts())
    assert [train_step(policy, optimizer, 2) for _ in range(3)] == [prompts] * 3
    rollouts, seen = policy.rollout(requests(mixed_prompts()), Key(0)), tokens_run(policy)
    for rows in policy.micro_batches(rollouts, torch.arange(len(rollouts)), 8):
        policy.evaluate(rollouts.index(rows)).log_probs.sum().backward()
    assert len(seen) > 1 and sum(seen) == int(rollouts.length.sum())


def train_step(policy, optimizer, passes):
    """Rollout, an update in so many passes; how many prompts the rollout kept."""
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    kept = len(policy._kept)
    for rows in torch.arange(len(rollouts)).chunk(passes):
        policy.evaluate(rollouts.index(rows)).log_probs.sum().backward()
    optimizer.step()
    return kept


def test_kept_as_soon_as_an_update_takes_one_pass(make_policy):
    policy = make_policy()
    optimizer = torch.optim.SGD(policy.module.parameters(), lr=1e-4)
    prompts = len(mixed_prompts())
    assert [train_step(policy, optimizer, n) for n in (1, 1, 2, 2, 1, 1)] == [0, prompts, prompts, 0, 0, prompts]


def test_the_first_of_several_updates_is_served(make_policy, family, monkeypatch):
    """The other prompts' graphs would be made with weights that have moved: they are not kept, and run again."""
    policy, plain = make_policy(family), make_policy(family, reuse_prefill="off")
    prompts = len(mixed_prompts())
    kept, seen = [], tokens_run(policy)
    optimizers = [torch.optim.SGD(p.module.parameters(), lr=1e-4) for p in (policy, plain)]
    for _ in range(3):
        rollouts, again = (p.rollout(requests(mixed_prompts()), Key(0)) for p in (policy, plain))
        kept.append(len(policy._kept))
        del seen[:]
        for _ in range(2):  # two epochs of two updates
            for rows in torch.arange(len(rollouts)).chunk(2):
                for each, of, optimizer in zip((policy, plain), (rollouts, again), optimizers, strict=True):
                    each.evaluate(of.index(rows)).log_probs.sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                assert len(policy._kept) == 0
    assert kept == [0, prompts // 2, prompts // 2]
    sizes = [sum(map(len, rollouts.encoded[i : i + prompts // 2])) for i in (0, prompts // 2)]
    written = rollouts.length.view(2, -1).sum(1).tolist()
    assert seen == [written[0], written[1] + sizes[1], written[0] + sizes[0], written[1] + sizes[1]]
    state, wanted = policy.trainable_state(), plain.trainable_state()
    assert max(float((state[n] - w).abs().max()) for n, w in wanted.items()) < 1e-5


def test_a_resumed_run_knows(make_policy):
    policy, other = make_policy(), make_policy()
    optimizer = torch.optim.SGD(policy.module.parameters(), lr=1e-4)
    for passes in (1, 2, 1):
        train_step(policy, optimizer, passes)
        state = policy.state_dict()
        assert state == {"updates_in_one_pass": int(passes == 1), "version": 0}
        other.load_state_dict(state)
        assert other.state_dict() == state


@pytest.mark.parametrize(
    "options",
    [{"gradient_checkpointing": True}, {"lora": {**LORA, "dropout": 0.1}}, {"shared_prompt": "off"}],
    ids=["gradient checkpointing", "dropout", "plain rows"],
)
def test_not_kept_where_the_update_would_differ(make_policy, options):
    policy = one_pass_before(make_policy(**options))
    policy.rollout(requests(mixed_prompts()), Key(0))
    assert len(policy._kept) == 0


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"gradient_checkpointing": True}, "gradient checkpointing"),
        ({"lora": {**LORA, "dropout": 0.1}}, "dropout"),
        ({"shared_prompt": "off"}, "packed rows"),
    ],
)
def test_asked_for_where_it_cannot_be(make_policy, options, reason):
    with pytest.raises(ConfigError, match=f"reuse_prefill: on, but .*{reason}.*'off'"):
        make_policy(reuse_prefill="on", **options)


def test_rollouts_that_are_not_trained_on_keep_nothing(make_policy):
    policy = one_pass_before(make_policy())
    policy.rollout(requests(mixed_prompts()), Key(0), greedy=True)
    with torch.no_grad():
        policy.rollout(requests(mixed_prompts()), Key(0))
    assert len(policy._kept) == 0


def test_memory_goes_with_the_rollouts(make_policy):
    policy = one_pass_before(make_policy())
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    assert len(policy._kept) == len(rollouts.encoded)
    del rollouts
    assert len(policy._kept) == 0


def test_the_last_layer_ends_with_the_last_tokens(make_policy, family):
    """Of a prompt, its attention and MLP give keys, values and one output; of responses, everything."""
    policy = make_policy(family)
    seen: list[int] = []
    last = policy.inner.core.model.language_model.layers[-1]
    last.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    contexts = [policy.encode(p) for p in mixed_prompts()]
    with policy.acting():
        prefills = policy.inner.prefill(contexts)
    assert seen == [len(contexts)] and [len(p) for p in prefills] == [len(c) for c in contexts]
    rollouts = policy.rollout(requests(mixed_prompts()), Key(0))
    seen.clear()
    policy.evaluate(rollouts)
    assert seen == [sum(map(len, contexts)) + int(rollouts.length.sum())]


def test_one_prompt_at_a_time_or_all_in_one_row(make_policy, family):
    policy = make_policy(family)
    contexts = [policy.encode(p) for p in mixed_prompts()]
    with policy.acting():
        together = policy.inner.prefill(contexts)
        alone = [policy.inner.prefill([c])[0] for c in contexts]
    for one, other in zip(together, alone, strict=True):
        pairs = zip([*one.keys, *one.values, one.last], [*other.keys, *other.values, other.last], strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
