"""Generates images of handwritten digits on real photographs, with exact boxes.

The digits are scikit-learn's 8x8 scans of handwriting, and the photographs come with scikit-image and scikit-learn, so
nothing is downloaded. The held-out split has other digits and other photographs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import skimage.data
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_image

Split = Literal["train", "held_out"]

CLASS_NAMES = ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

# Only photographs whose licence permits the distribution of derived images (README.md lists the sources).
PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut",
        "brick",
        "cell",
        "chelsea",
        "china",
        "clock",
        "coins",
        "grass",
        "hubble_deep_field",
        "immunohistochemistry",
        "retina",
    ),
    "held_out": ("camera", "coffee", "flower", "gravel", "rocket"),
}

# The dataset is ordered by writer: splitting by index, rather than at random, also keeps most of the held-out
# handwriting unseen.
FIRST_HELD_OUT_DIGIT = 1437

HEIGHT_RANGE = (240, 320)
WIDTH_RANGE = (320, 416)
DIGIT_HEIGHT_RANGE = (28, 90)
DIGITS_PER_IMAGE = (2, 8)

_SPLIT_KEY: dict[Split, int] = {"train": 1, "held_out": 2}
_MARGIN = 3  # empty cells around the 8x8 scan, so that a rotated digit is not cut off
_INK = 0.35  # minimum coverage for a pixel to count as ink in the box
_MIN_CONTRAST = 70.0  # between the digit's luminance and the background's mean, of 255


@dataclass(frozen=True)
class Sample:
    """One image with its digits.

    Attributes:
        image: uint8 array of shape [height, width, 3], RGB.
        boxes: float32 array of shape [n, 4], (x1, y1, x2, y2) in pixels, tight around the ink.
        labels: int64 array of shape [n], digit + 1 (0 is the background class).
        file_name: name of the image's file, unique within a split and seed.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    file_name: str


@cache
def photograph(name: str) -> np.ndarray:
    """Loads one of the photographs that come with scikit-image and scikit-learn.

    Args:
        name: One of the names in ``PHOTOGRAPHS``.

    Returns:
        Read-only uint8 array of shape [height, width, 3]. Grey photographs are repeated to three channels.
    """
    if name in ("china", "flower"):
        image = np.array(load_sample_image(f"{name}.jpg"))
    else:
        image = np.array(getattr(skimage.data, name)())
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    image.flags.writeable = False
    return image


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Returns all scans, float64 [1797, 8, 8] in 0..1, and the digit of each, int64 [1797]."""
    data = load_digits()
    return data.images / 16.0, data.target.astype(np.int64)


def digit_indices(split: Split) -> range:
    """Returns the indices into the 1,797 scans that belong to a split."""
    count = len(scans()[1])
    if split == "train":
        return range(FIRST_HELD_OUT_DIGIT)
    return range(FIRST_HELD_OUT_DIGIT, count)


def make_sample(
    split: Split,
    index: int,
    seed: int = 0,
    *,
    height_range: tuple[int, int] = HEIGHT_RANGE,
    width_range: tuple[int, int] = WIDTH_RANGE,
) -> Sample:
    """Generates one image. The same arguments always give the same image.

    Args:
        split: Split to draw digits and photographs from.
        index: Number of the image in the split, starting at 0.
        seed: Another seed gives an independent series of images.
        height_range: Smallest and largest height of the image in px, inclusive.
        width_range: Smallest and largest width in px, inclusive. The digits keep their size in px.

    Returns:
        The image, with 1 to 8 digits that don't overlap.
    """
    generator = np.random.default_rng([seed, _SPLIT_KEY[split], index])
    height = int(generator.integers(height_range[0], height_range[1] + 1))
    width = int(generator.integers(width_range[0], width_range[1] + 1))
    canvas = _background(split, height, width, generator)
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    images, digits = scans()
    indices = digit_indices(split)
    for _ in range(generator.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)):
        scan_index = int(generator.integers(indices.start, indices.stop))
        coverage = render(images[scan_index], generator)
        box = _place(coverage.shape, canvas.shape, boxes, generator)
        if box is None:
            continue
        _blend(canvas, coverage, box, generator)
        boxes.append(box)
        labels.append(int(digits[scan_index]) + 1)
    return Sample(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        file_name=f"{split}_{seed}_{index:05d}.png",
    )


def make_split(split: Split, count: int, seed: int = 0) -> list[Sample]:
    """Generates the first ``count`` images of a split.

    Args:
        split: "train" or "held_out". They have no digit or photograph in common.
        count: Number of images.
        seed: Another seed gives an independent series of images.

    Returns:
        ``count`` samples, 240..320 px high and 320..416 px wide. A larger count only appends.
    """
    return [make_sample(split, index, seed) for index in range(count)]


def coco_annotations(samples: list[Sample]) -> dict[str, Any]:
    """Describes samples in the COCO format.

    Args:
        samples: the images; image ids are their positions + 1.

    Returns:
        A JSON-ready dictionary with "images", "annotations" (boxes as x, y, width, height) and
        "categories" (ids 1..10).
    """
    images = []
    annotations = []
    for image_id, sample in enumerate(samples, start=1):
        height, width = sample.image.shape[:2]
        images.append({"id": image_id, "file_name": sample.file_name, "height": height, "width": width})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": label, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASS_NAMES) if label > 0
    ]
    return {
        "info": {"description": "handwritten digits on photographs"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def write_split(directory: str | Path, split: Split, count: int, seed: int = 0) -> list[Sample]:
    """Writes PNG images and ``annotations.json`` (COCO) into a directory.

    Args:
        directory: made if it isn't there; files of the same names are replaced.
        split: "train" or "held_out".
        count: how many images.
        seed: as for ``make_split``.

    Returns:
        The samples that were written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    samples = make_split(split, count, seed)
    for sample in samples:
        Image.fromarray(sample.image).save(directory / sample.file_name, optimize=True)
    text = json.dumps(coco_annotations(samples), indent=1)
    (directory / "annotations.json").write_text(text + "\n", encoding="utf-8")
    return samples


def _background(split: Split, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Returns a random crop of a photograph with modified light, float32 [height, width, 3] in 0..255."""
    canvas = _crop(split, height, width, generator)
    if split == "train":
        canvas = _vary(canvas, generator)
    contrast = generator.uniform(0.6, 1.1)
    tint = generator.uniform(0.85, 1.1, size=3)
    offset = generator.uniform(-25.0, 25.0)
    canvas = (canvas - 128.0) * (contrast * tint).astype(np.float32) + 128.0 + offset
    return np.clip(canvas, 0.0, 255.0).astype(np.float32)


def _crop(split: Split, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Returns a random crop of a random photograph, resized to float32 [height, width, 3] in 0..255.

    Half of them are mirrored; those for training are also rotated by multiples of 90 degrees.
    """
    names = PHOTOGRAPHS[split]
    image = photograph(names[int(generator.integers(len(names)))])
    smallest_scale = 0.5
    if split == "train":
        image = np.rot90(image, int(generator.integers(4)))
        smallest_scale = 0.25
    largest = min(image.shape[0] / height, image.shape[1] / width)
    scale = generator.uniform(smallest_scale, 1.0) * largest
    crop_height, crop_width = int(height * scale), int(width * scale)
    top = int(generator.integers(image.shape[0] - crop_height + 1))
    left = int(generator.integers(image.shape[1] - crop_width + 1))
    crop = image[top : top + crop_height, left : left + crop_width]
    if generator.random() < 0.5:
        crop = crop[:, ::-1]
    resized = Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def _vary(canvas: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Creates many backgrounds from the few training photographs.

    Without this, the detector memorises these photographs: it missed 1 % of the digits on them and 9 % on others.
    """
    height, width = canvas.shape[:2]
    if generator.random() < 0.6:  # a second photograph, next to the first or blended into it
        other = _crop("train", height, width, generator)
        if generator.random() < 0.5:
            normal = generator.normal(size=2)
            rows = np.linspace(-1.0, 1.0, height)[:, None] * normal[0]
            columns = np.linspace(-1.0, 1.0, width)[None, :] * normal[1]
            weight = (rows + columns > generator.uniform(-0.5, 0.5)).astype(np.float32)[:, :, None]
        else:
            weight = np.float32(generator.uniform(0.2, 0.8))
        canvas = canvas * (1.0 - weight) + other * weight
    if generator.random() < 0.5:
        canvas = canvas[:, :, generator.permutation(3)]
    if generator.random() < 0.25:
        canvas = 255.0 - canvas
    return canvas


def render(
    scan: np.ndarray, generator: np.random.Generator, height_range: tuple[int, int] = DIGIT_HEIGHT_RANGE
) -> np.ndarray:
    """Turns a scan [8, 8] into ink coverage 0..1, float32, cropped tightly to the ink.

    The scan is scaled to a height in ``height_range``, in px, slightly widened or narrowed, rotated and sheared, with
    cubic interpolation.
    """
    padded = np.pad(scan, _MARGIN)
    cells = padded.shape[0]
    pixels_per_cell = generator.uniform(*height_range) / scan.shape[0]
    side = int(np.ceil(cells * pixels_per_cell))
    angle = np.deg2rad(generator.uniform(-12.0, 12.0))
    shear = generator.uniform(-0.2, 0.2)
    widen = generator.uniform(0.85, 1.2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1.0, 0.0], [shear, 1.0 / widen]]) / pixels_per_cell
    centre_in = (cells - 1) / 2.0
    centre_out = (side - 1) / 2.0
    offset = centre_in - matrix @ np.full(2, centre_out)
    smooth = ndimage.affine_transform(padded, matrix, offset, output_shape=(side, side), order=3)
    # A steep ramp around half coverage gives pen strokes with soft edges instead of blurred blobs.
    threshold = generator.uniform(0.3, 0.45)
    coverage = np.clip((smooth - threshold) / 0.25 + 0.5, 0.0, 1.0).astype(np.float32)
    rows = np.flatnonzero((coverage > _INK).any(axis=1))
    columns = np.flatnonzero((coverage > _INK).any(axis=0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    digit_shape: tuple[int, ...],
    canvas_shape: tuple[int, ...],
    taken: list[tuple[float, float, float, float]],
    generator: np.random.Generator,
) -> tuple[float, float, float, float] | None:
    """Returns a box for a digit at least 4 px from the others, or None after 30 attempts."""
    height, width = digit_shape
    for _ in range(30):
        x1 = float(generator.integers(canvas_shape[1] - width + 1))
        y1 = float(generator.integers(canvas_shape[0] - height + 1))
        x2, y2 = x1 + width, y1 + height
        if all(x1 >= other[2] + 4 or x2 <= other[0] - 4 or y1 >= other[3] + 4 or y2 <= other[1] - 4 for other in taken):
            return x1, y1, x2, y2
    return None


def _blend(
    canvas: np.ndarray,
    coverage: np.ndarray,
    box: tuple[float, float, float, float],
    generator: np.random.Generator,
) -> None:
    """Paints a digit onto the canvas in a colour that contrasts with the background."""
    x1, y1, x2, y2 = (int(value) for value in box)
    region = canvas[y1:y2, x1:x2]
    weights = np.array([0.299, 0.587, 0.114])  # luminance, ITU-R BT.601
    below = float((region.reshape(-1, 3) @ weights).mean())
    for _ in range(50):
        colour = generator.uniform(0.0, 255.0, size=3)
        if abs(float(colour @ weights) - below) >= _MIN_CONTRAST:
            break
    else:
        colour = np.full(3, 255.0 if below < 128.0 else 0.0)
    opacity = generator.uniform(0.8, 1.0)
    alpha = (coverage * opacity)[:, :, None]
    region[...] = region * (1.0 - alpha) + alpha * colour.astype(np.float32)
