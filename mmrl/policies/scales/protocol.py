"""What a next-scale model has to be able to do, and how it writes pictures by itself.

Any such model is trained by `mmrl sar` that has these four methods, whether its scales are sums of residuals (VAR) or
pictures of their own (FlexVAR): which of the two it is shows in `next_input` and `decode` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmrl.errors import PolicyError
from mmrl.randomness import Key

Scales = list[Tensor]
"""A tensor a scale, the coarsest first."""
METHODS = ("tokens", "logits", "next_input", "decode")


class NextScale(Protocol):
    """A torch module with these methods; B pictures, N_s tokens of scale s, V_s codes.

    tokens      pictures (B, 3, H, W) from 0 to 1 -> the tokens of every scale, (B, N_s) int64
    logits      texts and the inputs of scales 2 and finer -> (B, N_s, V_s) of every scale. Scale s sees its own input
                and those of coarser scales
    next_input  tokens of the first s scales -> the input of scale s + 1, whatever shape the model gives it
    decode      the tokens of every scale -> pictures (B, 3, H, W) from 0 to 1
    """

    def tokens(self, pictures: Tensor) -> Scales: ...
    def logits(self, texts: Sequence[str], inputs: Sequence[Tensor]) -> Scales: ...
    def next_input(self, tokens: Sequence[Tensor]) -> Tensor: ...
    def decode(self, tokens: Sequence[Tensor]) -> Tensor: ...


def checked(model: Any, name: str) -> Any:
    """The model, if it is one. Raises PolicyError that names what is missing."""
    if not isinstance(model, nn.Module):
        raise PolicyError(f"model {name}: a {type(model).__name__}; expected a torch module with {', '.join(METHODS)}")
    if missing := [method for method in METHODS if not callable(getattr(model, method, None))]:
        raise PolicyError(f"model {name}: {type(model).__name__} has no {', '.join(missing)}; expected {METHODS}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise PolicyError(f"model {name}: {type(model).__name__} has no parameter that requires a gradient")
    return model


def agree(model: NextScale, logits: Sequence[Tensor], tokens: Sequence[Tensor]) -> None:
    """Raises PolicyError where logits and tokens of a scale do not fit together."""
    shapes = [tuple(each.shape) for each in logits], [tuple(each.shape) for each in tokens]
    if [shape[:2] for shape in shapes[0]] != shapes[1] or any(len(shape) != 3 for shape in shapes[0]):
        raise PolicyError(
            f"{type(model).__name__}: logits of shapes {shapes[0]} for tokens of shapes {shapes[1]}; expected "
            "(B, N, V) for each (B, N), scale by scale"
        )
    for scale, (scores, codes) in enumerate(zip(logits, tokens, strict=True), 1):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= scores.shape[-1]:
            raise PolicyError(
                f"{type(model).__name__}: tokens {low} to {high} of scale {scale}, which has {scores.shape[-1]} logits"
            )


@torch.no_grad()
def write(model: NextScale, texts: Sequence[str], count: int, key: Key | None, temperature: float = 1.0) -> Scales:
    """The tokens that the model writes to each text by itself, scale after scale; `count`: how many scales it has.

    key  of the draws; None takes the likeliest tokens
    """
    tokens: Scales = []
    for scale in range(count):
        inputs = [model.next_input(tokens[:s]) for s in range(1, scale + 1)]
        logits = model.logits(texts, inputs)[scale]
        tokens.append(draw(logits, None if key is None else key.at(purpose=f"scale {scale}"), temperature))
    return tokens


@torch.no_grad()
def draw(logits: Tensor, key: Key | None, temperature: float = 1.0) -> Tensor:
    """(B, N, V) -> (B, N): a token from each distribution, or without a key the likeliest."""
    if key is None:
        return logits.argmax(-1)
    steps = (logits.double() / temperature).softmax(-1).cumsum(-1)
    uniform = key.uniform(*logits.shape[:2]).to(steps.device)[..., None]
    return torch.searchsorted(steps, uniform * steps[..., -1:])[..., 0].clamp(max=logits.shape[-1] - 1)
