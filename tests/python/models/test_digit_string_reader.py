"""Tests of a recurrent head, with convolutions in an engine, and LSTM and CTC decoding in TorchScript."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import hybrid_rt
from helpers.external_projects import run_any_detector
from models import digit_lines, digit_string_reader

pytestmark = pytest.mark.slow

HELD_OUT = 400


@pytest.fixture(scope="module")
def reader() -> digit_string_reader.DigitStringReader:
    return digit_string_reader.load()


@pytest.fixture(scope="module")
def lines() -> list[digit_lines.Line]:
    return digit_lines.make_lines("held_out", HELD_OUT)


@pytest.fixture(scope="module")
def bundle(
    reader: digit_string_reader.DigitStringReader,
    lines: list[digit_lines.Line],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("reader") / "reader.pt"
    example = [digit_string_reader.to_tensor(line.image) for line in lines[:2]]
    shapes = {"batch": (1, 64), "height": (32, 32), "width": (4, 512)}
    hybrid_rt.convert(reader, (example,), path, segments=["backbone"], shapes=shapes, measure=False)
    return path


@pytest.mark.parametrize("backend", ["openvino", "torchscript"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_hybrid_reads_every_string_as_eager_does(
    batch_size: int,
    backend: str,
    bundle: Path,
    reader: digit_string_reader.DigitStringReader,
    lines: list[digit_lines.Line],
) -> None:
    hybrid = hybrid_rt.load(bundle, backend=backend)
    images = [line.image for line in lines]
    expected = digit_string_reader.read(reader, images, batch_size)
    assert digit_string_reader.read(hybrid, images, batch_size) == expected
    assert len(set(expected)) > HELD_OUT // 2
    accuracy = digit_string_reader.evaluate(reader, lines, batch_size)
    assert accuracy > 0.9
    assert digit_string_reader.evaluate(hybrid, lines, batch_size) == accuracy


def test_cpp_reads_the_same(
    bundle: Path,
    reader: digit_string_reader.DigitStringReader,
    lines: list[digit_lines.Line],
    downstream: Path,
    tmp_path: Path,
) -> None:
    images = [digit_string_reader.to_tensor(line.image) for line in lines[:60]]
    found = run_any_detector(downstream / "any_detector", bundle, images, tmp_path)
    for i, want in enumerate(reader(images)):
        assert found[f"{i}.digits"] == want["digits"].tolist()
        torch.testing.assert_close(torch.tensor(found[f"{i}.scores"]), want["scores"], rtol=0, atol=1e-4)


def test_lines_of_the_splits_share_no_digit() -> None:
    train, held_out = (set(digit_lines.scan_indices(split).tolist()) for split in ("train", "held_out"))
    assert not train & held_out
    assert train | held_out == set(range(1797))


def test_the_same_line_each_time_and_others_beside_it() -> None:
    first, again = digit_lines.make_line("held_out", 3), digit_lines.make_line("held_out", 3)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.text == again.text
    for other in (digit_lines.make_line("held_out", 4), digit_lines.make_line("held_out", 3, seed=1)):
        assert other.image.shape != first.image.shape or not np.array_equal(other.image, first.image)


def test_lines_have_the_stated_shape(lines: list[digit_lines.Line]) -> None:
    assert {len(line.text) for line in lines} == set(range(3, 9))
    assert all(line.text.isdigit() for line in lines)
    for line in lines:
        assert line.image.dtype == np.uint8
        assert line.image.shape[0] == 32
        assert line.image.shape[2] == 3
    assert len({line.image.shape[1] for line in lines}) > 50


def test_lines_of_another_height_are_read(
    reader: digit_string_reader.DigitStringReader, lines: list[digit_lines.Line]
) -> None:
    def enlarged(line: digit_lines.Line) -> Tensor:
        image = digit_string_reader.to_tensor(line.image)
        return torch.nn.functional.interpolate(image[None], scale_factor=2.0, mode="bilinear")[0]

    texts = ["".join(map(str, found["digits"].tolist())) for found in reader([enlarged(line) for line in lines[:50]])]
    assert sum(text == line.text for text, line in zip(texts, lines, strict=False)) >= 45


def test_shipped_numbers_belong_to_the_shipped_weights(reader: digit_string_reader.DigitStringReader) -> None:
    weights = digit_string_reader.WEIGHTS
    assert weights.stat().st_size <= 2_000_000
    report = json.loads(weights.with_name(f"{weights.stem}_training.json").read_text(encoding="utf-8"))
    assert report["parameters"] == sum(parameter.numel() for parameter in reader.parameters())
    assert report["held_out"]["accuracy"] > 0.9


def test_load_without_weights_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        digit_string_reader.load(tmp_path / "missing.pt")
