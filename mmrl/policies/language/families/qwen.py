"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5: pictures are grids of patch rows.

The default family runs them too. What is here makes them faster, or tells more about them: pixels can be rebuilt from
patch rows, so that a view acts after the resize; placeholders are counted before any forward pass; the tower gets
`fast.vision_attention` and `fast.patch_projection`; the decoder's last layer may be asked for a prompt's end alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.language.families.default import Family, _kept


class Qwen(Family):
    """patch, merge    a placeholder stands for merge x merge patches of patch x patch pixels
    temporal_patch  frames in one patch
    """

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    last_layer = True
    one_tower = True
    takes_embeddings = True

    def __init__(self, config: Any, processor: Any):
        super().__init__(config, processor)
        vision = config.vision_config
        self.patch: int = vision.patch_size
        self.merge: int = vision.spatial_merge_size
        self.axes = 3

    @property
    def factor(self) -> int:
        return self.patch * self.merge

    @property
    def temporal_patch(self) -> int:
        return self.config.vision_config.temporal_patch_size

    def positions(self, core: Any, ids: Tensor, aligned: dict[str, Tensor], media: dict[str, Any]) -> Tensor:
        """By the model's index function, which is older than the interface that the default family calls."""
        types = aligned.setdefault("mm_token_type_ids", torch.zeros_like(ids))
        grids = {k: v for k, v in media.items() if not k.startswith("pixel_values")}
        given = {"input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
        positions, _ = core.model.get_rope_index(**given, **grids)
        return positions[:, 0]

    def next_position(self, positions: Tensor) -> int:
        """One past the largest, as `generate` has it: a clip may outlast the text behind it."""
        return int(positions.max()) + 1

    def after(self, core: Any, ids: Tensor, aligned: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(row[0, -1]) for name, row in aligned.items()}

    def check_placeholders(self, ids: Tensor, media: dict[str, Any], images: int, clips: int) -> None:
        """Placeholders in the text and features of the vision tower must agree, before any forward."""
        for kind, token in self.placeholders.items():
            grid = media.get(f"{kind}_grid_thw")
            features = 0 if grid is None else int(grid.prod(-1).sum()) // self.merge**2
            placeholders = int((ids == token).sum())
            if placeholders != features:
                raise PolicyError(
                    f"{placeholders} {kind} placeholders but {features} {kind} features; "
                    "processor and model do not belong together (patch or merge size)"
                )

    def encode_media(self, core: Any, media: dict[str, Any]) -> dict[str, Any]:
        features = {}
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in media:
                encode = getattr(core.model, f"get_{kind}_features")
                features[kind] = _kept(encode(media[pixels], media[f"{kind}_grid_thw"], return_dict=True))
        return features

    def cast(self, core: Any, name: str, value: Any) -> Any:
        return value  # the tower does it itself

    def patch_features(self, core: Any, media: dict[str, Tensor]) -> Tensor:
        visual, features = core.model.visual, []
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in media:
                rows = media[pixels].type(visual.dtype)
                features.append(visual(rows, grid_thw=media[f"{kind}_grid_thw"]).last_hidden_state)
        return torch.cat(features)

    def idle(self, core: Any, device: torch.device) -> Tensor:
        """One merged token of black pixels is enough for the tower."""
        visual = core.model.visual
        channels = getattr(visual.config, "in_channels", None) or visual.config.in_chans
        grid = torch.tensor([[1, self.merge, self.merge]], device=device)
        pixels = torch.zeros(self.merge**2, channels * self.temporal_patch * self.patch**2, device=device)
        features = self.encode_media(core, {"pixel_values": pixels, "image_grid_thw": grid})["image"]
        parts = [*features["pooler_output"]]
        for level in features.get("deepstack_features") or []:
            parts += [*level]
        return 0.0 * torch.stack([f.sum() for f in parts]).sum()
