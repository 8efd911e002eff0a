"""What the self-check must find of each tiny family. Fewer capabilities would be right too, but slower."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    features: bool = True
    batches: str | None = "media"
    prefix_cache: bool = True
    shared_cache: bool = True
    packed: str | None = "causal"
    turns: bool = True


ALL = Found()
WINDOWED = Found(shared_cache=False)
BIDIRECTIONAL = Found(shared_cache=False, packed="masked")
STATEFUL = Found(shared_cache=False, packed=None)

EXPECTED = {
    "qwen2_vl": ALL,
    "qwen2_5_vl": ALL,
    "qwen3_vl": ALL,
    "qwen3_vl_moe": ALL,
    "qwen3_5": STATEFUL,
    "qwen3_5_moe": STATEFUL,
    "glm4v": ALL,
    "glm46v": ALL,
    "glm4v_moe": ALL,
    "ernie4_5_vl_moe": ALL,
    "exaone4_5": WINDOWED,
    "lfm3_vl": STATEFUL,
    "video_llama_3": ALL,
    "kimi_k25": Found(shared_cache=False),  # its values are narrower than its keys
    "qwen2_5_omni": ALL,
    "qwen3_omni_moe": ALL,
    "internvl": ALL,
    "smolvlm": ALL,
    "idefics3": ALL,
    "idefics2": ALL,
    "gemma3": BIDIRECTIONAL,
    "gemma4": BIDIRECTIONAL,
    "gemma4_shared": BIDIRECTIONAL,
    "paligemma": Found(packed="masked", turns=False),  # pictures stand before all text
    "paligemma2": Found(shared_cache=False, packed=None, turns=False),  # soft caps in the attention: eager
    "llava": ALL,
    "llava_next": ALL,
    "llava_onevision": Found(turns=False),  # several pictures are cut otherwise than one
    "granite4_vision": ALL,
    "mistral3": ALL,
    "deepseek_vl": ALL,
    "cohere2_vision": WINDOWED,
    "ovis2": ALL,
    "perception_lm": ALL,
    "minicpmv4_6": Found(batches="features", shared_cache=False, packed=None, turns=False),  # numbers its pictures
    "llama4": Found(batches=None, shared_cache=False, packed=None),  # scales by the row's index beyond a floor
    "aya_vision": WINDOWED,
    "lfm2_vl": STATEFUL,
    "molmo2": Found(batches="features", packed="masked", turns=False),  # numbers its patches
    "gemma3n": WINDOWED,
    "vipllava": ALL,
    "llava_next_video": ALL,
    "video_llava": ALL,
    "got_ocr2": ALL,
    "glm_ocr": ALL,
    "paddleocr_vl": ALL,
    "lighton_ocr": ALL,
    "aria": ALL,
    "deepseek_vl_hybrid": ALL,
    "janus": ALL,
    "hunyuan_vl": ALL,
    "step3p7": WINDOWED,
    "cohere_compass": WINDOWED,
    "qianfan_ocr": ALL,
    "minicpmv4_7": Found(batches="features", shared_cache=False, packed=None, turns=False),
    "muse_glimmer": WINDOWED,
    "cosmos3_edge": ALL,
    "gemma4_unified": BIDIRECTIONAL,
    "hyperclovax_vision": ALL,
    "granite_docling": ALL,
    "minimax_m3_vl": Found(batches=None, shared_cache=False, packed=None),  # chooses blocks by their columns
    "mistral_large4": STATEFUL,
    "cosmos3_omni": ALL,
    "qwen4_exp": STATEFUL,
    "glm5_next": STATEFUL,
    "glmga": ALL,
    "inkling": STATEFUL,
    "inkling2": STATEFUL,
    "muse_spark": WINDOWED,
    "minicpm_ocr": Found(batches="features", shared_cache=False, packed=None, turns=False),
    "dots3_note": STATEFUL,
    "deepseek_ocr2": ALL,
    "unlimited_ocr": Found(batches="features", prefix_cache=False, shared_cache=False, packed=None),
    "emu3": Found(batches="features", turns=False),  # writes the size of a picture in digits, which merge
    "nemotron_h_omni": STATEFUL,
    "shieldgemma2": BIDIRECTIONAL,
    "mllama": Found(features=False, batches=None, shared_cache=False, packed=None, turns=False),
}
NO_TEXT = frozenset({"paligemma", "paligemma2", "got_ocr2"})
"""Their processors want a picture."""
ONE_PICTURE = frozenset({"perception_lm", "unlimited_ocr"})
"""Their processors or models fail on two pictures of unlike numbers of tiles."""
NOT_RELOADED = frozenset({"kimi_k25", "shieldgemma2"})
"""transformers 5.23 cannot read back what it wrote of the tiny model (an error in its weight conversion; names of
weights for another class)."""
LEARNS_NO_PICTURES = frozenset({"emu3"})
"""Pictures become codes of the vocabulary: no gradient reaches the encoder, and what the decoder reads of them are its
own embeddings."""
CLIPS = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v", "glm46v", "glm4v_moe", "exaone4_5",
    "lfm3_vl", "video_llama_3", "qwen2_5_omni", "qwen3_omni_moe", "internvl", "smolvlm", "gemma4", "llava_onevision",
    "minicpmv4_6", "ernie4_5_vl_moe", "perception_lm", "molmo2", "llava_next_video", "video_llava",
    "cohere_compass", "minicpmv4_7", "muse_glimmer", "cosmos3_edge", "gemma4_unified", "hyperclovax_vision",
    "minimax_m3_vl", "cosmos3_omni", "qwen4_exp", "glm5_next", "glmga", "muse_spark", "minicpm_ocr", "dots3_note",
)  # fmt: skip
"""Families whose clips are scored exactly."""
CLIPS_REFUSED = frozenset({"kimi_k25", "glm_ocr", "nemotron_h_omni"})
"""transformers 5.23 splits the features of Kimi's clips into other lengths than it has, GLM-OCR looks for the grid
of a picture where its processor wrote one of a clip, and Nemotron's processor takes metadata of one clip, not a list.
"""
