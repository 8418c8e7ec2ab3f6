"""A segment that an engine's own tool quantises, and how far its outputs are from those in fp32."""

from __future__ import annotations

import functools
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
from .search import Found, NotFound, search

if TYPE_CHECKING:
    from ...capture.program import Program

MOST_COMPARED = 8
"""Maximum number of calibration samples on which a trial is compared with fp32, spread evenly over all."""

_ROUNDS = 5


class EngineQuantizer(ABC):
    """A segment to quantise; a subclass per tool.

    A subclass sets ``layers``, ``edges`` and ``branches``, see :class:`.search.Quantizer`, and ``shown``.

    Attributes:
        backend: name of the backend.
        instead: the precisions to use where int8 is not possible.
        layers: names of what int8 could compute, in the order in which they run.
        edges: the first and the last layers.
        branches: for each output the layers that lead to it and to no other one.
        shown: names of layers for people.
        samples: the calibration samples, in the form that the tool takes.
        compared: those of them on which a trial is compared with fp32.
    """

    backend: ClassVar[str]
    instead: ClassVar[str]

    layers: Sequence[str]
    edges: Collection[str]
    branches: Mapping[str, Collection[str]]
    shown: Mapping[str, str]

    def __init__(self, program: Program, model: Any, samples: Sequence[Any]) -> None:
        """Runs the segment in fp32 on the samples.

        Args:
            program: the segment.
            model: the segment in fp32, in the engine's form.
            samples: the calibration samples.

        Raises:
            BackendError: There are no samples.
        """
        self.program, self.model, self.samples = program, model, samples
        if not samples:
            raise BackendError.make(
                self.backend,
                f"segment '{program.name}' in int8",
                expected="calibration samples inside of the segment's sizes",
                got="none: it was not called on them, or with other sizes",
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
                error = _native.output_error(name, right, got).relative_error
                found[name] = error if error != error else max(found[name], error)
        return found

    def times(self, found: Found) -> dict[str, float]:
        """Returns the median milliseconds of one call of the found model and of the original one."""
        models = {"fp32": self.model, "int8": found.model}
        if found.kept:
            models["int8 everywhere"] = found.model_everywhere
        cases = {name: self.opened(model) for name, model in models.items()}
        times = benchmark(cases, (self.compared[0],), repeat=_ROUNDS, warm_up=1)
        return {name: latency.median for name, latency in times.items()}

    def refused(self, expected: str, got: str) -> BackendError:
        """Returns the error for a segment that the tool does not quantise.

        Args:
            expected: what the tool needs.
            got: the tool's message, or what there is.
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
        """Returns a function of one sample that runs a model, and returns the outputs in order."""

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
    quantizer: EngineQuantizer, options: Mapping[str, float], tell: Callable[[float, str], None]
) -> tuple[Any, Quantization]:
    """Returns the segment in int8, with the record of what was kept and of what it costs.

    Args:
        quantizer: the segment.
        options: see :mod:`.options`.
        tell: receives the progress of the search.

    Raises:
        BackendError: Too much would have to stay in fp32.
    """
    limit, seconds = (options.get(name, DEFAULTS[name]) for name in (MAX_ERROR, SECONDS))
    try:
        found = search(quantizer, limit, seconds, tell)
    except NotFound as error:
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
