"""User options for int8: ``convert(options={"openvino": {"int8_seconds": 60}})``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...common.errors import OptionError

MAX_ERROR = "int8_max_error"
SECONDS = "int8_seconds"

DEFAULTS: Mapping[str, float] = {MAX_ERROR: 0.15, SECONDS: 300.0}
"""Default of each option. The error is half of what the gate for int8 allows (thresholds.py), because the compiler sees
only some calibration samples, while the gate uses other inputs and sizes."""


def checked(backend: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Returns the user's options as numbers.

    Args:
        backend: the backend's name, for the text of errors.
        given: options by name: ``int8_max_error``, the largest relative error of an output that layers in int8 may
            cause; ``int8_seconds``, the time budget of the search for layers to keep in fp32.

    Raises:
        OptionError: A name is unknown, or a value is not a positive number.
    """
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise OptionError.make(
            backend, "options", expected=f"some of {', '.join(DEFAULTS)}", got=", ".join(map(repr, unknown))
        )
    found = {}
    for name, value in given.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise OptionError.make(backend, f"option '{name}'", expected="a number above 0", got=repr(value))
        found[name] = float(value)
    return found


def tightened(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with half the allowed error."""
    return {**given, MAX_ERROR: given.get(MAX_ERROR, DEFAULTS[MAX_ERROR]) / 2}
