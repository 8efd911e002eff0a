"""The comparison with the pipeline's own call: seven faults it must see, and what happens when it sees one."""

from __future__ import annotations

import math
from unittest.mock import patch

import diffusers
import pytest
import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.families.check import checked, velocity_gap, watch
from mmrl.policies.generation.families.lumina2 import Lumina2
from mmrl.policies.generation.families.qwen_image import QwenImage
from mmrl.policies.generation.families.sd3 import StableDiffusion3
from mmrl.policies.generation.families.swap import Swapped
from mmrl.policies.generation.families.tokens import Tokens
from mmrl.policies.generation.families.wan import Wan, WanFirstFrame
from mmrl.policies.generation.families.z_image import ZImage
from mmrl.policies.generation.pipeline import trained_modules
from mmrl.policies.generation.sde import schedule, stochastic_steps
from mmrl.randomness import Key
from mmrl.record import Request
from tests.policies.generation.families import recipes
from tests.policies.generation.families.cases import BY_NAME, PROMPTS, Case
from tests.policies.generation.families.measure import policy_of, prompts_of

KEY = Key(3, 1)
MUTATIONS = {
    "Qwen-Image without the rescaled norm": ("Qwen-Image", QwenImage, "guide", Generator.guide),
    "FLUX.1 with 1000 t": ("FLUX.1-dev", Tokens, "time", lambda self, clock, x, own: clock),
    "Z-Image with the usual guidance": ("Z-Image", ZImage, "guide", Generator.guide),
    "Wan 2.2 with one expert": ("Wan 2.2 A14B text", Wan, "expert", lambda self, clock: "transformer"),
    "Lumina2's negative under the system prompt": ("Lumina2", Lumina2, "arguments", Generator.arguments),
    "Wan 5B with one time for all tokens": (
        "Wan 2.2 TI2V-5B image", WanFirstFrame, "clocked", lambda self, x: x.new_ones(x.shape[2] + 1)
    ),
    "SD3 on the linear schedule": (
        "SD3", StableDiffusion3, "read_times", lambda self, scheduler: schedule(len(scheduler.timesteps), 3.0)
    ),
}  # fmt: skip


def gap(case: Case, generator: Generator) -> float:
    """Infinite where times or states are others."""
    seen = watch(generator, PROMPTS[0], case.media)
    try:
        return velocity_gap(generator, seen, PROMPTS[0], case.media, trained_modules(generator))
    except PolicyError:
        return math.inf


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_seen(name):
    variant, kind, method, fault = MUTATIONS[name]
    case = BY_NAME[variant]
    generator = generator_of(case.pipeline(), case.asked)
    assert gap(case, generator) < 1e-5
    with patch.object(kind, method, fault, create=True):
        assert gap(case, generator) > 1e-3


def test_a_family_that_is_off_is_replaced_by_the_replayed_call_and_that_is_said():
    policy = policy_of(BY_NAME["Z-Image"])
    with patch.object(ZImage, "guide", Generator.guide), pytest.warns(UserWarning, match="its own call replayed"):
        rollouts = policy.rollout([Request(prompts_of(BY_NAME["Z-Image"])[0], 2, group=0)], KEY)
    assert policy.verdict is not None
    assert (policy.verdict.path, type(policy.generator)) == ("swap", Swapped)
    assert "off the pipeline's velocity" in policy.verdict.note
    assert policy.found["generator"]["gap"] < 1e-5
    with torch.no_grad():
        assert (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs).abs().max() < 1e-5


def test_what_cannot_be_replayed_either_is_refused_with_the_numbers():
    case = BY_NAME["LTX-Video image"]  # its call takes the first frame out of what it prepared
    generator = generator_of(case.pipeline(), case.asked)
    negative = lambda self, given, negative, scale: negative  # noqa: E731
    with (
        patch.object(type(generator), "guide", negative, create=True),
        pytest.raises(PolicyError, match=r"LTXImage is .* off the pipeline's velocity; its replayed call"),
    ):
        checked(generator, PROMPTS[0], case.media, trained_modules(generator))


class TestOtherSamplers:
    """Published Wan and SANA name schedulers that are not Euler: their times are kept, and it is said."""

    def test_wan_with_unipc(self):
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        self.check(scheduler, lambda: recipes.wan(scheduler=scheduler), "Wan 2.1 text")

    def test_sana_with_dpm_solver_begins_below_one(self):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
        )
        times = self.check(scheduler, lambda: recipes.sana(scheduler), "SANA")
        assert 0.999 < times[0] < 1
        assert stochastic_steps("flow_sde", times, 0.7)[0]  # and its noise is that of a first step, not of t -> 1

    def check(self, scheduler, make, name) -> Tensor:
        case = BY_NAME[name]
        policy = policy_of(Case(name, make, case.asked, case.guidance))
        with pytest.warns(UserWarning, match=f"Euler steps on the times of {type(scheduler).__name__}"):
            rollouts = policy.rollout([Request(prompts_of(case)[0], 2, group=0)], KEY)
        assert policy.verdict is not None and policy.verdict.path == "family"
        with torch.no_grad():
            assert (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs).abs().max() < 1e-5
        return policy.times(policy.config.steps)


def test_a_pipeline_that_is_not_flow_matching_is_refused():
    pipeline = recipes.sd3()
    pipeline.scheduler = diffusers.EulerDiscreteScheduler()
    case = BY_NAME["SD3"]
    with pytest.raises(PolicyError, match="flow-matching pipeline"):
        generator_of(pipeline, case.asked).schedule(4)


def test_sd3_takes_its_own_schedule():
    """The sigmas of diffusers' default, not those that a list of sigmas would give."""
    case = BY_NAME["SD3"]
    times = generator_of(case.pipeline(), case.asked).schedule(10)
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.278, 0.0089, 0]
    torch.testing.assert_close(times, torch.tensor(expected), atol=5e-5, rtol=0)
    trained = stochastic_steps("flow_sde", times, 0.7)
    assert trained.tolist() == [True] * 8 + [False] * 2  # noise of the last but one would outrun its end 25 times


def test_checkpointing_is_refused_where_it_changes_the_numbers():
    with pytest.raises(ConfigError, match=r"ChromaPipeline.*attention mask"):
        policy_of(BY_NAME["Chroma"], gradient_checkpointing=True)
