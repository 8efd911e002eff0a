"""The examples that bases learn to call from, beside what a policy records and a plain pass of the model."""

import pytest
import torch

from mmrl.data.worlds import open_world
from mmrl.pipelines.bases.callers import Example, answered, example, fit_calls, loss_of
from mmrl.pipelines.bases.models import IMAGE_SIZE
from mmrl.pipelines.bases.zoom import script
from mmrl.pipelines.config import shipped_asset
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.rollout.environments.zoom import Zoom

PROMPTS = open_world("fine_print", size=4, seed=0)


@pytest.fixture
def policy() -> VisionPolicy:
    model = str(shipped_asset("tiny_zoom"))
    return VisionPolicy.from_config(LanguagePolicyConfig(model=model, max_new_tokens=28, max_pixels=IMAGE_SIZE**2))


def looked(policy, place=0) -> Example:
    call, answer = script(PROMPTS[place])
    runs = [(call, 0.5, 2.0), (answered(answer), 1.0, 3.0)]
    return example(policy, PROMPTS[place], policy.encode(PROMPTS[place]), Zoom(side=IMAGE_SIZE), runs)


def test_what_is_said_is_weighed_and_what_is_shown_is_not(policy):
    made, (call, answer) = looked(policy), script(PROMPTS[0])
    tokenizer = policy.processor.tokenizer
    said, first = tokenizer.decode(made.actions[made.weights > 0]), len(tokenizer(call)["input_ids"]) + 1
    assert said == call + tokenizer.eos_token + answered(answer) + tokenizer.eos_token
    assert made.weights[:first].tolist() == [0.5, 0.5] + [2.0] * (first - 2)
    assert torch.equal(made.row.ids[made.prompt :], made.actions)
    shown = made.weights == 0
    assert (
        (made.actions == policy.family.image_token).sum()
        == (made.actions[shown] == policy.family.image_token).sum()
        > 1
    )
    assert len(made.row.media["image_grid_thw"]) == 2


@torch.no_grad()
def test_the_loss_is_that_of_a_plain_pass_over_each_row(policy):
    """Rows of unlike lengths in one batch."""
    rows = [looked(policy, place) for place in range(2)]
    rows.append(example(policy, PROMPTS[2], policy.encode(PROMPTS[2]), Zoom(side=IMAGE_SIZE), [(answered("3"), 1, 1)]))
    total = weight = 0.0
    for made in rows:
        kinds = (made.row.ids == policy.family.image_token).int()[None]
        out = policy.inner.core(input_ids=made.row.ids[None], mm_token_type_ids=kinds, **made.row.media)
        logits = out.logits[0, made.prompt - 1 : -1].float()
        logits[:, policy.family.suppressed] = -torch.inf
        said = logits.log_softmax(-1).gather(1, made.actions[:, None])[:, 0]
        total += -(made.weights * said)[made.weights > 0].sum()
        weight += made.weights.sum()
    assert loss_of(policy, rows).item() == pytest.approx((total / weight).item(), rel=1e-4)


def test_it_falls_as_it_is_fitted(policy):
    for parameter in policy.module.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    seen: list[float] = []
    fit_calls(
        policy, PROMPTS, Zoom(side=IMAGE_SIZE), script, ["3"], steps=8, seed=0, learning_rate=2e-3,
        report=lambda step, loss: seen.append(loss),
    )  # fmt: skip
    assert len(seen) == 8 and seen[-1] < 0.8 * seen[0]
