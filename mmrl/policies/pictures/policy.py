"""A policy that writes pictures token by token: Janus, as `JanusForConditionalGeneration` of transformers.

The prompt is read as text; what is written are tokens of the model's own picture vocabulary, by its generation head, as
many as a picture has. An action is such a token, its log-prob that of the distribution it was drawn from, over picture
tokens alone and under guidance where there is any. Its own VQ decoder makes the picture that rewards see, and never
trains. Chosen by `policy.class` of a `vlm` run:

    policy: {class: "mmrl.policies.pictures.policy:JanusPolicy", model: deepseek-community/Janus-Pro-1B}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies import adapters, likelihood
from mmrl.policies.base import Policy
from mmrl.policies.fixed_length import asked, inverse_cdf, left_padded
from mmrl.policies.generation.families.outputs import as_images
from mmrl.randomness import Key
from mmrl.record import FINISHED, Evaluation, Prompt, Request, Rollouts
from mmrl.settings import Section
from mmrl.stages import Need, View

TRAINED = ("language_model", "generation_embeddings", "generation_aligner", "generation_head")
"""Parts of the model that write pictures; those that read them, and the decoder, stay as they are."""


class PicturePolicyConfig(Section):
    """How a model writes pictures in tokens.

    model            path or name of a Janus checkpoint in the form of transformers
    temperature      of sampling and of scoring
    guidance_scale   of classifier-free guidance, as the model's own `generate` has it, of logits: uncond + scale
                     (cond - uncond). What is sampled and scored is the guided distribution, with gradient through both
                     passes; 1 leaves the second pass out
    decode_batch     pictures decoded at once
    reference        keep a frozen copy of the starting weights for KL terms (adapters need none)
    lora             low-rank adapters of the language model instead of full fine-tuning
    """

    model: str = ""
    temperature: float = Field(1.0, gt=0)
    guidance_scale: float = Field(1.0, ge=1)
    decode_batch: int = Field(8, ge=1)
    reference: bool = False
    lora: adapters.LoraConfig | None = None


class PictureTokens(likelihood.Likelihood):
    """The log-prob of each picture token; `tokens` of them make a picture."""

    def __init__(self, config: PicturePolicyConfig, tokens: int):
        super().__init__(config)
        self.tokens = tokens

    @property
    def actions(self) -> int:
        return self.tokens


class PictureWriter(nn.Module):
    """The module that is trained: logits of picture tokens, from the language model's states by the generation head.

    rows of guidance are the prompt with every token replaced by padding but the first and the one that opens a picture,
    as `JanusForConditionalGeneration.generate` makes them
    """

    def __init__(self, model: Any, config: PicturePolicyConfig, kept: tuple[int, int], pad: int):
        """kept  ids that an unconditional prompt keeps, of its beginning and of a picture's; pad: what others become"""
        super().__init__()
        self.model, self.config, self.kept, self.pad = model, config, kept, pad

    @property
    def core(self) -> Any:
        return self.model.get_base_model() if adapters.is_adapted(self.model) else self.model

    def states(self, embeds: Tensor, seen: Tensor, cache: Any = None) -> Any:
        """Of the language model on further columns; `seen (B, all columns so far)`."""
        places = (seen.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        return self.core.model.language_model(
            inputs_embeds=embeds, attention_mask=seen, position_ids=places, past_key_values=cache,
            use_cache=cache is not None,
        )  # fmt: skip

    def logits(self, states: Tensor) -> Tensor:
        """(B, ..., V) float32 of B rows, guided ones twice: the conditional half first."""
        logits = self.core.model.generation_head(states).float()
        if self.config.guidance_scale > 1:
            given, without = logits.chunk(2)
            logits = without + self.config.guidance_scale * (given - without)
        return logits / self.config.temperature

    def opened(self, prompt: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompts and what is seen of them, with the unconditional rows below where guided."""
        if self.config.guidance_scale > 1:
            bare = torch.where((prompt == self.kept[0]) | (prompt == self.kept[1]), prompt, self.pad)
            prompt, seen = torch.cat([prompt, bare]), torch.cat([seen, seen])
        return self.core.get_input_embeddings()(prompt), seen

    def written(self, tokens: Tensor) -> Tensor:
        """Embeddings of picture tokens (B, n), twice where guided."""
        tokens = torch.cat([tokens, tokens]) if self.config.guidance_scale > 1 else tokens
        return self.core.prepare_embeddings_for_image_generation(tokens)

    def forward(self, prompt: Tensor, seen: Tensor, tokens: Tensor) -> Tensor:
        """(B, T) log-probs. prompt, seen (B, P) left-padded ids and mask; tokens (B, T)"""
        embeds, shown = self.opened(prompt, seen)
        before = self.written(tokens[:, :-1])
        shown = torch.cat([shown, shown.new_ones(before.shape[:2])], 1)
        states = self.states(torch.cat([embeds, before], 1), shown).last_hidden_state[:, prompt.shape[1] - 1 :]
        return self.logits(states).log_softmax(-1).gather(2, tokens[..., None])[..., 0]


class JanusPolicy(Policy):
    """The adapter between a Janus model and the optimizer."""

    modality: ClassVar[str] = "vlm"
    config_type = PicturePolicyConfig
    probes = PictureTokens.offers()

    def __init__(self, model: Any, tokenizer: Any, config: PicturePolicyConfig, *, seed: int = 0):
        """model, tokenizer of `transformers`, a chat template being the tokenizer's or none"""
        self.config, self.tokenizer = config, tokenizer
        begins, self.opens, pad = _special(model, tokenizer)
        self.tokens = model.config.vision_config.num_image_tokens
        side = model.config.vq_config.num_patches
        if self.tokens != side**2:
            raise PolicyError(f"the model writes {self.tokens} picture tokens, and its decoder reads {side} x {side}")
        self.likelihood = PictureTokens(config, self.tokens)
        self._reference = adapters.frozen_copy(model) if config.reference and config.lora is None else None
        model.lm_head.requires_grad_(False)  # first: its weight may be that of the text's embeddings
        for name, part in model.model.named_children():
            part.requires_grad_(name in TRAINED)
        if config.lora is not None:
            model = adapters.attach_lora(
                model, config.lora, seed=seed, exclude=r".*(vision_model|vqmodel|aligner|lm_head).*"
            )
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # noise in the update that the rollout did not have
        self._special = ((begins, self.opens), pad)
        self.module = PictureWriter(model, config, *self._special)

    @classmethod
    def from_config(cls, config: Any, *, seed: int = 0, read_clip: Any = None) -> JanusPolicy:
        from transformers import AutoConfig, AutoTokenizer, JanusForConditionalGeneration

        try:
            kind = AutoConfig.from_pretrained(config.model).model_type
            if kind != "janus":
                raise ConfigError(f"model: {config.model!r} is {kind!r}; of those that write pictures mmrl knows janus")
            model = JanusForConditionalGeneration.from_pretrained(config.model, dtype=torch.float32)
            return cls(model, AutoTokenizer.from_pretrained(config.model), config, seed=seed)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model: cannot load {config.model!r}: {str(error).splitlines()[0]}") from None

    # ---- prompts

    def encode(self, prompt: Prompt) -> Tensor:
        """(P,) ids of the prompt, and at their end the one that opens a picture."""
        if prompt.images or prompt.videos:
            raise PolicyError(
                f"prompt {prompt.id!r} shows a picture or clip; this policy writes pictures of texts alone"
            )
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=not text.startswith(str(self.tokenizer.bos_token))).input_ids
        else:
            ids = self.tokenizer(prompt.text).input_ids
        return torch.tensor([*ids, self.opens])

    def _padded(self, encoded: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, P) left-padded ids and mask."""
        return left_padded(encoded, self._special[1], self.device)

    # ---- acting

    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Write `count` pictures per request; every draw is keyed by prompt id and member. One that begins in another
        row goes on behind that row's tokens."""
        self._only_current(weights)
        prompts, index, members = asked(requests, "policies that write pictures write whole ones", starts=True)
        uniform = torch.stack(
            [key.at(prompt=r.prompt.id, member=m, purpose="picture token").uniform(self.tokens) for r, m in members]
        )
        with self.acting():
            prompt, seen = self._padded([self.encode(r.shown or r.prompt) for r, _ in members])
            given = torch.full((len(members), self.tokens), -1)
            for row, (request, _) in enumerate(members):
                if (start := request.start) is not None:
                    given[row, : start.action] = start.row.actions[0, : start.action].cpu()
            tokens, log_probs = self._write(prompt, seen, given.to(prompt), None if greedy else uniform.to(self.device))
            outputs = self.decode(tokens)
        where = tokens.device
        owner = torch.tensor([m for _, m in members], device=where)[:, None].repeat(1, self.tokens)
        for row, start in ((row, r.start) for row, (r, _) in enumerate(members) if r.start is not None):
            for mine, theirs in ((log_probs, start.row.old_log_probs), (owner, start.row.owner)):
                mine[row, : start.action] = theirs[0, : start.action].to(mine)  # type: ignore[index]
        return Rollouts(
            prompts=prompts,
            encoded=[self.encode(prompt) for prompt in prompts],
            prompt=torch.tensor([index[r.prompt.id] for r, _ in members], device=where),
            group=torch.tensor([r.group for r, _ in members], device=where),
            member=torch.tensor([m for _, m in members], device=where),
            actions=tokens,
            mask=torch.ones_like(tokens, dtype=torch.bool),
            old_log_probs=log_probs,
            outputs=outputs,
            length=torch.full((len(tokens),), self.tokens, device=where),
            finish=[FINISHED] * len(tokens),
            owner=owner,
            replay={"shown": torch.tensor([r.shown is not None for r, _ in members], device=where)},
        )

    def _write(self, prompt: Tensor, seen: Tensor, given: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and their log-probs, the likeliest without `uniform (B, T)`. Of `given (B, T)` those stand that
        are not negative."""
        from transformers import DynamicCache

        writer, cache = self.inner, DynamicCache()
        embeds, shown = writer.opened(prompt, seen)
        tokens, scores = [], []
        for step in range(self.tokens):
            states = writer.states(embeds, shown, cache).last_hidden_state[:, -1:]
            each = writer.logits(states).log_softmax(-1)
            drawn = each.argmax(-1) if uniform is None else inverse_cdf(each.exp(), uniform[:, step : step + 1])
            drawn = torch.where(given[:, step : step + 1] < 0, drawn, given[:, step : step + 1])
            tokens.append(drawn)
            scores.append(each.gather(2, drawn[..., None])[..., 0])
            embeds = writer.written(drawn)
            shown = torch.cat([shown, shown.new_ones(len(shown), 1)], 1)
        return torch.cat(tokens, 1), torch.cat(scores, 1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> list[Any]:
        """PIL pictures of tokens (B, T), by the model's own decoder, whose pixels are in [-1, 1]."""
        pictures: list[Any] = []
        for part in tokens.split(self.config.decode_batch):
            pictures += as_images(self.inner.core.model.vqmodel.decode(part).float())
        return pictures

    # ---- scoring

    def _score(self, module: nn.Module, rollouts: Rollouts) -> Tensor:
        entries = [self.encode(p) if e is None else e for p, e in zip(rollouts.prompts, rollouts.encoded, strict=True)]
        prompt, seen = self._padded([entries[i] for i in rollouts.prompt.tolist()])
        return module(prompt, seen, rollouts.actions)

    def evaluate(
        self, rollouts: Rollouts, needs: Sequence[Need] = (), *, under: View | None = None, weights: str = "current"
    ) -> Evaluation:
        """Log-probs of the same tokens; `weights` "reference" is the adapter off, or the frozen copy."""
        if under is not None:
            raise PolicyError(f"a policy that writes pictures has no view {under.kind!r}")
        if weights == "current" and torch.is_grad_enabled():
            scored = self._score(self.module, rollouts)
        else:
            with self.acting():
                scored = self._by(weights, rollouts)
        return Evaluation(scored, {need.key: scored for need in needs if need.probe == "log_probs"})

    def _by(self, weights: str, rollouts: Rollouts) -> Tensor:
        if weights in ("current", "old"):
            return self._score(self.inner, rollouts)
        if weights != "reference":
            raise PolicyError(f"a policy that writes pictures keeps no {weights!r} weights")
        if self._reference is not None:
            return self._score(PictureWriter(self._reference, self.config, *self._special), rollouts)
        if not adapters.is_adapted(self.inner.model):
            raise PolicyError("the reference weights were not kept: set policy.reference to true, or use lora")
        with adapters.reference_adapter(self.inner.model):
            return self._score(self.inner, rollouts)

    def micro_batches(self, rollouts: Rollouts, rows: Tensor, size: int) -> list[Tensor]:
        """Neighbours have prompts of like length."""
        lengths = torch.tensor([len(rollouts.encoded[i]) for i in rollouts.prompt.tolist()], device=rows.device)
        return list(rows[lengths[rows].argsort(stable=True)].split(size))

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        return [[str(token) for token in row] for row in rollouts.actions.tolist()]

    # ---- weights

    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        adapters.save_adapter_or_weights(
            self.inner.model, directory, merged=merged, extras=[self.tokenizer.save_pretrained]
        )

    def trainable_state(self) -> dict[str, Tensor]:
        return adapters.trainable_state(self.inner)

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        adapters.load_trainable_state(self.inner, state)


def _special(model: Any, tokenizer: Any) -> tuple[int, int, int]:
    """Ids that begin a text, open a picture and pad; PolicyError for one that nobody says."""
    said = model.generation_config
    found = {
        "bos_token_id": next((i for i in (said.bos_token_id, tokenizer.bos_token_id) if i is not None), None),
        "generation_kwargs.boi_token_id": (getattr(said, "generation_kwargs", None) or {}).get("boi_token_id"),
        "pad_token_id": next((i for i in (said.pad_token_id, tokenizer.pad_token_id) if i is not None), None),
    }
    if missing := [name for name, value in found.items() if value is None]:
        raise PolicyError(f"the model's generation_config.json has no {missing[0]}, without which it writes no picture")
    begins, opens, pad = found.values()
    return int(begins), int(opens), int(pad)
