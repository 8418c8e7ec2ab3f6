"""Finds causes of a failed comparison that lie in the detector itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.side_effects import own_noise
from ..capture.state import same_results
from ..common.errors import HybridRTError, VerificationError, split_code
from ..common.tensor_tree import map_tensors
from ..common.value_tree import opened

_COMPARISONS = {"outputs-differ", "results-differ", "nothing-compared", "no-head-fits"}
"""Codes of the errors that may have such a cause."""

_NARROW = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def explained(error: HybridRTError, detector: nn.Module, example: tuple[Any, ...]) -> HybridRTError:
    """Returns the error of a conversion; if the detector itself is a cause, the text names it.

    Args:
        error: the conversion's error.
        detector: the detector, which is run a few times.
        example: its positional arguments.
    """
    if error.code not in _COMPARISONS:
        return error
    noise = own_noise(detector, example)
    drawn = noise.random or _random_in_python(detector, example)
    if drawn:
        return VerificationError.make(
            "convert",
            f"detector {type(detector).__name__}",
            expected="the same result for the same input",
            got=f"random numbers, drawn by {drawn}",
            remedy="Draw them only in training mode, as nn.Dropout does, or pass them in as an argument.",
            code="draws-random-numbers",
        )
    for dtype, line in noise.narrow.items():
        error = error.extended(
            f"The detector itself computes in {dtype} ({line}), whose rounding is larger than what fp32 allows: "
            "convert it with detector.float() and without autocast, or pass "
            f"thresholds=hybrid_rt.THRESHOLDS['{_NARROW[dtype]}']."
        )
    return error


def _random_in_python(detector: nn.Module, example: tuple[Any, ...]) -> str:
    """Returns the source of a detector's random numbers if two runs differ, or an empty string."""
    with torch.no_grad():
        one, other = (detector(*map_tensors(example, Tensor.clone)) for _ in range(2))
    return (
        ""
        if same_results(opened(one), opened(other))
        else "another generator than torch's, such as numpy.random or random"
    )


def warn_of_random_numbers(detector: nn.Module, drawn: str) -> None:
    """Warns about random numbers that a detector draws, although its compared results did not depend on them.

    Args:
        detector: the detector, whose class is named.
        drawn: the operator that draws them, with its line; empty: no warning.
    """
    if drawn:
        warnings.warn(
            f"hybrid_rt[convert]: detector {type(detector).__name__}: expected one that draws no random numbers, got "
            f"{drawn}. The hybrid also draws new numbers in each call, so its results may differ from the detector's. "
            "They did not differ on the inputs that were compared, if any.",
            RuntimeWarning,
            stacklevel=2,
        )


def warn_of_recorded_branches(detector: nn.Module, mode: str, refused: Mapping[str, str]) -> None:
    """Warns about a recorded head of a detector whose code branches or loops on values.

    Args:
        detector: the detector, whose class is named.
        mode: how the head was converted.
        refused: the reasons against the heads that were tried before, by their names.
    """
    reason, code = split_code(refused.get("export", ""))
    if mode != "trace" or code != "branch-on-values":
        return
    got = reason.partition(". Write it")[0]
    warnings.warn(
        f"hybrid_rt[convert]: detector {type(detector).__name__}: expected a head that has no branches on values, "
        f"got {got}. The hybrid keeps the branches and loops of the example. Its results did not differ on the inputs "
        "that were compared, but may on others. To accept this, pass head='trace'.",
        RuntimeWarning,
        stacklevel=2,
    )
