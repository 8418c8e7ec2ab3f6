"""Tests that hybrids of torchvision's detectors find what eager mode finds, in Python and C++, alone and in a batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.external_projects import image_arguments, succeed
from helpers.same_detections import Detections, assert_same, parse
from models import torchvision_detectors

pytestmark = pytest.mark.slow

SIZES = [(240, 320), (320, 240), (263, 263)]
BATCHES = [[0], [0, 1, 2]]
MIN_SIZE = 160
"""The side length that images are resized to. torchvision's 800 takes thirty times as long and tests nothing more."""
PROPOSALS = 100
"""Proposals of an R-CNN. With torchvision's 1,000 the heads of the v2 models take seconds per image."""


@dataclass(frozen=True)
class Converted:
    detector: nn.Module
    path: Path
    images: list[Tensor]
    expected: list[list[Detections]]
    """The results of eager mode for each of BATCHES."""


@pytest.fixture(scope="module", params=torchvision_detectors.NAMES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    detector = torchvision_detectors.build(request.param, min_size=MIN_SIZE, proposals=PROPOSALS)
    path = tmp_path_factory.mktemp(request.param) / "detector.pt"
    images = torchvision_detectors.photographs(SIZES)
    hybrid_rt.convert(detector, (images[:1],), path, fallback=False, measure=False)
    with torch.no_grad():
        expected = [detector([images[i] for i in batch]) for batch in BATCHES]
    return Converted(detector, path, images, expected)


def test_python_gives_the_same_alone_and_in_a_batch_of_sizes(converted: Converted) -> None:
    hybrid = hybrid_rt.load(converted.path)
    for batch, expected in zip(BATCHES, converted.expected, strict=True):
        found = hybrid([converted.images[i] for i in batch])
        assert set(found[0]) == set(expected[0])
        assert_same(expected, found)


def test_cpp_gives_the_same_for_a_batch_of_sizes(converted: Converted, downstream: Path, tmp_path: Path) -> None:
    arguments = [image_arguments(image, tmp_path / f"{i}.raw") for i, image in enumerate(converted.images)]
    words = [word for i in BATCHES[-1] for word in arguments[i]]
    found = parse(succeed(downstream / "with_hybrid_rt", converted.path, *words))
    expected = converted.expected[-1]
    assert ("areas" in found[0]) == ("masks" in expected[0])
    assert ("keypoints" in found[0]) == ("keypoints" in expected[0])
    assert_same(expected, found)


def test_the_random_weights_do_not_amplify_rounding(converted: Converted) -> None:
    """Otherwise the tests above would compare noise."""
    detector = copy.deepcopy(converted.detector)
    generator = torch.Generator().manual_seed(0)
    for weight in detector.parameters():
        weight.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=generator))
    assert_same(converted.expected[-1], detector(converted.images))
    assert all(len(found["scores"].unique()) >= 5 for found in converted.expected[-1])
