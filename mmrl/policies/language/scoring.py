"""The module that is trained: a multimodal model whose forward returns `(B, T)` numbers instead of logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.policies.language.encoding import Encoded
from mmrl.policies.language.families.base import Family
from mmrl.policies.language.fast import prefill, shared_prompt, vision_attention
from mmrl.policies.language.fast.patch_projection import project_patches
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.fast.shared_prompt import Layout
from mmrl.policies.language.log_probs import Asked, Distribution, score_rows

LOG_PROBS: Asked = (("log_probs", "log_probs", ()),)


class ScoredLanguageModel(nn.Module):
    """A Hugging Face vision-language model, possibly with PEFT adapters, that scores actions.

    distribution  temperature, suppressed ids and soft cap: the same in sampling and in scoring
    rows          of logits alive at once
    autocast      dtype of matrix products on top of the weights' dtype, None to follow the weights
    shared        understand packed rows (`mmrl.policies.language.fast.shared_prompt`)
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
    ):
        super().__init__()
        self.model = model
        self.family = family
        self.distribution = distribution
        self.rows = rows
        self.autocast = autocast
        self.shared = shared
        self.vision_trains = any(p.requires_grad for p in self.core.model.visual.parameters())
        project_patches(self.core.model.visual)
        vision_attention.install(self.core.model.visual)
        if shared:
            shared_prompt.install(self.core)

    @property
    def core(self) -> Any:
        """The Hugging Face model under any adapter wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the blocks that accelerate shards one by one. The vision tower stays with the root, which every
        rank gathers: ranks whose rows have no media do not run it."""
        return sorted({type(layer).__name__ for layer in self.core.model.language_model.layers})

    @property
    def head(self) -> nn.Module:
        return self.core.get_output_embeddings()

    def forward(
        self,
        inputs: dict[str, Tensor],
        where: Tensor,
        actions: Tensor,
        mask: Tensor,
        asked: Asked = LOG_PROBS,
        layout: Layout | None = None,
    ) -> dict[str, Tensor]:
        """Score `actions (B, T)` where `mask (B, T)`; `{name: (B, T) float32}`, 0 outside the mask.

        inputs  of the multimodal model, from `encoding.collate` or `shared_prompt.pack`
        where   (B, T) which hidden state predicts each action, counted over all rows of `inputs`
        layout  of a packed row, None for plain rows
        """
        with self._precision():
            states = self._hidden(inputs, layout).flatten(0, 1)[where[mask]]
            numbers = score_rows(states, actions[mask], self.head, self.distribution, asked, rows=self.rows)
        place = mask.nonzero(as_tuple=True)
        return {
            name: values.new_zeros(*mask.shape, *values.shape[1:]).index_put(place, values)
            for name, values in numbers.items()
        }

    def logits(self, states: Tensor) -> Tensor:
        """(n, d) states before the output head -> (n, V) float32 logits as sampled from."""
        with self._precision():
            head = self.head
            device, dtype = next(head.parameters()).device, next(head.parameters()).dtype
            return self.distribution(head(states.to(device, dtype)))

    def next_logits(self, inputs: dict[str, Any], cache: Any) -> Tensor:
        """(B, V) float32 logits of the token after the last column, adding `inputs` to the key-value cache."""
        with self._precision():
            output = self.core.model(**_with_features(inputs), past_key_values=cache, use_cache=True)
            return self.distribution(self.head(output.last_hidden_state[:, -1]))

    @property
    def shares_prefixes(self) -> bool:
        """Whether decoding can read one copy of the prompt's cache for the whole group."""
        return self.shared and set(self.family.layer_types) == {"full_attention"}

    def prefill(self, prompts: Sequence[Encoded]) -> list[Prefill]:
        """Run prompts through the decoder in one packed row, with gradient where the caller wants one. For models
        that share prefixes."""
        from transformers import DynamicCache

        if not prompts:
            return []
        inputs, layout = shared_prompt.pack_prompts(prompts, next(self.parameters()).device)
        cache = DynamicCache(config=self.core.config.get_text_config())
        with self._precision():
            states = self._hidden(inputs, layout, cache)
        return prefill.split(cache, states[0], [len(p) for p in prompts])

    def _hidden(self, inputs: dict[str, Tensor], layout: Layout | None, cache: Any = None) -> Tensor:
        """(B, L, d) states before the output head; of a packed row, its prefills' last states follow."""
        packed = {} if layout is None else {"shared_prompt": layout}
        prefills = [] if layout is None else layout.prefills
        if torch.is_grad_enabled() and self.vision_trains and not has_media(inputs) and not prefills:
            inputs = dict(inputs)
            embedded = self.core.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = embedded + self._idle_vision(embedded.device).to(embedded.dtype)
        caching = {"past_key_values": cache, "use_cache": cache is not None}
        states = self.core.model(**_with_features(inputs), **packed, **caching).last_hidden_state
        return torch.cat([states, *(p.last[None] for p in prefills)], dim=1) if prefills else states

    def _idle_vision(self, device: torch.device) -> Tensor:
        """0, through the vision tower: a rank whose batch has no media still takes part in its gradients.

        It enters where features would, so that FSDP gathers and reduces in the order of the other ranks.
        """
        family, visual = self.family, self.core.model.visual
        channels = getattr(visual.config, "in_channels", None) or visual.config.in_chans
        grid = torch.tensor([[1, family.merge, family.merge]], device=device)
        pixels = torch.zeros(family.merge**2, channels * family.temporal_patch * family.patch**2, device=device)
        output = self.core.model.get_image_features(pixels, grid, return_dict=True)
        features = [*output.pooler_output]
        for level in getattr(output, "deepstack_features", None) or []:
            features += [*level]
        return 0.0 * torch.stack([f.sum() for f in features]).sum()

    def patch_features(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """(patches, d) of the vision encoder, before patches are merged into tokens."""
        with self._precision():
            return self.core.model.visual(pixels.type(self.core.model.visual.dtype), grid_thw=grid).last_hidden_state

    def encode_media(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the language model reads of images and videos: `{kind}_features (tokens, d)`, and where a family
        feeds deeper layers too (DeepStack) `{kind}_levels (levels, tokens, d)`."""
        features = {}
        with self._precision():
            for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
                if pixels not in media:
                    continue
                encode = getattr(self.core.model, f"get_{kind}_features")
                output = encode(media[pixels], media[f"{kind}_grid_thw"], return_dict=True)
                features[f"{kind}_features"] = torch.cat(tuple(output.pooler_output))
                if levels := getattr(output, "deepstack_features", None):
                    features[f"{kind}_levels"] = torch.stack([torch.cat(tuple(level)) for level in levels])
        return features

    def _precision(self) -> AbstractContextManager:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, dtype=self.autocast)


def has_media(inputs: dict[str, Tensor]) -> bool:
    return any(name.startswith(("pixel_values", "image_features", "video_features")) for name in inputs)


def _with_features(inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` with features of `encode_media` in the form transformers takes them."""
    if not any(name.endswith("_features") for name in inputs):
        return inputs
    plain = {k: v for k, v in inputs.items() if not k.endswith(("_features", "_levels"))}
    outputs = {}
    for kind in ("image", "video"):
        if f"{kind}_features" in inputs:
            levels = inputs.get(f"{kind}_levels")
            deeper = None if levels is None else [(level,) for level in levels]
            outputs[kind] = SimpleNamespace(pooler_output=(inputs[f"{kind}_features"],), deepstack_features=deeper)
    return plain | {"mm_encoder_outputs": outputs}
