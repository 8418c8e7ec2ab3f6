"""Runs a whole detector, including post-processing, in one engine, as users would do without a hybrid.

Each backend defines how its engine's users do that, see :mod:`hybrid_rt.backends.whole_graph`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backends import registry
from ..backends.whole_graph import WholeDetector, WholeGraph
from ..common.errors import OptionError

Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]

_OUTPUTS = "outputs.json"
"""Name of the file with the names of the detector's fields, in the order of the engine's outputs."""


class _OneImage(nn.Module):
    """Takes one image [3, H, W] and returns all fields of the result, because fewer (no masks) would be less work."""

    def __init__(self, detector: nn.Module, outputs: list[str]) -> None:
        super().__init__()
        self.detector = detector
        self.outputs = outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.detector([image])[0]
        return tuple(found[name] for name in self.outputs)


def build(
    engine: str,
    detector: nn.Module,
    images: Sequence[Tensor],
    precision: str,
    directory: Path,
    calibration: Sequence[Tensor] = (),
) -> None:
    """Converts the detector as the engine's users do.

    Args:
        engine: a backend that supports whole detectors.
        detector: a detector with torchvision's interface.
        images: tensors [3, H, W]. Sizes that differ among them stay free if the engine's converter supports that.
        precision: the precision of the whole detector, including boxes, scores and NMS.
        directory: place of the engine's files.
        calibration: images [3, H, W] for int8 calibration; empty: ``images``.

    Raises:
        OptionError: The backend does not support whole detectors.
        Exception: The vendor's converter refuses the detector.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of exporters, about themselves
        outputs = list(detector([images[0].clone()])[0])
        (directory / _OUTPUTS).write_text(json.dumps(outputs))
        whole = WholeDetector(_OneImage(detector, outputs).eval(), images, outputs, calibration)
        _whole_graph(engine).build(whole, precision, directory)


def open_whole(engine: str, precision: str, directory: Path, threads: int) -> Detect:
    """Opens the files of :func:`build`; the result takes a list of one image, as torchvision's detectors do."""
    call = _whole_graph(engine).open(precision, directory, threads)
    outputs = json.loads((directory / _OUTPUTS).read_text())

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        (image,) = images
        return [dict(zip(outputs, call(image), strict=True))]

    return detect


def _whole_graph(engine: str) -> WholeGraph:
    found = registry.whole_graph(engine)
    if found is None:
        raise OptionError.make("bench", "engine", expected="an engine that supports whole detectors", got=f"'{engine}'")
    return found
