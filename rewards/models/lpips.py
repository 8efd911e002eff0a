"""LPIPS (Zhang et al. 2018) by its package: how near a picture looks to a reference, for edits and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.packages import device_of, loaded, needed, pictures_only
from mmrl.rewards.registry import reward

NETS = ("alex", "vgg", "squeeze")


@lru_cache(maxsize=2)
def _load(net: str, device: str, random: bool) -> Any:
    package = needed("lpips", "lpips", "lpips")

    def make() -> Any:
        return package.LPIPS(net=net, pnet_rand=random, verbose=False).eval().requires_grad_(False).to(device)

    return loaded(make, "lpips", f"the backbone {net!r}")


def check_reference(row: Mapping[str, Any], **_: Any) -> None:
    """RewardError for a row without a picture to compare with."""
    if row.get("reference") is None and not row.get("images"):
        raise RewardError("lpips compares with the column `reference`, or the first picture of the prompt", "reference")


@reward("lpips", isolated=False, check=check_reference)
def lpips(
    completions, images=None, reference=None, *, net: str = "alex", side: int = 256, device: str | None = None,
    random_backbone: bool = False,
) -> list[float]:  # fmt: skip
    """1 - LPIPS of each picture and its column `reference` (or the first picture of its prompt), at least 0.

    side             pictures are compared at this size
    random_backbone  for tests without the backbone's weights
    """
    import numpy as np
    import torch

    pictures_only(completions, "lpips")
    if net not in NETS:
        raise RewardError(f"lpips: net is {net!r}; expected {', '.join(NETS)}")
    wanted = reference or [each[0] if each else None for each in images or [None] * len(completions)]
    pictures_only(wanted, "lpips")
    model = _load(net, device_of(device), random_backbone)
    if not completions:
        return []

    def tensor(pictures: Any) -> Any:
        arrays = [np.asarray(p.convert("RGB").resize((side, side)), dtype=np.float32) / 127.5 - 1 for p in pictures]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(next(model.parameters()).device)

    with torch.inference_mode():
        apart = model(tensor(completions), tensor(wanted)).flatten().float().tolist()
    return [max(0.0, 1 - each) for each in apart]
