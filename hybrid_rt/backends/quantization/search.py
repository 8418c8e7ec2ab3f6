"""Finds the layers that must stay out of int8, within a time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from ... import _native
from ...common.errors import BackendError
from ...common.latency import benchmark
from .options import DEFAULTS, MAX_ERROR, SECONDS
from .record import KeptLayer, Quantization

RANKING_SHARE = 0.5
"""Fraction of the time budget for trying layers one by one. The rest is for trying sets of layers."""

MOST_COMPARED = 8
"""Maximum number of calibration samples on which a trial is compared with fp32, spread evenly over all."""

_ROUNDS = 5


class Quantizer(Protocol):
    """A segment whose layers an engine's tool can quantise selectively."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers that int8 could compute, in the order in which they run."""

    @property
    def edges(self) -> Collection[str]:
        """Names of the first and last layers. No layer before or after them can compensate for their error."""

    @property
    def branches(self) -> Mapping[str, Collection[str]]:
        """Names of the layers that contribute to exactly one output, by output."""

    def quantize(self, kept: Collection[str]) -> Any:
        """Returns the segment with all layers in int8 except ``kept``."""

    def alone(self, layer: str) -> Any:
        """Returns the segment with only this layer in int8."""

    def errors(self, model: Any) -> Mapping[str, float]:
        """Returns the relative error of each output of a model that :meth:`quantize` or :meth:`alone` returned."""


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        model: The segment in int8.
        kept: Layers that stay in fp32.
        error: Largest relative error of an output of ``model``.
        everywhere: Largest relative error of an output of ``model_everywhere``.
        model_everywhere: The segment with every layer in int8.
    """

    model: Any
    kept: tuple[KeptLayer, ...]
    error: float
    everywhere: float
    model_everywhere: Any


class EngineQuantizer(Quantizer, Protocol):
    """A quantizer that also provides the facts for the record of the result."""

    @property
    def samples(self) -> Sequence[Any]:
        """Calibration samples."""

    @property
    def shown(self) -> Mapping[str, str]:
        """Names of layers to show to users, by the engine's names."""

    def times(self, found: SearchResult) -> dict[str, float]:
        """Returns the median milliseconds of a call of the result and of the models that it is compared with."""


class Comparison:
    """Compares models with the segment in fp32 on some of the calibration samples."""

    def __init__(
        self,
        model: Any,
        outputs: Sequence[str],
        samples: Sequence[Any],
        opened: Callable[[Any], Callable[[Any], Sequence[Tensor]]],
    ) -> None:
        """Runs the segment in fp32 and keeps its outputs.

        Args:
            model: The segment in fp32.
            outputs: Names of its outputs, in order.
            samples: Calibration samples. At most ``MOST_COMPARED`` of them are used.
            opened: Turns a model into a function of one sample.
        """
        self._model, self._names, self._opened = model, outputs, opened
        self.samples = samples[:: -(-len(samples) // MOST_COMPARED)]
        run = opened(model)
        self._expected = [run(sample) for sample in self.samples]

    def errors(self, model: Any) -> dict[str, float]:
        """Returns the largest relative error of each output of a model."""
        run = self._opened(model)
        found = dict.fromkeys(self._names, 0.0)
        for sample, expected in zip(self.samples, self._expected, strict=True):
            for name, right, got in zip(self._names, expected, run(sample), strict=True):
                error = _native.output_error(name, right, got).relative_error
                found[name] = error if error != error else max(found[name], error)
        return found

    def times(self, found: SearchResult) -> dict[str, float]:
        """Returns the median milliseconds of a call in fp32, in int8, and with every layer in int8 if some are kept."""
        models = {"fp32": self._model, "int8": found.model}
        if found.kept:
            models["int8 everywhere"] = found.model_everywhere
        cases = {name: self._opened(model) for name, model in models.items()}
        times = benchmark(cases, (self.samples[0],), repeat=_ROUNDS, warm_up=1)
        return {name: latency.median for name, latency in times.items()}


class SearchFailed(Exception):
    """No tried set of layers is accurate enough. The text gives the error of the best one."""


def search(
    quantizer: Quantizer,
    limit: float,
    seconds: float,
    progress: Callable[[float, str], None] = lambda share, what: None,
) -> SearchResult:
    """Quantises as many layers as the limit on the outputs' errors allows.

    Layers are ranked by the error that each causes alone. The search keeps the first one, two, four, ... of the ranking
    in fp32. If half of all layers are not enough, it keeps the branches of the outputs that are too inaccurate.
    Otherwise it then finds the smallest sufficient number by bisection.

    Args:
        quantizer: The segment.
        limit: Largest allowed relative error of an output.
        seconds: Time budget of the search. A trial that has begun is finished.
        progress: Called with the spent fraction of the budget and a description of the current trial.

    Returns:
        The quantised segment and the layers that stay in fp32.

    Raises:
        SearchFailed: The limit can't be met, or not in this time.
    """
    trials = _Trials(quantizer, limit, seconds, progress)
    whole = trials.quantize(())
    if whole.is_good:
        return SearchResult(whole.model, (), whole.error, whole.error, whole.model)
    ranking = _ranked(trials)
    names = list(ranking)
    most = len(quantizer.layers) // 2
    count, too_few = 1, 0
    found = None
    while found is None and count <= most:
        trial = trials.quantize(names[:count])
        if trial.is_good:
            found = trial
        else:
            count, too_few = count * 2, count
    if found is None:
        found = _by_outputs(trials, names[:most])
    else:
        while count - too_few > 1 and not trials.is_over:
            middle = (count + too_few) // 2
            trial = trials.quantize(names[:middle])
            if trial.is_good:
                found, count = trial, middle
            else:
                too_few = middle
    kept = tuple(KeptLayer(name, ranking.get(name)) for name in quantizer.layers if name in found.kept)
    return SearchResult(found.model, kept, found.error, whole.error, whole.model)


@dataclass(frozen=True)
class _Trial:
    model: Any
    kept: frozenset[str]
    errors: Mapping[str, float]
    limit: float

    @property
    def error(self) -> float:
        return max(self.errors.values(), default=math.inf)

    @property
    def is_good(self) -> bool:
        return self.error <= self.limit  # false for NaN


class _Trials:
    """Runs trials and tracks the best error and the remaining time."""

    def __init__(
        self, quantizer: Quantizer, limit: float, seconds: float, progress: Callable[[float, str], None]
    ) -> None:
        self.quantizer, self.limit, self.seconds, self._progress = quantizer, limit, seconds, progress
        self._start = time.monotonic()
        self._best = math.inf

    @property
    def share(self) -> float:
        """Fraction of the time budget that is spent."""
        return min(1.0, (time.monotonic() - self._start) / self.seconds)

    @property
    def is_over(self) -> bool:
        return self.share >= 1

    def progress(self, what: str) -> None:
        self._progress(self.share, what)

    def quantize(self, kept: Collection[str]) -> _Trial:
        """Quantises all layers except ``kept`` and measures the errors.

        Raises:
            SearchFailed: The time is over.
        """
        if kept and self.is_over:
            raise SearchFailed(
                f"{self._best:.3g} at best when the {self.seconds:g} s of the search were over, with "
                f"{len(kept)} layers still to be kept in fp32"
            )
        self.progress(f"int8 with {len(kept)} of {len(self.quantizer.layers)} layers in fp32")
        model = self.quantizer.quantize(kept)
        trial = _Trial(model, frozenset(kept), self.quantizer.errors(model), self.limit)
        self._best = min(self._best, trial.error)
        return trial

    def refusal(self) -> SearchFailed:
        return SearchFailed(f"{self._best:.3g} at best, with half of the layers or whole branches in fp32")


def _ranked(trials: _Trials) -> dict[str, float | None]:
    """Returns the error that each layer causes alone, largest first; None for layers that were not tried in time."""
    layers, edges = trials.quantizer.layers, trials.quantizer.edges
    errors: dict[str, float | None] = {}
    for name in sorted(layers, key=lambda name: name not in edges):
        if trials.share >= RANKING_SHARE:
            break
        trials.progress(f"int8 in {name} alone")
        found = max(trials.quantizer.errors(trials.quantizer.alone(name)).values(), default=0.0)
        errors[name] = math.inf if math.isnan(found) else found
    ranked = sorted(errors, key=lambda name: -(errors[name] or 0.0))
    unseen = [name for name in layers if name not in errors]
    return {**{name: errors[name] for name in ranked}, **dict.fromkeys(unseen)}


def _by_outputs(trials: _Trials, ranked: Sequence[str]) -> _Trial:
    """Keeps the branches of the outputs that are too inaccurate, then also the first layers of the ranking."""
    trial = trials.quantize(ranked)
    bad = [name for name, error in trial.errors.items() if not error <= trials.limit]
    branches = {layer for name in bad for layer in trials.quantizer.branches.get(name, ())}
    for kept in (branches, branches | set(ranked)):
        if kept and len(kept) < len(trials.quantizer.layers):
            trial = trials.quantize([name for name in trials.quantizer.layers if name in kept])
            if trial.is_good:
                return trial
    raise trials.refusal()


def quantize(
    quantizer: EngineQuantizer,
    subject: tuple[str, str],
    options: Mapping[str, float],
    instead: str,
    progress: Callable[[float, str], None],
) -> tuple[Any, Quantization]:
    """Returns the segment in int8, and the record of the kept layers, the errors and the times.

    Args:
        quantizer: The segment.
        subject: Names of the backend and the segment, for errors.
        options: Options of :mod:`.options`.
        instead: Precisions to suggest if int8 is not possible.
        progress: Called with the spent fraction of the time budget and a description of the current trial.

    Raises:
        BackendError: Too many layers would have to stay in fp32.
    """
    backend, segment = subject
    limit, seconds = (options.get(name, DEFAULTS[name]) for name in (MAX_ERROR, SECONDS))
    try:
        found = search(quantizer, limit, seconds, progress)
    except SearchFailed as error:
        raise BackendError.make(
            backend,
            f"segment '{segment}' in int8",
            expected=f"outputs at most {limit:g} off on its calibration samples",
            got=str(error),
            remedy=f"Use {instead}, pass typical images in calibration_data=, or options="
            f"{{'{backend}': {{'{SECONDS}': ..., '{MAX_ERROR}': ...}}}}.",
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
