"""Tests of head="auto", which tries script, export and trace until results are equal, and of its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import SmallDetector, small_detector, small_image
from helpers.unscriptable_detectors import DetrLike, seeded
from hybrid_rt import CaptureError
from hybrid_rt.conversion.assemble import head_choice
from hybrid_rt.conversion.assemble.head_choice import _short

OPTIONS: dict[str, Any] = {"segments": "backbone", "engine": "torchscript", "measure": False}
SIZES = [(64, 48), (32, 80)]


def report_of(detector: nn.Module, path: Path, **options: Any) -> hybrid_rt.ConversionReport:
    detector.requires_grad_(False).eval()
    return hybrid_rt.convert(detector, (small_image(64, 48),), path, **{**OPTIONS, "shapes": SIZES, **options}).report


def test_scriptable_heads_are_scripted(tmp_path: Path) -> None:
    report = report_of(small_detector(), tmp_path / "a.pt")
    assert (report.head, report.head_refused) == ("script", {})
    assert "head: script\n" in str(report)


@pytest.mark.slow
def test_unscriptable_heads_are_exported_and_the_report_says_why(tmp_path: Path) -> None:
    report = report_of(seeded(DetrLike), tmp_path / "a.pt", report=tmp_path / "report.json")
    assert report.head == "export"
    assert list(report.head_refused) == ["script"]
    assert report.head_refused["script"].endswith(" [head-not-scriptable]")
    assert "more: dict[str, Any] | None = None" in report.head_refused["script"]
    assert f"head: export\n  not script: {report.head_refused['script']}\n" in str(report)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert (saved["head"], saved["head_refused"]) == ("export", report.head_refused)


class ReadsValues(SmallDetector):
    """Can be neither scripted nor exported; takes the same branch for all images."""

    def forward(self, images: Tensor, **options: Any) -> Any:
        boxes, scores, _ = super().forward(images)
        return boxes * 2 if float(scores.max()) >= -1 else boxes


@pytest.mark.slow
def test_unexportable_heads_are_recorded(tmp_path: Path) -> None:
    detector = ReadsValues()
    with pytest.warns(
        RuntimeWarning, match=r"a head that has no branches on values, got one at test_head_choice.py:\d+ in"
    ):
        report = report_of(detector, tmp_path / "a.pt")
    assert report.head == "trace"
    assert list(report.head_refused) == ["script", "export"]
    assert "if float(scores.max()) >= -1 else boxes'" in report.head_refused["export"]
    found = hybrid_rt.load(tmp_path / "a.pt")(small_image(32, 80, seed=2))
    torch.testing.assert_close(found, detector(small_image(32, 80, seed=2)), rtol=1e-5, atol=1e-5)


class BranchesOnValues(ReadsValues):
    """Takes the other branch for black images."""

    def forward(self, images: Tensor, **options: Any) -> Any:
        boxes = super().forward(images)
        return boxes * 2 if float(images.max()) > 0 else boxes


@pytest.mark.slow
def test_heads_that_no_mode_converts_are_refused_with_all_reasons(tmp_path: Path) -> None:
    with pytest.raises(CaptureError) as caught:
        report_of(BranchesOnValues(), tmp_path / "a.pt")
    text = str(caught.value)
    for mode in ("script", "export", "trace"):
        assert f"\n  {mode}: " in text
    assert "trace: it finds something else: " in text
    assert (caught.value.code, text.count("[no-head-fits]")) == ("no-head-fits", 1)
    assert "test_head_choice.py:" in text
    assert not list(tmp_path.iterdir())


class Peaks(nn.Module):
    """Moves each peak by a quarter of a cell in a loop of Python, as pose networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, images: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        maps = self.backbone(images)[0]
        found = []
        for one in maps:
            width = int(one.shape[1])
            y, x = int(one.argmax()) // width, int(one.argmax()) % width
            right = one[y, min(x + 1, width - 1)] > one[y, max(x - 1, 0)]
            found.append(torch.tensor([x + 0.25 if right else x - 0.25, y]))
        return torch.stack(found), maps.amax((1, 2))


class CountsImages(nn.Module):
    """Takes points [n, 4] whose first column is the image, and loops over the images, as point cloud networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, points: Tensor, **options: Any) -> list[Tensor]:
        features = self.backbone(points[:, 1:])
        return [features[points[:, 0] == i].amax(0) for i in range(int(points[:, 0].max().item()) + 1)]


POINTS = torch.cat([torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.linspace(-1, 1, 12).view(4, 3)], 1)


@pytest.mark.parametrize(("detector", "example"), [(Peaks, small_image(64, 48)), (CountsImages, POINTS)])
def test_a_recording_that_keeps_values_of_the_example_is_refused(
    detector: type[nn.Module], example: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        CaptureError, match=r"\n  trace: it (finds something else|fails on inputs of other sizes or values): "
    ):
        hybrid_rt.convert(detector().eval(), (example,), tmp_path / "a.pt", **OPTIONS)


def test_a_size_that_an_engine_refuses_is_not_tried_with_other_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    assemble = head_choice.assemble
    monkeypatch.setattr(head_choice, "assemble", lambda *given: (tried.append(given[2]), assemble(*given))[1])
    text = (
        r"the hybrid, engine 'backbone', input 'images', dimension 2: expected 1x3x64x48 float32 in every input that "
        r"is compared, got 1x3x32x80. Pass shapes= that cover this size, or leave the input out of verify_inputs=."
    )
    with pytest.raises(hybrid_rt.VerificationError, match=text) as caught:
        report_of(small_detector(), tmp_path / "a.pt", shapes=None, verify_inputs=[(small_image(32, 80),)])
    assert (tried, caught.value.code) == (["script"], "sizes-not-taken")


class AddsGrid(SmallDetector):
    """Adds a number per cell, which it computes by Python's own numbers."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)[0]
        return features + float(images.shape[2])


def test_a_recording_by_name_that_is_wrong_at_other_sizes_warns(tmp_path: Path) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"head='trace': expected a recording that is right for every size of shapes="
    ):
        report_of(seeded(AddsGrid), tmp_path / "a.pt", head="trace")
    report_of(seeded(AddsGrid), tmp_path / "b.pt", head="trace", shapes=[(64, 48)])  # as pytest fails on any warning


class CallsPython(SmallDetector):
    """Compiles as TorchScript that can't be saved."""

    @torch.jit.ignore
    def noted(self, images):
        return images * 1.0

    def forward(self, images: Tensor) -> Any:
        return super().forward(self.noted(images))


def test_a_scripted_head_that_calls_python_is_replaced(tmp_path: Path) -> None:
    report = report_of(seeded(CallsPython), tmp_path / "a.pt")
    assert report.head == "export"
    assert "a call of 'noted': " in report.head_refused["script"]
    assert "return super().forward(self.noted(images))" in report.head_refused["script"]
    with pytest.raises(CaptureError, match=r"without Python, got a call of 'noted'(.|\n)*\[head-not-scriptable\]"):
        report_of(seeded(CallsPython), tmp_path / "b.pt", head="script")
    assert not (tmp_path / "b.pt").exists()


class ScriptsOtherwise(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.detect(self.backbone(images)["coarse"])
        return (boxes, scores, labels) if torch.jit.is_scripting() else (boxes * 2, scores, labels)


def test_a_scripted_head_that_differs_is_replaced(tmp_path: Path) -> None:
    report = report_of(ScriptsOtherwise(), tmp_path / "a.pt")
    assert report.head == "export"
    assert report.head_refused == {"script": "its results differ from the detector's"}
    assert report.verification is not None
    assert report.verification.passed


@pytest.mark.slow
def test_a_mode_by_name_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(hybrid_rt.VerificationError):
        report_of(ScriptsOtherwise(), tmp_path / "a.pt", head="script")
    with pytest.raises(CaptureError, match=r"Or take head='export' or head='trace'; head='auto', the default, tries"):
        report_of(seeded(DetrLike), tmp_path / "a.pt", head="script")
    assert report_of(small_detector(), tmp_path / "a.pt", head="export").head == "export"


def test_reasons_are_one_line() -> None:
    text = "hybrid_rt[capture]: the head: expected code, got Bad:\n  line 3\n  x = **y\n      ~~~ <--- HERE\n rest"
    assert _short(text) == "Bad: line 3 x = **y"
    assert _short(f"{text} [head-not-scriptable]") == "Bad: line 3 x = **y [head-not-scriptable]"
    assert len(_short("a" * 1000)) < 450
