"""Exceptions. TorchScript loses an exception's type but not its text, so the text is the interface."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

_Error = TypeVar("_Error", bound="HybridRTError")

# Control characters without newline and tab. A text may quote a file or a model, and a terminal obeys these characters.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_CODE = re.compile(r" \[([a-z0-9]+(?:-[a-z0-9]+)+)\]\Z")


class HybridRTError(RuntimeError):
    """Base of all errors of hybrid_rt.

    The text is ``hybrid_rt[SCOPE]: SUBJECT: expected X, got Y. REMEDY``. A refusal of a detector ends with its code,
    such as ``[keeps-state]``, which ``hybrid-rt explain`` accepts.
    """

    @classmethod
    def make(
        cls: type[_Error], scope: str, subject: str, *, expected: str, got: str, remedy: str = "", code: str = ""
    ) -> _Error:
        """Returns an error of this class, with the text in hybrid_rt's standard form.

        Args:
            scope: part of hybrid_rt, or name of the backend.
            subject: the object or option that is wrong.
            expected: the expected value or property.
            got: the actual value or property.
            remedy: an imperative that names the parameter; empty if ``expected`` already implies what to do.
            code: code of the entry in docs/refusals.md that explains the error; empty: there is none.
        """
        text = f"hybrid_rt[{scope}]: {subject}: expected {expected}, got {got}."
        text = f"{text} {remedy}" if remedy else text
        return cls(_with_code(text.translate(_ESCAPES), code))

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
    """Returns the text of an error without the code at its end, and the code, which is empty if there is none."""
    found = _CODE.search(text)
    return (text[: found.start()], found[1]) if found else (text, "")


def common_code(texts: Iterable[str], otherwise: str) -> str:
    """Returns the code that all texts end with, or ``otherwise`` if they have no code in common."""
    codes = {split_code(text)[1] for text in texts}
    return codes.pop() or otherwise if len(codes) == 1 else otherwise


def _with_code(text: str, code: str) -> str:
    return f"{text} [{code}]" if code else text


class BundleError(HybridRTError):
    """The file is missing, truncated, altered, of another format, or can't be written."""


class BackendError(HybridRTError):
    """An engine's compiler or runtime is not installed, refuses, or fails."""

    @classmethod
    def not_compiled(cls, backend: str, segment: str, *, expected: str, got: str) -> BackendError:
        """Returns the error of a compiler that does not support an operation of a segment.

        Args:
            backend: name of the backend.
            segment: name of the segment.
            expected: the module or operations that the compiler supports.
            got: the compiler's message.
        """
        return cls.make(
            backend,
            f"segment '{segment}'",
            expected=expected,
            got=got,
            remedy="Name smaller submodules in segments= to exclude that operation, or use another engine.",
            code="operator-not-in-engine",
        )


class InputError(HybridRTError):
    """A tensor violates an engine's contract (count, dtype, rank, range, device)."""


class OptionError(HybridRTError):
    """An argument or an environment variable can't be used."""


class CaptureError(HybridRTError):
    """A segment can't be captured, or the head can't be converted to TorchScript."""


class FusionError(CaptureError):
    """Several segments can't share one engine, though each alone may have one.

    Attributes:
        segments: their dotted paths.
    """

    segments: tuple[str, ...] = ()

    @classmethod
    def of(cls, segments: Sequence[str], error: HybridRTError) -> FusionError:
        """Returns an error with the text of ``error``."""
        made = cls(str(error))
        made.segments = tuple(segments)
        return made


class SegmentError(CaptureError):
    """One segment can't be captured, though others may be.

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
    """A compiled variant fails when it runs; other variants of its engine may not.

    Attributes:
        engine: name of the engine.
        backend: backend of the variant.
        precision: precision of the variant.
    """

    engine: str = ""
    backend: str = ""
    precision: str = ""

    @classmethod
    def of(cls, engine: str, backend: str, precision: str, size: str, error: Exception) -> VariantError:
        """Returns the error of one call; ``size``: the shapes of its inputs, ``error``: the variant's exception."""
        made = cls.make(
            backend,
            f"engine '{engine}'",
            expected=f"it to run at {size}, as the segment does",
            got=str(error).strip().removesuffix("."),
            remedy="Pass another engine=, or a narrower range in shapes=.",
            code="engine-not-run",
        )
        made.engine, made.backend, made.precision = engine, backend, precision
        return made


class VerificationError(HybridRTError):
    """The hybrid's results differ from the detector's; nothing was saved."""
