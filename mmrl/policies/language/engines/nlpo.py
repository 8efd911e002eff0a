"""The engine that draws from the tokens a lagged copy of the policy finds likely: NLPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies import adapters
from mmrl.policies.anchor import Anchor, AnchorConfig
from mmrl.policies.counts import Mean
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, Setting, refuse_prefixes
from mmrl.policies.language.engines.beside import Beside
from mmrl.policies.language.engines.local import Local
from mmrl.policies.language.likelihoods.limited import ALLOWED, limited
from mmrl.policies.language.sampling import Decoded, decode
from mmrl.policies.language.scoring import ScoredLanguageModel
from mmrl.settings import Section

LIKELIHOOD, LAGGED, MODEL = "limited", "lagged", "model"


class NlpoOptions(Section):
    """What stands beside `name: nlpo`.

    top_p  mass of the lagged policy's tokens that may be drawn, the one that crosses it included; 1: all it could draw
    least  tokens that may be drawn, at least, the likeliest; the authors' runs say 100
    every  rollout batches between two copies of the weights into the lagged policy
    most   tokens that may be drawn, at most, the likeliest: what a rollout keeps of each of its tokens. Counted where
           it cuts (`nlpo/cut_fraction`)
    """

    top_p: float = Field(0.9, gt=0, le=1)
    least: int = Field(1, ge=1)
    every: int = Field(5, ge=1)
    most: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _sizes(self) -> NlpoOptions:
        if self.least > self.most:
            raise ValueError(f"least={self.least}: expected at most `most`, {self.most}")
        return self


def nucleus(logits: Tensor, top_p: float, most: int, always: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Which tokens may be drawn, (b, K + A) int32 ids plus 1, 0 for none, and where `most` cut them short (b,) bool.

    logits  (b, V) of the lagged policy
    always  (A,) ids that may be drawn whatever it says, such as end tokens
    """
    likely, ids = logits.topk(min(most, logits.shape[1]), dim=-1)
    mass = torch.exp(likely - torch.logsumexp(logits, -1, keepdim=True))
    before = mass.cumsum(-1) - mass
    wanted = (before <= top_p) | (torch.arange(ids.shape[1], device=ids.device) < least)
    inside = wanted & (likely > torch.finfo(logits.dtype).min)
    cut = (mass.sum(-1) <= top_p) & (ids.shape[1] < logits.shape[1]) & inside[:, -1]
    found = torch.cat([(ids + 1) * inside, (always + 1).expand(len(ids), -1)], dim=1)
    return found.int(), cut


class Nlpo(Local):
    """Decodes with the module that trains, among the tokens of a lagged policy's nucleus.

    The lagged policy is an adapter beside the one that trains, or a copy after full fine-tuning, and reads every row
    along with it; it goes into checkpoints. End tokens may always be drawn. Rows keep what they could be, by which
    `policy.likelihood: limited` scores them again: a probability is one among those tokens, in the denominator of the
    ratio as above it. Source: allenai/RL4LMs, maskable/logits_processor.py and nlpo.py; there all special ids are
    allowed, and the nucleus has no largest size.
    """

    capabilities: ClassVar = EngineCapabilities(
        exact_log_probs=True, media=frozenset({"image", "video"}), lora=True, own_weights=False,
        keeps_copy=True,
    )  # fmt: skip
    Options: ClassVar = NlpoOptions

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.lagged = Anchor(LAGGED, AnchorConfig(start=0.0, hold=0.0, rate=0.0), self._modules)
        self.batches = self.places = self.cut = self.allowed = 0

    @staticmethod
    def refuse(config: LanguagePolicyConfig, options: NlpoOptions) -> None:
        if config.likelihood != LIKELIHOOD:
            raise ConfigError(
                f"policy.engine=nlpo draws from some tokens, and policy.likelihood={config.likelihood!r} would score "
                f"them among all; expected {LIKELIHOOD}"
            )

    @property
    def _modules(self) -> dict[str, Any]:
        """What the lagged policy is a copy of: adapters, or the whole module that scores."""
        module = self.setting.model()
        return {MODEL: module.model if adapters.is_adapted(module.model) else module}

    @contextmanager
    def _other(self) -> Iterator[ScoredLanguageModel]:
        module = self.setting.model()
        if (copies := self.lagged.on(next(module.parameters()).device)) is not None:
            yield copies[MODEL]  # type: ignore[misc]
            return
        with adapters.other_adapter(module.model, LAGGED):
            yield module

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """See `Engine.write`; `Decoded.kept` has the tokens that each token could be."""
        refuse_prefixes("nlpo", contexts)
        return super().write(contexts, budgets, draws)

    def _decoded(self, model: ScoredLanguageModel, *asking: Any) -> Decoded:
        states: list[Beside] = []

        def begin(*given: Any) -> Beside:
            states.append(Beside(self._other, self._limited, *given))
            return states[-1]

        made = decode(model, *asking, begin=begin)
        return replace(made, kept=states[0].kept(made.tokens.shape[1]))

    def _limited(self, logits: Tensor, lagged: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        options = self.setting.options
        ends = torch.tensor(self.setting.stopping.ids, device=logits.device)
        allowed, cut = nucleus(lagged, options.top_p, options.most, ends, options.least)
        self.places, self.cut = self.places + len(cut), self.cut + int(cut.sum())
        self.allowed += int((allowed[:, : -len(ends)] > 0).sum())
        return limited(logits, allowed), {ALLOWED: allowed}

    def counted(self) -> dict[str, Mean]:
        """Since it was asked last: the mean number of tokens that could be drawn, and how often `most` cut them."""
        if not self.places:
            return {}
        told = {"nlpo/allowed": Mean(self.allowed, self.places), "nlpo/cut_fraction": Mean(self.cut, self.places)}
        self.places = self.cut = self.allowed = 0
        return told

    def after_batch(self) -> None:
        """The lagged policy becomes the policy that acted, every few batches."""
        self.batches += 1
        if self.batches % self.setting.options.every == 0:
            self.lagged.move(self._modules, self.batches)

    def tensors(self) -> dict[str, Tensor]:
        return self.lagged.tensors(self._modules)

    def load(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            raise PolicyError("the checkpoint has no lagged policy: it was written without policy.engine=nlpo")
        self.lagged.load(self._modules, tensors)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
