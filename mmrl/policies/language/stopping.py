"""When a response ends: end tokens of the checkpoint, ids and strings of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import ConfigError


@dataclass
class Stopping:
    """Callable for `sampling.decode`: (tokens (b, n), rows) -> (b,) bool. The stop stays in the response."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    tokenizer: Any

    def __post_init__(self) -> None:
        self._ids = torch.tensor(self.ids)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, strings: list[str], extra: list[int]) -> Stopping:
        configured = getattr(model.generation_config, "eos_token_id", None)
        configured = configured if isinstance(configured, list) else [configured]
        ids = {*configured, tokenizer.eos_token_id, *extra} - {None}
        if not ids:
            raise ConfigError("the tokenizer and generation_config name no end token; give `stop_tokens`")
        return cls(tuple(sorted(ids)), tuple(strings), tokenizer)

    def __call__(self, tokens: Tensor, rows: Tensor) -> Tensor:
        ended = (tokens[:, -1:] == self._ids.to(tokens.device)).any(-1)
        for string in self.strings:
            # Every token adds at least one byte, so a string just completed lies in this many last tokens.
            tail = tokens[:, -len(string.encode()) :].tolist()
            texts = self.tokenizer.batch_decode(tail)
            ended |= torch.tensor([string in text for text in texts], device=tokens.device)
        return ended
