"""The plain loop that a flow iteration is measured against: what Flow-GRPO's published training does, written down
in order. Every step but the last is trained, each sample's text is encoded in every iteration, guidance takes both
branches of every call, with gradient through both, and the reference is a second model.

Formulas: Flow-GRPO, arXiv 2505.05470. Times t run from 1 to 0, v = noise - image, and a step of length h draws
    x' = x - h v - s^2 / (2 t) (x + (1 - t) v) + s e,   s = a sqrt(h t / (1 - t)).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

STEPS, LEVEL, GUIDANCE, CLIP, KL = 10, 0.7, 4.5, 1e-4, 0.04
"""As in the recipe `flow_grpo`."""


class PlainLoop:
    """pipeline: a `StableDiffusion3Pipeline` whose transformer has adapters already."""

    def __init__(self, pipeline: Any, learning_rate: float, text_tokens: int, steps: int = STEPS):
        self.pipeline, self.model, self.text_tokens = pipeline, pipeline.transformer, text_tokens
        self.steps = steps
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate, weight_decay=1e-4)
        self.times = torch.linspace(1, 0, steps + 1)

    def iterate(self, captions: Sequence[str], members: int, score: Callable[[list[Any]], Tensor]) -> float:
        """One rollout batch and one optimizer step; the mean reward."""
        texts = [caption for caption in captions for _ in range(members)]
        conditions = self.encode(texts)
        latents, old = self.roll_out(conditions)
        reward = score(self.images(latents[-1]))
        grouped = reward.view(len(captions), members)
        advantage = (grouped - grouped.mean(1, keepdim=True)) / (reward.std(correction=0) + 1e-4)
        advantage = advantage.flatten().clamp(-5, 5)
        for i in range(self.steps - 1):
            self.loss(i, latents, conditions, old[i], advantage).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(reward.mean())

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[Tensor, ...]:
        """Unconditional embeddings, then those of the texts, stacked for one call of the transformer."""
        embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            texts, None, None, negative_prompt=[""] * len(texts), max_sequence_length=self.text_tokens
        )
        return torch.cat([negative, embeds]), torch.cat([negative_pooled, pooled])

    def call(self, model: Any, x: Tensor, t: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        return model(x, *conditions, (1000 * t).expand(len(x)), return_dict=False)[0]

    def velocity(self, model: Any, x: Tensor, t: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        without, with_text = self.call(model, torch.cat([x, x]), t, conditions).chunk(2)
        return without + GUIDANCE * (with_text - without)

    def state_shape(self) -> tuple[int, ...]:
        config = self.model.config
        return config.in_channels, config.sample_size, config.sample_size

    def transition(self, i: int, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return transition(self.times, i, x, v)

    @torch.no_grad()
    def roll_out(self, conditions: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        x = torch.randn(len(conditions[0]) // 2, *self.state_shape())
        latents, log_probs = [x], []
        for i in range(self.steps - 1):
            mean, std = self.transition(i, x, self.velocity(self.model, x, self.times[i], conditions))
            x = mean + std * torch.randn_like(x)
            latents.append(x)
            log_probs.append(log_prob(x, mean, std))
        v = self.velocity(self.model, x, self.times[-2], conditions)
        return [*latents, x - self.times[-2] * v], log_probs

    def loss(
        self, i: int, latents: list[Tensor], conditions: tuple[Tensor, ...], old: Tensor, advantage: Tensor
    ) -> Tensor:
        x, following = latents[i], latents[i + 1]
        mean, std = self.transition(i, x, self.velocity(self.model, x, self.times[i], conditions))
        with torch.no_grad():
            base, _ = self.transition(i, x, self.velocity(self.reference, x, self.times[i], conditions))
        ratio = torch.exp(log_prob(following, mean, std) - old)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        h = self.times[i] - self.times[i + 1]
        divergence = ((mean - base) ** 2).flatten(1).mean(1) / (2 * std**2) * h  # the published code's, without 1/h
        return (KL * divergence - gain).mean() / (self.steps - 1)

    @torch.no_grad()
    def images(self, latents: Tensor) -> list[Any]:
        vae = self.pipeline.vae
        scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = vae.decode(scaled, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")


def transition(times: Tensor, i: int, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of step i."""
    t, following = times[i], times[i + 1]
    h, at = t - following, times[1] if i == 0 else t
    std = LEVEL * (h * t / (1 - at)).sqrt()
    return x - h * v - std**2 / (2 * t) * (x + (1 - t) * v), std


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N,) mean over the latent of the Gaussian log-density."""
    elements = -((x.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return elements.flatten(1).mean(1)
