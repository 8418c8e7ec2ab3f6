"""Quantises a segment with an engine's own tool, and compares its outputs with those in fp32."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ... import _native
from ...common.errors import BackendError
from ...common.latency import benchmark
from .options import DEFAULTS, MAX_ERROR, SECONDS
from .record import Quantization
from .search import SearchFailed, SearchResult, search

if TYPE_CHECKING:
    from ...capture.program import Program

MOST_COMPARED = 8
"""Maximum number of calibration samples on which a trial is compared with fp32, spread evenly over all."""

_ROUNDS = 5


class EngineQuantizer(ABC):
    """A segment to quantise, with one subclass per tool.

    A subclass sets ``layers``, ``edges`` and ``branches``, see :class:`.search.Quantizer`, and ``shown``.

    Attributes:
        backend: Name of the backend.
        instead: Precisions to suggest if int8 is not possible.
        layers: Names of the layers that int8 could compute, in execution order.
        edges: First and last layers.
        branches: Per output, the layers that lead to it and to no other output.
        shown: Names of layers to show to users, by the engine's names.
        samples: Calibration samples, in the tool's format.
        compared: The samples on which a trial is compared with fp32.
    """

    backend: ClassVar[str]
    instead: ClassVar[str]

    layers: Sequence[str]
    edges: Collection[str]
    branches: Mapping[str, Collection[str]]
    shown: Mapping[str, str]

    def __init__(self, program: Program, model: Any, samples: Sequence[Any]) -> None:
        """Runs the segment in fp32 on the compared samples.

        Args:
            program: The segment.
            model: The segment in fp32, in the engine's format.
            samples: Calibration samples, in the tool's format.

        Raises:
            BackendError: There are no samples.
        """
        self.program, self.model, self.samples = program, model, samples
        if not samples:
            raise BackendError.make(
                self.backend,
                f"segment '{program.name}' in int8",
                expected="calibration samples within the segment's sizes",
                got="none: the samples did not call it, or with other sizes",
                remedy="Pass calibration_data= of the expected sizes, or widen shapes=.",
                code="sizes-not-taken",
            )
        self.compared = samples[:: -(-len(samples) // MOST_COMPARED)]
        run = self.opened(model)
        self._expected = [run(sample) for sample in self.compared]

    @property
    def outputs(self) -> list[str]:
        """Returns the names of the segment's outputs, in order."""
        return [spec.name for spec in self.program.outputs]

    @functools.cached_property
    def everywhere(self) -> Any:
        """Returns the model with all layers in int8."""
        return self.without(())

    def quantize(self, kept: Collection[str]) -> Any:
        """Returns the model with all layers in int8 but ``kept``."""
        return self.without(kept) if kept else self.everywhere

    def errors(self, model: Any) -> dict[str, float]:
        """Returns the largest relative error of each output of a model on the compared samples."""
        run = self.opened(model)
        found = dict.fromkeys(self.outputs, 0.0)
        for sample, expected in zip(self.compared, self._expected, strict=True):
            for name, right, got in zip(found, expected, run(sample), strict=True):
                error = _native.output_error(name, right, got, math.inf).relative_error
                found[name] = error if error != error else max(found[name], error)
        return found

    def times(self, found: SearchResult) -> dict[str, float]:
        """Returns the median milliseconds of a call of the result and of the models that it is compared with."""
        models = {"fp32": self.model, "int8": found.model}
        if found.kept:
            models["int8 everywhere"] = found.model_everywhere
        cases = {name: self.opened(model) for name, model in models.items()}
        times = benchmark(cases, (self.compared[0],), repeat=_ROUNDS, warm_up=1)
        return {name: latency.median for name, latency in times.items()}

    def refused(self, expected: str, got: str) -> BackendError:
        """Returns the error for a segment that the tool does not quantise.

        Args:
            expected: What the tool needs.
            got: The tool's message, or what it was given.
        """
        return BackendError.make(
            self.backend,
            f"segment '{self.program.name}' in int8",
            expected=expected,
            got=got,
            remedy=f"Exclude that layer from the segment (segments=), or use {self.instead}.",
            code="operator-not-in-engine",
        )

    @abstractmethod
    def opened(self, model: Any) -> Callable[[Any], Sequence[Tensor]]:
        """Turns a model into a function that takes one sample and returns the outputs in order."""

    @abstractmethod
    def without(self, kept: Collection[str]) -> Any:
        """Returns the model with all layers in int8 but ``kept``.

        Raises:
            BackendError: The tool refuses.
        """

    @abstractmethod
    def alone(self, layer: str) -> Any:
        """Returns the model with only one layer in int8."""


def quantize(
    quantizer: EngineQuantizer, options: Mapping[str, float], progress: Callable[[float, str], None]
) -> tuple[Any, Quantization]:
    """Returns the segment in int8, and the record of the kept layers, the errors and the times.

    Args:
        quantizer: The segment.
        options: Options of :mod:`.options`.
        progress: Called with the spent fraction of the time budget and a description of the current trial.

    Raises:
        BackendError: Too many layers would have to stay in fp32.
    """
    limit, seconds = (options.get(name, DEFAULTS[name]) for name in (MAX_ERROR, SECONDS))
    try:
        found = search(quantizer, limit, seconds, progress)
    except SearchFailed as error:
        raise BackendError.make(
            quantizer.backend,
            f"segment '{quantizer.program.name}' in int8",
            expected=f"outputs at most {limit:g} off on its calibration samples",
            got=str(error),
            remedy=f"Use {quantizer.instead}, pass typical images in calibration_data=, or options="
            f"{{'{quantizer.backend}': {{'{SECONDS}': ..., '{MAX_ERROR}': ...}}}}.",
            code="outputs-differ",
        ) from error
    return found.model, Quantization(
        samples=len(quantizer.samples),
        layers=len(quantizer.layers),
        kept=tuple(replace(layer, name=quantizer.shown.get(layer.name, layer.name)) for layer in found.kept),
        error=found.error,
        error_everywhere=found.everywhere,
        max_error=limit,
        milliseconds=quantizer.times(found),
    )
