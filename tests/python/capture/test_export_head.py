"""Tests of exporting whole detectors: the sizes that stay free, refusals and their location, and clean-up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.small_detectors import Backbone, SmallDetector, small_image
from helpers.unscriptable_detectors import DetrLike, RtDetrLike, seeded
from hybrid_rt import CaptureError
from hybrid_rt.capture.export_conditions import holds, infix, is_plain
from hybrid_rt.capture.export_head import ExportedHead, export_head
from hybrid_rt.common.specs import UNBOUNDED, TensorSpec


def exported(detector: nn.Module, *example: Any) -> ExportedHead:
    return export_head(detector.requires_grad_(False).eval(), example, [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DetrLike, RtDetrLike])
@pytest.mark.parametrize("batch", [1, 2])
def test_batch_and_sides_stay_free(kind: type[nn.Module], batch: int) -> None:
    head = exported(seeded(kind), torch.rand(batch, 3, 64, 48))
    for shape in ((1, 3, 64, 48), (2, 3, 32, 96), (5, 3, 41, 53)):
        assert head.takes([shape])
    assert not head.takes([(1, 4, 64, 48)])
    assert not head.takes([(3, 64, 48)])


class Pyramid(nn.Module):
    """Halves maps by a pooling and a convolution, as YOLOv9 does, and joins them with larger ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, padding=1)
        self.step = nn.Conv2d(4, 4, 3, 2, padding=1)

    def forward(self, images: Tensor) -> Any:
        fine = self.halved(self.step(self.stem(images)))
        middle = self.halved(fine)
        coarse = torch.cat([F.interpolate(self.halved(middle), scale_factor=2.0), middle], 1)
        return torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1)

    def halved(self, x: Tensor) -> Tensor:
        found: Tensor = self.step(F.avg_pool2d(x, 2, 1, 0, False, True))
        return found


def test_sizes_whose_equations_sympy_cannot_solve_become_conditions() -> None:
    head = exported(Pyramid(), torch.rand(1, 3, 128, 160))
    assert head.takes([(1, 3, 64, 224)])
    assert head.takes([(2, 3, 256, 96)])
    assert not head.takes([(1, 3, 80, 160)])
    assert not head.takes([(1, 3, 128, 144)])


class ForOneImage(SmallDetector):
    """Branches on the batch size: the result for two images is wrong for one."""

    def forward(self, images: Tensor) -> Any:
        features = self.backbone(images)["coarse"]
        return features * 2 if images.shape[0] == 1 else features


@pytest.mark.slow
def test_a_branch_on_the_batch_keeps_the_example_s() -> None:
    head = exported(ForOneImage(), small_image())
    assert head.takes([(1, 3, 64, 64)])
    assert not head.takes([(2, 3, 64, 64)])


class Oriented(SmallDetector):
    def forward(self, images: Tensor) -> Any:
        features = self.backbone(images)["coarse"]
        return features.mean(dim=2 if images.shape[2] >= images.shape[3] else 3)


def test_a_branch_on_sizes_becomes_a_condition() -> None:
    head = exported(Oriented(), small_image(64, 32))
    assert head.takes([(1, 3, 80, 48)])
    assert not head.takes([(1, 3, 48, 80)])
    assert any("images.shape[2]" in text and ">=" in text for text, _ in head.conditions)


class Stopped(SmallDetector):
    def forward(self, images: Tensor) -> Any:
        boxes, scores, _ = super().forward(images)
        if scores.max() > 0.5:
            return boxes
        return boxes[:1]


class Read(SmallDetector):
    def forward(self, images: Tensor) -> Any:
        return self.backbone(images)["coarse"] * float(images.numpy().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "remedy"),
    [
        (Stopped, "in forward: 'if scores.max() > 0.5:'", "torch.where"),
        (
            Read,
            "in forward: 'return self.backbone(images)[\"coarse\"] * float(images.numpy().mean())'",
            "head='trace'",
        ),
    ],
)
def test_value_dependent_code_is_refused_with_its_line(
    kind: type[nn.Module], code: str, remedy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        exported(kind(), small_image())
    text = str(caught.value)
    assert text.startswith("hybrid_rt[capture]: the detector's head: expected code that torch.export takes")
    assert "test_export_head.py:" in text
    assert code in text
    assert remedy in text
    assert len(text) < 700
    assert capfd.readouterr().err == ""  # torch prints the whole graph


class Caches(SmallDetector):
    """Keeps a grid for the size of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: Tensor | None = None
        self.register_buffer("cells", torch.zeros(1), persistent=False)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Any:
        features = self.backbone(images)["coarse"]
        self.seen.append(1)
        if self.grid is None or self.grid.shape[0] != features.shape[2]:
            self.grid = torch.arange(features.shape[2])
            self.cells = self.grid.float()
        return features + self.grid[:, None]


def test_the_detector_is_unchanged() -> None:
    detector = Caches().requires_grad_(False).eval()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    cells = detector.cells
    exported(detector, small_image())
    assert detector.grid is None
    assert detector.seen == []
    assert detector.cells is cells
    assert torch.equal(cells, torch.zeros(1))
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks or "forward" in vars(module) for module in detector.modules())


def test_an_argument_that_torchscript_has_no_type_for_is_refused() -> None:
    class Takes(SmallDetector):
        def forward(self, images: Tensor, options: Any) -> Any:
            return super().forward(images)

    with pytest.raises(
        CaptureError, match=r"argument 'options': expected tensors, numbers, strings and None .* got object"
    ):
        exported(Takes(), small_image(), object())


@pytest.mark.slow
def test_a_result_that_torchscript_has_no_type_for_is_refused() -> None:
    class Returns(SmallDetector):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images), Backbone

    with pytest.raises(CaptureError, match=r"its result\[1\]: expected tensors, numbers, strings and None .* got type"):
        exported(Returns(), small_image())


# Conditions


@pytest.mark.parametrize(
    ("words", "shape", "expected"),
    [
        ("0.0: 32 % 0 ==", (64,), True),
        ("0.0: 32 % 0 ==", (65,), False),
        ("0.0: 0.1: min 4 >", (9, 5), True),
        ("0.0: 0.1: max 4 // 2 == 0.0: 1 > and", (3, 9), True),
        ("10 0.0: % 0 ==", (0,), False),
        ("0.0: -3 + 2 * 4 <=", (5,), True),
        ("64 0.0: / 0.1: sym_float * trunc 63 ==", (97, 97), False),
        ("64 0.0: / 0.1: sym_float * floor 64 ==", (100, 100), True),
        ("0.0: 8 / ceil 13 ==", (97,), True),
        ("0.0: 2 / round 2 ==", (5,), True),
        ("0.0: 0.5 * 48.5 ==", (97,), True),
        ("64 0.0: / 1 >", (0,), False),
    ],
)
def test_conditions_are_computed(words: str, shape: tuple[int, ...], expected: bool) -> None:
    assert holds(words, [shape]) is expected


class Scaled(SmallDetector):
    """Resizes the image as torchvision's transform does: a scale from both sides, in floating point."""

    def forward(self, images: Tensor) -> Any:
        height, width = images.shape[-2:]
        scale = min(64 / min(height, width), 96 / max(height, width))
        resized = nn.functional.interpolate(
            images, scale_factor=scale, mode="bilinear", recompute_scale_factor=True, align_corners=False
        )
        return self.detect(self.backbone(resized)["coarse"]), resized


def test_a_scale_from_both_sides_keeps_them_free() -> None:
    head = exported(seeded(Scaled), torch.rand(1, 3, 80, 112))
    for sides in ((80, 112), (112, 80), (97, 97), (61, 300)):
        assert head.takes([(1, 3, *sides)])


class Letterbox(SmallDetector):
    """Resizes the image to fit a square, with rounded sizes, and pads it."""

    def forward(self, images: Tensor) -> Any:
        height, width = images.shape[-2:]
        scale = min(64 / height, 64 / width)
        height, width = round(height * scale), round(width * scale)
        resized = nn.functional.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        padded = nn.functional.pad(resized, (0, 64 - width, 0, 64 - height), value=0.5)
        return self.detect(self.backbone(padded)["coarse"]), resized


def test_rounded_sizes_stay_free() -> None:
    head = exported(seeded(Letterbox), torch.rand(1, 3, 80, 112))
    for sides in ((80, 112), (50, 112), (81, 113)):
        assert head.takes([(1, 3, *sides)])


class Places(nn.Module):
    """Adds places from torch.linspace to the pixels, and returns a fixed number of bins."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        down = torch.linspace(0.5, height - 0.5, height) / height
        across = torch.linspace(-1, 1, steps=width, dtype=images.dtype, device=images.device)
        return images + down[:, None] + across, torch.linspace(0, 1, 5)


def test_linspace_keeps_its_number_of_steps_free() -> None:
    detector = Places()
    head = exported(detector, torch.rand(1, 3, 24, 32))
    for sides in ((24, 32), (1, 2), (33, 57)):
        images = torch.rand(1, 3, *sides)
        assert head.takes([images.shape])
        torch.testing.assert_close(tuple(head.program.module()(images)), detector(images))


class CentresOfNumpy(nn.Module):
    """Adds centres that numpy computes from the size, as insightface's detectors do."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        centres = np.stack(np.mgrid[:height, :width][::-1], axis=-1).astype(np.float32)
        return images[:, :2] + torch.from_numpy(centres).permute(2, 0, 1)


def test_sizes_that_numpy_needs_are_the_example_s() -> None:
    detector, images = CentresOfNumpy(), torch.rand(1, 3, 24, 32)
    head = exported(detector, images)
    assert [head.takes([(1, 3, *sides)]) for sides in ((24, 32), (32, 24))] == [True, False]
    assert "np.mgrid[:height, :width]" in head.fixed
    torch.testing.assert_close(head.program.module()(images)[0], detector(images))


class Wide(SmallDetector):
    """Branches on a fraction of the sizes."""

    def forward(self, images: Tensor) -> Any:
        if images.shape[3] / images.shape[2] > 1.5:
            images = images * 2
        return self.detect(self.backbone(images)["coarse"])


def test_a_branch_on_a_fraction_of_sizes_becomes_a_condition() -> None:
    head = exported(seeded(Wide), torch.rand(1, 3, 40, 56))
    for sides, is_taken in (((40, 56), True), ((40, 60), True), ((40, 61), False), ((60, 40), True)):
        assert head.takes([(1, 3, *sides)]) is is_taken


def test_conditions_are_written_with_brackets() -> None:
    assert infix("0.2: 1 + 1.0: 2 * ==", ["a", "b"]) == "((a.size(2) + 1) == (b.size(0) * 2))"


def test_only_informative_fields_are_shown() -> None:
    specs = [TensorSpec("x", "float32", (1, 0), (1, 0), (1, UNBOUNDED))]
    assert is_plain("0.1: 1 !=", specs)
    assert not is_plain("0.1: 2 % 0 ==", specs)
