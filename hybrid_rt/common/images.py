"""Picture files."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import OptionError


def read_picture(path: Path, scope: str = "cli") -> torch.Tensor:
    """A picture as [3, H, W] float32 in 0..1, RGB, of the pixels that the C++ programs decode.

    EXIF orientation and gamma are not applied; of 16 bits the high byte is taken.

    Raises:
        OptionError: it can't be read; ``scope`` is who asks.
    """
    import numpy
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits, of which Pillow's convert() would clip all above 255
                grey = (numpy.array(picture).astype(numpy.int64) >> 8).clip(0, 255).astype(numpy.uint8)
                pixels = numpy.repeat(grey[:, :, None], 3, axis=2)
            else:
                pixels = numpy.array(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise OptionError.make(scope, f"picture {path}", expected="a picture file", got=str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def pictures_at(path: Path) -> list[torch.Tensor]:
    """The picture, or all PNG and JPEG pictures of a folder in the order of their names; see :func:`read_picture`.

    Raises:
        OptionError: there is none, or one can't be read.
    """
    if not path.is_dir():
        return [read_picture(path)]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in {".png", ".jpg", ".jpeg"})
    if not files:
        raise OptionError.make("cli", f"folder {path}", expected="PNG or JPEG pictures", got="none")
    return [read_picture(file) for file in files]
