"""Tests that convert()'s hybrids match the detector."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import SmallDetector, small_detector, small_image, small_list_detector
from hybrid_rt import CaptureError
from hybrid_rt.verification.verify import match_boxes

Detections = Mapping[str, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


def assert_same_boxes(expected: Sequence[Detections], found: Sequence[Detections], at_least: int = 5) -> None:
    """Checks that each image has the same boxes on both sides, and at least ``at_least`` of them.

    Boxes are the same if their labels are equal, their IoU is above 0.99 and their scores differ by at most 1e-3.
    """
    assert len(expected) == len(found)
    for want, have in zip(expected, found, strict=True):
        match = match_boxes(want, have, iou=0.99, score=1e-3)
        assert match.expected >= at_least
        assert match.matched == match.expected == match.found, match
        assert set(want) == set(have)
        assert {name: value.dtype for name, value in want.items()} == {
            name: value.dtype for name, value in have.items()
        }


def resized(image: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]


@pytest.fixture(scope="session", params=["openvino", "torchscript"])
def loaded(request: pytest.FixtureRequest, demo_bundle: Path) -> Any:
    module = hybrid_rt.load(demo_bundle, backend=request.param)
    assert [engine["backend"] for engine in hybrid_rt.engines(module)] == [request.param]
    return module


def test_the_demo_detector_gives_the_same_boxes_at_each_size(
    demo_detector: nn.Module, demo_images: list[Tensor], loaded: Any
) -> None:
    images = [demo_images[0], demo_images[1], resized(demo_images[2], 480, 640)]
    assert len({image.shape for image in images}) == 3
    for image in images:
        assert_same_boxes(demo_detector([image]), loaded([image]))


def test_the_demo_detector_gives_the_same_boxes_for_a_batch_of_sizes(
    demo_detector: nn.Module, demo_images: list[Tensor], loaded: Any
) -> None:
    images = [demo_images[0], resized(demo_images[1], 200, 300), demo_images[2].flip(2)]
    assert_same_boxes(demo_detector(images), loaded(images))


def test_the_same_call_gives_the_same_result(demo_image: Tensor, loaded: Any) -> None:
    first, second = loaded([demo_image])[0], loaded([demo_image])[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="session")
def awkward_sides(demo_detector: nn.Module, demo_image: Tensor) -> list[int]:
    """Returns short sides at which torchvision's scripted resize is a pixel smaller than its eager one."""
    scripted = torch.jit.script(demo_detector.transform)
    sides = []
    for side in range(235, 275):
        image = resized(demo_image, side, side + 60)
        if scripted([image])[0].image_sizes != demo_detector.transform([image])[0].image_sizes:
            sides.append(side)
    return sides


class NotSmaller(nn.Module):
    """Is a backbone that refuses small images."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.inner = backbone
        self.out_channels = backbone.out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if min(images.shape[-2:]) < 200:
            raise ValueError("too small")
        return self.inner(images)


def test_a_segment_that_refuses_a_size_inside_its_ranges(
    demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path
) -> None:
    detector = copy.deepcopy(demo_detector)
    detector.backbone = NotSmaller(detector.backbone).eval()
    with pytest.warns(RuntimeWarning), pytest.raises(CaptureError) as caught:
        hybrid_rt.convert(detector, ([demo_image],), tmp_path / "d.pt", segments="backbone", engine="torchscript")
    assert str(caught.value) == (
        "hybrid_rt[capture]: segment 'backbone': expected it to take 2x3x128x160, which its ranges allow, got "
        "ValueError: too small. Narrow them: shapes={'height': (min, max), 'width': (min, max)}. [sizes-not-taken]"
    )


@pytest.mark.slow
def test_a_detector_that_fails_on_smaller_images_is_watched_on_its_example(
    demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path
) -> None:
    detector = copy.deepcopy(demo_detector)
    detector.backbone = NotSmaller(detector.backbone).eval()
    with pytest.warns(RuntimeWarning, match="expected detections, got ValueError: too small. .* shapes="):
        result = hybrid_rt.convert(
            detector,
            ([demo_image],),
            tmp_path / "d.pt",
            segments="backbone",
            engine="torchscript",
            shapes={"height": (224, 416), "width": (224, 416)},
            measure=False,
        )
    assert_same_boxes(detector([demo_image]), result.module([demo_image]))


def test_sizes_at_which_torchvisions_scripted_resize_differs(
    demo_detector: nn.Module, demo_image: Tensor, awkward_sides: list[int], loaded: Any
) -> None:
    """TorchScript computes the scale in float32, eager mode in double; see exact_transform.py."""
    assert len(awkward_sides) >= 2
    for side in awkward_sides[:3]:
        image = resized(demo_image, side, side + 60)
        assert_same_boxes(demo_detector([image]), loaded([image]))


@pytest.mark.slow
def test_bf16_finds_the_boxes_and_is_really_bf16(demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "bf16.pt"
    result = hybrid_rt.convert(demo_detector, ([demo_image],), path, precision="bf16", fallback=False)
    (variant,) = result.report.engines[0].variants
    assert (variant.backend, variant.precision) == ("openvino", "bf16")
    assert result.report.verification.precision == "bf16"
    module = hybrid_rt.load(path, emulate_precision=True)
    assert "bf16" in hybrid_rt.engines(module)[0]["description"]
    match = match_boxes(demo_detector([demo_image])[0], module([demo_image])[0], iou=0.8, score=0.1)
    assert match.recall >= 0.9
    assert match.max_score_difference > 1e-5


def modules_and_state(detector: nn.Module) -> tuple[Any, ...]:
    return (
        [(name, id(module), module.training, type(module)) for name, module in detector.named_modules()],
        {name: value.clone() for name, value in detector.state_dict().items()},
        [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in detector.modules()
        ],
        [parameter.requires_grad for parameter in detector.parameters()],
        sorted(vars(detector)),
        vars(detector).get("_has_warned"),
    )


@pytest.mark.slow
def test_rpn_head_as_a_segment_and_the_detector_stays_as_it_was(
    demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "two.pt"
    before = modules_and_state(demo_detector)
    found_before = demo_detector([demo_image])
    result = hybrid_rt.convert(
        demo_detector, ([demo_image],), path, segments=["backbone", "rpn.head"], fuse=False, engine="torchscript"
    )
    after = modules_and_state(demo_detector)
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert before[2:] == after[2:]
    found = demo_detector([demo_image])
    assert all(torch.equal(found[0][name], found_before[0][name]) for name in found[0])

    assert [segment.name for segment in result.report.engines] == ["backbone", "rpn.head"]
    module = hybrid_rt.load(path)
    assert [engine["engine"] for engine in hybrid_rt.engines(module)] == ["backbone", "rpn.head"]
    images = [demo_image, resized(demo_image, 200, 320)]
    assert_same_boxes(demo_detector(images), module(images))


@pytest.mark.slow
def test_the_box_head_as_a_segment(demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path) -> None:
    """Its batch is the number of proposals, which does not depend on the transform."""
    path = tmp_path / "box_head.pt"
    hybrid_rt.convert(demo_detector, ([demo_image],), path, segments=["roi_heads.box_head"], engine="torchscript")
    module = hybrid_rt.load(path)
    images = [demo_image, resized(demo_image, 200, 320)]
    assert_same_boxes(demo_detector(images), module(images))


# Custom detectors


def assert_same_tensors(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    assert type(expected) is type(found)
    assert len(expected) == len(found)
    for want, have in zip(expected, found, strict=True):
        assert want.dtype == have.dtype
        assert want.numel() > 0
        assert torch.allclose(want.double(), have.double(), atol=1e-4)


def test_the_result_lists_the_output(tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    result = hybrid_rt.convert(small_list_detector(), ([small_image()[0]],), path, segments=["detector.backbone"])
    report = result.report
    assert (report.detector, report.path) == ("ListDetector", str(path))
    assert report.file_size == path.stat().st_size
    (segment,) = report.engines
    assert segment.name == "detector.backbone"
    assert [(variant.backend, variant.precision) for variant in segment.variants] == [
        ("openvino", "fp32"),
        ("torchscript", "fp32"),
    ]
    assert all(variant.size > 0 for variant in segment.variants)
    assert report.head_operators == ["hybrid_rt::nms", "hybrid_rt::run_engine"]
    assert report.verification.passed
    assert report.verification.pictures[0].matched >= 5
    assert {"verify", "save", "compile detector.backbone with openvino"} <= set(report.seconds)
    assert report.to_json()["engines"][0]["variants"][0]["backend"] == "openvino"
    text = str(report)
    assert f"{report.verification.pictures[0].matched} of {report.verification.pictures[0].expected} boxes" in text
    image = small_image(seed=1)[0]
    for module in (result.module, hybrid_rt.load(path)):
        assert_same_boxes(small_list_detector()([image]), module([image]))


def test_a_detector_of_tensors_has_the_examples_size(tmp_path: Path) -> None:
    path = tmp_path / "fixed.pt"
    result = hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone")
    assert "boxes matched" not in str(result.report)
    assert "verified in fp32\n" in str(result.report)
    assert "\n  backbone: greatest relative error " in str(result.report)
    module = hybrid_rt.load(path)
    for seed in range(3):
        image = small_image(seed=seed)
        assert_same_tensors(small_detector()(image), module(image))
    with pytest.raises(RuntimeError, match="dimension 2: expected 1x3x32x32 float32, got 1x3x40x32"):
        module(small_image(40, 32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "inside", "outside"),
    [
        (
            {"batch": (1, 3), "height": (16, 64), "width": (32, 48)},
            [(1, 16, 48), (3, 64, 32), (2, 33, 40)],
            [(4, 32, 32), (1, 15, 32), (1, 32, 49)],
        ),
        ([(32, 32), (64, 48)], [(1, 48, 48), (1, 64, 32)], [(1, 65, 48), (1, 64, 31), (2, 32, 32)]),
    ],
)
def test_shapes_widen_the_range(
    tmp_path: Path, shapes: Any, inside: list[tuple[int, int, int]], outside: list[tuple[int, int, int]]
) -> None:
    path = tmp_path / "wide.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", shapes=shapes)
    for backend in ("openvino", "torchscript"):
        module = hybrid_rt.load(path, backend=backend)
        for batch, height, width in inside:
            images = small_image(height, width).expand(batch, -1, -1, -1)
            assert_same_tensors(small_detector()(images), module(images))
        for batch, height, width in outside:
            with pytest.raises(RuntimeError, match=rf"hybrid_rt\[{backend}\]: engine 'backbone', input 'images', dim"):
                module(small_image(height, width).expand(batch, -1, -1, -1))


def test_shapes_of_images_leave_later_segments_free(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    hybrid_rt.convert(
        small_detector(),
        (small_image(),),
        path,
        segments=["backbone", "classes"],
        fuse=False,
        shapes={"height": (16, 64), "width": (16, 64)},
        engine="torchscript",
    )
    module = hybrid_rt.load(path)
    assert [engine["engine"] for engine in hybrid_rt.engines(module)] == ["backbone", "classes"]
    for height, width in ((16, 64), (48, 40)):
        image = small_image(height, width)
        assert_same_tensors(small_detector()(image), module(image))


@pytest.mark.slow
def test_sizes_that_the_example_does_not_show_are_free_in_later_segments(
    demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path
) -> None:
    """The example is square, so that its sides after the transform do not show the limits of others."""
    path = tmp_path / "rpn.pt"
    example, other = resized(demo_image, 256, 256), resized(demo_image, 400, 240)
    segments, shapes = ["backbone", "rpn.head"], [(256, 256), (400, 240)]
    hybrid_rt.convert(demo_detector, ([example],), path, segments=segments, engine="torchscript", shapes=shapes)
    module = hybrid_rt.load(path)
    assert_same_boxes(demo_detector([other, other.flip(2)]), module([other, other.flip(2)]))


class TwoStreams(SmallDetector):
    """Takes two images, calls the backbone twice, and returns a dict with a list."""

    def forward(self, left: Tensor, right: Tensor) -> dict[str, list[Tensor]]:
        first, second = self.backbone(left), self.backbone(right)
        return {"classes": [self.classes(first["coarse"]), self.classes(second["coarse"])]}


def test_a_segment_that_is_called_twice(tmp_path: Path) -> None:
    detector = TwoStreams(small_detector().backbone).eval().requires_grad_(False)
    path = tmp_path / "twice.pt"
    left, right = small_image(32, 32, seed=1), small_image(24, 40, seed=2)
    hybrid_rt.convert(detector, (left, right), path, segments="backbone", engine="torchscript")
    module = hybrid_rt.load(path)
    assert_same_tensors(detector(left, right)["classes"], module(left, right)["classes"])


def test_a_segment_under_two_names_runs_in_the_engine_by_either(tmp_path: Path) -> None:
    detector = small_list_detector()
    assert detector.backbone is detector.detector.backbone
    path = tmp_path / "alias.pt"
    hybrid_rt.convert(detector, ([small_image()[0]],), path, engine="torchscript")
    module = hybrid_rt.load(path)
    # The engine gets the shortest of its names.
    assert [engine["engine"] for engine in hybrid_rt.engines(module)] == ["backbone+detector.classes"]


def test_without_a_fallback_there_is_one_variant(tmp_path: Path) -> None:
    path = tmp_path / "alone.pt"
    result = hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", fallback=False)
    assert [variant.backend for variant in result.report.engines[0].variants] == ["openvino"]


def test_engines_are_kept_in_the_order_given(tmp_path: Path) -> None:
    path = tmp_path / "ordered.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", engine=["torchscript", "openvino"])
    assert hybrid_rt.engines(hybrid_rt.load(path))[0]["backend"] == "torchscript"
    variants = hybrid_rt.inspect(path)["engines"][0]["variants"]
    assert [variant["backend"] for variant in variants] == ["torchscript", "openvino"]


def test_without_progress_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hybrid_rt.convert(
        small_detector(), (small_image(),), tmp_path / "quiet.pt", segments="backbone", engine="torchscript"
    )
    assert capsys.readouterr() == ("", "")
    hybrid_rt.convert(
        small_detector(),
        (small_image(),),
        tmp_path / "loud.pt",
        segments="backbone",
        engine="torchscript",
        progress=True,
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert "done compile backbone with torchscript" in err


@pytest.mark.slow
def test_every_variant_is_compared(demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path) -> None:
    verification = hybrid_rt.convert(
        demo_detector, ([demo_image],), tmp_path / "two.pt", segments="backbone"
    ).report.verification
    assert verification is not None
    assert {error.backend for error in verification.tensors} == {"openvino", "torchscript"}
    assert verification.not_run == []


@pytest.mark.slow
def test_the_hybrid_in_memory_refuses_an_input_after_successful_calls(
    demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path
) -> None:
    example = resized(demo_image, 256, 256)
    shapes = [(256, 256), (400, 240)]
    module = hybrid_rt.convert(
        demo_detector, ([example],), tmp_path / "x.pt", segments="backbone", shapes=shapes, measure=False
    ).module
    for _ in range(2):
        module([example])
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[openvino\]: engine 'backbone', input 'x', dimension"):
        module([resized(demo_image, 256, 800)])


def test_an_input_to_verify_on_that_is_out_of_bounds_is_an_error(tmp_path: Path) -> None:
    example = small_image(32, 32)
    inputs = [(example,), (example,), (small_image(32, 96),)]
    message = r"the hybrid, engine 'backbone', input 'images', dimension 3: expected .*, got 1x3x32x96\. Pass shapes="
    with pytest.raises(hybrid_rt.VerificationError, match=message):
        hybrid_rt.convert(
            small_detector(),
            (example,),
            tmp_path / "x.pt",
            segments=["backbone"],
            shapes=[(32, 32)],
            verify_inputs=inputs,
        )
    assert list(tmp_path.iterdir()) == []
