"""Records of failed attempts: a conversion continues with a fallback, and the report says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...common.errors import split_code


@dataclass(frozen=True)
class GivenUp:
    """One attempt that failed.

    Attributes:
        what: the attempt, e.g. "one engine for backbone+rpn.head".
        instead: the fallback.
        reason: the error's text.
        cost: the disadvantage of the fallback.
        code: the reason's code for ``hybrid-rt explain``; empty if it has none.
    """

    what: str
    instead: str
    reason: str
    cost: str
    code: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Reads the code at the end of the reason."""
        object.__setattr__(self, "code", split_code(self.reason)[1])

    @property
    def summary(self) -> str:
        """Returns one line, with the first line of the reason and its code."""
        first, *others = self.reason.splitlines()
        if others and self.code:
            first = f"{first} [{self.code}]"
        return f"{self.what}: {self.instead} instead ({self.cost}), since {first}"


def fused_given_up(segments: Sequence[str], reason: str) -> GivenUp:
    """Returns the record of segments that could not become one engine."""
    return GivenUp(
        what=f"one engine for {'+'.join(segments)}",
        instead="an engine for each",
        reason=reason,
        cost=f"{len(segments)} calls of engines per run in the place of 1, and the tensors between them in memory",
    )


def segment_given_up(segment: str, share: float, reason: str) -> GivenUp:
    """Returns the record of a segment that could not be captured; ``share``: its part of the detector's time, 0..1."""
    return GivenUp(
        what=f"the segment {segment}",
        instead="what is worth it inside it, the rest in the head",
        reason=reason,
        cost=f"at most {share:.0%} of the detector's time is as fast as TorchScript makes it",
    )


def whole_given_up(detector: str, reason: str) -> GivenUp:
    """Returns the record of a detector that could not become one engine."""
    return _split(f"one engine for the whole {detector}", "engines for its segments", reason)


def cut_given_up(detector: str, reason: str) -> GivenUp:
    """Returns the record of a part of the exported graph that could not become an engine."""
    what = f"one engine for the largest part of {detector}'s exported graph"
    return _split(what, "segments at module borders", reason)


def _split(what: str, instead: str, reason: str) -> GivenUp:
    return GivenUp(what, instead, reason, cost="what is between and behind them is computed by TorchScript")


def smaller_cut(given_up: GivenUp) -> GivenUp:
    """Returns the record of a part that could not become an engine, although a smaller part of it could."""
    return replace(given_up, instead="a smaller part", cost="what was left out is computed by TorchScript")


def engine_given_up(segment: str, engine: str, instead: str, share: float, reason: str) -> GivenUp:
    """Returns the record of an engine that could not compile a segment.

    ``share`` is the segment's part of the detector's time, 0..1.
    """
    return GivenUp(
        what=f"{engine} for {segment}",
        instead=instead,
        reason=reason,
        cost=f"{share:.0%} of the detector's time is as fast as {instead} makes it",
    )
