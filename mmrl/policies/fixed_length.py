"""What policies share that write a fixed number of tokens: whole rows, without a prefix or a start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.record import Prompt, Request


def asked(
    requests: Sequence[Request], what: str, *, starts: bool = False
) -> tuple[list[Prompt], dict[str, int], list[tuple[Request, int]]]:
    """The prompts, each once, the place of each by its id, and (request, member) of each row.

    Raises PolicyError, with what the policy is (`what`), for a request that says how its rows begin; `starts`: but not
    for one that begins in another row.
    """
    if any(r.prefix is not None or (r.start is not None and not starts) for r in requests):
        raise PolicyError(f"{what} and take no prefix" + ("" if starts else " and no start"))
    prompts = list({r.prompt.id: r.prompt for r in requests}.values())
    places = {prompt.id: i for i, prompt in enumerate(prompts)}
    return prompts, places, [(r, r.first_member + i) for r in requests for i in range(r.count)]


def left_padded(encoded: Sequence[Tensor], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, P) ids and which of them are real, from (P_i,) ids."""
    width = max(len(ids) for ids in encoded)
    ids = torch.full((len(encoded), width), pad)
    real = torch.zeros(len(encoded), width, dtype=torch.long)
    for row, values in enumerate(encoded):
        ids[row, width - len(values) :] = values
        real[row, width - len(values) :] = 1
    return ids.to(device), real.to(device)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B, T) the token at which the cumulative probability passes the row's own uniform number."""
    steps = probabilities.double().cumsum(-1)
    drawn = torch.searchsorted(steps, uniform[..., None].to(steps) * steps[..., -1:])[..., 0]
    return drawn.clamp(max=probabilities.shape[-1] - 1)
