"""The module that is trained: a multimodal model whose forward returns `(B, T)` numbers instead of logits.

There are three ways to lay rows out, and a forward pass takes any of them: `Plain` rows here, rows in two calls
(`fast.two_calls`), and the packed row (`fast.shared_prompt`). Their numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.encoding import collate
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.fast import lean, native, prefill, shared_prompt, vision_attention
from mmrl.policies.language.fast.patch_projection import project_patches
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.log_probs import Distribution, Score, probed, score_rows
from mmrl.stages import Need


class Rows(Protocol):
    """Rows as one way lays them out."""

    @property
    def has_media(self) -> bool:
        """Whether any of them has pictures or clips."""

    def states(self, module: Any, mask: Tensor) -> Tensor:
        """(n, d): the state before the output head that predicts each action where `mask (B, T)`, row by row. Only
        within `module.forward`."""


@dataclass
class Plain:
    """`[left padding | prompt | response | right padding]`, T columns of response."""

    inputs: dict[str, Any]
    steps: int
    has_media: bool

    @classmethod
    def of(
        cls, entries: Sequence[Encoded], actions: Tensor, lengths: Tensor, device: torch.device, family: Family
    ) -> Plain:
        inputs = collate(entries, actions, lengths, device, family)
        return cls(inputs, actions.shape[1], any(e.media for e in entries))

    def states(self, module: Any, mask: Tensor) -> Tensor:
        states = module.states(self.inputs, idle=not self.has_media)[:, -self.steps - 1 : -1]
        return states[mask[:, : self.steps]]


@dataclass
class Parts:
    """Rows that cannot share a batch, each part by itself.

    parts  of rows (n,), all of T steps
    """

    parts: list[tuple[Tensor, Rows]]

    @property
    def has_media(self) -> bool:
        return any(part.has_media for _, part in self.parts)

    def states(self, module: Any, mask: Tensor) -> Tensor:
        found: dict[int, Tensor] = {}
        for rows, part in self.parts:
            counts = mask[rows].sum(1).tolist()
            found |= zip(rows.tolist(), part.states(module, mask[rows]).split(counts), strict=True)
        return torch.cat([found[row] for row in sorted(found)])


def one_by_one(
    entries: Sequence[Encoded], actions: Tensor, lengths: Tensor, device: torch.device, family: Family
) -> Parts:
    """Every row by itself, nothing of it padded. actions (B, T), lengths (B,)"""
    parts: list[tuple[Tensor, Rows]] = []
    for row, (entry, length) in enumerate(zip(entries, lengths.tolist(), strict=True)):
        at = torch.tensor([row])
        parts.append((at, Plain.of([entry], actions.cpu()[at, :length], torch.tensor([length]), device, family)))
    return Parts(parts)


class ScoredLanguageModel(nn.Module):
    """A Hugging Face vision-language model, possibly with PEFT adapters, that scores actions.

    distribution  temperature, suppressed ids and soft cap: the same in sampling and in scoring
    rows          of logits alive at once
    autocast      dtype of matrix products on top of the weights' dtype, None to follow the weights
    shared        understand packed rows (`mmrl.policies.language.fast.shared_prompt`)
    score         what is made of logits: the likelihood's
    leans         whether steps written out (`fast.lean`) were found to give the model's logits; None until tried
    natives       the same of steps in C (`fast.native`), which are tried where `native_steps`
    """

    model: Any
    partial_forwards = ("next_logits", "prefill", "patch_features", "encode_media")

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        distribution: Distribution,
        *,
        rows: int = 1024,
        autocast: torch.dtype | None = None,
        shared: bool = False,
        score: Score = probed,
        native_steps: bool = True,
    ):
        super().__init__()
        self.model = model
        self.family = family
        self.distribution = distribution
        self.rows = rows
        self.autocast = autocast
        self.shared = shared
        self.score = score
        self.leans: bool | None = None
        self.natives: bool | None = None
        self.native_steps = native_steps
        readers = family.readers(self.core).values()
        found = family.capabilities
        self.vision_trains = found.learns and any(p.requires_grad for reader in readers for p in reader.parameters())
        embeddings = self.core.get_input_embeddings().parameters()
        self.media_train = self.vision_trains or (found.borrows and any(p.requires_grad for p in embeddings))
        if family.one_tower:
            project_patches(self.core.model.visual)
            vision_attention.install(self.core.model.visual)
        if shared:
            shared_prompt.install(self.core, family)

    def train(self, mode: bool = True) -> ScoredLanguageModel:
        """Layers that would normalise by the statistics of a batch keep to their own, as when tokens were written: else
        a row would be worth something else beside other rows."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @property
    def core(self) -> Any:
        """The Hugging Face model under any adapter wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks that accelerate shards one by one. The vision tower stays with the root, which every
        rank gathers: ranks whose rows have no media do not run it."""
        return sorted({type(layer).__name__ for layer in self.family.decoder(self.core).layers})

    @property
    def head(self) -> nn.Module:
        return self.family.head(self.core)

    def forward(self, rows: Rows, actions: Tensor, mask: Tensor, asked: Sequence[Need] = ()) -> dict[str, Tensor]:
        """Score `actions (B, T, ...)` where `mask (B, T)`; `{"log_probs" or Need.key: (B, T) float32}`, 0 outside."""
        with self.precision():
            states = rows.states(self, mask)
            given = (states, actions[mask], self.head, self.distribution, asked)
            numbers = score_rows(*given, rows=self.rows, score=self.score)
        place = mask.nonzero(as_tuple=True)
        return {
            name: values.new_zeros(*mask.shape, *values.shape[1:]).index_put(place, values)
            for name, values in numbers.items()
        }

    def states(self, inputs: dict[str, Any], cache: Any = None, *, idle: bool = False, **more: Any) -> Tensor:
        """(B, L, d) before the output head. Only within a forward pass.

        idle  the batch has no media: encoders that train still take part, as those of other ranks do
        """
        zero = None
        if idle and self.vision_trains and torch.is_grad_enabled():
            zero = self.family.idle(self.core, next(self.parameters()).device)
        return self.family.states(self.core, inputs, cache, idle=zero, **more)

    def logits(self, states: Tensor) -> Tensor:
        """(n, d) states before the output head -> (n, V) float32 logits as sampled from."""
        with self.precision():
            head = self.head
            device, dtype = next(head.parameters()).device, next(head.parameters()).dtype
            return self.distribution(head(states.to(device, dtype)))

    def next_logits(self, inputs: dict[str, Any], cache: Any = None) -> Tensor:
        """(B, V) float32 logits of the token after the last column, adding `inputs` to the key-value cache."""
        with self.precision():
            more = {n: inputs[n] for n in ("shared_prompt",) if n in inputs}
            given = {n: v for n, v in inputs.items() if n not in more}
            return self.distribution(self.head(self.family.states(self.core, given, cache, **more)[:, -1]))

    @property
    def shares_prefixes(self) -> bool:
        """Whether decoding can read one copy of the prompt's cache for the whole group."""
        return self.shared and self.family.capabilities.shared_cache

    @property
    def repeats_prefixes(self) -> bool:
        """Whether decoding can go on from the prompt's cache, a copy for every row."""
        return self.family.capabilities.prefix_cache

    @property
    def decodes_by(self) -> str:
        """How the rows of a group go on from their prompt."""
        if self.shares_prefixes:
            return "shared cache" if self.not_lean else "lean" if self.not_native else "native"
        return "repeated cache" if self.repeats_prefixes else "no cache"

    @property
    def not_lean(self) -> str | None:
        """Why rows with a shared cache are written through the model's modules, or None where steps are written out."""
        return "steps written out do not give the model's logits" if self.leans is False else lean.refusal(self)

    @property
    def not_native(self) -> str | None:
        """Why rows that are written out do not go by steps in C, or None where they do."""
        if self.not_lean:
            return native.ELSEWHERE
        if not self.native_steps:
            return native.UNASKED
        return "steps in C do not give the model's logits" if self.natives is False else native.refusal(self)

    def prefill(self, prompts: Sequence[Encoded]) -> list[Prefill]:
        """Run prompts through the decoder in one packed row, with gradient where the caller wants one. For models
        that share prefixes."""
        if not prompts:
            return []
        inputs, layout = shared_prompt.pack_prompts(prompts, next(self.parameters()).device, self.family)
        cache = self.family.cache()
        with self.precision():
            states = self.family.states(self.core, inputs, cache, shared_prompt=layout)
        return prefill.split(cache, states[0], [len(p) for p in prompts])

    def patch_features(self, media: dict[str, Tensor]) -> Tensor:
        """(patches, d) of the vision encoder, before patches are merged into tokens."""
        with self.precision():
            return self.family.patch_features(self.core, media)

    def encode_media(self, media: dict[str, Any]) -> dict[str, Any]:
        """What the language model reads of one prompt's media."""
        with self.precision():
            return self.family.encode_media(self.core, media)

    def precision(self) -> AbstractContextManager:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, dtype=self.autocast)
