"""Converts a detector's arguments to positional ones, with which hybrids and recordings are called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..common.errors import OptionError
from .working_copy import without_wrappers


def positional(detector: nn.Module, arguments: Any, option: str) -> tuple[Any, ...]:
    """Returns the arguments of a detector as the tuple of the positional ones.

    Args:
        detector: the detector.
        arguments: such a tuple, or a dict of arguments by the names of forward's parameters. Missing ones before the
            last one get their defaults.
        option: name of the option that they come from, for the text of errors.

    Raises:
        OptionError: They are neither a tuple nor a dict, do not fit the signature, or have to be passed by name.
    """
    if isinstance(arguments, tuple):
        return arguments
    if not isinstance(arguments, Mapping):
        raise OptionError.make(
            "convert",
            option,
            expected="the tuple of the detector's positional arguments, or a dict of its arguments by name",
            got=type(arguments).__name__,
            remedy="For torchvision's detectors: ([image],).",
            code="example-not-arguments",
        )
    signature = inspect.signature(without_wrappers(detector).forward)
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        raise OptionError.make(
            "convert",
            option,
            expected=f"arguments of {type(detector).__name__}.forward{signature}",
            got=str(error),
            remedy="Pass each argument without a default by name.",
            code="example-not-arguments",
        ) from error
    given = list(bound.arguments)
    kinds = {name: signature.parameters[name].kind for name in given}
    by_name = [name for name, kind in kinds.items() if kind in (kind.KEYWORD_ONLY, kind.VAR_KEYWORD)]
    if by_name:
        raise OptionError.make(
            "convert",
            option,
            expected="arguments that can be passed by position",
            got=", ".join(by_name),
            remedy="Wrap the detector in a module whose forward takes them by position and passes them on by name.",
            code="example-not-arguments",
        )
    bound.apply_defaults()
    names = list(signature.parameters)
    last = max((names.index(name) for name in given), default=-1)
    return tuple(bound.arguments[name] for name in names[: last + 1])
