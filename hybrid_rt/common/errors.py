"""Exceptions. TorchScript loses an exception's type but not its text, so the text is the interface."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

_Error = TypeVar("_Error", bound="HybridRTError")

_CODE = re.compile(r" \[([a-z0-9]+(?:-[a-z0-9]+)+)\]\Z")


class HybridRTError(RuntimeError):
    """Base of all errors of hybrid_rt.

    The text is ``hybrid_rt[SCOPE]: SUBJECT: expected X, got Y. REMEDY``. A refusal of a detector ends with its code,
    ``[keeps-state]``, which ``hybrid-rt explain`` takes.
    """

    @classmethod
    def make(
        cls: type[_Error], scope: str, subject: str, *, expected: str, got: str, remedy: str = "", code: str = ""
    ) -> _Error:
        """Returns an error of this class, with the text put together as everywhere in hybrid_rt.

        Args:
            scope: part of hybrid_rt, or name of the backend.
            subject: the thing that is wrong.
            expected: what was expected of it.
            got: what it is.
            remedy: an imperative that names the parameter; empty if ``expected`` already says what to do.
            code: the entry of docs/refusals.md that explains the error; empty: none does.
        """
        text = f"hybrid_rt[{scope}]: {subject}: expected {expected}, got {got}."
        return cls(_with_code(f"{text} {remedy}" if remedy else text, code))

    @property
    def code(self) -> str:
        """Returns the code at the end of the text, such as "keeps-state"; empty if there is none.

        It is read from the text, so that an error that is created again from the text in another process keeps it.
        """
        return split_code(str(self))[1]

    def extended(self: _Error, remedy: str) -> _Error:
        """Returns an error of the same class with one more remedy, and the same code.

        Args:
            remedy: the sentence to add.
        """
        text, code = split_code(str(self))
        made = copy.copy(self)
        made.args = (_with_code(f"{text} {remedy}", code),)
        return made


def split_code(text: str) -> tuple[str, str]:
    """Returns the text of an error without the code at its end, and the code; empty: it has none."""
    found = _CODE.search(text)
    return (text[: found.start()], found[1]) if found else (text, "")


def common_code(texts: Iterable[str], otherwise: str) -> str:
    """Returns the code that all of the texts end with; ``otherwise`` if there is none."""
    codes = {split_code(text)[1] for text in texts}
    return codes.pop() or otherwise if len(codes) == 1 else otherwise


def _with_code(text: str, code: str) -> str:
    return f"{text} [{code}]" if code else text


class BundleError(HybridRTError):
    """The file is missing, truncated, altered, of another format, or can't be written."""


class BackendError(HybridRTError):
    """An engine's compiler or runtime is not installed, refuses, or fails."""


class InputError(HybridRTError):
    """A tensor violates an engine's contract (count, dtype, rank, range, device)."""


class OptionError(HybridRTError):
    """An argument or an environment variable can't be used."""


class CaptureError(HybridRTError):
    """A segment can't be captured, or the head can't be converted to TorchScript."""


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


class SegmentError(CaptureError):
    """One segment that can't be captured, though others may be.

    Attributes:
        segment: its dotted path.
    """

    segment: str = ""

    @classmethod
    def of(cls, segment: str, error: HybridRTError) -> SegmentError:
        """Returns an error with the text of another."""
        made = cls(str(error))
        made.segment = segment
        return made


class VariantError(BackendError):
    """A compiled variant that fails when it runs; the other variants of its engine may not.

    Attributes:
        engine: the engine's name.
        backend: the variant's.
        precision: the variant's.
    """

    engine: str = ""
    backend: str = ""
    precision: str = ""

    @classmethod
    def of(cls, engine: str, backend: str, precision: str, size: str, error: Exception) -> VariantError:
        """Returns the error of one call; ``size``: the shapes of its inputs, ``error``: what the variant raised."""
        made = cls.make(
            backend,
            f"engine '{engine}'",
            expected=f"it to run at {size}, as the segment does",
            got=str(error).strip().removesuffix("."),
            remedy="Take another engine, or a narrower range in shapes=.",
            code="engine-not-run",
        )
        made.engine, made.backend, made.precision = engine, backend, precision
        return made


class VerificationError(HybridRTError):
    """The hybrid's results differ from the detector's; nothing was saved."""
