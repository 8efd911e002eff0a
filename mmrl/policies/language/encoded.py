"""What a prompt becomes for a language model, and how its tensors travel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Encoded:
    """One prompt as the model reads it. CPU tensors; compared by identity.

    ids            (P,) token ids with expanded placeholders
    aligned        what else the model reads of every token, such as its type: {name: (P, ...)}
    positions      (K, P): one row, or three (temporal, height and width) where the family has them
    next_position  of the first response token, equal on all axes
    media          everything else the processor returned (pixel tensors, grids, ...), rows of all images and videos
                   in the order of their placeholders
    after          {name: (...)} of `aligned`, for text that a response adds
    features       what the model's encoders made of the media. Set only on the copies a policy makes for its own
                   passes, never in the record: they belong to one tower
    """

    ids: Tensor
    aligned: dict[str, Tensor]
    positions: Tensor
    next_position: int
    media: dict[str, Any]
    after: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def token_types(self) -> Tensor:
        """(P,) 0 text, 1 image, 2 video; all 0 of a family that has no such types."""
        return self.aligned.get("mm_token_type_ids", torch.zeros_like(self.ids))

    def appended(self, name: str, count: int) -> Tensor:
        """(count, ...) of `aligned[name]` for the next tokens of a response."""
        value = self.after.get(name, torch.zeros_like(self.aligned[name][0]))
        return value.expand(count, *value.shape)


def to_device(tree: Any, device: torch.device) -> Any:
    """The same tensors on `device`, through dicts, lists and tuples; what is there already is not copied.

    To a CUDA device they go from page-locked memory, so that pixels travel while the CPU prepares what comes next.
    PyTorch keeps that memory until the copy is done.
    """
    if isinstance(tree, Tensor):
        cuda = device.type == "cuda"
        locked = tree.pin_memory() if cuda and tree.device.type == "cpu" else tree
        return locked.to(device, non_blocking=cuda)
    if isinstance(tree, dict):
        return {name: to_device(part, device) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(to_device(part, device) for part in tree)
    return tree


def model_positions(positions: Tensor) -> Tensor:
    """(K, B, L) -> the form a model takes: (B, L) for one axis."""
    return positions[0] if len(positions) == 1 else positions


def with_features(entry: Encoded, features: dict[str, Any] | None) -> Encoded:
    """A copy that later passes read instead of its raw media."""
    return replace(entry, features=features)
