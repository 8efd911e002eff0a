"""One variant of one family, through the flow policy, against its own pipeline: every number that must be small."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Sound
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.check import Watched, velocity_gap, watch
from mmrl.policies.generation.families.swap import Swapped
from mmrl.policies.generation.pipeline import trained_modules
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.policies.generation.sampling import finish
from mmrl.randomness import Key
from mmrl.record import Prompt, Request, Rollouts
from tests.policies.generation.families.cases import PROMPTS, Case

KEY = Key(3, 1)
EXACT = 1e-5
"""Largest relative difference of anything computed twice in float32."""


@dataclass
class Measured:
    """What was found of a variant. Relative differences, but for `pixels`.

    final       final latents, from the pipeline's
    pixels      decoded output, of the full range
    mixed       two prompts at two times in one forward, from each alone
    replayed    velocity of the pipeline's replayed call; None where it cannot be replayed
    log_probs   rollout and training before the first update, absolute
    gained      whether one step of GRPO moved the log-probs the way of the advantages
    reloaded    velocity of a fresh pipeline with the saved adapter, from the policy's
    moved       velocity with the adapter, from that without it
    seconds     a step of one row, guidance included
    """

    family: str
    path: str
    schedule: bool
    final: float
    pixels: float
    mixed: float
    replayed: float | None
    log_probs: float
    gained: bool
    reloaded: float
    moved: float
    seconds: float

    def faults(self) -> list[str]:
        """What is not as it must be."""
        small = {"final": EXACT, "mixed": EXACT, "log_probs": EXACT, "reloaded": EXACT, "pixels": 1.01 / 255}
        found = [f"{name} {getattr(self, name):.1e}" for name, most in small.items() if not getattr(self, name) < most]
        found += [name for name in ("schedule", "gained") if not getattr(self, name)]
        found += [f"path {self.path}"] if self.path != "family" else []
        found += [f"replayed {self.replayed:.1e}"] if self.replayed is not None and not self.replayed < EXACT else []
        return found + ([f"moved {self.moved:.1e}"] if not self.moved > 10 * EXACT else [])


def prompts_of(case: Case) -> list[Prompt]:
    parts: list[dict[str, Any]] = [{"type": "image", "role": "condition"} for _ in case.media]
    return [
        Prompt(f"p{i}", [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}], list(case.media))
        for i, text in enumerate(PROMPTS)
    ]


def policy_of(case: Case, **options: Any) -> FlowPolicy:
    asked = case.asked
    config = FlowPolicyConfig(
        model="tiny", height=asked.height, width=asked.width, frames=asked.frames, guidance_scale=asked.guidance,
        guidance_scale_2=asked.guidance_2, embedded_guidance=asked.embedded, negative_prompt=asked.negative,
        pipeline_options=dict(asked.options),
        **({"lora": {"rank": 4, "alpha": 8}, "steps": case.steps, "eval_steps": case.steps} | options),
    )  # fmt: skip
    return FlowPolicy(case.pipeline(), config)


def measure(case: Case) -> Measured:
    policy, prompts = policy_of(case), prompts_of(case)
    shown = prompts[:1] if case.slow else prompts
    rollouts = policy.rollout([Request(p, 2, group=i) for i, p in enumerate(shown)], KEY)
    seen = watch(policy.generator, PROMPTS[0], case.media, steps=case.steps, output="np" if _sounds(case) else "pil")
    start = time.perf_counter()
    final, expected, outputs = _finished(policy, prompts[0], seen)
    seconds = (time.perf_counter() - start) / case.steps
    assert policy.verdict is not None
    facts = {"family": type(policy.generator).__name__, "path": policy.verdict.path, "seconds": seconds}
    facts |= {"final": _relative(final, expected), "pixels": _pixel_gap(outputs[0], seen.result)}
    facts |= {"schedule": torch.equal(policy.times(policy.config.steps), seen.times), "mixed": _mixed(policy, prompts)}
    facts["replayed"] = _replayed(policy, case, seen)
    with torch.no_grad():
        scored = policy.evaluate(rollouts).log_probs
    facts["log_probs"] = (scored - rollouts.old_log_probs).abs().max().item()
    facts["gained"] = _trained(policy, rollouts)
    facts["reloaded"], facts["moved"] = _reloaded(policy, case, seen)
    return Measured(**facts)


def _sounds(case: Case) -> bool:
    return case.asked.height is None


def _finished(policy: FlowPolicy, prompt: Prompt, seen: Watched) -> tuple[Tensor, Tensor, list[Any]]:
    """Final latents by the policy and by the pipeline, and the policy's output."""
    generator, times = policy.generator, policy.times(policy.config.steps)
    conditioned = policy._conditioned([policy.encode(prompt)], torch.zeros(1, dtype=torch.long))
    state = generator.moving(seen.states[0])
    final = finish(state, torch.zeros(1, dtype=torch.long), conditioned, policy.inner.velocity, times)
    last, answer = (generator.moving(each[-1]) for each in (seen.states, seen.velocities))
    return final, last + (times[-1] - times[-2]) * answer, policy.frozen.decode(final, conditioned)


def _mixed(policy: FlowPolicy, prompts: list[Prompt]) -> float:
    """Times of one expert, so that the two rows do share a forward where their texts can."""
    generator, times = policy.generator, policy.times(policy.config.steps)
    clocks = generator.clock(times[:-1]).tolist()
    second = 1 if generator.expert(clocks[0]) == generator.expert(clocks[1]) else 0
    x, t = torch.randn(2, *policy.shape, generator=torch.Generator().manual_seed(5)), times[[0, second]]
    given = policy.frozen.encode(prompts, policy.device)
    with torch.no_grad():
        both = policy.inner.velocity(x, t, policy._conditioned(given, torch.arange(2)))
        alone = [
            policy.inner.velocity(x[i : i + 1], t[i : i + 1], policy._conditioned(given, torch.tensor([i])))
            for i in range(2)
        ]
    return _relative(both, torch.cat(alone))


def _replayed(policy: FlowPolicy, case: Case, seen: Watched) -> float | None:
    swapped = Swapped(policy.pipeline, policy.generator.asked, like=policy.generator)
    try:
        return velocity_gap(swapped, seen, PROMPTS[0], case.media, trained_modules(policy.generator))
    except PolicyError:
        return None


def _trained(policy: FlowPolicy, rollouts: Rollouts) -> bool:
    advantage = torch.tensor([1.0, -1.0]).repeat(len(rollouts) // 2)[:, None]
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(2):  # adapters begin at 0: the first step moves one half of each pair only
        ratio = (policy.evaluate(rollouts).log_probs - rollouts.old_log_probs).exp()
        (-(advantage * ratio)[rollouts.mask].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        change = policy.evaluate(rollouts).log_probs - rollouts.old_log_probs
    return bool((advantage * change)[rollouts.mask].mean() > 0)


def _reloaded(policy: FlowPolicy, case: Case, seen: Watched) -> tuple[float, float]:
    """The saved adapter in a fresh pipeline, loaded by diffusers where it can, else by PEFT."""
    fresh = case.pipeline()
    generator = generator_of(fresh, policy.generator.asked)
    x, t = generator.moving(seen.states[0]), policy.times(policy.config.steps)[:1]
    conditioned = policy._conditioned([policy.encode(prompts_of(case)[0])], torch.zeros(1, dtype=torch.long))
    generator.read_times(_set(fresh, policy))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        trained = policy.inner.velocity(x, t, conditioned)
        base = generator.velocity(trained_modules(generator), x, t, *conditioned.listed())
        policy.save_pretrained(folder)
        _load(fresh, generator.modules, folder)
        again = generator.velocity(trained_modules(generator), x, t, *conditioned.listed())
    return _relative(again, trained), _relative(base, trained)


def _set(fresh: Any, policy: FlowPolicy) -> Any:
    """A scheduler on the policy's times, for pipelines whose timesteps are a table."""
    scheduler = fresh.scheduler
    scheduler.sigmas = policy.times(policy.config.steps)
    scheduler.timesteps = policy.generator.clock(policy.times(policy.config.steps)[:-1])
    return scheduler


def _load(pipeline: Any, names: tuple[str, ...], folder: str) -> None:
    import peft

    for name in names:
        if getattr(pipeline, name, None) is None:
            continue
        place = folder if name == "transformer" else f"{folder}/{name}"
        if hasattr(pipeline, "load_lora_weights"):
            second = {} if name == "transformer" else {"load_into_transformer_2": True}
            pipeline.load_lora_weights(place, adapter_name=f"ours_{name}", **second)
        else:
            pipeline.__dict__[name] = peft.PeftModel.from_pretrained(getattr(pipeline, name), place)


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _pixel_gap(ours: Any, result: Any) -> float:
    """Largest difference of two outputs in units of their range."""
    if isinstance(ours, Sound):
        return float(np.abs(ours.samples - result.audios[0]).max()) / 2
    theirs = result.images[0] if hasattr(result, "images") else result.frames[0]
    frames = [o if isinstance(o, list) else [o] for o in (ours, theirs)]
    a, b = (np.stack([np.asarray(frame, dtype=np.float32) for frame in some]) for some in frames)
    return float(np.abs(a - b).max()) / 255
