"""Causes of a failed comparison that lie in the detector itself, and that the comparison does not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..capture.side_effects import own_noise
from ..common.errors import HybridRTError
from ..common.tensor_tree import map_tensors

_COMPARISONS = {"outputs-differ", "results-differ", "nothing-compared", "no-head-fits"}
"""The codes of failures that these causes may have."""

_NARROW = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def explained(error: HybridRTError, detector: nn.Module, example: tuple[Any, ...]) -> HybridRTError:
    """Returns the error of a conversion with the detector's own part in it, if it has one.

    Args:
        error: what the conversion ends with.
        detector: it is run once.
        example: its positional arguments.
    """
    if error.code not in _COMPARISONS:
        return error
    noise = own_noise(detector, map_tensors(example, Tensor.clone))
    if noise.random:
        error = error.extended(
            f"The detector draws random numbers, by {noise.random}: do so in training mode alone, as nn.Dropout does."
        )
    for dtype, line in noise.narrow.items():
        error = error.extended(
            f"The detector itself computes in {dtype} ({line}), whose rounding is larger than what fp32 allows: "
            "convert it with detector.float() and without autocast, or pass "
            f"thresholds=hybrid_rt.THRESHOLDS['{_NARROW[dtype]}']."
        )
    return error
