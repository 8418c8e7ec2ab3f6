"""A backend's interface for comparisons: a whole detector, including post-processing, in its engine.

A user would take it instead of a hybrid, by the vendor's own Python interface, one image per call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

Call = Callable[[Tensor], Sequence[Any]]
"""Takes an image [3, H, W] and returns the detector's outputs in their order."""


@dataclass(frozen=True)
class WholeDetector:
    """A detector for a whole graph, with the images that it is converted for.

    Attributes:
        detector: takes one image, returns a tuple of tensors.
        images: [3, H, W] each; sizes that differ among them stay free if the engine's converter supports that.
        outputs: the names of the tensors.
        calibration: images [3, H, W] that int8 is calibrated on; empty: ``images``.
    """

    detector: nn.Module
    images: Sequence[Tensor]
    outputs: Sequence[str]
    calibration: Sequence[Tensor] = ()


class WholeGraph(ABC):
    """Converts a whole detector as the engine's users do, and opens the result, on the CPU."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """The precisions of the whole graph: of boxes, scores and NMS too."""

    @abstractmethod
    def build(self, whole: WholeDetector, precision: str, directory: Path) -> None:
        """Converts the detector into files of the directory.

        Args:
            whole: the detector.
            precision: one of ``precisions``.
            directory: an existing one.

        Raises:
            Exception: whatever the vendor's converter raises for a detector that it does not take.
        """

    @abstractmethod
    def open(self, precision: str, directory: Path, threads: int) -> Call:
        """Returns a function that runs what :meth:`build` wrote.

        Args:
            precision: the precision that was built.
            directory: the directory that was written.
            threads: threads per call.
        """
