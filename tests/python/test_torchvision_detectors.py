"""torchvision's five detectors: the hybrid finds what eager mode finds, in Python and in C++, alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from strangers import picture_arguments, succeed
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.verify import match_boxes
from models import torchvision_detectors

SIZES = [(240, 320), (320, 250), (263, 263)]
MIN_SIZE = 320
"""The side that pictures are resized to: torchvision's 800 takes ten times as long and tests nothing more."""


@dataclass(frozen=True)
class Converted:
    detector: nn.Module
    path: Path


@pytest.fixture(scope="module", params=torchvision_detectors.NAMES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    detector = torchvision_detectors.build(request.param, min_size=MIN_SIZE)
    path = tmp_path_factory.mktemp(request.param) / "detector.pt"
    hybrid_rt.convert(detector, (torchvision_detectors.pictures(SIZES[:1]),), path, fallback=False)
    return Converted(detector, path)


def assert_same_boxes(expected: Sequence[dict[str, Tensor]], found: Sequence[dict[str, Tensor]]) -> None:
    assert len(expected) == len(found)
    for want, have in zip(expected, found, strict=True):
        match = match_boxes(want, have, iou=0.99, score=1e-3)
        assert match.expected >= 5
        assert match.recall == 1.0, match
        assert match.at_cut <= 2, match


def parse(printed: str) -> list[dict[str, Tensor]]:
    """What tests/downstream prints: a line a detection, an empty line between pictures."""
    pictures = []
    for block in printed.split("\n\n"):
        rows = torch.tensor([[float(word) for word in line.split()] for line in block.splitlines()])
        pictures.append({"labels": rows[:, 0].long(), "scores": rows[:, 1], "boxes": rows[:, 2:]})
    return pictures


def test_python_finds_the_same_boxes_at_each_size_and_in_a_batch(converted: Converted) -> None:
    hybrid = hybrid_rt.load(converted.path)
    images = torchvision_detectors.pictures(SIZES)
    for batch in [*([image] for image in images), images]:
        assert_same_boxes(converted.detector(batch), hybrid(batch))


def test_cpp_finds_the_same_boxes_at_each_size_and_in_a_batch(
    converted: Converted, downstream: Path, tmp_path: Path
) -> None:
    images = torchvision_detectors.pictures(SIZES)
    arguments = [picture_arguments(image, tmp_path / f"{i}.raw") for i, image in enumerate(images)]
    for chosen in [[0], [1], [2], [0, 1, 2]]:
        words = [word for i in chosen for word in arguments[i]]
        printed = succeed(downstream / "with_hybrid_rt", converted.path, *words)
        assert_same_boxes(converted.detector([images[i] for i in chosen]), parse(printed))
