"""PickScore (Kirstain et al. 2023): a CLIP trained on which of two pictures people picked, by transformers.

The published score is the logit, cosine times exp(logit scale), about 20; Flow-GRPO divides it by 26, as here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mmrl.rewards.packages import device_of, loaded, pictures_only
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text

MODEL, PROCESSOR, SCALE = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 26.0


@lru_cache(maxsize=2)
def _load(model: str, processor: str | None, device: str) -> tuple[Any, Any]:
    from transformers import AutoProcessor, CLIPModel

    def make() -> tuple[Any, Any]:
        own = processor or (PROCESSOR if model == MODEL else model)
        return CLIPModel.from_pretrained(model).eval().requires_grad_(False).to(device), AutoProcessor.from_pretrained(
            own
        )

    return loaded(make, "pickscore", model)


def features(output: Any) -> Any:
    """The embeddings, whether the model gives a tensor or wraps it."""
    found = getattr(output, "pooler_output", output)
    return found / found.norm(dim=-1, keepdim=True)


@reward("pickscore", isolated=False)
def pickscore(
    prompts, completions, caption=None, *, model: str = MODEL, processor: str | None = None, device: str | None = None,
    batch_size: int = 32, scale: float = SCALE,
) -> list[float]:  # fmt: skip
    """PickScore over 26: how likely people are to pick a picture for its column `caption`, or its prompt.

    model      a name or folder that transformers loads as CLIPModel
    processor  where its processor lies; None: with the model
    """
    import torch

    pictures_only(completions, "pickscore")
    net, prepare = _load(model, processor, device_of(device))
    texts = caption or [asked_text(prompt) for prompt in prompts]
    scores: list[float] = []
    for start in range(0, len(completions), batch_size):
        part = slice(start, start + batch_size)
        images = prepare(images=[c.convert("RGB") for c in completions[part]], return_tensors="pt").to(net.device)
        words = prepare(text=list(texts[part]), return_tensors="pt", padding=True, truncation=True).to(net.device)
        with torch.inference_mode():
            image, text = features(net.get_image_features(**images)), features(net.get_text_features(**words))
            scores += (net.logit_scale.exp() * (image * text).sum(-1) / scale).float().tolist()
    return scores
