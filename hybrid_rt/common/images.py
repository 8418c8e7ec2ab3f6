"""Reads image files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from .errors import OptionError

_EXIF_MARK = b"Exif\0\0"
_TURNS = {
    1: (False, ()),
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}
"""By EXIF orientation: whether to swap rows and columns, and then which axes of [rows, columns, 3] to flip."""


def _orientation(exif: bytes) -> int:
    """Returns the orientation in EXIF data, or 1 if it can't be read; matches cpp/apps/image/orientation.cpp."""
    tiff = exif
    while tiff.startswith(_EXIF_MARK):  # some writers of PNG put it there too
        tiff = tiff.removeprefix(_EXIF_MARK)
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(tiff[offset : offset + size], order)

    if tiff[:2] not in (b"II", b"MM") or len(tiff) < 8 or number(2, 2) != 42 or number(4, 4) + 2 > len(tiff):
        return 1
    found = 1
    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 > len(tiff):
            break
        size = {3: 2, 4: 4}.get(number(entry + 2, 2), 0)
        if number(entry, 2) == 0x0112 and size and 0 < number(entry + 4, 4) * size <= 4:
            found = number(entry + 8, size)
    return found if 1 <= found <= 8 else 1


def read_image(path: Path, scope: str = "cli", *, exif: bool = False) -> torch.Tensor:
    """Returns an image as RGB float32 [3, H, W] in 0..1, with the same pixels as the C++ programs decode.

    Gamma is not applied; 16-bit values are reduced to their high byte.

    Args:
        path: the file.
        scope: scope of the error.
        exif: turn the pixels upright by the file's EXIF orientation, as ``hybrid-rt detect --exif`` does. Otherwise
            they stay as they are stored.

    Raises:
        OptionError: The file can't be read.
    """
    import numpy
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # Exif data may stand after the pixels
            is_transposed, flipped = _TURNS[_orientation(image.info.get("exif", b"")) if exif else 1]
            if image.mode.startswith("I"):  # 16 bits, of which Pillow's convert() would clip all above 255
                grey = (numpy.array(image).astype(numpy.int64) >> 8).clip(0, 255).astype(numpy.uint8)
                pixels = numpy.repeat(grey[:, :, None], 3, axis=2)
            else:
                pixels = numpy.array(image.convert("RGB"))
    except Exception as error:  # Pillow's readers of formats, and its limit of pixels, raise many kinds
        raise OptionError.make(scope, f"image {path}", expected="an image file", got=str(error)) from error
    upright = numpy.flip(pixels.transpose(1, 0, 2) if is_transposed else pixels, flipped)
    return torch.from_numpy(upright.copy()).permute(2, 0, 1).float() / 255


def images_at(path: Path, *, exif: bool = False, most: int | None = None) -> list[torch.Tensor]:
    """Returns the image, or all PNG and JPEG images of a directory in the order of their names.

    Args:
        path: the file or directory.
        exif: see :func:`read_image`.
        most: maximum number of images; of a larger directory, every second, third, ... one is read. None: all.

    Raises:
        OptionError: There is no image, or one can't be read.
    """
    if not path.is_dir():
        return [read_image(path, exif=exif)]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in {".png", ".jpg", ".jpeg"})
    if not files:
        raise OptionError.make("cli", f"directory {path}", expected="PNG or JPEG images", got="none")
    stride = 1 if most is None else -(-len(files) // most)
    return [read_image(file, exif=exif) for file in files[::stride]]
