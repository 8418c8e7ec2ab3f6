"""Tests of adjacent segments: one engine for all gives the same result as one engine each."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

import hybrid_rt
from helpers.external_projects import succeed
from helpers.small_detectors import Backbone, small_image


class Levels(nn.Module):
    """Takes the backbone's levels as a list, and returns one tensor per level."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 4, 1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.layer(level) for level in levels]


class Detector(nn.Module):
    """Changes the features between backbone and head if the mean of the images is in an interval."""

    def __init__(self, low: float = 2, high: float = 2) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = Levels()
        self.low, self.high = low, high

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(images)
        levels = list(features.values())
        mean = float(images.mean())
        if self.low <= mean < self.high:
            levels = [level + 1 for level in levels]
        outputs = self.head(levels)
        return outputs[0], outputs[1], features["coarse"]


class Branching(Detector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = {"fine": images, "coarse": images}
        if bool(images.mean() < 2):
            features = self.backbone(images)
        outputs = self.head(list(features.values()))
        return outputs[0], outputs[1], features["coarse"]


def made(detector: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return detector.requires_grad_(False).eval()


def names(path: Path) -> list[list[str]]:
    """Returns the members of each engine."""
    return [[member["name"] for member in engine["members"]] for engine in hybrid_rt.inspect(path)["engines"]]


@pytest.mark.slow
def test_one_engine_matches_two(tmp_path: Path) -> None:
    detector = made(Detector())
    paths = {fuse: tmp_path / f"{fuse}.pt" for fuse in (True, False)}
    for fuse, path in paths.items():
        hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone", "head"], fuse=fuse)
    assert names(paths[True]) == [["backbone", "head"]]
    assert names(paths[False]) == [["backbone"], ["head"]]
    for path in paths.values():
        for got, expected in zip(hybrid_rt.load(path)(small_image()), detector(small_image()), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_order_of_names_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    hybrid_rt.convert(made(Detector()), (small_image(),), path, segments=["head", "backbone"])
    (engine,) = hybrid_rt.inspect(path)["engines"]
    assert engine["members"] == [
        {"name": "backbone", "first": 0, "count": 2},
        {"name": "head", "first": 2, "count": 2},
    ]
    assert [spec["name"] for spec in engine["variants"][0]["outputs"]] == [
        "backbone.fine",
        "backbone.coarse",
        "head.0",
        "head.1",
    ]


@pytest.mark.slow
def test_features_that_change_on_a_black_image_are_not_fused(tmp_path: Path) -> None:
    detector = made(Detector(low=-1, high=0.25))
    path = tmp_path / "detector.pt"
    hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone", "head"])
    assert names(path) == [["backbone"], ["head"]]
    dark = small_image() * 0.1
    torch.testing.assert_close(hybrid_rt.load(path)(dark)[0], detector(dark)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "torchscript"])
def test_features_that_change_on_other_images_are_an_error_not_ignored(tmp_path: Path, backend: str) -> None:
    detector = made(Detector(low=0.1, high=0.25))  # contains neither the example nor a black image
    path = tmp_path / "detector.pt"
    hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone", "head"])
    hybrid = hybrid_rt.load(path, backend=backend)
    torch.testing.assert_close(hybrid(small_image())[0], detector(small_image())[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError) as caught:
        hybrid(small_image() * 0.3)
    assert (
        "hybrid_rt[engine]: segments 'backbone+head': expected the outputs of each to be passed on unchanged to the "
        "next, got another tensor as input 0 of the later one. Convert again with fuse=False"
    ) in str(caught.value)


def test_a_branch_around_the_first_segment_splits_the_engines(tmp_path: Path) -> None:
    detector, path = made(Branching()), tmp_path / "x.pt"
    report = hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone", "head"]).report
    assert names(path) == [["backbone"], ["head"]]
    for got, expected in zip(hybrid_rt.load(path)(small_image()), detector(small_image()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    [given_up] = report.given_up
    assert given_up.what == "one engine for backbone+head"
    assert given_up.instead == "an engine for each"
    assert re.search(r"segments 'backbone\+head': .* got a branch or loop .* fuse=False", given_up.reason)
    assert "2 calls of engines per run in the place of 1" in given_up.cost
    assert "given up: one engine for backbone+head: an engine for each instead (" in str(report)


@pytest.mark.slow
def test_the_demo_detector_runs_on_two_engines(
    demo_detector: FasterRCNN, demo_image: Tensor, demo_image_path: Path, demo_images: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "digits.pt"
    segments = ["backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"]
    result = hybrid_rt.convert(demo_detector, ([demo_image],), path, segments=segments, verify_inputs=[(demo_images,)])
    assert [engine.name for engine in result.report.engines] == [
        "backbone+rpn.head",
        "roi_heads.box_head+roi_heads.box_predictor",
    ]
    assert result.report.predicted_gain > 1.1
    # Services refer to segments by their names.
    found = json.loads(succeed(Path(sys.executable).parent / "hybrid-rt-detect", path, demo_image_path, "--json"))
    assert found["engines"] == dict.fromkeys(segments, "openvino")


@pytest.mark.slow
def test_an_image_without_objects_is_not_an_error(
    demo_detector: FasterRCNN, demo_image: Tensor, demo_bundle: Path
) -> None:
    hybrid = hybrid_rt.load(demo_bundle)
    for black in ([torch.zeros(3, 240, 320)], [demo_image, torch.zeros(3, 240, 320)]):
        for got, expected in zip(hybrid(black), demo_detector(black), strict=True):
            assert got["labels"].tolist() == expected["labels"].tolist()
