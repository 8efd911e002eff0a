"""Still images of a prompt, opened for a model to see."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.errors import DataError
from mmrl.record import Prompt

if TYPE_CHECKING:
    from PIL import Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def open_image(image: Any, prompt: Prompt) -> Image.Image:
    """A PIL image in RGB, from a PIL image or a path in an allowed format and size."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, (str, Path)):
        raise DataError(f"prompt {prompt.id!r}: expected a PIL image or a path, got {type(image).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(image, formats=IMAGE_FORMATS) as file:
                return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"prompt {prompt.id!r}: cannot read image {image}: {error}") from None
