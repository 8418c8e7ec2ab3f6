"""Tests that torchvision's heads with replaced methods return identical bits, and that other code is not replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, anchor_utils, roi_heads
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, poolers
from torchvision.ops import boxes as box_ops

from hybrid_rt.capture.working_copy import working_copy
from hybrid_rt.torchscript import jit, known_heads, known_methods
from hybrid_rt.torchscript.observed_types import ObservedTypes

CLASSES = 7
SIDE = 64


class Pyramid(nn.Module):
    """Returns two levels."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=4, padding=1)
        self.second = nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images)
        return {"0": first, "1": self.second(first)}


def sizes() -> dict[str, int]:
    return {"min_size": SIDE, "max_size": SIDE}


def retinanet() -> nn.Module:
    anchors = anchor_utils.AnchorGenerator(((8, 12), (16, 24)), ((0.5, 1.0, 2.0),) * 2)
    return RetinaNet(Pyramid(), CLASSES, anchor_generator=anchors, score_thresh=0.3, topk_candidates=60, **sizes())


def fcos() -> nn.Module:
    anchors = anchor_utils.AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(Pyramid(), CLASSES, anchor_generator=anchors, score_thresh=0.3, topk_candidates=60, **sizes())


def ssd() -> nn.Module:
    anchors = anchor_utils.DefaultBoxGenerator([[2], [2]])
    head = SSDHead(anchors)
    return SSD(Pyramid(), anchors, (SIDE, SIDE), CLASSES, head=head, score_thresh=0.05, topk_candidates=30)


class SSDHead(nn.Module):
    """Predicts boxes and classes for both levels with one convolution each."""

    def __init__(self, anchors: anchor_utils.DefaultBoxGenerator) -> None:
        super().__init__()
        self.anchors = anchors.num_anchors_per_location()[0]
        self.count = CLASSES
        self.boxes = nn.Conv2d(32, self.anchors * 4, 1)
        self.classes = nn.Conv2d(32, self.anchors * CLASSES, 1)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        boxes = [self.boxes(each).permute(0, 2, 3, 1).reshape(each.shape[0], -1, 4) for each in features]
        classes = [self.classes(each).permute(0, 2, 3, 1).reshape(each.shape[0], -1, self.count) for each in features]
        return {"bbox_regression": torch.cat(boxes, 1), "cls_logits": torch.cat(classes, 1)}


def faster_rcnn() -> nn.Module:
    anchors = anchor_utils.AnchorGenerator(((8,), (16,)), ((0.5, 1.0, 2.0),) * 2)
    return FasterRCNN(Pyramid(), CLASSES, rpn_anchor_generator=anchors, box_score_thresh=0.12, **sizes())


DETECTORS = {"RetinaNet": retinanet, "FCOS": fcos, "SSD": ssd, "FasterRCNN": faster_rcnn}


def spread(detector: nn.Module, seed: int) -> nn.Module:
    """Sets weights with which scores and boxes differ between anchors."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in detector.parameters():
        with torch.no_grad():
            scale = 0.9 / max(parameter[0].numel(), 1) ** 0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * 1.7)
    return detector.eval()


def with_operators(detector: nn.Module) -> nn.Module:
    copied = working_copy(detector)
    known_heads.use_operators(copied)
    return copied


def replaced(detector: nn.Module) -> set[str]:
    """Returns the replaced methods with their classes, without the transform's, which all have, and helpers."""
    return {
        f"{type(module).__name__}.{name}"
        for module in detector.modules()
        for name, value in vars(type(module)).items()
        if getattr(value, "__module__", "") == known_methods.__name__
        and hasattr(type(module).__base__, name)
        and not type(module).__name__.endswith("Transform")
    }


def images(seed: int, name: str = "") -> list[Tensor]:
    """Returns images. SSD's already have its size, because resized pixels differ by rounding (test_known_parts.py)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((64, 64), (64, 64) if name == "SSD" else (50, 64))
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def assert_equal(expected: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> int:
    assert len(expected) == len(found)
    for theirs, ours in zip(expected, found, strict=True):
        assert theirs.keys() == ours.keys()
        for name in theirs:
            assert (theirs[name].dtype, theirs[name].shape) == (ours[name].dtype, ours[name].shape)
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-5)
    return sum(len(each["scores"]) for each in expected)


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_a_known_head_gives_the_same_as_torchvisions(name: str) -> None:
    detector = spread(DETECTORS[name](), 1)
    ours = with_operators(detector)
    assert replaced(ours)
    assert replaced(detector) == set()
    for seed in range(3):
        assert assert_equal(detector(images(seed, name)), ours(images(seed, name))) > 10


@pytest.mark.parametrize(
    "name", [name if name == "SSD" else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS]
)
@torch.no_grad()
def test_a_known_head_gives_the_same_as_torchscript(name: str) -> None:
    detector = spread(DETECTORS[name](), 1)
    scripted = jit.script_detector(with_operators(detector), ObservedTypes())
    assert assert_equal(detector(images(0, name)), scripted(images(0, name))) > 10


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_a_known_head_without_detections(name: str) -> None:
    detector = spread(DETECTORS[name](), 1)
    for module in detector.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 1.5
    assert assert_equal(detector(images(0)), with_operators(detector)(images(0))) == 0


def test_the_sources_of_this_torchvision_are_known() -> None:
    for known in known_heads._KNOWN:
        methods = [getattr(known.owner, name) for name in (known.name, *known.methods)]
        for function in (*methods, *(each() for each in known.relies_on)):
            assert known_heads.source_digest(function) in known_heads._SOURCES[function.__qualname__]


class Subclass(RetinaNet):
    def postprocess_detections(self, *_: Any) -> list[dict[str, Tensor]]:
        return []


def test_a_subclass_keeps_its_own_method_and_another_is_served() -> None:
    detector = retinanet()
    detector.__class__ = Subclass
    assert replaced(with_operators(detector)) == set()
    detector.__class__ = type("Renamed", (RetinaNet,), {})
    assert replaced(with_operators(detector)) == {"Renamed.postprocess_detections"}


def test_an_instance_keeps_its_own_method_and_numbers_of_other_kinds() -> None:
    detector = retinanet()
    detector.score_thresh = torch.tensor(0.3)
    assert replaced(with_operators(detector)) == set()
    detector.score_thresh = 0.3
    detector.postprocess_detections = lambda *_: []  # type: ignore[method-assign]
    assert replaced(with_operators(detector)) == set()


@pytest.mark.parametrize(
    "wrap", [lambda f: lambda *a: f(*a), lambda f: functools.wraps(f)(lambda *a: f(*a)), functools.partial]
)
def test_a_patched_function_keeps_the_heads_that_call_it(
    wrap: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_ops, "batched_nms", wrap(box_ops.batched_nms))
    for make in DETECTORS.values():
        assert {name.partition(".")[0] for name in replaced(with_operators(make()))} <= {
            "MultiScaleRoIAlign",
            "DefaultBoxGenerator",
        }


def test_a_patched_method_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    original = roi_heads.RoIHeads.postprocess_detections
    monkeypatch.setattr(
        roi_heads.RoIHeads, "postprocess_detections", functools.wraps(original)(lambda *a: original(*a))
    )
    assert "RoIHeads.postprocess_detections" not in replaced(with_operators(faster_rcnn()))


def test_all_parts_of_a_faster_rcnn_are_replaced_except_overridden_ones() -> None:
    detector = faster_rcnn()
    all_known = {"RoIHeads.postprocess_detections", "RegionProposalNetwork.forward", "MultiScaleRoIAlign.forward"}
    assert replaced(with_operators(detector)) == all_known
    detector.rpn.filter_proposals = lambda *_: ([], [])
    assert replaced(with_operators(detector)) == all_known - {"RegionProposalNetwork.forward"}
    detector.roi_heads.box_coder = type("Coder", (BoxCoder,), {})((10.0, 10.0, 5.0, 5.0))
    assert replaced(with_operators(detector)) == {"MultiScaleRoIAlign.forward"}


@pytest.mark.parametrize(
    ("owner", "name", "heads"),
    [
        (box_ops, "clip_boxes_to_image", {"FCOS"}),
        (box_ops, "remove_small_boxes", {"SSD", "RetinaNet", "FCOS"}),
        (BoxCoder, "decode_single", {"FCOS"}),
    ],
)
def test_a_patched_step_of_decoding_keeps_the_heads_that_call_it(
    owner: Any, name: str, heads: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: original(*arguments))
    found = {each.partition(".")[0] for make in DETECTORS.values() for each in replaced(with_operators(make()))}
    assert found == heads | {"MultiScaleRoIAlign", "DefaultBoxGenerator"}


def test_a_pooler_keeps_a_mapper_of_unknown_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def levels(pooler: nn.Module) -> Any:
        return type(with_operators(pooler)).levels.__code__

    mapped = known_methods.PoolerMethods.mapped_levels.__code__
    pooler = MultiScaleRoIAlign(["0", "1"], 3, 2)
    assert levels(pooler) is known_methods.LevelledPoolerMethods.levels.__code__
    pooler.map_levels = type("Mapper", (poolers.LevelMapper,), {})(2, 5)
    assert levels(pooler) is mapped
    original = poolers.LevelMapper.__call__
    monkeypatch.setattr(poolers.LevelMapper, "__call__", lambda *arguments: original(*arguments))
    assert levels(MultiScaleRoIAlign(["0", "1"], 3, 2)) is mapped


@torch.no_grad()
def test_a_pooler_of_one_level_and_boxes_of_no_level() -> None:
    features = Pyramid()(torch.rand(1, 3, SIDE, SIDE))
    boxes = [torch.tensor([[0.0, 0.0, 30.0, 30.0], [5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 3.0, 3.0]])]  # the last has NaN
    for names in (["0"], ["0", "1"]):
        pooler = MultiScaleRoIAlign(names, 3, 2)
        ours = with_operators(pooler)
        assert replaced(ours)
        expected = pooler(features, boxes, [(SIDE, SIDE)])
        assert torch.equal(ours(features, boxes, [(SIDE, SIDE)]), expected)
        assert torch.equal(jit.script(ours)(features, boxes, [(SIDE, SIDE)]), expected)


@pytest.mark.parametrize(
    "sizes",
    [[(64, 64)], [(50, 41)], [(64, 31)], [(64, 64), (64, 64)], [(33, 64), (64, 20), (10, 10)]],
    ids=str,
)
@torch.no_grad()
def test_a_known_transform_makes_the_same_batch(sizes: list[tuple[int, int]]) -> None:
    theirs = GeneralizedRCNNTransform(SIDE, SIDE, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    ours = with_operators(theirs)
    assert {"normalize", "batch_images"} <= vars(type(ours)).keys()
    images = [torch.rand(3, *size) for size in sizes]
    kept = [image.clone() for image in images]
    normalized = [theirs.normalize(image) for image in images]
    expected = theirs.batch_images(normalized)
    for module in (ours, jit.script(ours)):
        found = [module.normalize(image) for image in images]
        assert all(map(torch.equal, found, normalized))
        batch = module.batch_images(found)
        assert torch.equal(batch, expected)
        assert batch.stride() == expected.stride()
    assert all(map(torch.equal, images, kept))


def test_a_known_transform_refuses_what_torchvisions_does() -> None:
    ours = with_operators(GeneralizedRCNNTransform(SIDE, SIDE, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    with pytest.raises(TypeError, match="Expected input images to be of floating type"):
        ours.normalize(torch.ones(3, 4, 4, dtype=torch.uint8))


def test_an_overridden_part_of_the_transform_is_kept() -> None:
    class Transform(GeneralizedRCNNTransform):
        def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
            return [3, 99, 99]

    ours = with_operators(Transform(SIDE, SIDE, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    assert "batch_images" not in vars(type(ours))
    assert ours.batch_images([torch.rand(3, 8, 8)]).shape == (1, 3, 128, 128)


def test_a_pooler_of_one_number_keeps_its_code() -> None:
    assert replaced(with_operators(MultiScaleRoIAlign(["0"], (3,), 2))) == set()  # torchvision fails when it is called
