"""Finds the layers that must not be in int8, within a time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .record import KeptLayer

RANKING_SHARE = 0.5
"""Fraction of the budget for trying layers one by one; the rest is for trying sets of them."""


class Quantizer(Protocol):
    """A segment that an engine's tool can quantise, with some of its layers or others."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of what int8 could compute, in the order in which they run."""

    @property
    def edges(self) -> Collection[str]:
        """The first and the last layers: what comes before or after them can't make up for their error."""

    @property
    def branches(self) -> Mapping[str, Collection[str]]:
        """For each output the layers that lead to it and to no other one."""

    def quantize(self, kept: Collection[str]) -> Any:
        """Returns the segment with all layers in int8 but ``kept``."""

    def alone(self, layer: str) -> Any:
        """Returns the segment with this layer alone in int8."""

    def errors(self, model: Any) -> Mapping[str, float]:
        """Returns the relative error of each output of what one of the methods above returned."""


@dataclass(frozen=True)
class Found:
    """The result of a search: ``error`` is the greatest one of an output, ``everywhere`` that with no layer kept."""

    model: Any
    kept: tuple[KeptLayer, ...]
    error: float
    everywhere: float
    model_everywhere: Any


class NotFound(Exception):
    """No set of layers that was tried is good enough; the text gives the error of the best one."""


def search(
    quantizer: Quantizer, limit: float, seconds: float, tell: Callable[[float, str], None] = lambda share, what: None
) -> Found:
    """Quantises as many layers as the limit on the outputs' errors allows.

    Layers are ranked by the error that each of them alone causes. The first one, two, four, ... of the ranking are
    kept in fp32; if half of all are not enough, the branches of the outputs that are too far off. Then the
    smallest number of the ranking that is enough is looked for.

    Args:
        quantizer: the segment.
        limit: greatest relative error of an output.
        seconds: how long the search may take; one trial that has begun is finished.
        tell: told the share of the time that is over, and what is tried.

    Raises:
        NotFound: the limit can't be kept, or not in this time.
    """
    trials = _Trials(quantizer, limit, seconds, tell)
    whole = trials.quantize(())
    if whole.is_good:
        return Found(whole.model, (), whole.error, whole.error, whole.model)
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
    return Found(found.model, kept, found.error, whole.error, whole.model)


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
        return self.error <= self.limit  # not so if it is NaN


class _Trials:
    """Trials so far, and the remaining time."""

    def __init__(self, quantizer: Quantizer, limit: float, seconds: float, tell: Callable[[float, str], None]) -> None:
        self.quantizer, self.limit, self.seconds, self._tell = quantizer, limit, seconds, tell
        self._start = time.monotonic()
        self._best = math.inf

    @property
    def share(self) -> float:
        """The part of the budget that is spent."""
        return min(1.0, (time.monotonic() - self._start) / self.seconds)

    @property
    def is_over(self) -> bool:
        return self.share >= 1

    def tell(self, what: str) -> None:
        self._tell(self.share, what)

    def quantize(self, kept: Collection[str]) -> _Trial:
        """Raises NotFound if the time is over."""
        if kept and self.is_over:
            raise NotFound(
                f"{self._best:.3g} at best when the {self.seconds:g} s of the search were over, with "
                f"{len(kept)} layers still to be kept in fp32"
            )
        self.tell(f"int8 with {len(kept)} of {len(self.quantizer.layers)} layers in fp32")
        model = self.quantizer.quantize(kept)
        trial = _Trial(model, frozenset(kept), self.quantizer.errors(model), self.limit)
        self._best = min(self._best, trial.error)
        return trial

    def refusal(self) -> NotFound:
        return NotFound(f"{self._best:.3g} at best, with half of the layers or whole branches in fp32")


def _ranked(trials: _Trials) -> dict[str, float | None]:
    """The layers with the error of each alone, the greatest first; edges first where the time does not suffice."""
    layers, edges = trials.quantizer.layers, trials.quantizer.edges
    errors: dict[str, float | None] = {}
    for name in sorted(layers, key=lambda name: name not in edges):
        if trials.share >= RANKING_SHARE:
            break
        trials.tell(f"int8 in {name} alone")
        found = max(trials.quantizer.errors(trials.quantizer.alone(name)).values(), default=0.0)
        errors[name] = math.inf if math.isnan(found) else found
    ranked = sorted(errors, key=lambda name: -(errors[name] or 0.0))
    unseen = [name for name in layers if name not in errors]
    return {**{name: errors[name] for name in ranked}, **dict.fromkeys(unseen)}


def _by_outputs(trials: _Trials, ranked: Sequence[str]) -> _Trial:
    """Keeps the branches of the outputs that are too far off, and then the first of the ranking too."""
    trial = trials.quantize(ranked)
    bad = [name for name, error in trial.errors.items() if not error <= trials.limit]
    branches = {layer for name in bad for layer in trials.quantizer.branches.get(name, ())}
    for kept in (branches, branches | set(ranked)):
        if kept and len(kept) < len(trials.quantizer.layers):
            trial = trials.quantize([name for name in trials.quantizer.layers if name in kept])
            if trial.is_good:
                return trial
    raise trials.refusal()
