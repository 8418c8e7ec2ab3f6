"""Tests that operators for whole steps of torchvision's detectors return what torchvision's code returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image

import hybrid_rt  # noqa: F401  registers the operators
from hybrid_rt.torchscript import jit, known_heads, known_methods
from hybrid_rt.torchscript.exact_transform import exact_transform

OURS = torch.ops.hybrid_rt
NAN, INF = float("nan"), float("inf")
PADDED = (64, 96)
SIZES = [(60, 96), (64, 70)]


class Given(nn.Module):
    """Replaces a network: returns stored values."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        self.values = values

    def forward(self, *_: Any) -> Any:
        return self.values


def level_shapes() -> list[tuple[int, int]]:
    return [(16, 24), (8, 12), (4, 6)]


def rpn_outputs(seed: int, ties: bool) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    objectness = [torch.randn(2, 3, *shape, generator=generator) * 2 for shape in level_shapes()]
    if ties:
        objectness = [each.round() for each in objectness]
    return objectness, [torch.randn(2, 12, *shape, generator=generator) for shape in level_shapes()]


def rpn(objectness: list[Tensor], deltas: list[Tensor], **options: Any) -> RegionProposalNetwork:
    anchors = AnchorGenerator(((16,), (28,), (48,)), ((0.5, 1.0, 1.7),) * 3)
    settings = {"pre_nms_top_n": 90, "post_nms_top_n": 60, "nms_thresh": 0.6, "score_thresh": 0.0} | options
    for name in ("pre_nms_top_n", "post_nms_top_n"):
        settings[name] = dict.fromkeys(("training", "testing"), settings[name])
    made = RegionProposalNetwork(
        anchors, Given(objectness, deltas), fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=9,
        positive_fraction=0.5, **settings
    )  # fmt: skip
    return made.eval()


def proposals(module: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    maps = {str(i): torch.zeros(2, 1, *shape, dtype=dtype) for i, shape in enumerate(level_shapes())}
    found: list[Tensor] = module(ImageList(torch.zeros(2, 3, *PADDED), SIZES), maps)[0]
    return found


def with_operators(module: nn.Module) -> nn.Module:
    known_heads.use_operators(module)
    return module


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"pre_nms_top_n": 9999, "post_nms_top_n": 9999},
    {"score_thresh": 0.6},
    {"pre_nms_top_n": 1},
    {"post_nms_top_n": 0},
    {"nms_thresh": 0.0},
    {"score_thresh": 1.5},
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_region_proposals_are_torchvisions(ties: bool, options: dict[str, Any]) -> None:
    outputs = rpn_outputs(len(options), ties)
    assert_same(proposals(with_operators(rpn(*outputs, **options))), proposals(rpn(*outputs, **options)))


def test_region_proposals_of_large_least_sides() -> None:
    modules = rpn(*rpn_outputs(4, False)), with_operators(rpn(*rpn_outputs(4, False)))
    for module in modules:
        module.min_size = 30.0
    theirs, ours = map(proposals, modules)
    assert_same(ours, theirs)
    assert 0 < len(theirs[0]) < 60


def test_region_proposals_of_values_that_are_not_finite_and_of_other_strides() -> None:
    objectness, deltas = rpn_outputs(5, False)
    objectness[0][:, 1, ::3], objectness[1][:, 0, ::2], objectness[1][:, 2, ::3] = NAN, INF, -INF
    deltas[0][:, 0, ::2], deltas[1][:, 2, 1::2], deltas[2][:, 7] = NAN, INF, -INF
    expected = proposals(rpn(objectness, deltas))
    objectness = [each.contiguous(memory_format=torch.channels_last) for each in objectness]
    deltas = [each.contiguous(memory_format=torch.channels_last) for each in deltas]
    assert_same(proposals(with_operators(rpn(objectness, deltas))), expected)


def test_other_dtypes_and_sizes_of_maps_take_torchs_operators() -> None:
    objectness, deltas = ([each.double() for each in level] for level in rpn_outputs(6, False))
    found = proposals(with_operators(rpn(objectness, deltas)), torch.float64)
    assert_same(found, proposals(rpn(objectness, deltas), torch.float64))
    assert found[0].dtype == torch.float64


def test_a_subclass_of_the_anchor_generator_makes_its_own_anchors() -> None:
    class Shifted(AnchorGenerator):
        def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
            return [each + 3 for each in super().forward(image_list, feature_maps)]

    def module() -> nn.Module:
        made = rpn(*rpn_outputs(7, False))
        made.anchor_generator.__class__ = Shifted
        return made

    ours = with_operators(module())
    assert type(ours).proposals.__code__ is known_methods.RPNMethods.composed_proposals.__code__
    assert_same(proposals(ours), proposals(module()))
    assert type(with_operators(rpn(*rpn_outputs(7, False)))).proposals is known_methods.GridRPNMethods.proposals


def box_head(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(rows, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + torch.rand(rows, 2, generator=generator) * 30], 1)
    logits = torch.randn(rows, classes, generator=generator) * 2
    return logits, torch.randn(rows, 4 * classes, generator=generator), list(boxes.split([rows // 3, rows - rows // 3]))


def roi_heads(**options: Any) -> nn.Module:
    settings = {"score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 40} | options
    return RoIHeads(
        None, None, None, fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=9, positive_fraction=0.5,
        bbox_reg_weights=None, **settings
    ).eval()  # fmt: skip


@pytest.mark.parametrize("rows", [0, 7, 120, 900])
@pytest.mark.parametrize(
    "options", [{}, {"score_thresh": 0.0}, {"score_thresh": 1.0}, {"detections_per_img": 0}, {"nms_thresh": 0.0}]
)
def test_box_detections_are_torchvisions(rows: int, options: dict[str, Any]) -> None:
    logits, codes, boxes = box_head(rows, rows, 6)
    if rows == 120:
        logits = logits.round()  # ties
        logits[::11, 2], codes[::7, 9], codes[::5, 14] = NAN, NAN, INF
    theirs = roi_heads(**options).postprocess_detections(logits, codes, boxes, SIZES)
    ours = with_operators(roi_heads(**options)).postprocess_detections(logits, codes, boxes, SIZES)
    for expected, found in zip(theirs, ours, strict=True):
        assert_same(found, expected)


def test_box_detections_of_double_precision_take_torchs_operators() -> None:
    logits, codes, boxes = box_head(1, 60, 5)
    arguments = (logits.double(), codes.double(), [each.double() for each in boxes], SIZES)
    theirs, ours = (module.postprocess_detections(*arguments) for module in (roi_heads(), with_operators(roi_heads())))
    for expected, found in zip(theirs, ours, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("count", [0, 1, 3, 16, 100, 1000])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoded_boxes_are_torchvisions(count: int, weights: tuple[float, float, float, float]) -> None:
    _, codes, (first, rest) = box_head(count, count, 1)
    boxes, codes = torch.cat([first, rest]), codes * 3
    if count > 20:
        codes[::11, 0], codes[::7, 2], codes[::5, 3], boxes[::13, 1] = NAN, NAN, INF, INF
        codes[3] = torch.tensor([0.0, 0.0, 99.0, -99.0])  # limited, and nothing left
    coder = BoxCoder(weights)
    expected = clip_boxes_to_image(coder.decode_single(codes, boxes), (40, 50))
    for arranged in (lambda each: each, lambda each: each.t().contiguous().t()):
        found = OURS.decoded_boxes(arranged(codes), arranged(boxes), [40, 50], list(weights), coder.bbox_xform_clip)
        assert torch.equal(found.nan_to_num(-7), expected.nan_to_num(-7))


def default_box_generator(**options: Any) -> nn.Module:
    return DefaultBoxGenerator([[2], [2, 3], [], [2, 3]], **options).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": False},
        {"steps": [8, 16, 32, 100]},
        {"scales": [0.07, 0.15, 0.7, 1.3, 2.0], "steps": [7, 9, 13, 300]},
    ],
)
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_default_boxes_are_torchvisions(options: dict[str, Any], default: torch.dtype) -> None:
    theirs = default_box_generator(**options)
    ours = with_operators(default_box_generator(**options))
    assert type(ours).forward is known_methods.DefaultBoxMethods.forward
    maps = [torch.zeros(2, 3, *size) for size in ((38, 40), (19, 7), (0, 3), (1, 1))]
    images = ImageList(torch.zeros(2, 3, 300, 317), [(300, 300), (280, 317)])
    torch.set_default_dtype(default)
    try:
        expected = theirs(images, maps)
        assert_same(ours(images, maps), expected)
        assert_same(jit.script(ours)(images, maps), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(ours(images, [each.double() for each in maps]), theirs(images, [each.double() for each in maps]))


@pytest.mark.parametrize("moved", [False, True])
def test_default_boxes_are_on_the_gpu_of_the_features_wherever_the_pairs_are(moved: bool) -> None:
    ours = with_operators(default_box_generator())
    with FakeTensorMode(allow_non_fake_inputs=True):  # needs no GPU
        maps = [torch.zeros(2, 3, 4, 5, device="cuda") for _ in range(4)]
        if moved:  # as load(device="cuda") does
            ours._wh_pairs = [pairs.to("cuda") for pairs in ours._wh_pairs]
        found = ours(ImageList(torch.zeros(2, 3, 30, 40, device="cuda"), [(30, 40), (30, 38)]), maps)
    assert [boxes.device.type for boxes in found] == ["cuda", "cuda"]


def test_an_overridden_step_of_default_boxes_stays() -> None:
    class Generator(DefaultBoxGenerator):
        def _grid_default_boxes(self, *_: Any, **__: Any) -> Tensor:
            return torch.zeros(1, 4)

    assert type(with_operators(Generator([[2]]))) is Generator
    in_double = default_box_generator()
    in_double._wh_pairs = [each.double() for each in in_double._wh_pairs]
    assert type(with_operators(in_double)) is DefaultBoxGenerator


def transform(fixed: bool, least: int = 64, most: int = 90) -> nn.Module:
    """Returns a transform as assemble() passes it to use_operators."""
    size = (least, most) if fixed else None
    made = GeneralizedRCNNTransform(least, most, [0.48, 0.45, 0.4], [0.22, 0.23, 0.24], fixed_size=size).eval()
    holder = nn.Module()
    holder.transform = made
    return exact_transform(holder).get("transform", made)


SHAPES = [[(50, 70)], [(64, 64)], [(200, 300), (31, 33)], [(1, 1)], [(7, 300)], [(400, 90), (64, 90), (90, 64)]]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_normalized_batch_is_torchvisions(fixed: bool, shapes: list[tuple[int, int]], layout: str) -> None:
    generator = torch.Generator().manual_seed(len(shapes))
    images = [torch.rand(*shape, 3, generator=generator).permute(2, 0, 1) for shape in shapes]
    if layout == "rows":
        images = [image.contiguous() for image in images]
    ours = with_operators(transform(fixed))
    assert type(ours).forward is known_methods.BatchMethods.forward
    (expected, _), (found, targets) = transform(fixed)(images), ours(images)
    assert targets is None
    assert found.image_sizes == [tuple(size) for size in expected.image_sizes]
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.tensors == 0, expected.tensors == 0)  # the margins


def test_normalized_batch_in_threads_is_the_same_as_in_one() -> None:
    images = [torch.rand(3, 300, 500, generator=torch.Generator().manual_seed(1))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = with_operators(transform(False, 700, 900))(images)[0].tensors
        torch.set_num_threads(3)
        together = with_operators(transform(False, 700, 900))(images)[0].tensors
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


@pytest.mark.parametrize(
    "images", [[torch.rand(1, 50, 70)], [torch.rand(3, 50, 70).double()], [torch.rand(3, 50, 70)] * 0]
)
def test_inputs_that_normalized_batch_refuses_take_torchvisions_path(images: list[Tensor]) -> None:
    results = []
    for module in (transform(False), with_operators(transform(False))):
        try:
            results.append(module(images)[0].tensors)
        except Exception as error:  # torchvision's error for an empty list of images
            results.append(type(error))
    expected, found = results
    assert found is expected or torch.equal(found, expected)


def test_the_transform_of_targets_and_of_integers_stays_torchvisions() -> None:
    images = [torch.rand(3, 50, 70)]
    targets = [{"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]])}]
    module = with_operators(transform(True))
    expected = transform(True)(images, [dict(each) for each in targets])
    found = module(images, [dict(each) for each in targets])
    assert torch.equal(found[1][0]["boxes"], expected[1][0]["boxes"])
    with pytest.raises(TypeError, match="Expected input images to be of floating type"):
        module([torch.zeros(3, 50, 70, dtype=torch.uint8)])


LOGITS, CODES, CELLS = torch.zeros(1, 2, 4, 5), torch.zeros(1, 8, 4, 5), torch.zeros(2, 4)
ONES = [1.0] * 4
PAIRS = torch.ones(2, 2)


def proposal_arguments(**changed: Any) -> list[Any]:
    given = {"objectness": [LOGITS], "deltas": [CODES], "cells": [CELLS], "image": 0, "padded": [32, 40]}
    given |= {"size": [32, 40], "before": 9, "after": 9, "least": 0.0, "score": 0.0, "nms": 0.5, "weights": ONES}
    return [*(given | changed).values(), 4.0]


def detection_arguments(**changed: Any) -> list[Any]:
    given = {"scores": torch.zeros(3, 2), "codes": torch.zeros(3, 8), "proposals": torch.zeros(3, 4)}
    given |= {"size": [32, 40], "score": 0.1, "nms": 0.5, "most": 9, "weights": ONES}
    return [*(given | changed).values(), 4.0]


def batch_arguments(**changed: Any) -> list[Any]:
    given = {"images": [torch.zeros(3, 4, 5)], "mean": [0.0] * 3, "std": [1.0] * 3, "heights": [8], "widths": [9]}
    return list((given | {"divisor": 4} | changed).values())


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("region_proposals", proposal_arguments(deltas=[]), "of as many levels"),
        ("region_proposals", proposal_arguments(objectness=[LOGITS.double()]), "dtype Float on the CPU"),
        ("region_proposals", proposal_arguments(objectness=[LOGITS[0]]), r"objectness of shape \[N, A, H, W\]"),
        ("region_proposals", proposal_arguments(image=1), "with an image 1"),
        ("region_proposals", proposal_arguments(deltas=[CODES[:, :6]]), r"deltas of shape \[1, 8, 4, 5\]"),
        ("region_proposals", proposal_arguments(cells=[CELLS[:1]]), r"cell_anchors of shape \[2, 4\]"),
        ("region_proposals", proposal_arguments(padded=[32]), "padded_size of height and width"),
        ("region_proposals", proposal_arguments(size=[-1, 3]), "image_size of height and width"),
        ("region_proposals", proposal_arguments(before=-1), "pre_nms_top_n and post_nms_top_n of 0 or more"),
        ("region_proposals", proposal_arguments(weights=[1.0]), "four weights"),
        ("region_proposals", proposal_arguments(objectness=[LOGITS[:, :, :0]], deltas=[CODES[:, :, :0]]), "pixels"),
        ("box_detections", detection_arguments(scores=torch.zeros(3)), r"scores of shape \[R, C\]"),
        ("box_detections", detection_arguments(scores=torch.zeros(3, 2).half()), "dtype Float on the CPU"),
        ("box_detections", detection_arguments(codes=torch.zeros(3, 4)), r"codes of shape \[3, 8\]"),
        ("box_detections", detection_arguments(proposals=torch.zeros(2, 4)), r"proposals of shape \[3, 4\]"),
        ("box_detections", detection_arguments(most=-1), "detections_per_img of 0 or more"),
        ("box_detections", detection_arguments(size=[1, 2, 3]), "image_size of height and width"),
        (
            "decoded_boxes",
            (torch.zeros(3, 8), CELLS, [1, 2], ONES, 4.0),
            r"codes of shape \[K, 4\], got Float \[3, 8\]",
        ),
        ("decoded_boxes", (torch.zeros(3, 4), CELLS, [1, 2], ONES, 4.0), r"boxes of shape \[3, 4\], one per code"),
        ("decoded_boxes", (CELLS.double(), CELLS, [1, 2], ONES, 4.0), "dtype Float on the CPU"),
        ("decoded_boxes", (CELLS, CELLS, [1], ONES, 4.0), "image_size of height and width"),
        ("decoded_boxes", (CELLS, CELLS, [1, 2], ONES[:3], 4.0), "four weights"),
        ("default_boxes", ([3], [3, 4], [PAIRS], [30, 30], [], True), "of as many levels, got 1, 2, 1 and 0"),
        ("default_boxes", ([3], [3], [PAIRS], [30, 30], [4, 8], True), "of as many levels, got 1, 1, 1 and 2"),
        ("default_boxes", ([3], [3], [PAIRS], [30], [], True), "image_size of height and width"),
        ("default_boxes", ([3], [-3], [PAIRS], [30, 30], [], True), "a level of height and width"),
        ("default_boxes", ([3], [3], [PAIRS.double()], [30, 30], [], True), "dtype Float on the CPU"),
        ("default_boxes", ([3], [3], [CELLS], [30, 30], [], True), r"pairs of shape \[A, 2\], got Float \[2, 4\]"),
        ("default_boxes", ([3], [3], [PAIRS], [30, 30], [0], True), "steps of 1 or more"),
        ("normalized_batch", batch_arguments(heights=[]), "a height and a width for each"),
        ("normalized_batch", batch_arguments(std=[1.0]), "a mean and a standard deviation per channel"),
        ("normalized_batch", batch_arguments(divisor=0), "size_divisible of 1 or more"),
        ("normalized_batch", batch_arguments(images=[torch.zeros(4, 5)]), r"shape \[3, H, W\]"),
        ("normalized_batch", batch_arguments(images=[torch.zeros(3, 4, 5).double()]), "dtype Float"),
        ("normalized_batch", batch_arguments(images=[torch.zeros(3, 0, 5)]), "with pixels"),
        ("normalized_batch", batch_arguments(widths=[0]), "sizes of 1 pixel or more"),
    ],
)
def test_operators_of_known_parts_say_what_they_refuse(name: str, arguments: list[Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=rf"hybrid_rt\[operators\]: {name}.*{text}"):
        getattr(OURS, name)(*arguments)


def test_operators_of_known_parts_have_shapes_for_export() -> None:
    class Parts(nn.Module):
        def forward(self, image: Tensor, scores: Tensor, codes: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
            batch = OURS.normalized_batch([image], [0.5] * 3, [0.2] * 3, [40], [50], 32)
            found = OURS.box_detections(scores, codes, boxes, [32, 40], 0.1, 0.5, 9, ONES, 4.0)
            moved = OURS.decoded_boxes(codes[:, :4], boxes, [32, 40], ONES, 4.0)
            anchors = OURS.default_boxes([2, 1], [3, 1], [codes[:4, :2], codes[:2, :2]], [30, 40], [], True)
            return (batch, *found, moved, anchors, OURS.region_proposals(*proposal_arguments()))

    logits, codes, boxes = box_head(3, 30, 4)
    example = (torch.rand(3, 20, 25), logits.softmax(1), codes, torch.cat(boxes))
    exported = torch.export.export(Parts(), example).module()
    for found, expected in zip(exported(*example), Parts()(*example), strict=True):
        assert torch.equal(found, expected)
    assert exported(*example)[0].shape == (1, 3, 64, 64)
