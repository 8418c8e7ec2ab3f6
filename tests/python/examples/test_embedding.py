"""Tests of examples/embedding: a custom service around hybrid_rt::Detector, built against the installed package."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

import hybrid_rt
from helpers.external_projects import TESTS, build_project, run
from models import digits_detector

pytestmark = pytest.mark.slow


def test_it_answers_each_image_in_order(tmp_path: Path, demo_bundle: Path, demo_images: list[Tensor]) -> None:
    program = build_project(TESTS.parent / "examples" / "embedding", tmp_path / "build") / "embedding"
    module = hybrid_rt.load(demo_bundle)
    images, expected = [], []
    for i, image in enumerate(demo_images):
        path = tmp_path / f"{i}.ppm"
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
        (found,) = module([image])
        images.append(path)
        best = digits_detector.CLASS_NAMES[found["labels"][0]]
        expected.append(
            (f"{path}: {len(found['labels'])} objects, best {best} ", float(found["scores"][0])),
        )
    done = run(program, demo_bundle, *images)
    assert done.returncode == 0, done.stderr
    for line, (start, score) in zip(done.stdout.splitlines(), expected, strict=True):
        assert line.startswith(start)
        assert float(line.rsplit(" ", 1)[1]) == pytest.approx(score, abs=1e-3)

    (tmp_path / "short.ppm").write_bytes(b"P6 10 10 255\n123")
    done = run(program, demo_bundle, tmp_path / "short.ppm")
    assert done.returncode == 1
    assert "it ends too early" in done.stderr
