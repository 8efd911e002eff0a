"""LAION's improved aesthetic predictor: a small head over the image embedding of CLIP ViT-L/14, by transformers.

The head (`sac+logos+ava1-l14-linearMSE.pth`) lies in repositories; name the file, converted to safetensors.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards.models.pickscore import features
from mmrl.rewards.packages import device_of, loaded, pictures_only
from mmrl.rewards.registry import reward

MODEL = "openai/clip-vit-large-patch14"
WIDTHS = (1024, 128, 64, 16, 1)


def head(width: int) -> Any:
    """The layers of the published head, with its places of dropout, so that its weights fit by name."""
    from torch import nn

    a, b, c, d, e = WIDTHS
    return nn.Sequential(
        nn.Linear(width, a), nn.Dropout(0.2), nn.Linear(a, b), nn.Dropout(0.2), nn.Linear(b, c), nn.Dropout(0.1),
        nn.Linear(c, d), nn.Linear(d, e),
    )  # fmt: skip


def head_weights(path: str) -> dict[str, Any]:
    """Of a safetensors file; the published head prefixes `layers.`."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise RewardError(
            f"aesthetic: no such file: head={path!r}; expected the weights of the aesthetic predictor's head"
        )
    if file.suffix != ".safetensors":
        made = file.with_suffix(".safetensors")
        convert = (
            f"import torch, safetensors.torch as s; s.save_file(torch.load('{path}', weights_only=True), '{made}')"
        )
        raise RewardError(
            f"aesthetic: head={path!r} is no safetensors file, and nothing is unpickled here; convert it once: "
            f'python -c "{convert}"'
        )
    from safetensors.torch import load_file

    return {name.removeprefix("layers."): value for name, value in load_file(str(file)).items()}


@lru_cache(maxsize=2)
def _load(model: str, weights: str, device: str) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, CLIPModel

    def make() -> tuple[Any, Any, Any]:
        net = CLIPModel.from_pretrained(model).eval().requires_grad_(False).to(device)
        top = head(net.config.projection_dim)
        top.load_state_dict(head_weights(weights))
        return net, top.eval().requires_grad_(False).to(device), AutoImageProcessor.from_pretrained(model)

    return loaded(make, "aesthetic", f"{model} with {weights}")


@reward("aesthetic", isolated=False)
def aesthetic(
    completions, *, head: str = "", model: str = MODEL, device: str | None = None, batch_size: int = 32
) -> list[float]:
    """LAION's aesthetic score over 10: how pleasing a picture is, whatever it shows; `head`: its weights."""
    import torch

    pictures_only(completions, "aesthetic")
    if not head:
        raise RewardError("aesthetic needs `head`: the weights of the aesthetic predictor, a safetensors file")
    net, top, prepare = _load(model, head, device_of(device))
    scores: list[float] = []
    for start in range(0, len(completions), batch_size):
        images = [c.convert("RGB") for c in completions[start : start + batch_size]]
        with torch.inference_mode():
            found = features(net.get_image_features(**prepare(images=images, return_tensors="pt").to(net.device)))
            scores += (top(found)[:, 0] / 10).float().tolist()
    return scores
