"""Tests of measuring a new hybrid, without assertions on times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import hybrid_rt
from helpers.small_detectors import small_detector, small_image, small_list_detector
from hybrid_rt.common.image_inputs import EACH, ImageInputs
from hybrid_rt.conversion.report import measurement
from hybrid_rt.conversion.report.measurement import Measurement

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


def measured(tmp_path: Path, detector: nn.Module, example: tuple[Any, ...], **options: Any) -> Measurement:
    report = hybrid_rt.convert(detector, example, tmp_path / "x.pt", engine="torchscript", **options).report
    assert report.not_measured == ""
    assert report.measurement is not None
    return report.measurement


def test_both_are_timed_on_the_example(tmp_path: Path) -> None:
    found = measured(tmp_path, small_list_detector(), ([small_image(64, 96)[0]],))
    assert list(found.latencies) == ["eager", "hybrid"]
    assert all(latency.count == 1 and latency.median > 0 for latency in found.latencies.values())
    assert found.gain == pytest.approx(found.latencies["eager"].median / found.latencies["hybrid"].median)
    assert found.pictures == [(64, 96)]
    assert found.threads == torch.get_num_threads()
    assert set(found.engines) == {"backbone+detector.classes"}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 20), (0.01, 20), (0.2, 9), (0.9, 1), (3.0, 1)])
def test_a_slow_detector_is_called_seldom(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int) -> None:
    monkeypatch.setattr(measurement.archive, "engines", lambda hybrid: [])
    monkeypatch.setattr(measurement.archive, "load", lambda path: nn.Identity())
    calls = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return x

    before = measurement.eager_budget.set(2.0)
    found, reason = measurement.measure_hybrid(Counting(), Path("x.pt"), [(torch.ones(3),)], ImageInputs(), [], seconds)
    measurement.eager_budget.reset(before)
    assert reason == ""
    assert found is not None
    assert found.latencies["eager"].count == rounds
    assert len(calls) == rounds + 1
    assert (found.new_size, found.no_new_size) == (None, "the inputs are not images")


def test_the_new_size_is_inside_the_bounds_and_was_not_seen(tmp_path: Path) -> None:
    sizes = [(32, 32), (64, 96)]
    found = measured(tmp_path, small_detector(), (small_image(32, 32),), shapes=sizes)
    assert found.new_size is not None
    size = (found.new_size.height, found.new_size.width)
    assert size not in sizes
    assert 32 <= size[0] <= 64
    assert 32 <= size[1] <= 96
    assert found.new_size.first > 0
    assert found.new_size.later > 0


def test_a_size_of_the_verification_is_not_new(tmp_path: Path) -> None:
    sizes = [(32, 32), (64, 64)]
    without = measured(tmp_path, small_detector(), (small_image(),), shapes=sizes).new_size
    assert without is not None
    further = (small_image(without.height, without.width),)
    found = measured(tmp_path, small_detector(), (small_image(),), shapes=sizes, verify_inputs=[further]).new_size
    assert found is not None
    assert (found.height, found.width) != (without.height, without.width)


def test_a_bundle_of_one_size_has_no_unseen_size(tmp_path: Path) -> None:
    found = measured(tmp_path, small_detector(), (small_image(),))
    assert found.new_size is None
    assert found.no_new_size == "its segments always get images of the same size"


class Resizing(nn.Module):
    """Resizes all images to 64x64, as SSD does."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(64, 64, [0.0] * 3, [1.0] * 3, fixed_size=(64, 64)).eval()
        self.backbone = nn.Conv2d(3, 4, 3)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.backbone(self.transform(images)[0].tensors)


def test_a_detector_that_makes_all_images_alike_has_no_new_size(tmp_path: Path) -> None:
    detector = Resizing().requires_grad_(False).eval()
    found = measured(tmp_path, detector, ([small_image()[0]],), segments="backbone")
    assert found.new_size is None
    assert found.no_new_size == "its segments always get images of the same size"


@pytest.mark.slow
def test_the_demo_detector_takes_a_size_that_it_has_not_seen(
    demo_detector: nn.Module, demo_image: Tensor, tmp_path: Path
) -> None:
    found = measured(tmp_path, demo_detector, ([demo_image],)).new_size
    assert found is not None
    assert (found.height, found.width) != tuple(demo_image.shape[-2:])


def test_a_bundle_that_cannot_run_here_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("Traceback of TorchScript\nRuntimeError: no engine here")

    monkeypatch.setattr(measurement.archive, "load", lambda path: Failing())
    found, reason = measurement.measure_hybrid(nn.Identity(), Path("x.pt"), [(torch.ones(3),)], ImageInputs(), [], 1.0)
    assert (found, reason) == (None, "no engine here")
    monkeypatch.undo()
    found, reason = measurement.measure_hybrid(nn.Identity(), Path("x.pt"), [(torch.ones(3),)], ImageInputs(), [], 1.0)
    assert found is None
    assert "x.pt" in reason


def test_measuring_leaves_the_example_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Writing(nn.Module):
        def forward(self, images: Tensor | list[Tensor]) -> Tensor:
            return images[0].zero_()

    monkeypatch.setattr(measurement.archive, "engines", lambda hybrid: [])
    monkeypatch.setattr(measurement.archive, "load", lambda path: Writing())
    image = torch.ones(1, 3, 8, 8)
    measurement.measure_hybrid(Writing(), Path("x.pt"), [(image,)], ImageInputs({(0,): "NCHW"}), [], 1.0)
    measurement.measure_hybrid(Writing(), Path("x.pt"), [([image[0]],)], ImageInputs({(0, EACH): "CHW"}), [], 1.0)
    assert bool((image == 1).all())
