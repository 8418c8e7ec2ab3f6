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
