"""Detectors of torchvision inside a module that prepares the image and filters the boxes, as services have them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import hybrid_rt
from helpers.small_detectors import SmallDetector, small_detector, small_image
from models import torchvision_detectors

QUICK: dict[str, Any] = {"engine": "torchscript", "measure": False}


class Backbone(nn.Module):
    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 32, 3, 2, 1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def fcos() -> nn.Module:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return torchvision_detectors.steady(
        detection.FCOS(Backbone(), 4, min_size=64, max_size=96, anchor_generator=anchors)
    )


def faster_rcnn() -> nn.Module:
    torch.manual_seed(0)
    detector = detection.FasterRCNN(
        Backbone(),
        4,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((8,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        rpn_post_nms_top_n_test=20,
    )
    return torchvision_detectors.steady(detector)


class Service(nn.Module):
    """An image [H, W, 3] in uint8 in, its boxes above a score out."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.least = 0.01

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.detector([image.permute(2, 0, 1).float().div(255)])[0]
        kept = found["scores"] > self.least
        return {"boxes": found["boxes"][kept], "scores": found["scores"][kept]}


def photograph(height: int, width: int) -> Tensor:
    return (torchvision_detectors.photographs([(height, width)])[0].permute(1, 2, 0) * 255).to(torch.uint8)


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("build", [fcos, faster_rcnn])
def test_a_detector_inside_a_module_returns_only_its_detections(build: Any, tmp_path: Path) -> None:
    service = Service(build()).eval()
    report = hybrid_rt.convert(service, (photograph(80, 112),), tmp_path / "x.pt", **QUICK).report
    assert report.head == "script"
    hybrid = hybrid_rt.load(tmp_path / "x.pt")
    for size in ((80, 112), (96, 64), (71, 130), (61, 61)):  # any size, as for the detector alone
        expected = service(photograph(*size))
        assert len(expected["boxes"]) > 0
        assert_same(hybrid(photograph(*size)), expected)


@dataclass
class Detections:
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]


class DataclassService(Service):
    """Returns a dataclass with the image's size, which TorchScript can't."""

    def forward(self, image: Tensor) -> Any:
        found = self.detector([image.permute(2, 0, 1).float().div(255)])[0]
        return Detections(found["boxes"], found["scores"], found["labels"], (image.shape[0], image.shape[1]))


def pyramid() -> nn.Module:
    """Returns a Faster R-CNN that pools from several levels."""
    return torchvision_detectors.build("fasterrcnn_mobilenet_v3_large_320_fpn", min_size=160, proposals=50)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "sides"), [(fcos, (80, 112)), (faster_rcnn, (80, 112)), (pyramid, (160, 208))])
def test_a_dataclass_around_a_detector_keeps_sizes_free(build: Any, sides: tuple[int, int], tmp_path: Path) -> None:
    service = DataclassService(build()).eval()
    example = (photograph(*sides),)
    assert hybrid_rt.convert(service, example, tmp_path / "x.pt", **QUICK).report.head == "export"
    hybrid = hybrid_rt.load(tmp_path / "x.pt")
    for size in (sides, (200, 150), (131, 257), (97, 97)):
        found, expected = hybrid(photograph(*size)), service(photograph(*size))
        assert len(expected.boxes) > 0
        assert found.pop("size") == expected.size == size
        assert_same(found, {name: getattr(expected, name) for name in ("boxes", "scores", "labels")})


class WithoutTypes(Service):
    """Takes and returns lists without annotations."""

    def forward(self, images):  # type: ignore[no-untyped-def]
        detections = []
        for found in self.detector(images):
            kept = found["scores"] > self.least
            detections.append({"boxes": found["boxes"][kept], "scores": found["scores"][kept]})
        return detections


@pytest.mark.slow
@pytest.mark.parametrize("build", [fcos, faster_rcnn])
def test_lists_without_types_around_a_detector_are_scripted(build: Any, tmp_path: Path) -> None:
    service = WithoutTypes(build()).eval()
    images = torchvision_detectors.photographs([(80, 112), (96, 64), (71, 130)])
    assert hybrid_rt.convert(service, (images[:1],), tmp_path / "x.pt", **QUICK).report.head == "script"
    hybrid = hybrid_rt.load(tmp_path / "x.pt")
    for found, expected in zip(hybrid(images), service(images), strict=True):
        assert_same(found, expected)


def test_a_refusal_leaves_torchvisions_classes_usable(tmp_path: Path) -> None:
    """TorchScript compiled ImageList for the first; under a second name its methods would return another class."""

    class NotScriptable(Service):
        def forward(self, image: Tensor) -> Any:
            found = self.detector([image.permute(2, 0, 1).float().div(255)])[0]
            return sorted([found["boxes"], found["scores"]], key=lambda x: x.dim())

    example = (photograph(80, 112),)
    texts = []
    for _ in range(2):
        with pytest.raises(hybrid_rt.CaptureError) as caught:
            hybrid_rt.convert(NotScriptable(fcos()).eval(), example, tmp_path / "x.pt", head="script", **QUICK)
        texts.append(str(caught.value))
    assert "sorted" in texts[0]
    assert texts[0] == texts[1]
    hybrid_rt.convert(Service(fcos()).eval(), example, tmp_path / "x.pt", head="script", **QUICK)


class FailsInTorchScript(SmallDetector):
    """Asks for a key that it has in Python only."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
        found = {"boxes": boxes}
        if not torch.jit.is_scripting():
            found["scores"] = scores
        return found["boxes"], found["scores"]


def test_a_scripted_head_that_fails_gives_way_to_the_next(tmp_path: Path) -> None:
    detector = FailsInTorchScript().requires_grad_(False).eval()
    options = {"segments": ["backbone"], **QUICK}
    report = hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", **options).report
    assert report.head == "export"
    assert "KeyError: scores" in report.head_refused["script"]
    with pytest.raises(hybrid_rt.VerificationError) as caught:
        hybrid_rt.convert(detector, (small_image(),), tmp_path / "y.pt", head="script", **options)
    assert caught.value.code == "results-differ"
    assert "expected it to run on every input that the detector runs on, got " in str(caught.value)
    assert "KeyError: scores" in str(caught.value)
    assert not (tmp_path / "y.pt").exists()


def test_the_error_of_a_scripted_head_keeps_its_own_cause(tmp_path: Path) -> None:
    class FailsInEachHead(SmallDetector):
        """Fails in TorchScript, branches on values, and returns a number, which a recording does not compute."""

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, float]:
            boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
            found = {"boxes": boxes}
            if not torch.jit.is_scripting():
                found["scores"] = scores
            total = float(boxes.sum()) if bool(found["scores"].sum() > 0) else 0.0
            return found["boxes"], found["scores"], total

    detector = FailsInEachHead().requires_grad_(False).eval()
    with pytest.raises(hybrid_rt.VerificationError) as caught:
        hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", segments=["backbone"], **QUICK)
    assert "KeyError: scores" in str(caught.value)
    assert "KeyError: scores" in str(caught.value.__cause__)


def test_attributes_that_cannot_be_copied_are_shared_by_an_exported_head(tmp_path: Path) -> None:
    detector = small_detector()
    detector.lock = threading.Lock()
    detector.tools = {"locks": [threading.Lock()], "sizes": [1, 2]}
    report = hybrid_rt.convert(
        detector, (small_image(),), tmp_path / "x.pt", segments=["backbone"], head="export", **QUICK
    ).report
    assert report.head == "export"
    assert not detector.lock.locked()


class ListsDicts(SmallDetector):
    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
        return [{"boxes": boxes, "scores": scores}]


def test_a_recorded_head_returns_dicts_in_a_list(tmp_path: Path) -> None:
    detector = ListsDicts().requires_grad_(False).eval()
    options = {"segments": ["backbone"], "head": "trace", **QUICK}
    hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", **options)
    found = hybrid_rt.load(tmp_path / "x.pt")(small_image())
    assert len(found) == 1
    assert_same(found[0], detector(small_image())[0])
