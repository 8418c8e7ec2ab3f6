"""Tests that hybrids of detectors from other sources find the same as eager mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import hybrid_rt
from helpers.external_projects import image_arguments, run_any_detector, succeed
from helpers.same_detections import assert_same, parse
from helpers.small_detectors import (
    RESHAPED,
    centre_detector,
    fusing_detector,
    reshaped_detector,
    small_detector,
    small_image,
)
from models import torchvision_detectors

pytestmark = pytest.mark.slow


def assert_same_tensors(expected: Sequence[Tensor], found: Sequence[Any]) -> None:
    """Compares tensors, or their flat values."""
    assert len(expected) == len(found)
    for want, have in zip(expected, found, strict=True):
        assert want.numel() > 0
        flat = have.flatten() if isinstance(have, Tensor) else torch.tensor(have, dtype=torch.float64)
        torch.testing.assert_close(flat.double(), want.flatten().double(), rtol=1e-4, atol=1e-4)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


# A timm backbone under torchvision's heads


def faster_rcnn(backbone: nn.Module) -> FasterRCNN:
    return FasterRCNN(
        backbone,
        num_classes=11,
        min_size=128,
        max_size=224,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=5, sampling_ratio=2),
        rpn_post_nms_top_n_test=100,
    )


def fcos(backbone: nn.Module) -> FCOS:
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return FCOS(backbone, num_classes=11, min_size=128, max_size=224, anchor_generator=anchors)


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet10t", faster_rcnn), ("mobilenetv3_small_050", fcos)],
    ids=["resnet-faster_rcnn", "mobilenet-fcos"],
)
def test_a_timm_backbone_under_a_torchvision_head(name: str, head: Any, downstream: Path, tmp_path: Path) -> None:
    from examples.convert.timm_backbone import TimmBackbone  # timm takes a second, which not every test shall pay

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = torchvision_detectors.steady(head(TimmBackbone(name)))
    images = torchvision_detectors.photographs([(240, 320), (320, 240), (263, 263)])
    path = tmp_path / "timm.pt"
    hybrid_rt.convert(detector, (images[:1],), path, segments=["backbone"], fallback=False, measure=False)
    hybrid = hybrid_rt.load(path)
    assert [engine["backend"] for engine in hybrid_rt.engines(hybrid)] == ["openvino"]
    assert_same(detector(images), hybrid(images))
    arguments = [word for i, image in enumerate(images) for word in image_arguments(image, tmp_path / f"{i}.raw")]
    assert_same(detector(images), parse(succeed(downstream / "with_hybrid_rt", path, *arguments)))


# Custom detectors


def test_an_anchor_free_detector_that_returns_a_tuple(downstream: Path, tmp_path: Path) -> None:
    detector = centre_detector()
    path = tmp_path / "centre.pt"
    example = [noise(3, 48, 64), noise(3, 64, 40, seed=1)]
    shapes = {"batch": (1, 4), "height": (8, 128), "width": (8, 128)}
    hybrid_rt.convert(detector, (example,), path, segments=["backbone"], shapes=shapes, measure=False)
    for backend in ("openvino", "torchscript"):
        hybrid = hybrid_rt.load(path, backend=backend)
        for images in (example, [noise(3, 33, 70, seed=2)]):
            assert_same_tensors(detector(images), hybrid(images))
    found = run_any_detector(downstream / "any_detector", path, example, tmp_path)
    assert list(found) == ["0", "1", "2", "3"]
    assert_same_tensors(detector(example), list(found.values()))


def test_its_dense_head_as_a_segment_of_its_own_is_called_for_each_level(tmp_path: Path) -> None:
    detector = centre_detector()
    path = tmp_path / "centre.pt"
    example = [noise(3, 48, 64), noise(3, 64, 40, seed=1)]
    shapes = {"batch": (1, 4), "height": (8, 128), "width": (8, 128)}
    hybrid_rt.convert(detector, (example,), path, segments=["backbone", "outputs"], shapes=shapes, measure=False)
    hybrid = hybrid_rt.load(path)
    assert [engine["engine"] for engine in hybrid_rt.engines(hybrid)] == ["backbone", "outputs"]
    for images in (example, [noise(3, 33, 70, seed=2)]):
        assert_same_tensors(detector(images), hybrid(images))


@pytest.mark.parametrize("kind", RESHAPED)
def test_a_backbone_that_returns_other_things_than_a_dict(kind: str, tmp_path: Path) -> None:
    detector = reshaped_detector(kind)
    path = tmp_path / "reshaped.pt"
    shapes = {"batch": (1, 2), "height": (8, 96), "width": (8, 96)}
    hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone"], shapes=shapes, measure=False)
    for backend in ("openvino", "torchscript"):
        hybrid = hybrid_rt.load(path, backend=backend)
        for image in (small_image(seed=1), small_image(48, 20, seed=2)):
            assert_same_tensors(detector(image), hybrid(image))


@pytest.mark.parametrize("kind", ["tensor", "nested tuple", "nested dict"])
def test_cpp_runs_them_too(kind: str, downstream: Path, tmp_path: Path) -> None:
    detector = reshaped_detector(kind)
    path = tmp_path / "reshaped.pt"
    hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone"], fallback=False, measure=False)
    image = small_image(seed=1)
    found = run_any_detector(downstream / "any_detector", path, [image], tmp_path)
    assert_same_tensors(detector(image), list(found.values()))


def test_a_backbone_of_two_inputs_at_other_sizes_than_the_examples(downstream: Path, tmp_path: Path) -> None:
    detector = fusing_detector()
    path = tmp_path / "fusing.pt"
    example = noise(1, 3, 32, 48), noise(1, 1, 32, 48, seed=1)
    shapes = {"height": (16, 64), "width": (16, 64)}
    hybrid_rt.convert(detector, example, path, segments=["backbone"], shapes=shapes, measure=False)
    inputs = noise(1, 3, 40, 24, seed=2), noise(1, 1, 40, 24, seed=3)
    for backend in ("openvino", "torchscript"):
        hybrid = hybrid_rt.load(path, backend=backend)
        assert_same_tensors(detector(*inputs), hybrid(*inputs))
        with pytest.raises(RuntimeError, match=r"dimension 2: expected 1x3x16\.\.64x16\.\.64 float32, got 1x3x65x24"):
            hybrid(noise(1, 3, 65, 24), noise(1, 1, 65, 24))
    found = run_any_detector(downstream / "any_detector", path, inputs, tmp_path)
    assert_same_tensors(detector(*inputs), list(found.values()))


def test_the_structures_do_not_change_the_boxes() -> None:
    """Checks that the detectors above differ, so that none is only compared with itself."""
    results = [reshaped_detector(kind)(small_image())[1] for kind in RESHAPED]
    assert not all(torch.equal(results[0], result) for result in results[1:])
    assert torch.equal(reshaped_detector("list")(small_image())[1], reshaped_detector("tuple")(small_image())[1])
    assert small_detector()(small_image())[1].numel() > 5
