"""FLUX.1-Kontext: FLUX.1 with an image to edit, whose tokens follow the state's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.policies.generation.families.flux import Flux


class FluxKontext(Flux):
    images = (0, 1)

    def arguments(self, prompt: str, media: Sequence[Any] = (), *, negative: bool = False) -> dict[str, Any]:
        # without max_area the pipeline would draw a megapixel of this aspect, whatever size is asked for
        area = {"max_area": self.size.height * self.size.width}
        return area | super().arguments(prompt, media, negative=negative)
