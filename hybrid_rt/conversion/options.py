"""Groups and checks the options that all functions that compile engines share."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.selection import FASTEST, Options, VariantRequest, check_calibration, choose_variants
from ..bundle.signing import Keys
from ..capture.size_samples import THOROUGH, Effort
from ..common.errors import OptionError
from ..common.specs import PRECISIONS
from ..verification import coco
from ..verification.coco import CocoDataset, Truth
from ..verification.verify import Thresholds, thresholds_of


@dataclass(frozen=True)
class EngineOptions:
    """Engines for the segments, with precision and device.

    Attributes:
        engine: a backend's name, a list of names, "auto" or "fastest", see :func:`hybrid_rt.convert`.
        precision: precision of the names that do not set their own.
        device: "cpu" or "cuda".
        options: options of the compilers, by the backend's name.
        fallback: add a TorchScript variant in fp32 as the last one.
        calibration_data: tuples of arguments, for int8.
        scope: the caller, for the text of errors.
    """

    engine: str | Sequence[str] = "auto"
    precision: str = "fp32"
    device: str = "cpu"
    options: Options | None = None
    fallback: bool = True
    calibration_data: Sequence[tuple[Any, ...]] = ()
    scope: str = "convert"

    @property
    def is_auto_precision(self) -> bool:
        """Returns true if the precision is chosen by trying the available ones."""
        return self.precision == AUTO_PRECISION

    @property
    def is_fastest(self) -> bool:
        """Returns true if all installed engines are candidates, ordered by measured time."""
        return self.engine == FASTEST

    @functools.cached_property
    def variants(self) -> list[VariantRequest]:
        """Returns the variants to compile, best first.

        Raises:
            OptionError: A precision, engine or option is unknown, or the calibration data does not fit.
            BackendError: The compiler of a named engine is not installed.
        """
        check_precision(self.precision, self.scope)
        wanted = choose_variants(
            self.engine, self.precision, self.fallback, self.scope, device=self.device, options=self.options
        )
        check_calibration(wanted, self.calibration_data, self.scope)
        return wanted

    @property
    def first_precision(self) -> str:
        """Returns the precision of the first engine, whose thresholds apply to the hybrid's results."""
        first = self.engine if isinstance(self.engine, str) else self.engine[0]
        return first.partition(":")[2] or self.precision


HEADS = ("script", "export", "trace")
"""How the head is taken: compiled from its source, by torch.export, or recorded on the example."""

AUTO_HEAD = "auto"
"""Tries :data:`HEADS` in their order."""

AUTO_PRECISION = "auto"
"""Value of ``precision`` that chooses the fastest precision that passes verification on this machine."""


def check_precision(precision: str, scope: str, *, auto: bool = False) -> None:
    """Checks a precision's name; ``auto``: accept "auto" too.

    Raises:
        OptionError: The name is unknown.
    """
    known = [*PRECISIONS, *([AUTO_PRECISION] if auto else [])]
    if precision not in known:
        raise OptionError.make(scope, "precision", expected=f"one of {', '.join(known)}", got=f"'{precision}'")


@dataclass(frozen=True)
class CheckOptions:
    """Options for comparing the hybrid with the detector before it is saved.

    Attributes:
        verify: compare outputs and boxes; "thorough": at many sizes, for minutes.
        inputs: tuples of arguments to compare on, besides the example.
        thresholds: limits for equality; None: those of the precision.
        dataset: annotated images for mAP; None: no mAP.
        max_map_drop: largest allowed drop of the mAP, in 0..1.
    """

    verify: bool | str = True
    inputs: Sequence[tuple[Any, ...]] = ()
    thresholds: Thresholds | None = None
    dataset: CocoDataset | None = None
    max_map_drop: float = 0.005

    @property
    def effort(self) -> Effort | None:
        """Returns the budget for comparisons at further sizes; None without a comparison.

        Raises:
            OptionError: ``verify`` has an unknown value.
        """
        return effort_of(self.verify, "convert")

    def limits(self, precision: str) -> Thresholds:
        """Returns the user's thresholds, or else those of a precision.

        Raises:
            OptionError: The precision is unknown.
        """
        return self.thresholds or thresholds_of(precision)

    @functools.cached_property
    def truth(self) -> Truth | None:
        """Returns the annotations; None without a dataset.

        Raises:
            OptionError: The dataset can't be used.
        """
        return coco.read(self.dataset, self.max_map_drop) if self.dataset is not None else None


def effort_of(verify: bool | str, scope: str) -> Effort | None:
    """Returns the budget for comparisons at further sizes; None without a comparison.

    Raises:
        OptionError: ``verify`` has an unknown value.
    """
    if isinstance(verify, str) and verify != "thorough":
        raise OptionError.make(scope, "verify", expected="True, False or 'thorough'", got=repr(verify))
    return (THOROUGH if verify == "thorough" else Effort()) if verify else None


@dataclass(frozen=True)
class OutputOptions:
    """Files that a conversion writes, and their content.

    Attributes:
        path: path of the `.pt`.
        golden: store a golden sample.
        measure: time detector and hybrid for the report.
        report: file for the report; None: write none.
        sign: private keys that sign the `.pt`.
        contract_sizes: image sizes of the latency contract that is measured and stored; empty: the golden sample's
            size; None: store no contract.
    """

    path: Path
    golden: bool = True
    measure: bool = True
    report: str | os.PathLike[str] | None = None
    sign: Keys = ()
    contract_sizes: Sequence[tuple[int, int]] | None = None
