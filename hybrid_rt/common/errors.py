"""What can go wrong. An exception's type does not survive TorchScript, its text does: so the text is the interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Error = TypeVar("_Error", bound="HybridRTError")


class HybridRTError(RuntimeError):
    """Base of all errors of hybrid_rt; the text is ``hybrid_rt[SCOPE]: SUBJECT: expected X, got Y. REMEDY``."""

    @classmethod
    def make(cls: type[_Error], scope: str, subject: str, *, expected: str, got: str, remedy: str = "") -> _Error:
        """An error of this class with the text put together as everywhere in hybrid_rt."""
        text = f"hybrid_rt[{scope}]: {subject}: expected {expected}, got {got}."
        return cls(f"{text} {remedy}" if remedy else text)


class BundleError(HybridRTError):
    """The file: missing, truncated, altered, of another format, not writable."""


class BackendError(HybridRTError):
    """An engine's compiler or runtime: not installed, refuses, fails."""


class InputError(HybridRTError):
    """A tensor that breaks an engine's contract (count, dtype, rank, bounds, device)."""


class OptionError(HybridRTError):
    """An argument or an environment variable."""


class CaptureError(HybridRTError):
    """A detector or segment that can't be captured or scripted."""


class FusionError(CaptureError):
    """Segments that can't be one engine, though each of them can.

    Attributes:
        segments: their dotted paths.
    """

    segments: tuple[str, ...] = ()

    @classmethod
    def of(cls, segments: Sequence[str], error: HybridRTError) -> FusionError:
        """Returns an error with the text of another."""
        made = cls(str(error))
        made.segments = tuple(segments)
        return made


class VerificationError(HybridRTError):
    """The hybrid does not find what the detector finds; nothing was saved."""
