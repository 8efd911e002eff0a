"""Rows of outputs that were made before: what an update without log-probs needs of them is their clean state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.base import Policy
from mmrl.policies.generation.families.base import Generator
from mmrl.policies.generation.likelihoods.base import Drawn, settings_of
from mmrl.policies.generation.sampling import Sampled
from mmrl.policies.generation.steps import ode_plan
from mmrl.randomness import Key
from mmrl.record import Prompt, Request, Rollouts, Stored


class TakesPictures(Policy):
    """The part of a flow policy that takes outputs which nobody sampled for this step."""

    @property
    def painter(self) -> Any:
        return self

    def stored(self, prompts: Sequence[Prompt], outputs: Sequence[Stored], key: Key) -> Rollouts:
        """`outputs[i]` as an output of `prompts[i]`: the VAE's mean of it is its clean state, and draws of
        time and noise are keyed as those of sampled rows are. The transformer does not run."""
        policy: Any = self
        policy._compared(prompts[0])
        if policy.likelihood.trains != "matching":
            raise PolicyError(
                f"stored outputs have no denoising states, which policy.likelihood={policy.config.likelihood} scores; "
                "use likelihood=matching, as recipes gdro, awm and diffusion_nft do"
            )
        seen: Counter[str] = Counter()
        members = torch.zeros(len(prompts), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            members[row], seen[prompt.id] = seen[prompt.id], seen[prompt.id] + 1
        with policy.frozen.on(policy.device):
            pictures = [policy.generator.seen(o.output, p.id) for o, p in zip(outputs, prompts, strict=True)]
            size = policy.config.decode_batch
            clean = [states_of(policy.generator, torch.stack(pictures[i : i + size]).to(policy.device))
                     for i in range(0, len(pictures), size)]  # fmt: skip
        times = policy.times(policy.config.steps)
        ids, rows = [prompt.id for prompt in prompts], len(prompts)
        plan, sampled = ode_plan(rows, policy.config.steps, members), _as_sampled(torch.cat(clean), policy.config.steps)
        kept = policy.likelihood.record(Drawn(ids, members, plan, times, sampled, key))
        kept.replay["shown"] = torch.zeros(rows, dtype=torch.bool)
        kept.replay |= settings_of(policy._settings(), rows)
        requests = [Request(prompt, 1, group=0) for prompt in prompts]
        made = policy._record(requests, torch.arange(rows), members, kept, [o.output for o in outputs])
        return with_rewards(made, outputs)


def _as_sampled(final: Tensor, steps: int) -> Sampled:
    """What a sampler without noise would leave of clean states (B, ...): no state before them is known."""
    nothing = torch.zeros(len(final), steps, device=final.device)
    first = torch.full((len(final),), steps, device=final.device)
    return Sampled(final, first, final[:, None][:, :0], None, nothing, nothing)


@torch.no_grad()
def states_of(generator: Generator, pixels: Tensor) -> Tensor:
    """Clean states (N, ...) float32 of outputs as `Generator.seen` gives them, stacked."""
    states, wanted = generator.clean(pixels).float(), generator.state_shape()
    if states.shape[1:] != wanted:
        raise PolicyError(
            f"the VAE makes a state {tuple(states.shape[1:])} of a stored output, and the policy's is {tuple(wanted)}"
        )
    return states


def with_rewards(rollouts: Rollouts, outputs: Sequence[Stored]) -> Rollouts:
    """What the outputs were given when they were stored, NaN where nothing is known: those are scored like others."""
    device = rollouts.mask.device
    nan = float("nan")
    rollouts.reward = torch.tensor([nan if o.reward is None else o.reward for o in outputs], device=device)
    names = sorted({name for o in outputs for name in o.components})
    rollouts.components = {n: torch.tensor([o.components.get(n, nan) for o in outputs], device=device) for n in names}
    return rollouts
