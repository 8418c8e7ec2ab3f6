"""Tests that networks written by others convert with defaults and equal eager mode at unseen sizes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import hybrid_rt
from helpers.small_detectors import small_image
from hybrid_rt.common.executables import find_program
from models import community_networks

RANGES = {"height": (32, 128), "width": (32, 128)}
SIZES = ((64, 64), (96, 48), (32, 112))

ANY_SIZE = ((33, 97), (96, 48), (128, 61))


@dataclass(frozen=True)
class Expected:
    """The expected outcome of a conversion with defaults.

    Attributes:
        sizes: Sizes of images that the conversion did not see.
        head: The method with which the head is captured.
        coverage: The minimum share of the counted work that is in engines.
        most_moved: The number of rows that may change places, because their scores are equal but for rounding.
    """

    sizes: tuple[tuple[int, int], ...] = SIZES
    head: str = "script"
    coverage: float = 0.9
    most_moved: int = 0


DETECTORS: dict[type[nn.Module], Expected] = {
    community_networks.Craft: Expected(((64, 64), (96, 48), (42, 110))),
    community_networks.YoloEight: Expected(),
    community_networks.YoloX: Expected(head="export", coverage=0.3, most_moved=8),
    community_networks.Yolos: Expected(),
    community_networks.RtDetr: Expected(),
    community_networks.Fcos: Expected(ANY_SIZE, "export", 0.8),
    community_networks.Ssd: Expected(ANY_SIZE, "export"),
    community_networks.Keypoints: Expected(ANY_SIZE, coverage=0.7),
    community_networks.VitDet: Expected(),
}
"""These become one engine each."""


def in_order(found: Tensor, wanted: Tensor, most_moved: int) -> Tensor:
    """Returns rows at the places of the rows that they equal, if few have changed places."""
    if not most_moved or wanted.dim() != 2 or wanted.shape != found.shape:
        return found
    partners = torch.cdist(wanted.double(), found.double(), p=float("inf")).argmin(1)
    assert len(partners.unique()) == len(partners)
    assert int((partners != torch.arange(len(partners))).sum()) <= most_moved
    return found[partners]


def leaves(value: Any) -> list[Tensor]:
    plain = dict(value) if isinstance(value, dict) else value
    return [leaf for leaf in _pytree.tree_leaves(plain) if leaf is not None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS, ids=lambda kind: kind.__name__)
def test_it_converts_with_defaults_and_is_equal_at_unseen_sizes(kind: type[nn.Module], tmp_path: Path) -> None:
    expected = DETECTORS[kind]
    detector = community_networks.seeded(kind)
    path = tmp_path / "stranger.pt"
    report = hybrid_rt.convert(detector, (small_image(64, 96),), path, shapes=RANGES, measure=False).report
    assert (report.head, len(report.engines)) == (expected.head, 1), report.head_refused
    assert sum(share.share for share in report.shares if share.chosen) >= expected.coverage
    assert_equal_in_cpp(path)
    hybrid = hybrid_rt.load(path)
    assert hybrid_rt.engines(hybrid)
    for size in expected.sizes:
        image = small_image(*size, seed=size[1])
        wanted, found = leaves(detector(image)), leaves(hybrid(image))
        assert len(wanted) == len(found) > 0
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(in_order(other, one, expected.most_moved), one, rtol=1e-3, atol=1e-3)


def assert_equal_in_cpp(path: Path) -> None:
    """Checks the golden sample with a C++ program."""
    program = find_program("hybrid-rt-detect")
    assert program is not None
    done = subprocess.run([program, path, "--verify", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout


@pytest.mark.slow
def test_crops_of_a_fixed_size_in_batches(tmp_path: Path) -> None:
    net = community_networks.seeded(community_networks.ONet)
    path = tmp_path / "onet.pt"
    report = hybrid_rt.convert(net, (small_image(48, 48),), path, shapes={"batch": (1, 8)}, measure=False).report
    assert report.head == "script"
    crops = torch.cat([small_image(48, 48, seed=i) for i in range(5)])
    for one, other in zip(net(crops), hybrid_rt.load(path)(crops), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
