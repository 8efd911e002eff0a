"""A closer look at a picture: the policy names a box and is shown that part, from the original pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmrl.errors import ConfigError
from mmrl.policies.language.encoding import open_image
from mmrl.record import Prompt
from mmrl.rollout.environments.base import MAX_TURNS, Done, Environment, Observation
from mmrl.rollout.environments.calls import BadCall, argument, call_in, numbers
from mmrl.stages import LANGUAGE, stage

EXAMPLE = '{"box": [x0, y0, x1, y1]} with 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000'


@dataclass
class Pictures:
    """The pictures of a conversation, opened when they are first looked at."""

    prompt: Prompt


@stage(
    "environment",
    "zoom",
    paper="after DeepEyes, arXiv 2505.14362, and Pixel Reasoner, arXiv 2505.15966",
    formula='<tool>{"box": [x0, y0, x1, y1]}</tool> shows that part of the picture enlarged, from its original pixels',
    confidence="ours",
    modalities=LANGUAGE,
)
class Zoom(Environment):
    """Crop by a box in a call, coordinates from 0 to 1000 of the picture's width and height.

    side       pixels of the crop's longer side as it is shown; a larger crop is left to the policy's pixel budget
    image      which of the prompt's pictures, from 0
    max_turns  looks and the answer, at most
    """

    def __init__(self, *, side: int = 448, image: int = 0, max_turns: int = MAX_TURNS) -> None:
        if side < 1 or image < 0:
            raise ConfigError(f"environment 'zoom': side={side}, image={image}: expected side from 1, image from 0 on")
        self.side, self.image, self.max_turns = side, image, max_turns

    def reset(self, prompt: Prompt) -> Pictures:
        return Pictures(prompt)

    def step(self, state: Pictures, output: str) -> Observation | Done:
        try:
            arguments = call_in(output)
            if arguments is None:
                return Done()
            picture = self._picture(state)
            box = box_of(argument(arguments, "box", EXAMPLE), picture.size)
        except BadCall as error:
            return Observation.of(f"{error}.", bad=error.cause)
        return Observation.of("", images=[self._shown(picture.crop(box))])

    def _picture(self, state: Pictures) -> Any:
        images = state.prompt.images
        if self.image >= len(images):
            raise BadCall("no picture", f"there is no picture {self.image} here, only {len(images)}")
        return open_image(images[self.image], state.prompt)

    def _shown(self, crop: Any) -> Any:
        from PIL import Image

        scale = self.side / max(crop.size)
        if scale <= 1:
            return crop
        width, height = (max(1, round(scale * n)) for n in crop.size)
        return crop.resize((width, height), Image.Resampling.BICUBIC)


def box_of(values: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of a box from 0 to 1000: whole pixels, at least one each way."""
    x0, y0, x1, y1 = numbers(values, 4, EXAMPLE)
    if not (0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000):
        raise BadCall("box outside", f"expected {EXAMPLE}, got {values}")
    width, height = size
    left, top = min(int(x0 * width / 1000), width - 1), min(int(y0 * height / 1000), height - 1)
    return left, top, max(left + 1, round(x1 * width / 1000)), max(top + 1, round(y1 * height / 1000))
