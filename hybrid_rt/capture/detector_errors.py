"""Explains failures of the detector itself on inputs that the user passed."""

from __future__ import annotations

from traceback import extract_tb
from typing import Any

from torch import Tensor, nn

from ..common.error_text import described, line_of
from ..common.errors import HybridRTError, OptionError
from ..common.tensor_tree import places_of

_SHOWN = 6
"""Maximum number of argument values that the error shows."""


class NamingTheLine:
    """Converts an error of a detector within the block to one that names the line and the arguments.

    This is not a generator with ``contextlib.contextmanager``, because that mistakes an error whose cause is a
    StopIteration for the StopIteration itself.
    """

    def __init__(self, detector: nn.Module, arguments: tuple[Any, ...], subject: str, scope: str = "convert") -> None:
        """Stores the parts of the error's text.

        Args:
            detector: the detector that runs within the block.
            arguments: its arguments.
            subject: the user's parameter that they come from, e.g. "example_inputs".
            scope: scope in the error's text.
        """
        self._detector, self._arguments, self._subject, self._scope = detector, arguments, subject, scope

    def __enter__(self) -> None:
        """Begins."""

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        """Raises OptionError instead of an error that is not hybrid_rt's own."""
        if not isinstance(error, Exception) or isinstance(error, HybridRTError):
            return
        raise OptionError.make(
            self._scope,
            self._subject,
            expected=f"arguments that {type(self._detector).__name__} runs on",
            got=f"{described(error)} (at {line_of(extract_tb(traceback))}) for {_written(self._arguments)}",
            remedy="Call the detector with them by itself, in eval mode and on the CPU, until it runs.",
            code="detector-fails",
        ) from error


def _written(arguments: tuple[Any, ...]) -> str:
    """Returns the arguments by position as text: dtypes and shapes of tensors, the values of others."""
    shown = [f"{'.'.join(map(str, place))}: {_value(leaf)}" for place, leaf in places_of(arguments)]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join([*shown[:_SHOWN], *more]) or "no arguments"


def _value(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
    return repr(leaf) if isinstance(leaf, (bool, int, float, str, type(None))) else type(leaf).__name__
