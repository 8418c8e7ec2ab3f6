"""Tests of faults that are not rounding: another label or count, another score beside coordinates, another box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_rt import THRESHOLDS, Thresholds, _native
from hybrid_rt.verification.verify import compare_results, compare_tensors

FP32 = THRESHOLDS["fp32"]


def failures(expected: Any, found: Any, precision: str = "fp32") -> list[str]:
    return [failure.text for failure in compare_results(expected, found, THRESHOLDS[precision], "input 0").failures]


def changed(tensor: Tensor, place: tuple[int, ...], by: float) -> Tensor:
    other = tensor.clone()
    other[place] += by
    return other


LARGE = torch.tensor([3, 7, 4000, 12000])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6,), (1, 6, 1), (6, 1), (2, 3), ()])
def test_whole_numbers_have_to_be_equal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Relative to 12000, an error of 1 would be smaller than fp32's limit."""
    expected = torch.cat([LARGE, LARGE[:2]]).to(dtype).view(shape) if shape else LARGE[3].to(dtype)
    found = expected.clone()
    found.view(-1)[0] += 1
    assert not failures(expected, expected.clone())
    (text,) = failures({"found": expected}, {"found": found})
    assert text == "input 0, output 'output.found': relative error 1 (allowed 0.001), cosine 1.000000"


def test_small_and_unsigned_whole_numbers_have_to_be_equal() -> None:
    for dtype in (torch.uint8, torch.int8):
        expected = torch.tensor([0, 100, 120], dtype=dtype)
        assert failures(expected, changed(expected, (0,), 1))
    flags = torch.tensor([True, False])
    assert failures(flags, ~flags)
    assert not failures(flags, flags.clone())


def test_an_engine_has_to_repeat_whole_numbers_too() -> None:
    (error,) = compare_tensors("head", ["labels"], [LARGE], [changed(LARGE, (0,), 1)])
    assert error.relative_error == 1


def test_a_limit_beyond_rounding_allows_whole_numbers_to_differ() -> None:
    """For images in bytes, or boxes that the detector rounds to pixels: their last digit depends on rounding."""
    expected = torch.tensor([[10, 20, 500, 700]])
    for limits in (THRESHOLDS["bf16"], Thresholds.of("fp32", relative_error=0.01)):
        assert not compare_results(expected, changed(expected, (0, 0), 1), limits, "").failures
    assert compare_results(expected, changed(expected, (0, 0), 1), FP32, "").failures


def test_float_boxes_that_a_detector_rounds_are_judged_by_their_size() -> None:
    boxes = torch.tensor([[10.0, 20.0, 500.0, 1700.0]])
    assert not failures(boxes, changed(boxes, (0, 0), 1))
    assert failures(boxes, changed(boxes, (0, 0), 3))


def test_large_floats_are_not_labels() -> None:
    """float32 has no fractions above 2**23, so that rounding there gives another whole number."""
    expected = torch.tensor([3.0e9, 1.0e9])
    assert not failures(expected, expected + 1000)
    assert failures(expected, expected * 1.01)


def raw_yolo(seed: int = 0) -> Tensor:
    """Returns boxes in pixels and scores of eight classes beside them, [1, 12, 300]."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(1, 4, 300, generator=generator) * 640
    return torch.cat([boxes, torch.rand(1, 8, 300, generator=generator)], dim=1)


@pytest.mark.parametrize("axis", ["columns last", "columns first", "no batch"])
def test_scores_beside_coordinates_are_judged_by_themselves(axis: str) -> None:
    """Relative to 640 pixels, a score could be off by 0.6."""
    expected = raw_yolo()
    expected = {"columns first": expected, "columns last": expected.mT, "no batch": expected[0].T}[axis].contiguous()
    score = {"columns first": (0, 9, 7), "columns last": (0, 7, 9), "no batch": (7, 9)}[axis]
    box = {"columns first": (0, 2, 7), "columns last": (0, 7, 2), "no batch": (7, 2)}[axis]
    assert not failures(expected, changed(expected, score, 5e-4))
    assert not failures(expected, changed(expected, box, 0.3))
    assert failures(expected, changed(expected, score, 0.01))
    assert failures(expected, changed(expected, score, 0.3), "bf16")
    assert failures(expected, changed(expected, box, 2))


def test_a_visibility_beside_points_is_judged_by_itself() -> None:
    points = torch.rand(2, 17, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([640.0, 480.0, 1.0])
    assert not failures(points, changed(points, (1, 3, 0), 0.3))
    assert failures(points, changed(points, (1, 3, 2), 0.05))


def test_a_dark_border_is_no_score() -> None:
    image = torch.zeros(3, 96, 128)
    image[:, :, 20:] = torch.rand(3, 96, 108, generator=torch.Generator().manual_seed(0)) * 255
    assert not failures(image, changed(image, (0, 0, 0), 0.01))


ROWS = torch.tensor(
    [
        [0.0, 310.0, 22.0, 1400.0, 300.0, 17.0, 0.9],
        [0.0, 20.0, 30.0, 60.0, 80.0, 3.0, 0.8],
        [0.0, 500.0, 40.0, 640.0, 90.0, 5.0, 0.7999],
        [0.0, 700.0, 50.0, 740.0, 95.0, 6.0, 0.3],
    ]
)
"""Index of the image, box, label, score: what YOLOv7's export returns."""


@pytest.mark.parametrize(("column", "by"), [(5, 1.0), (0, 1.0), (6, 0.02), (1, 3.0)])
def test_each_field_of_rows_with_seven_columns_is_judged(column: int, by: float) -> None:
    assert failures(ROWS, changed(ROWS, (1, column), by))
    assert not failures(ROWS, ROWS + torch.tensor([0.0, 0.1, 0.1, 0.1, 0.1, 0.0, 1e-4]))


def near_ties_reversed(rows: Tensor) -> Tensor:
    found = rows[[0, 2, 1, 3]]
    found[:, 6] += torch.tensor([0.0, 2e-4, -1e-4, 0.0])
    return found


def test_rows_with_other_columns_may_change_places_within_near_ties() -> None:
    found = near_ties_reversed(ROWS)
    assert not failures(ROWS, found)
    assert not failures(ROWS[None], found[None])
    assert failures(ROWS, ROWS[[0, 2, 1, 3]])  # scores in a recorded order
    assert failures(ROWS, changed(found, (1, 5), 1.0))
    assert failures(ROWS, ROWS[[1, 0, 2, 3]])


def test_masks_beside_rows_move_with_them() -> None:
    masks = torch.rand(4, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    found = near_ties_reversed(ROWS)
    six = [1, 2, 3, 4, 6, 5]
    for columns in (list(range(7)), six):
        assert not failures((ROWS[:, columns], masks), (found[:, columns], masks[[0, 2, 1, 3]]))
        assert failures((ROWS[:, columns], masks), (found[:, columns], masks))
    # The same rows twice: which one do the masks belong to?
    assert failures((ROWS, ROWS, masks), (found, found, masks[[0, 2, 1, 3]]))


def detections() -> dict[str, Tensor]:
    return {"boxes": ROWS[:, 1:5].clone(), "scores": ROWS[:, 6].clone(), "labels": ROWS[:, 5].long()}


def test_scores_with_a_column_of_their_own_decide_the_order() -> None:
    boxes, scores, labels = ROWS[:, 1:5], ROWS[:, 6:], ROWS[:, 5:6]
    order = [0, 2, 1, 3]
    noisy = scores[order] + torch.tensor([[0.0], [2e-4], [-1e-4], [0.0]])
    assert not failures((boxes, scores, labels), (boxes[order], noisy, labels[order]))
    assert failures((boxes, scores, labels), (boxes[order], noisy, labels))
    assert failures((boxes, scores, labels), (boxes[order], scores[order], labels[order]))


def test_a_float_label_has_to_be_that_of_its_row() -> None:
    """Relative to a label of 1203, the labels 17 and 18 would be equal."""
    boxes, scores, labels = ROWS[:, 1:5], ROWS[:, 6], torch.tensor([1203.0, 17.0, 18.0, 5.0])
    order = [0, 2, 1, 3]
    noisy = scores[order] + torch.tensor([0.0, 2e-4, -1e-4, 0.0])
    assert not failures((boxes, scores, labels), (boxes[order], noisy, labels[order]))
    assert failures((boxes, scores, labels), (boxes[order], noisy, labels))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("layout", ["dict", "tuple", "rows", "center"])
def test_boxes_and_labels_are_those_of_the_row_in_lower_precisions(layout: str, precision: str) -> None:
    """An error of 0.3 relative to the largest coordinate may be that of another box."""

    def written(boxes: Tensor, labels: Tensor) -> Any:
        if layout == "center":
            boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
        if layout == "rows":
            return torch.cat([boxes, scores[:, None], labels[:, None].float()], dim=1)
        return (
            {"boxes": boxes, "scores": scores, "labels": labels} if layout == "dict" else (boxes, scores, labels + 200)
        )

    boxes, scores, labels = detections().values()
    assert not failures(written(boxes, labels), written(boxes + 0.5, labels), precision)
    moved = changed(boxes, (1, slice(None)), torch.tensor([60.0, 0.0, 60.0, 0.0]))  # beside the box
    assert (boxes - moved).abs().max() < THRESHOLDS[precision].relative_error * boxes.max()
    (text,) = failures(written(boxes, labels), written(moved, labels), precision)
    assert f"1 of 4 rows differ (same label, IoU >= {THRESHOLDS[precision].iou:g})" in text
    assert failures(written(boxes, labels), written(boxes, changed(labels, (1,), 1)), precision)


def listed(**further: Any) -> list[dict[str, Any]]:
    return [{**detections(), **further}]


@pytest.mark.parametrize(
    ("expected", "found", "is_equal"),
    [
        (torch.ones(4, 8), torch.ones(4, 8) * 1.0005, True),
        (torch.ones(4, 8), changed(torch.ones(4, 8), (2, 3), 0.1), False),
        (LARGE, LARGE, True),
        (LARGE, changed(LARGE, (0,), 1), False),
        (LARGE[:3], LARGE[:3], True),  # of the image
        (LARGE[:3], LARGE[1:], False),
        (3, 3, True),
        (3, 4, False),
        ("a", "b", False),
        ([torch.ones(2), 4], [torch.ones(2), 5], False),
        ([torch.ones(2), 4], [torch.ones(2), 4], True),
    ],
)
def test_further_fields_of_detections_are_compared(expected: Any, found: Any, is_equal: bool) -> None:
    texts = failures(listed(track=expected), listed(track=found))
    assert (texts == []) == is_equal
    assert all(text.startswith("input 0, output 'output.0.track") for text in texts)


def test_rows_of_further_fields_are_those_of_the_matching_boxes() -> None:
    order = torch.tensor([2, 0, 3, 1])
    found = {name: tensor[order] for name, tensor in listed(track=LARGE)[0].items()}
    assert not failures(listed(track=LARGE), [found])
    assert failures(listed(track=LARGE), [{**found, "track": LARGE}])


def test_as_many_rows_of_a_further_field_may_differ_as_boxes_may_be_lost() -> None:
    count = 20
    many = {
        "boxes": torch.arange(count)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0]),
        "scores": torch.linspace(0.9, 0.5, count),
        "labels": torch.zeros(count, dtype=torch.int64),
        "feature": torch.ones(count, 3),
    }
    two, three = many["feature"].clone(), many["feature"].clone()
    two[:2] = three[:3] = 5
    assert not failures([many], [{**many, "feature": two}], "bf16")
    assert failures([many], [{**many, "feature": three}], "bf16")
    assert failures([many], [{**many, "feature": two}])


def test_noise_excuses_boxes_but_no_further_field() -> None:
    """A detector that does not repeat its boxes still has to return the same count."""
    limits = THRESHOLDS["fp32"]

    def rerun(seed: int) -> Any:
        return listed(count=3) if seed % 2 else [{**detections(), "scores": ROWS[:, 6] + 0.1, "count": 3}]

    found = [{**detections(), "scores": ROWS[:, 6] + 0.05, "count": 3}]
    assert not compare_results(listed(count=3), found, limits, "", rerun).failures
    (failure,) = compare_results(listed(count=3), [{**found[0], "count": 4}], limits, "", rerun).failures
    assert "output.0.count" in failure.text


def test_the_same_rule_is_in_both_languages() -> None:
    assert _native.output_error("", LARGE, changed(LARGE, (0,), 1), FP32.relative_error).relative_error == 1
    assert _native.output_error("", LARGE, changed(LARGE, (0,), 1), 0.1).relative_error == pytest.approx(1 / 12000)
