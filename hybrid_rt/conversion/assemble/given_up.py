"""What a conversion had to do without: it goes on with the next lesser thing, and the report says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GivenUp:
    """One thing that was tried and failed.

    Attributes:
        what: e.g. "one engine for backbone+rpn.head".
        instead: what took its place.
        reason: the error's text.
        cost: what is lost.
    """

    what: str
    instead: str
    reason: str
    cost: str

    @property
    def summary(self) -> str:
        """One line; the reason is its own first line."""
        return f"{self.what}: {self.instead} instead ({self.cost}), since {self.reason.splitlines()[0]}"


def fused_given_up(segments: Sequence[str], reason: str) -> GivenUp:
    """Returns the record of segments that could not become one engine."""
    return GivenUp(
        what=f"one engine for {'+'.join(segments)}",
        instead="an engine for each",
        reason=reason,
        cost=f"{len(segments)} calls of engines per run in the place of 1, and the tensors between them in memory",
    )


def engine_given_up(segment: str, engine: str, instead: str, share: float, reason: str) -> GivenUp:
    """Returns the record of an engine that could not compile a segment; ``share``: of the detector's time, 0..1."""
    return GivenUp(
        what=f"{engine} for {segment}",
        instead=instead,
        reason=reason,
        cost=f"{share:.0%} of the detector's time is as fast as {instead} makes it",
    )
