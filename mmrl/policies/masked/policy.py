"""A masked diffusion language model as a policy: it fills a canvas of masks, and is scored by a surrogate likelihood.

Any bidirectional model of `AutoModelForMaskedLM` with a mask token acts: all completion positions start hidden; block
by block the most confident tokens are fixed. There is no exact likelihood (unless blocks hold one token), so a
surrogate of `mmrl.policies.masked.likelihoods` says which masked inputs are scored; its masks are drawn from a key
that stays with the rollout, so new, old and reference log-probs see the same ones.

Text only. `mmrl train masked demo` trains the tiny one that ships.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies import adapters, registry
from mmrl.policies.base import Policy
from mmrl.policies.fixed_length import asked, inverse_cdf, left_padded
from mmrl.policies.masked.likelihoods import Hidden, Masked, likelihood_class
from mmrl.policies.masked.schedule import ScheduleConfig
from mmrl.randomness import Key
from mmrl.record import FINISHED, TRUNCATED, Evaluation, Prompt, Request, Rollouts
from mmrl.settings import Section
from mmrl.stages import Need, View


class MaskedDiffusionConfig(Section):
    """How a masked diffusion language model acts, and how its completions are scored.

    model            path or name for `AutoModelForMaskedLM`
    max_new_tokens   the canvas: every completion is written into this many masks
    block            tokens of a block; blocks are filled from left to right, tokens inside by confidence. 1 is
                     left-to-right generation, for which surrogate "left_to_right" is exact
    tokens_per_step  tokens fixed in one forward pass: more is faster and less coherent
    temperature      of sampling and of scoring
    likelihood       what is scored of a completion: "masked", or one of your own, `my.py:Mine`
    surrogate        "one_step", "coupled", "random_share", "quadrature", "monte_carlo", "left_to_right"
    points           quadrature nodes; 2 or 3
    samples          Monte-Carlo draws
    reference        keep a frozen copy of the starting weights for KL terms (adapters need none)
    lora             low-rank adapters instead of full fine-tuning
    schedule         a second policy, trained too, that chooses tokens and temperature of each step (Co-GRPO;
                     `mmrl.policies.masked.scheduled`); `tokens_per_step` and `surrogate` are not read then. null: none
    """

    model: str = ""
    max_new_tokens: int = Field(64, ge=1)
    block: int = Field(32, ge=1)
    tokens_per_step: int = Field(1, ge=1)
    temperature: float = Field(1.0, gt=0)
    likelihood: str = "masked"
    surrogate: str = "coupled"
    points: int = Field(3, ge=1)
    samples: int = Field(16, ge=1)
    reference: bool = False
    lora: adapters.LoraConfig | None = None
    schedule: ScheduleConfig | None = None


class ScoredMaskedModel(nn.Module):
    """The module that is trained: all masked inputs of a surrogate inside one forward, `(B, T)` numbers out."""

    def __init__(self, model: Any, mask_token: int, likelihood: Masked, temperature: float):
        super().__init__()
        self.model, self.mask_token, self.likelihood, self.temperature = model, mask_token, likelihood, temperature
        core = model.get_base_model() if adapters.is_adapted(model) else model
        self.takes_positions = "position_ids" in inspect.signature(core.forward).parameters

    def logits(self, prompt: Tensor, prompt_mask: Tensor, canvas: Tensor) -> Tensor:
        """(B, T, V) logits of the canvas positions; the mask token itself can never be written."""
        seen = torch.cat([prompt_mask, torch.ones_like(canvas)], dim=1)
        extra = {"position_ids": (seen.cumsum(1) - 1).clamp(min=0)} if self.takes_positions else {}
        output = self.model(input_ids=torch.cat([prompt, canvas], dim=1), attention_mask=seen, **extra)
        logits = output.logits[:, prompt.shape[1] :].float() / self.temperature
        banned = torch.arange(logits.shape[-1], device=logits.device) == self.mask_token
        return logits.masked_fill(banned, -torch.inf)

    def forward(
        self, prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor, noise: Tensor, prompt_noise: Tensor
    ) -> dict[str, Tensor]:
        """Surrogate log-probs and which actions they stand for.

        prompt, prompt_mask  (B, P) left-padded ids; tokens, mask (B, T); noise (B, K, T); prompt_noise (B, P)
        """

        def score(visible: Tensor, prompt_share: float) -> Tensor:
            hidden_prompt = (prompt_noise < prompt_share) & prompt_mask.bool()
            shown = torch.where(hidden_prompt, self.mask_token, prompt)
            logits = self.logits(shown, prompt_mask, torch.where(visible, tokens, self.mask_token))
            return -cross_entropy(logits.transpose(1, 2), tokens, reduction="none")

        return self.likelihood.score(Hidden(mask, noise), score)


class MaskedDiffusionPolicy(Policy):
    """The adapter between a masked diffusion language model and the optimizer."""

    modality: ClassVar[str] = "masked"
    config_type = MaskedDiffusionConfig
    likelihood: Masked
    probes = Masked.offers()
    columns = frozenset({"scored"})

    def __init__(self, model: Any, tokenizer: Any, config: MaskedDiffusionConfig, *, seed: int = 0):
        """model, tokenizer of `transformers`; the tokenizer needs a mask token and an end token."""
        ends = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if tokenizer.mask_token_id is None or ends is None:
            raise ConfigError("a masked diffusion policy needs a tokenizer with a mask token and an end token")
        self.config, self.tokenizer, self.end = config, tokenizer, ends
        self.likelihood = likelihood_class(config.likelihood)(config)
        self._reference = adapters.frozen_copy(model) if config.reference and config.lora is None else None
        model = adapters.attach_lora(model, config.lora, seed=seed) if config.lora else model
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # noise in the update that the rollout did not have
        self.module = ScoredMaskedModel(model, tokenizer.mask_token_id, self.likelihood, config.temperature)

    @classmethod
    def from_config(cls, config: Any, *, seed: int = 0, read_clip: Any = None) -> MaskedDiffusionPolicy:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        acts = cls if config.schedule is None else registry.named(registry.SCHEDULED)
        try:
            model = AutoModelForMaskedLM.from_pretrained(config.model, dtype=torch.float32)
            return acts(model, AutoTokenizer.from_pretrained(config.model), config, seed=seed)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model: cannot load {config.model!r}: {str(error).splitlines()[0]}") from None

    @classmethod
    def columns_of(cls, config: Any) -> dict[str, str]:
        kind = {} if config.schedule is None else {"kind": f"the {cls.modality} policy, whose schedule acts too"}
        return super().columns_of(config) | kind

    @classmethod
    def check_objective(cls, objective: Any, settings: Any = None) -> None:
        if settings is not None and settings.schedule is not None and not objective.kinds:
            raise ConfigError(
                "policy.schedule: rows have choices of the schedule and tokens, and one mean over both weighs neither "
                "as it should; give each its own, objective.kinds={schedule: {}, masked: {}}, as recipe co_grpo does"
            )

    # ---- prompts

    def encode(self, prompt: Prompt) -> Tensor:
        """(P,) ids of the prompt as the model reads it."""
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
            return torch.tensor(self.tokenizer(text, add_special_tokens=False).input_ids)
        return torch.tensor(self.tokenizer(prompt.text).input_ids)

    def _padded(self, encoded: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, P) left-padded ids and mask."""
        return left_padded(encoded, self.end, self.device)

    # ---- acting

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Fill `count` canvases per request; every draw is keyed by prompt id and member."""
        self._only_current(weights)
        prompts, index, members = asked(requests, "masked diffusion policies fill a whole canvas")
        keys = [key.at(prompt=r.prompt.id, member=m) for r, m in members]
        with self.acting():
            shown, shown_mask = self._padded([self.encode(r.shown or r.prompt) for r, _ in members])
            uniform = torch.stack([k.at(purpose="token").uniform(self.config.max_new_tokens) for k in keys]).to(
                self.device
            )
            tokens = self._fill(shown, shown_mask, None if greedy else uniform)
            numbers = {
                "prompt": [index[r.prompt.id] for r, _ in members],
                "group": [r.group for r, _ in members],
                "member": [m for _, m in members],
                "seed": [k.at(purpose="surrogate").number for k in keys],
                "shown": [int(r.shown is not None) for r, _ in members],
            }
            rows = {name: torch.tensor(values, device=self.device) for name, values in numbers.items()}
            rollouts = self._written(prompts, tokens, rows)
            scored = self._score(self.module, rollouts)
        rollouts.old_log_probs = scored["log_probs"].float()
        rollouts.columns["scored"] = scored["scored"].float()
        return rollouts

    def _fill(self, prompt: Tensor, prompt_mask: Tensor, uniform: Tensor | None) -> Tensor:
        """(B, T) tokens. In each block the most confident positions are fixed first."""
        canvas = torch.full((len(prompt), self.config.max_new_tokens), self.inner.mask_token, device=prompt.device)
        hidden = torch.ones_like(canvas, dtype=torch.bool)
        place = torch.arange(self.config.max_new_tokens, device=prompt.device)
        for start in range(0, self.config.max_new_tokens, self.config.block):
            block = (place >= start) & (place < start + self.config.block)
            while (hidden & block).any():
                probabilities = self.inner.logits(prompt, prompt_mask, canvas).softmax(-1)
                drawn = probabilities.argmax(-1) if uniform is None else inverse_cdf(probabilities, uniform)
                confidence = probabilities.gather(-1, drawn[..., None])[..., 0].masked_fill(~(hidden & block), -1.0)
                count = min(self.config.tokens_per_step, int((hidden & block).sum(1).max()))
                fixed = (
                    torch.zeros_like(hidden).scatter(1, confidence.topk(count, dim=1).indices, True) & hidden & block
                )
                canvas, hidden = torch.where(fixed, drawn, canvas), hidden & ~fixed
        return canvas

    def _written(self, prompts: list[Prompt], tokens: Tensor, rows: dict[str, Tensor]) -> Rollouts:
        """The record of these canvases, not yet scored. With Monte-Carlo draws the action axis is the draws."""
        ended = tokens == self.end
        mask = (ended.cumsum(1) - ended.long()) == 0
        pairs = zip(tokens.tolist(), mask.tolist(), strict=True)
        written = [[t for t, m in zip(row, keep, strict=True) if m] for row, keep in pairs]
        sampled = self.likelihood.over_draws
        draws = torch.arange(self.config.samples, device=tokens.device).expand(len(tokens), -1)
        actions = draws if sampled else tokens
        return Rollouts(
            prompts,
            [self.encode(p) for p in prompts],
            rows["prompt"],
            rows["group"],
            rows["member"],
            actions=actions,
            mask=torch.ones_like(actions, dtype=torch.bool) if sampled else mask,
            old_log_probs=torch.zeros(actions.shape, device=tokens.device),
            outputs=[self.tokenizer.decode(ids, skip_special_tokens=True) for ids in written],
            length=mask.sum(1),
            finish=[FINISHED if e else TRUNCATED for e in ended.any(1).tolist()],
            replay={"tokens": tokens, "written": mask, "seed": rows["seed"], "shown": rows["shown"].bool()},
        )

    # ---- scoring

    def _score(self, module: nn.Module, rollouts: Rollouts) -> dict[str, Tensor]:
        prompt, prompt_mask = self._padded([rollouts.encoded[i] for i in rollouts.prompt.tolist()])
        draws, prompt_draws = [], []
        for row, seed in enumerate(rollouts.replay["seed"].tolist()):
            generator = torch.Generator().manual_seed(seed)
            draws.append(torch.rand(self.likelihood.draws, self.config.max_new_tokens, generator=generator))
            own = torch.rand(int(prompt_mask[row].sum()), generator=generator)
            prompt_draws.append(torch.cat([torch.ones(prompt.shape[1] - len(own)), own]))
        noise, prompt_noise = torch.stack(draws).to(self.device), torch.stack(prompt_draws).to(self.device)
        return module(prompt, prompt_mask, rollouts.replay["tokens"], rollouts.replay["written"], noise, prompt_noise)

    def evaluate(
        self, rollouts: Rollouts, needs: Sequence[Need] = (), *, under: View | None = None, weights: str = "current"
    ) -> Evaluation:
        """The same surrogate on the same masks; `weights` "reference" is the adapter off, or the frozen copy."""
        if under is not None:
            raise PolicyError(f"masked diffusion policies have no view {under.kind!r}")
        if weights == "current":
            return Evaluation(self._score(self.module, rollouts)["log_probs"].float())
        with torch.no_grad():
            if weights == "old":
                return Evaluation(self._score(self.module, rollouts)["log_probs"].float())
            if weights != "reference":
                raise PolicyError(f"masked diffusion policies keep no {weights!r} weights")
            adapted = adapters.is_adapted(self.inner.model)
            if not adapted and self._reference is None:
                raise PolicyError("the reference weights were not kept: set policy.reference to true, or use lora")
            module: nn.Module = self.inner
            if not adapted:
                module = ScoredMaskedModel(
                    self._reference, self.inner.mask_token, self.likelihood, self.config.temperature
                )
            with adapters.reference_adapter(self.inner.model) if adapted else nullcontext():
                return Evaluation(self._score(module, rollouts)["log_probs"].float())

    def micro_batches(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        """Neighbours have prompts of like length."""
        lengths = torch.tensor([len(rollouts.encoded[i]) for i in rollouts.prompt.tolist()])
        return list(rows[lengths[rows].argsort(stable=True)].split(size))

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        if self.likelihood.over_draws:
            return super().action_labels(rollouts)
        return [[self.tokenizer.decode([t]) for t in row] for row in rollouts.replay["tokens"].tolist()]

    # ---- weights

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        adapters.save_adapter_or_weights(
            self.inner.model, directory, merged=merged, extras=[self.tokenizer.save_pretrained]
        )

    def trainable_state(self) -> dict[str, Tensor]:
        return adapters.trainable_state(self.inner)

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        adapters.load_trainable_state(self.inner, state)
