"""Checks the calibration data that a user passes, before long work."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..capture.call_arguments import positional
from ..common.errors import OptionError
from ..common.tensor_tree import tensors_in

MOST_SAMPLES = 300
"""Maximum number of samples that are used; more hardly change the ranges, but take time and memory."""

FEW_SAMPLES = 10
"""A smaller number of samples gives a warning."""

_NAME = "calibration_data"


def _arguments(module: nn.Module | None, entry: Any, scope: str) -> tuple[Any, ...]:
    if module is not None:
        return positional(module, entry, _NAME)
    if isinstance(entry, tuple):
        return entry
    raise OptionError.make(
        scope,
        _NAME,
        expected="tuples of the detector's positional arguments",
        got=f"{type(entry).__name__} among them",
        remedy="For torchvision's detectors: [([image],), ...].",
        code="example-not-arguments",
    )


def calibration_samples(module: nn.Module | None, data: Iterable[Any], scope: str) -> list[tuple[Any, ...]]:
    """Returns calibration data as tuples of positional arguments, at most ``MOST_SAMPLES``.

    Args:
        module: the module that takes the arguments; None: accept only tuples, since the names are not known.
        data: tuples of arguments, or dicts of arguments by name; empty if there is no calibration data.
        scope: the caller, for the text of errors.

    Raises:
        OptionError: ``data`` is not iterable, an entry is neither a tuple nor a dict of arguments, or a tensor holds
            NaN or infinity.
    """
    if data is None or isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise OptionError.make(
            scope,
            _NAME,
            expected="tuples of arguments, e.g. a list or a generator of them",
            got=repr(data) if data is None else type(data).__name__,
            remedy="For torchvision's detectors: [([image],) for image in images].",
        )
    found = []
    for i, entry in enumerate(itertools.islice(data, MOST_SAMPLES)):
        arguments = _arguments(module, entry, scope)
        for tensor in tensors_in(arguments):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise OptionError.make(
                    scope,
                    f"{_NAME}[{i}]",
                    expected="finite numbers",
                    got="NaN" if bool(torch.isnan(tensor).any()) else "an infinite number",
                    remedy="Remove that sample: one such number makes a range infinite and everything else zero.",
                )
        found.append(arguments)
    return found


def warn_of_few(samples: Sequence[Any], scope: str) -> None:
    """Warns if there are too few samples for reliable ranges; ``scope``: the caller."""
    if 0 < len(samples) < FEW_SAMPLES:
        warnings.warn(
            f"hybrid_rt[{scope}]: {_NAME}: expected some tens of samples, got {len(samples)}. "
            "Larger values than those in these samples are clipped: pass more typical samples.",
            RuntimeWarning,
            stacklevel=3,
        )
