"""Interface for benchmarks that compile a whole detector, including post-processing, with one engine.

This is what a user would do without hybrid_rt, through the vendor's own Python interface, with one image per call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

Call = Callable[[Tensor], Sequence[Any]]
"""Takes an image [3, H, W] and returns the detector's outputs in order."""


@dataclass(frozen=True)
class WholeDetector:
    """A detector for a whole graph, with the images for which it is converted.

    Attributes:
        detector: Takes one image and returns a tuple of tensors.
        images: Example images, each [3, H, W]. Sizes that differ between them stay free if the engine supports that.
        outputs: Names of the detector's outputs.
        calibration: Images [3, H, W] to calibrate int8 on. If empty, ``images`` are used.
    """

    detector: nn.Module
    images: Sequence[Tensor]
    outputs: Sequence[str]
    calibration: Sequence[Tensor] = ()


class WholeGraph(ABC):
    """Converts a whole detector as users of the engine do, and opens the result on the CPU."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """Supported precisions. They apply to the whole graph, including boxes, scores and NMS."""

    @abstractmethod
    def build(self, whole: WholeDetector, precision: str, directory: Path) -> None:
        """Converts the detector and writes the result into a directory.

        Args:
            whole: The detector.
            precision: One of ``precisions``.
            directory: An existing directory.

        Raises:
            Exception: The vendor's converter refuses the detector. It may raise any type.
        """

    @abstractmethod
    def open(self, precision: str, directory: Path, threads: int) -> Call:
        """Opens the result of :meth:`build`.

        Args:
            precision: The precision that was built.
            directory: The directory that was written.
            threads: Number of threads per call.

        Returns:
            A function that runs the detector on one image.
        """
