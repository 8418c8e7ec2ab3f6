"""Networks as their authors wrote them: convert() with defaults, then equal to eager at sizes that it did not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import hybrid_rt
from helpers.small_detectors import small_picture
from models import strangers

RANGES = {"height": (32, 128), "width": (32, 128)}
SIZES = ((64, 64), (96, 48), (32, 112))

STRANGERS: dict[type[nn.Module], Any] = {
    strangers.Craft: ((64, 64), (96, 48), (42, 110)),
    strangers.YoloEight: SIZES,
    strangers.YoloX: SIZES,
    strangers.Yolos: SIZES,
    strangers.RtDetr: SIZES,
}
"""Sizes that each takes."""


def leaves(value: Any) -> list[Tensor]:
    plain = dict(value) if isinstance(value, dict) else value
    return [leaf for leaf in _pytree.tree_leaves(plain) if leaf is not None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRANGERS, ids=lambda kind: kind.__name__)
def test_it_converts_with_defaults_and_is_equal_at_unseen_sizes(kind: type[nn.Module], tmp_path: Path) -> None:
    sizes = STRANGERS[kind]
    detector = strangers.seeded(kind)
    path = tmp_path / "stranger.pt"
    report = hybrid_rt.convert(detector, (small_picture(64, 96),), path, shapes=RANGES, measure=False).report
    assert report.head in ("script", "export"), report.head_refused
    hybrid = hybrid_rt.load(path)
    assert hybrid_rt.engines(hybrid)
    for size in sizes:
        image = small_picture(*size, seed=size[1])
        expected, found = leaves(detector(image)), leaves(hybrid(image))
        assert len(expected) == len(found) > 0
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_crops_of_a_fixed_size_in_batches(tmp_path: Path) -> None:
    net = strangers.seeded(strangers.ONet)
    path = tmp_path / "onet.pt"
    report = hybrid_rt.convert(net, (small_picture(48, 48),), path, shapes={"batch": (1, 8)}, measure=False).report
    assert report.head == "script"
    crops = torch.cat([small_picture(48, 48, seed=i) for i in range(5)])
    for one, other in zip(net(crops), hybrid_rt.load(path)(crops), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
