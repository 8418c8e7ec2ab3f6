"""Measures the cost of rounding with a trained detector on annotated images."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor
from torchvision.models.detection import FasterRCNN

import hybrid_rt
from models import digits_data, digits_detector

pytestmark = pytest.mark.slow

IMAGES = 200


def test_map_in_bf16_is_that_of_eager(tmp_path: Path, demo_detector: FasterRCNN, demo_image: Tensor) -> None:
    samples = digits_data.make_split("held_out", IMAGES, seed=0)
    path = tmp_path / "bf16.pt"
    hybrid_rt.convert(demo_detector, ([demo_image],), path, precision="bf16", measure=False)
    hybrid = hybrid_rt.load(path, emulate_precision=True)
    for engine in hybrid_rt.engines(hybrid):
        assert "bf16" in engine["description"].split(",")[1], engine["description"]

    eager = digits_detector.evaluate(demo_detector, samples)
    rounded = digits_detector.evaluate(hybrid, samples)

    assert eager["mAP50"] > 0.8
    assert abs(rounded["mAP"] - eager["mAP"]) <= 0.005
    assert abs(rounded["mAP50"] - eager["mAP50"]) <= 0.005
