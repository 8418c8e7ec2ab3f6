"""Tests of tools/benchmarks/first_try.py: its table, and its output for a detector that does not convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.small_detectors import SmallDetector, small_detector
from models import community_networks
from tools.benchmarks import first_try
from tools.benchmarks.first_try import Result, first_line, markdown
from tools.benchmarks.first_try_detectors import DETECTORS, DetectorCase, lively


class Refused(SmallDetector):
    """Reads values in code that can be neither scripted, exported nor traced."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images), object()


def test_the_table_has_a_row_per_detector_and_leaves_the_speed_out() -> None:
    results = [
        Result("a", True, "export", ["x", "y"], 0.84, "equal", "equal", 1.5),
        Result("b", error="CaptureError: one | two"),
    ]
    rows = markdown(results, with_speed=False).splitlines()
    assert rows[0].count("|") == rows[2].count("|") == len(first_try.HEADINGS)
    assert rows[2] == "| a | yes | export | 2 | 84% | equal | equal | - |"
    assert rows[3] == "| b | no | - | - | - | - | - | CaptureError: one \\| two |"
    assert "| 1.50 |" in markdown(results, with_speed=True)


def test_rows_of_earlier_runs_stay_in_the_order_of_the_list(tmp_path: Path) -> None:
    first, second, *_ = DETECTORS
    for result in (Result(second, error="no"), Result(first, True), Result("gone"), Result(second, True, "trace")):
        first_try.record(result, tmp_path, with_speed=False)
    rows = (tmp_path / "first_try.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {first}", f"| {second}", "| gone"]
    assert "| yes | trace |" in rows[1]
    assert len(json.loads((tmp_path / "first_try.json").read_text())) == 3


def test_a_long_message_is_cut_to_its_first_line() -> None:
    assert first_line("\n  one\ntwo") == "one"
    assert len(first_line("x" * 1000)) < 320


@pytest.mark.slow
def test_a_detector_that_does_not_convert_is_a_row_with_the_reason(tmp_path: Path) -> None:
    result = first_try.convert_one(
        "refused", DetectorCase(lambda: community_networks.seeded(Refused), (32, 48)), tmp_path
    )
    assert not result.first_try
    assert result.error.startswith("CaptureError: hybrid_rt[capture]: ")


@pytest.mark.slow
def test_a_detector_that_converts(tmp_path: Path) -> None:
    case = DetectorCase(small_detector, (32, 48), ((48, 32),), {"height": (16, 64), "width": (16, 64)})
    result = first_try.convert_one("small", case, tmp_path)
    assert (result.first_try, result.head, result.in_cpp) == (True, "script", "equal")
    assert result.unseen_sizes.startswith("equal")
    json.dumps(vars(result))


def test_a_child_that_takes_too_long_is_a_row(tmp_path: Path) -> None:
    assert first_try.run_child(next(iter(DETECTORS)), 0.1, tmp_path).error == "no result after 0 s"


def test_a_word_chooses_detectors() -> None:
    assert first_try.chosen(["crnn", "craft"]) == ["CRNN (own)", "CRAFT-like (own)"]


def test_lively_weights_have_outputs_of_order_one() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        net[2].weight.mul_(1e-4)
    images = torch.rand(2, 3, 16, 16)
    assert lively(net, images)(images).std().item() == pytest.approx(1.0, abs=1e-3)
