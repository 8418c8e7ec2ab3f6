"""Tests that keyword arguments of a detector become positional ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt import OptionError
from hybrid_rt.capture.call_arguments import positional


class Detector(nn.Module):
    def forward(self, image: Tensor, texts: Tensor | None = None, limit: int = 7, *, scale: float = 1.0) -> Tensor:
        return image * scale


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((1, 2), (1, 2)),
        ({"image": 1}, (1,)),
        ({"texts": 2, "image": 1}, (1, 2)),
        ({"image": 1, "limit": 3}, (1, None, 3)),
    ],
)
@pytest.mark.parametrize("wrap", [lambda detector: detector, nn.DataParallel])
def test_arguments_by_name_take_their_places(given: Any, found: tuple[Any, ...], wrap: Any) -> None:
    assert positional(wrap(Detector()), given, "example_inputs") == found


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([1], r"example_inputs: expected the tuple of the detector's positional arguments, or a dict .*, got list"),
        (torch.ones(1), r"got Tensor"),
        ({"texts": 2}, r"expected arguments of Detector.forward\(.*\).* got missing a required argument: 'image'"),
        ({"image": 1, "text": 2}, r"got got an unexpected keyword argument 'text'"),
        (
            {"image": 1, "scale": 2.0},
            r"expected arguments that can be passed by position, got scale. Wrap the detector",
        ),
    ],
)
def test_values_without_a_place_are_refused(given: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        positional(Detector(), given, "example_inputs")
