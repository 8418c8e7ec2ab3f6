"""Finds the layers that must stay out of int8, within a time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .record import KeptLayer

RANKING_SHARE = 0.5
"""Fraction of the time budget for trying layers one by one. The rest is for trying sets of layers."""


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
