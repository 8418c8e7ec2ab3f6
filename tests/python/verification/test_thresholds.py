"""Tests of thresholds: none is taken from a precision that was not named."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest

from helpers.paths import ROOT
from hybrid_rt import THRESHOLDS, OptionError, Thresholds


def test_excluded_layers_equal_fp32() -> None:
    own = Thresholds(iou=0.5, score=0.2, recall=0.5, relative_error=0.5)
    wanted = replace(THRESHOLDS["fp32"], iou=0.5, score=0.2, recall=0.5, relative_error=0.5)
    assert own == wanted


def test_fp32_is_the_strictest() -> None:
    strict = asdict(THRESHOLDS["fp32"])
    for name, row in THRESHOLDS.items():
        for field, value in asdict(row).items():
            is_least = field in ("iou", "recall", "mask_iou", "keypoint_recall")
            assert value <= strict[field] if is_least else value >= strict[field], (name, field)


def test_a_precisions_thresholds_with_changes() -> None:
    assert Thresholds.of("bf16") == THRESHOLDS["bf16"]
    assert Thresholds.of("bf16", iou=0.9) == replace(THRESHOLDS["bf16"], iou=0.9)
    with pytest.raises(OptionError, match="expected a precision with default thresholds"):
        Thresholds.of("int4")
    with pytest.raises(OptionError) as caught:
        Thresholds.of("fp32", overlap=0.9)
    assert str(caught.value) == (
        "hybrid_rt[verify]: thresholds: expected some of iou, score, recall, relative_error, mask_iou, "
        "keypoint_distance, keypoint_recall, got 'overlap'."
    )


def test_a_stored_threshold_that_is_missing_is_not_replaced() -> None:
    stored = THRESHOLDS["int8"].to_json()
    assert Thresholds.from_json(stored) == THRESHOLDS["int8"]
    del stored["mask_iou"]
    with pytest.raises(KeyError):
        Thresholds.from_json(stored)


def test_the_page_has_the_same_table() -> None:
    lines = (ROOT / "docs" / "precision-and-verification.md").read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| `hybrid_rt.Thresholds` |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[at:]]
    rows = rows[: next(i for i, row in enumerate(rows) if len(row) == 1)]
    precisions = rows[0][1:-1]
    table = {row[0].strip("`"): dict(zip(precisions, map(float, row[1:-1]), strict=True)) for row in rows[2:]}
    assert set(precisions) == set(THRESHOLDS)
    assert table == {
        field.name: {name: getattr(THRESHOLDS[name], field.name) for name in precisions} for field in fields(Thresholds)
    }
