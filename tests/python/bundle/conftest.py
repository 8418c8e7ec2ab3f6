"""Provides a small bundle for the tests of the file format."""

from __future__ import annotations

from pathlib import Path

import pytest

import hybrid_rt
from helpers.small_detectors import small_detector, small_image


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small detector with OpenVINO and TorchScript variants of its backbone, unsigned. Do not modify it."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", measure=False)
    return path
