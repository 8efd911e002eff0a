"""The engine that thinks in mixtures of tokens: a row reads a mean of embeddings next, drawn by Gumbel noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective.soft_tokens import soft_token_log_prob, soft_token_mix
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, refuse_prefixes
from mmrl.policies.language.engines.local import Local
from mmrl.policies.language.likelihoods.soft_tokens import GUMBELS, IDS, SOFT, WEIGHTS, mixed
from mmrl.policies.language.sampling import Decoded, RepeatedCache, choose
from mmrl.settings import Section

LIKELIHOOD = "soft_tokens"


class SoftOptions(Section):
    """What stands beside `name: soft`.

    top          tokens of a mixture, the likeliest
    temperature  of the softmax over perturbed log-probs that weighs them; a small one is nearly a token
    until        the text of one token, such as "</think>": once it is the heaviest of a mixture, the rest of the row is
                 written in tokens; null: nothing ends thinking
    steps        mixtures of a row, at most; null: as many as it has room for
    """

    top: int = Field(5, ge=2)
    temperature: float = Field(0.1, gt=0)
    until: str | None = None
    steps: int | None = Field(None, ge=1)


class Soft(Local):
    """Decodes with the module that trains, each row from a copy of its prompt's cache.

    As in SofT-GRPO a mixture is softmax(g / temperature) over the `top` likeliest tokens, g their renormalised
    log-probs plus Gumbel noise, drawn by the row's own key; its heaviest token stands for it in the text, and ends the
    row where it is an end token. Greedy rows take no noise. Needs `policy.likelihood: soft_tokens`.
    """

    capabilities: ClassVar = EngineCapabilities(
        exact_log_probs=True, media=frozenset({"image", "video"}), lora=True, own_weights=False
    )
    Options: ClassVar = SoftOptions

    @staticmethod
    def refuse(config: LanguagePolicyConfig, options: SoftOptions) -> None:
        if config.likelihood != LIKELIHOOD:
            raise ConfigError(
                f"policy.engine=soft writes mixtures, which policy.likelihood={config.likelihood!r} cannot score; "
                f"expected {LIKELIHOOD}"
            )

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """See `Engine.write`; `Decoded.kept` has what each mixture was made of."""
        refuse_prefixes("soft", contexts)
        distinct = list(dict.fromkeys(contexts))
        place, parts = torch.tensor([distinct.index(context) for context in contexts]), []
        for rows in self._together(place):
            asked, context = torch.unique(place[rows], return_inverse=True)
            drawn = None if draws is None else [draws[row] for row in rows.tolist()]
            parts.append(self._decode([distinct[i] for i in asked.tolist()], context, drawn, budgets[rows]))
        return Decoded.join(parts)

    @torch.no_grad()
    def _decode(
        self, contexts: Sequence[Context], context: Tensor, draws: Sequence[Draw] | None, budget: Tensor
    ) -> Decoded:
        model, options = self.setting.model(), self.setting.options
        if not model.repeats_prefixes:
            raise PolicyError("engine soft goes on from the prompt's cache, which this model's decoding does not give")
        device, steps = next(model.parameters()).device, int(budget.max())
        state, budget = RepeatedCache(model, [c.encoded for c in contexts], context.to(device)), budget.to(device)
        noise, uniforms = _noise(draws, steps, options.top, device)
        made, ends = _nothing(len(context), steps, options.top, device), self._ends().to(device)
        thinking, every = torch.ones_like(made.stopped), torch.arange(len(context), device=device)
        for step in range(steps):
            mixture = _Mixture.of(state.logits, None if noise is None else noise[:, step], options)
            token = choose(state.logits, None if uniforms is None else uniforms[:, step])
            token = torch.where(thinking, mixture.heaviest, token)
            hard = torch.log_softmax(state.logits, -1).gather(-1, token[:, None]).squeeze(-1)
            writing = ~made.stopped & (made.length < budget)
            made.tokens[:, step] = token * writing
            made.log_probs[:, step] = torch.where(thinking, mixture.density, hard) * writing
            mixture.keep(made.kept, step, thinking & writing)
            made.length += writing
            made.stopped |= writing & self.setting.stopping(made.tokens[:, : step + 1], every)
            if bool((made.stopped | (made.length >= budget)).all()):
                break
            embedding = model.core.get_input_embeddings()
            with mixed(embedding, mixture.ids[:, None], mixture.weights[:, None], thinking[:, None]):
                state.advance(token)
            thinking = thinking & ~torch.isin(token, ends) & (step + 1 < (options.steps or steps))
        return made

    def _ends(self) -> Tensor:
        """The token that ends thinking, if there is one."""
        until = self.setting.options.until
        ids = [] if until is None else self.setting.processor.tokenizer(until, add_special_tokens=False)["input_ids"]
        if until is not None and len(ids) != 1:
            raise PolicyError(f"policy.engine.until={until!r}: expected the text of one token, got {len(ids)} of them")
        return torch.tensor(ids, dtype=torch.long)


@dataclass
class _Mixture:
    """What each row reads next: ids, gumbels, weights (b, K); heaviest (b,) token and density (b,)."""

    ids: Tensor
    gumbels: Tensor
    weights: Tensor
    density: Tensor

    @classmethod
    def of(cls, logits: Tensor, noise: Tensor | None, options: SoftOptions) -> _Mixture:
        """logits (b, V); noise (b, K) uniform, or None for no noise."""
        log_probs, ids = torch.log_softmax(logits, -1).topk(options.top)
        log_probs = torch.log_softmax(log_probs, -1)
        if noise is None:
            gumbels, weights = log_probs, torch.softmax(log_probs / options.temperature, -1)
        else:
            gumbels, weights = soft_token_mix(log_probs, noise, options.temperature)
        return cls(ids, gumbels, weights, soft_token_log_prob(log_probs, gumbels))

    @property
    def heaviest(self) -> Tensor:
        return self.ids.gather(-1, self.weights.argmax(-1, keepdim=True)).squeeze(-1)

    def keep(self, kept: dict[str, Tensor], step: int, soft: Tensor) -> None:
        """Write it into `kept (B, N, K)` where `soft (B,)`."""
        kept[SOFT][:, step] = soft.float()
        for name, values in ((IDS, self.ids), (GUMBELS, self.gumbels), (WEIGHTS, self.weights)):
            kept[name][:, step] = values * soft[:, None]


def _nothing(count: int, steps: int, top: int, device: torch.device) -> Decoded:
    """Rows of which nothing is written yet."""

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(count, *shape, dtype=dtype, device=device)

    kept = {SOFT: zeros(steps), IDS: zeros(steps, top, dtype=torch.long)}
    kept |= {GUMBELS: zeros(steps, top), WEIGHTS: zeros(steps, top)}
    length, stopped = zeros(dtype=torch.long), zeros(dtype=torch.bool)
    return Decoded(zeros(steps, dtype=torch.long), zeros(steps), length, stopped, kept)


def _noise(
    draws: Sequence[Draw] | None, steps: int, top: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(B, steps, top) and (B, steps) uniform numbers of each row's own key: for mixtures, and for tokens."""
    if draws is None:
        return None, None
    mixtures = [d.key.at(purpose=f"{d.key.purpose}/mixture").uniform(d.length, top)[:steps].float() for d in draws]
    return torch.stack(mixtures).to(device), torch.stack([d.uniforms()[:steps] for d in draws]).to(device)
