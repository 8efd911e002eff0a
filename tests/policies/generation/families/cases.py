"""Every variant of every family: its tiny pipeline, how it is asked, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrl.policies.generation.families.asking import Asked
from tests.policies.generation.families import recipes

PROMPTS = ("a red circle left of a blue square", "green star")
NEGATIVE = "black dot and a gray cross"


def picture(width: int = 32, height: int = 32, seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Case:
    """One variant.

    guidance  form of it, for people
    slow      its reference is always encoded at a megapixel: half a minute on a CPU
    """

    name: str
    make: Callable[[], Any]
    asked: Asked
    guidance: str
    media: tuple[Any, ...] = field(default=(), repr=False)
    slow: bool = False

    @property
    def steps(self) -> int:
        return 3 if self.slow else 4

    def pipeline(self) -> Any:
        """The same weights at every call: some parts draw buffers that nothing else seeds."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()


def case(
    name: str, make: Callable[[], Any], form: str = "none", media: tuple[Any, ...] = (), *, slow: bool = False,
    options: dict[str, Any] | None = None, **asked: Any,
) -> Case:  # fmt: skip
    size = {} if asked.pop("sound", False) else {"height": 32, "width": 32}
    if asked.get("guidance", 1) > 1 and "negative" not in asked:
        asked["negative"] = NEGATIVE
    return Case(name, make, Asked(**(size | asked), options=options or {}), form, media, slow)


SHORT = {"max_sequence_length": 32}
LAYERS = {"max_sequence_length": 256, "text_encoder_out_layers": (1, 2, 3)}
CLIP = {"frames": 9, "options": SHORT}
HUNYUAN = {"prompt_template": recipes.HUNYUAN_TEMPLATE, **SHORT}
KONTEXT = {"_auto_resize": False, **SHORT}
EDIT = {"negative": " "}

CASES = [
    case("SD3", recipes.sd3, "batched", guidance=4.5, height=24, width=24, options={"max_sequence_length": 16}),
    case("FLUX.1-dev", recipes.flux, "embedded", embedded=3.5, options=SHORT),
    case("FLUX.1-dev, true guidance", recipes.flux, "embedded, true", guidance=2.0, embedded=3.5, options=SHORT),
    case("FLUX.1-schnell", partial(recipes.flux, guidance=False), options=SHORT),
    case("FLUX.1-Kontext", partial(recipes.flux, "FluxKontextPipeline"), "embedded", (picture(48, 32),),
         embedded=2.5, options=KONTEXT),
    case("FLUX.2-dev", recipes.flux2, "embedded", embedded=4.0, options=LAYERS),
    case("FLUX.2-dev edit, two images", recipes.flux2, "embedded", (picture(96, 64), picture(64, 64, 5)),
         embedded=4.0, options=LAYERS),
    case("FLUX.2-klein base", recipes.flux2_klein, "plain", guidance=3.0, negative="", options=LAYERS),
    case("FLUX.2-klein distilled", partial(recipes.flux2_klein, distilled=True), options=LAYERS),
    case("FLUX.2-klein edit", recipes.flux2_klein, "plain", (picture(96, 64),), guidance=3.0, negative="",
         options=LAYERS),
    case("Qwen-Image", recipes.qwen_image, "norm-rescaled by token", guidance=4.0),
    case("Qwen-Image-Edit", recipes.qwen_edit, "norm-rescaled by token", (picture(48, 32),), guidance=4.0, slow=True),
    case("Qwen-Image-Edit-Plus, two images", partial(recipes.qwen_edit, "QwenImageEditPlusPipeline"),
         "norm-rescaled by token", (picture(48, 32), picture(32, 32, 5)), guidance=4.0, slow=True),
    case("Z-Image", recipes.z_image, "c + w (c - u)", guidance=4.0, options={"max_sequence_length": 64}),
    case("Z-Image-Turbo", recipes.z_image, options={"max_sequence_length": 64}),
    case("SANA", recipes.sana, "batched", guidance=4.5, options={"complex_human_instruction": None, **SHORT}),
    case("Chroma", recipes.chroma, "plain", guidance=5.0, options=SHORT),
    case("Lumina2", recipes.lumina2, "norm-rescaled by row", guidance=4.0, height=64, width=64,
         options={"max_sequence_length": 128}),
    case("CogView4", recipes.cogview4, "plain", guidance=5.0, options=SHORT),
    case("Wan 2.1 text", recipes.wan, "plain", guidance=5.0, **CLIP),
    case("Wan 2.1 image", partial(recipes.wan, image=True), "plain", (picture(),), guidance=5.0, **CLIP),
    case("Wan 2.2 A14B text", partial(recipes.wan, experts=2), "per expert", guidance=4.0, guidance_2=3.0, **CLIP),
    case("Wan 2.2 A14B image", partial(recipes.wan, experts=2, image=True), "per expert", (picture(),),
         guidance=3.5, guidance_2=3.0, **CLIP),
    case("Wan 2.2 TI2V-5B text", partial(recipes.wan, expand=True), "plain", guidance=5.0, **CLIP),
    case("Wan 2.2 TI2V-5B image", partial(recipes.wan, image=True, expand=True), "plain", (picture(),),
         guidance=5.0, **CLIP),
    case("LTX-Video text", recipes.ltx, "batched", guidance=3.0, **CLIP),
    case("LTX-Video image", partial(recipes.ltx, "LTXImageToVideoPipeline"), "batched", (picture(),), guidance=3.0,
         **CLIP),
    case("HunyuanVideo", recipes.hunyuan, "embedded", embedded=6.0, frames=9, options=HUNYUAN),
    case("HunyuanVideo, true guidance", recipes.hunyuan, "embedded, true", guidance=2.0, embedded=6.0, frames=9,
         options=HUNYUAN),
    case("HunyuanVideo-1.5", recipes.hunyuan15, "component", guidance=6.0, frames=9),
    case("Stable Audio 3", recipes.stable_audio_3, "batched", guidance=3.0, sound=True, options={"duration": 4.0}),
]  # fmt: skip
BY_NAME = {each.name: each for each in CASES}
