"""The engine that decodes with the module that trains: exact, keyed, and never out of date."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, Setting
from mmrl.policies.language.sampling import Decoded, decode
from mmrl.policies.language.scoring import ScoredLanguageModel


class Local:
    """Each distinct context is prefilled once, `decode_rows` rows are written at once."""

    capabilities: ClassVar = EngineCapabilities(
        exact_log_probs=True, media=frozenset({"image", "video"}), turns=True, lora=True, own_weights=False
    )

    def __init__(self, setting: Setting):
        self.setting = setting

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """See `Engine.write`; rows of one context stand beside each other."""
        distinct = list(dict.fromkeys(contexts))
        places = {context: place for place, context in enumerate(distinct)}
        place = torch.tensor([places[context] for context in contexts])
        model, parts = self.setting.model(), []
        for rows in self._together(place):
            asked, context = torch.unique(place[rows], return_inverse=True)
            chosen = [distinct[i] for i in asked.tolist()]
            encoded, prefills = [c.encoded for c in chosen], [c.prefill for c in chosen]
            uniforms = None if draws is None else torch.stack([draws[row].uniforms() for row in rows.tolist()])
            asking = (encoded, context, uniforms, budgets[rows], self.setting.stopping, prefills)
            parts.append(self._decoded(model, *asking))
        return Decoded.join(parts)

    def _decoded(self, model: ScoredLanguageModel, *asking: Any) -> Decoded:
        """Rows that are written at once; `asking` as of `sampling.decode`."""
        return decode(model, *asking)

    def sync(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Nothing to take: they are the same."""

    def _together(self, place: Tensor) -> Iterator[Tensor]:
        """Rows that are written at once: of one prompt, where the model takes no batches of unlike ones."""
        each = torch.unique(place).tolist()
        batches = self.setting.family.capabilities.batches
        alike = [place == c for c in each] if batches is None else [place >= 0]
        for chosen in alike:
            yield from chosen.nonzero().squeeze(1).split(self.setting.config.decode_rows)
