"""Generates images of lines of handwritten digits, with the string on each.

The digits are scikit-learn's 8x8 scans. Every fifth one is held out: a line of the held-out split contains digits that
no training line has, although their writers may be seen in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from models.digits_data import Split, render, scans

LINE_HEIGHT = 32
DIGITS_PER_LINE = (3, 8)

_DIGIT_HEIGHT_RANGE = (16, 24)  # they fit into a line even if rotated and sheared
_HELD_OUT_STEP = 5
_SPLIT_KEY: dict[Split, int] = {"train": 1, "held_out": 2}
_MARGIN_RANGE = (2, 14)  # px, left and right of the digits
_GAP_RANGE = (1, 9)  # px between two digits
_MIN_CONTRAST = 70.0  # between ink and paper, in luminance of 255
_MAX_NOISE = 14.0  # standard deviation, of 255


@dataclass(frozen=True)
class Line:
    """One image of a line.

    Attributes:
        image: uint8 array of shape [32, width, 3], RGB.
        text: The 3 to 8 digits on it, from left to right.
    """

    image: np.ndarray
    text: str


def scan_indices(split: Split) -> np.ndarray:
    """Returns the indices into the 1,797 scans that belong to a split, int64."""
    indices = np.arange(len(scans()[1]))
    held_out = indices % _HELD_OUT_STEP == _HELD_OUT_STEP - 1
    return indices[held_out if split == "held_out" else ~held_out]


def make_line(split: Split, index: int, seed: int = 0) -> Line:
    """Generates one image. The same arguments always give the same image.

    Args:
        split: Split to draw digits from.
        index: Number of the image in the split, starting at 0.
        seed: Another seed gives an independent series of images.

    Returns:
        The image, 32 px high and about 45 to 200 px wide, and its string.
    """
    generator = np.random.default_rng([seed, _SPLIT_KEY[split], index])
    images, digits = scans()
    count = int(generator.integers(DIGITS_PER_LINE[0], DIGITS_PER_LINE[1] + 1))
    chosen = generator.choice(scan_indices(split), size=count)
    inks = [render(images[scan], generator, _DIGIT_HEIGHT_RANGE) for scan in chosen]
    left = int(generator.integers(*_MARGIN_RANGE))
    gaps = generator.integers(*_GAP_RANGE, size=count)
    width = left + sum(ink.shape[1] for ink in inks) + int(gaps[:-1].sum()) + int(generator.integers(*_MARGIN_RANGE))
    coverage = np.zeros((LINE_HEIGHT, width), dtype=np.float32)
    for ink, gap in zip(inks, gaps, strict=True):
        top = int(generator.integers(LINE_HEIGHT - ink.shape[0] + 1))
        coverage[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        left += ink.shape[1] + int(gap)
    return Line(_paint(coverage, generator), "".join(str(digit) for digit in digits[chosen]))


def make_lines(split: Split, count: int, seed: int = 0) -> list[Line]:
    """Generates the first ``count`` images of a split. A larger count only appends."""
    return [make_line(split, index, seed) for index in range(count)]


def _paint(coverage: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns ink on unevenly lit, noisy paper, uint8 [height, width, 3], for a coverage [height, width] in 0..1."""
    height, width = coverage.shape
    luminance = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    while True:
        paper, ink = generator.uniform(0.0, 255.0, size=(2, 3))
        if abs(float((ink - paper) @ luminance)) >= _MIN_CONTRAST:
            break
    alpha = coverage[:, :, None] * generator.uniform(0.8, 1.0)
    canvas = paper * (1.0 - alpha) + ink * alpha
    slopes = generator.uniform(-20.0, 20.0, size=2)
    canvas += (np.linspace(-1, 1, height)[:, None] * slopes[0] + np.linspace(-1, 1, width) * slopes[1])[:, :, None]
    canvas = ndimage.gaussian_filter(canvas, (*[generator.uniform(0.0, 0.7)] * 2, 0.0))
    canvas += generator.normal(0.0, generator.uniform(0.0, _MAX_NOISE), size=canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
