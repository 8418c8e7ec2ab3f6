"""Tests of the sizes that a segment is compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import hybrid_rt
from helpers.small_detectors import small_detector
from hybrid_rt import OptionError
from hybrid_rt.capture.shapes import ranges_of
from hybrid_rt.common.specs import UNBOUNDED

EXAMPLE = (1, 3, 64, 96)


class Transformed(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        sizes = {"min_size": 50, "max_size": 90, **options}
        self.transform = GeneralizedRCNNTransform(image_mean=[0.5] * 3, image_std=[0.5] * 3, **sizes).eval()


def test_a_transform_gives_all_sizes_that_it_can_produce() -> None:
    assert ranges_of(Transformed(), EXAMPLE, None) == [(1, UNBOUNDED), (3, 3), (32, 96), (32, 96)]


@pytest.mark.parametrize("size", [(50, 90), (1, 90), (200, 10), (33, 33), (4000, 4000)])
def test_transformed_images_of_any_size_are_in_the_range(size: tuple[int, int]) -> None:
    detector = Transformed()
    _, _, (lowest, highest), (narrowest, widest) = ranges_of(detector, EXAMPLE, None)
    height, width = detector.transform([torch.zeros(3, *size)])[0].tensors.shape[-2:]
    assert lowest <= height <= highest
    assert narrowest <= width <= widest


def test_a_fixed_size_stays_fixed() -> None:
    fixed = Transformed(fixed_size=(96, 64))  # torchvision's order: width, height
    assert ranges_of(fixed, EXAMPLE, None) == [(1, UNBOUNDED), (3, 3), (64, 64), (96, 96)]


def test_without_a_transform_the_example_is_the_only_size() -> None:
    assert ranges_of(small_detector(), EXAMPLE, None) == [(1, 1), (3, 3), (64, 64), (96, 96)]


def test_an_input_that_is_not_a_batch_of_images_has_no_ranges() -> None:
    assert ranges_of(small_detector(), (5, 7), None) is None


def test_features_behind_a_transform_have_no_ranges() -> None:
    assert ranges_of(Transformed(), (40, 64, 7, 7), None) is None


def test_named_ranges_replace_only_their_own() -> None:
    ranges = ranges_of(Transformed(), EXAMPLE, {"height": (32, 128), "batch": [1, 4]})
    assert ranges == [(1, 4), (3, 3), (32, 128), (32, 96)]


def test_image_sizes_span_what_the_transform_makes_of_them() -> None:
    assert ranges_of(Transformed(), EXAMPLE, [(50, 90), (90, 50), (50, 50)])[2:] == [(64, 96), (64, 96)]
    assert ranges_of(small_detector(), EXAMPLE, [(64, 96), (128, 32)])[2:] == [(64, 128), (32, 96)]


@pytest.mark.parametrize("shapes", [[], (256, 320), 5, "auto", [(256,)], [(256, 320, 3)], [(0, 320)], [(2.5, 320)]])
def test_invalid_image_sizes_are_refused(shapes: Any) -> None:
    with pytest.raises(OptionError) as caught:
        ranges_of(Transformed(), EXAMPLE, shapes)
    assert str(caught.value) == (
        "hybrid_rt[convert]: shapes: expected image sizes [(height, width), ...] in pixels, at least one, or ranges "
        f"by name, got {shapes!r}."
    )


def test_an_unknown_dimension_is_refused() -> None:
    with pytest.raises(OptionError, match="shapes: expected ranges for batch, height, width, got 'depth'"):
        ranges_of(Transformed(), EXAMPLE, {"depth": (1, 2)})


@pytest.mark.parametrize("value", [(5, 2), (0, 4), (-1, 4), (4,), (1, 2, 3), 7, None, (1.0, 2.0), "ab"])
def test_invalid_ranges_are_refused(value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        ranges_of(Transformed(), EXAMPLE, {"height": value})
    assert f"shapes, height: expected (min, max) with 1 <= min <= max, got {value!r}." in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"height": (96, 128)}, "shapes, height: expected a range that includes the example's 64, got 96..128"),
        ({"width": (32, 64)}, "shapes, width: expected a range that includes the example's 96, got 32..64"),
        ({"batch": (2, 4)}, "shapes, batch: expected a range that includes the example's 1, got 2..4"),
        ([(32, 96)], "shapes, height: expected a range that includes the example's 64, got 32..32"),
    ],
)
def test_a_range_without_the_example_is_refused(shapes: Any, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        ranges_of(small_detector(), EXAMPLE, shapes)
    assert text in str(caught.value)
    assert "Widen the range, or use an example inside it." in str(caught.value)


@pytest.mark.slow
def test_a_range_of_batches_holds_for_later_segments_too(tmp_path: Path) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 4, 3)

        def forward(self, images: Tensor, weights: Tensor) -> Tensor:
            return self.second(self.first(images).relu() * weights[:, None, None, None])

    detector, path = Detector().requires_grad_(False).eval(), tmp_path / "x.pt"
    shapes = {"batch": (1, 4), "height": (32, 64), "width": (32, 64)}
    example = (torch.rand(1, 3, 32, 32), torch.ones(1))
    options = {"segments": ["first", "second"], "engine": ["openvino", "torchscript"], "shapes": shapes}
    hybrid_rt.convert(detector, example, path, measure=False, progress=False, **options)
    for backend in ("openvino", "torchscript"):
        hybrid = hybrid_rt.load(path, backend=backend)
        for batch in (1, 2, 3, 4):
            inputs = torch.rand(batch, 3, 48, 40), torch.arange(1.0, batch + 1)
            torch.testing.assert_close(hybrid(*inputs), detector(*inputs), rtol=1e-4, atol=1e-5)


def test_an_example_of_the_largest_batch_is_run_with_a_smaller_one(tmp_path: Path) -> None:
    detector = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3)).eval()
    path = tmp_path / "x.pt"
    options = {"segments": ["0", "2"], "engine": "torchscript", "shapes": {"batch": (1, 2)}}
    hybrid_rt.convert(detector, (torch.rand(2, 3, 16, 16),), path, measure=False, progress=False, **options)
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(hybrid_rt.load(path)(image), detector(image), rtol=1e-4, atol=1e-5)
