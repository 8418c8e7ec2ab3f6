"""Tests of equality of boxes and of tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt import THRESHOLDS, OptionError, Thresholds, Verification, VerificationError, verify
from hybrid_rt.verification.verify import (
    BoxMatch,
    Findings,
    box_iou,
    compare_modules,
    compare_results,
    compare_tensors,
    detections_of,
    match_boxes,
    require,
    tensor_failures,
    thresholds_of,
)

Detections = dict[str, Tensor]

THREE = ([0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 20.0, 10.0, 30.0])
NAN = math.nan


def detections(*boxes: list[float], labels: list[int] | None = None, scores: list[float] | None = None) -> Detections:
    count = len(boxes)
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels if labels is not None else [1] * count, dtype=torch.int64),
        "scores": torch.tensor(scores if scores is not None else [0.9] * count),
    }


def test_equal_detections_match_wholly() -> None:
    assert match_boxes(detections(*THREE), detections(*THREE)) == BoxMatch(3, 3, 3, 1.0, 0.0)


def test_two_empty_results_match_but_say_that_there_was_nothing() -> None:
    match = match_boxes(detections(), detections())
    assert (match.expected, match.found, match.matched, match.recall) == (0, 0, 0, 1.0)


@pytest.mark.parametrize(("expected", "found"), [(THREE, ()), ((), THREE)])
def test_boxes_against_none_have_no_partner(expected: tuple[list[float]], found: tuple[list[float]]) -> None:
    match = match_boxes(detections(*expected), detections(*found))
    assert match.matched == 0
    assert match.recall == 0.0


def test_each_box_has_at_most_one_partner() -> None:
    twice = detections(THREE[0], THREE[0])
    assert match_boxes(twice, detections(THREE[0])).matched == 1
    assert match_boxes(detections(THREE[0]), twice).matched == 1
    assert match_boxes(twice, twice).matched == 2


def test_order_does_not_matter() -> None:
    assert match_boxes(detections(*THREE), detections(*reversed(THREE))).recall == 1.0


def test_another_label_is_another_box() -> None:
    assert match_boxes(detections(*THREE), detections(*THREE, labels=[1, 2, 1])).matched == 2


def test_the_best_overlap_is_taken() -> None:
    near, exact = [0.0, 0.0, 10.0, 9.5], THREE[0]
    match = match_boxes(detections(exact), detections(near, exact), iou=0.5)
    assert match.min_iou == 1.0


@pytest.mark.parametrize(("threshold", "matched"), [(0.949, 1), (0.951, 0)])
def test_overlap_at_the_threshold(threshold: float, matched: int) -> None:
    moved = detections([0.0, 0.0, 10.0, 9.5])  # IoU 0.95
    assert match_boxes(detections(THREE[0]), moved, iou=threshold).matched == matched


@pytest.mark.parametrize(("threshold", "matched"), [(0.11, 1), (0.09, 0)])
def test_score_at_the_threshold(threshold: float, matched: int) -> None:
    match = match_boxes(detections(THREE[0]), detections(THREE[0], scores=[0.8]), score=threshold)
    assert match.matched == matched


def test_the_largest_score_difference_is_kept() -> None:
    match = match_boxes(detections(*THREE), detections(*THREE, scores=[0.9, 0.6, 0.8]))
    assert match.max_score_difference == pytest.approx(0.3)


@pytest.mark.parametrize("broken", [detections([NAN, 0.0, 10.0, 10.0]), detections(THREE[0], scores=[NAN])])
def test_nan_matches_nan_alone(broken: Detections) -> None:
    assert match_boxes(broken, detections(THREE[0])).matched == 0
    assert match_boxes(detections(THREE[0]), broken).matched == 0
    assert match_boxes(broken, broken).matched == 1


def test_iou_of_known_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [0, 0, 5, 10]]).double()
    row = box_iou(boxes[:1], boxes)[0].tolist()
    assert row == pytest.approx([1.0, 25 / 175, 0.0, 0.5])


def test_iou_of_empty_and_inverted_boxes() -> None:
    empty, other = torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[9.0, 9, 9, 9]])
    inverted = torch.tensor([[10.0, 10, 0, 0]])
    assert float(box_iou(empty, empty)) == 1.0
    assert float(box_iou(empty, other)) == 0.0
    assert float(box_iou(inverted, torch.tensor([[0.0, 0, 10, 10]]))) == 0.0
    assert box_iou(torch.zeros(0, 4), other).shape == (0, 1)


def test_equal_tensors_have_no_error() -> None:
    (error,) = compare_tensors("s", ["o"], [torch.tensor([1.0, -2.0])], [torch.tensor([1.0, -2.0])])
    assert (error.engine, error.output, error.relative_error) == ("s", "o", 0.0)
    assert error.cosine == pytest.approx(1.0)


def test_the_error_is_relative_to_the_largest_value() -> None:
    (error,) = compare_tensors("s", ["o"], [torch.tensor([100.5, 0.0])], [torch.tensor([100.5, 1.005])])
    assert error.relative_error == pytest.approx(0.01)


def test_error_of_zeros_is_absolute() -> None:
    (error,) = compare_tensors("s", ["o"], [torch.zeros(3)], [torch.tensor([0.0, 0.25, 0.0])])
    assert error.relative_error == 0.25


def test_opposite_tensors_have_cosine_minus_one() -> None:
    (error,) = compare_tensors("s", ["o"], [torch.tensor([1.0, 2.5])], [torch.tensor([-1.0, -2.5])])
    assert error.cosine == pytest.approx(-1.0)
    assert error.relative_error == 2.0


def test_empty_tensors_are_equal() -> None:
    (error,) = compare_tensors("s", ["o"], [torch.zeros(0, 4)], [torch.zeros(0, 4)])
    assert (error.relative_error, error.cosine) == (0.0, 1.0)


@pytest.mark.parametrize(
    "got",
    [
        torch.ones(3),
        torch.ones(2, 1),
        torch.ones(2, dtype=torch.float64),
        torch.tensor([1.0, NAN]),
        torch.tensor([1.0, math.inf]),
    ],
)
def test_another_shape_or_dtype_or_an_infinity_is_infinitely_wrong(got: Tensor) -> None:
    (error,) = compare_tensors("s", ["o"], [torch.ones(2)], [got])
    assert error.relative_error == math.inf


def test_nan_in_the_detector_is_a_failure_too() -> None:
    errors = compare_tensors("s", ["o"], [torch.tensor([NAN, 1.0])], [torch.ones(2)])
    findings = Findings(failures=tensor_failures(errors, THRESHOLDS["fp32"]))
    assert not Verification("fp32").with_findings(findings).passed


def test_findings_are_added_to_a_copy() -> None:
    before = Verification("fp32", failures=["one"], not_run=["first"])
    (error,) = compare_tensors("s", ["o"], [torch.ones(2)], [torch.zeros(2)])
    failures = tensor_failures([error], THRESHOLDS["fp32"])
    after = before.with_findings(Findings([error], failures=failures), Findings(not_run=["second"]))
    assert before == Verification("fp32", failures=["one"], not_run=["first"])
    assert after == Verification("fp32", [error], [], ["one", failures[0].text], ["first", "second"])
    assert after.worst() == [failures[0].text]
    assert Verification.from_json(after.to_json()) == after


def test_integers_and_booleans_are_compared() -> None:
    expected = [torch.tensor([1, 2]), torch.tensor([True, False])]
    got = [torch.tensor([1, 3]), torch.tensor([True, False])]
    assert [error.relative_error for error in compare_tensors("s", ["a", "b"], expected, got)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (1_700_000_000_123_456_789, 1_700_000_000_123_456_788),  # equal as float64
        (2**24 + 1, 2**24),  # equal as float32
        (-(2**40), -(2**40) + 1),
        (2**24 + 1, 5),
        (-(2**63), 2**63 - 1),
    ],
)
def test_whole_numbers_that_no_float_rounds_to_have_to_be_equal(expected: int, got: int) -> None:
    def error(one: int, other: int) -> float:
        return compare_tensors("s", ["o"], [torch.tensor([one, 1])], [torch.tensor([other, 1])])[0].relative_error

    assert error(expected, got) == error(got, expected) == math.inf
    assert error(expected, expected) == 0
    assert error(10_000, 10_001) == 1


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, NAN, torch.finfo(torch.float32).max], ids=["inf", "-inf", "NaN", "largest"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equal_infinities_are_equal(value: float, dtype: torch.dtype) -> None:
    def errors(one: list[float], other: list[float]) -> list[float]:
        pair = [torch.tensor(values, dtype=dtype) for values in (one, other)]
        return [error.relative_error for error in compare_tensors("s", ["o"], [pair[0]], [pair[1]])]

    assert errors([value, 1.0], [value, 1.0]) == [0.0]
    assert errors([value, 1.0], [1.0, value])[0] > 0.5
    assert errors([value, 0.0], [-value if value == value else 1.0, 0.0])[0] > 0.5
    if not math.isfinite(value):
        assert errors([value, 2.5], [value, 1.25]) == [0.5]  # which the infinity does not hide


def test_complex_numbers_are_compared_in_both_parts() -> None:
    one, other = torch.tensor([3 + 4j, 1j]), torch.tensor([3 + 4j, 1.5j])
    (error,) = compare_tensors("s", ["o"], [one], [other])
    assert error.relative_error == 0.125
    (error,) = compare_tensors("s", ["o"], [one], [one.conj().resolve_conj().conj()])
    assert error.relative_error == 0


def test_sparse_tensors_are_compared_by_their_values() -> None:
    one = torch.tensor([[0.0, 4.5], [1.25, 0.0]])
    (error,) = compare_tensors("s", ["o"], [one.to_sparse()], [(one * 2).to_sparse()])
    assert error.relative_error == 1.0
    (error,) = compare_tensors("s", ["o"], [one.to_sparse()], [one])
    assert error.relative_error == math.inf


def test_detections_are_distinguished_from_other_results() -> None:
    assert detections_of([detections(*THREE)]) is not None
    assert detections_of((detections(),)) is not None
    assert detections_of(torch.zeros(3)) is None
    assert detections_of([{"boxes": torch.zeros(0, 4)}]) is None
    assert detections_of([torch.zeros(3)]) is None
    assert detections_of([{**detections(*THREE), "labels": torch.ones(2)}]) is None
    assert detections_of([{**detections(*THREE), "boxes": torch.zeros(3, 5)}]) is None


def test_result_for_fewer_images_is_a_failure() -> None:
    verification = Verification("fp32").with_findings(
        compare_results([detections(), detections()], [detections()], THRESHOLDS["fp32"], "input 0")
    )
    assert verification.failures == ["input 0: detections of 2 images expected, of 1 found"]


def test_missing_box_is_a_failure_that_says_which() -> None:
    verification = Verification("fp32").with_findings(
        compare_results([detections(*THREE)], [detections(*THREE[:2])], THRESHOLDS["fp32"], "input 4")
    )
    assert verification.failures == [
        "input 4, image 0: 2 of 3 boxes matched among 2 (same label, IoU >= 0.99, score within 0.001); "
        "the detector's box of label 1, score 0.900 at (0.0, 20.0, 10.0, 30.0) has no match"
    ]


def test_other_results_are_compared_tensor_by_tensor() -> None:
    one = torch.ones(2)
    verification = Verification("fp32").with_findings(
        compare_results((one, [one]), (one, [one * 2]), THRESHOLDS["fp32"], "input 0")
    )
    assert [error.output for error in verification.tensors] == ["output.0", "output.1.0"]
    assert len(verification.failures) == 1
    assert "output 'output.1.0': relative error 1 (allowed 0.001)" in verification.failures[0]


def test_another_number_of_tensors_is_a_failure() -> None:
    verification = Verification("fp32").with_findings(
        compare_results(torch.ones(2), (torch.ones(2), torch.ones(2)), THRESHOLDS["fp32"], "input 0")
    )
    assert verification.failures == ["input 0: 1 tensors expected, 2 found"]


def test_a_field_that_the_hybrid_lacks_is_a_failure() -> None:
    masks = {"masks": torch.zeros(3, 1, 8, 8)}
    verification = Verification("fp32").with_findings(
        compare_results([{**detections(*THREE), **masks}], [detections(*THREE)], THRESHOLDS["fp32"], "input 0")
    )
    assert verification.failures == [
        "input 0, image 0: the fields boxes, labels, masks, scores expected, boxes, labels, scores found"
    ]


def test_tensors_of_a_dict_are_compared_by_name() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)
    verification = Verification("fp32").with_findings(
        compare_results({"a": one, "b": two}, {"b": two, "a": one}, THRESHOLDS["fp32"], "input 0")
    )
    assert verification.passed
    verification = verification.with_findings(
        compare_results({"a": one, "b": two}, {"a": one, "c": two}, THRESHOLDS["fp32"], "input 1")
    )
    assert verification.failures == ["input 1: output 'output.b' expected, none found"]


def test_the_error_begins_with_the_worst_output_and_image() -> None:
    verification = Verification("fp32")
    limits = THRESHOLDS["fp32"]
    for backend, by in [("a", 2.0), ("b", 5.0), ("c", 3.0)]:
        errors = compare_tensors("body", ["x"], [torch.ones(2)], [torch.ones(2) * by], backend)
        verification = verification.with_findings(Findings(failures=tensor_failures(errors, limits)))
    for i, count in enumerate([2, 0, 1]):
        verification = verification.with_findings(
            compare_results([detections(*THREE)], [detections(*THREE[:count])], limits, f"input {i}")
        )
    with pytest.raises(VerificationError) as caught:
        require(verification)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert lines[0].startswith("worst: engine 'body' on b, output 'x': relative error 4 (allowed 0.001)")
    assert lines[1].startswith("worst: input 1, image 0: 0 of 3 boxes matched among 0")
    assert [line.split(":")[0] for line in lines[2:]] == [
        "engine 'body' on a, output 'x'",
        "engine 'body' on c, output 'x'",
        "input 0, image 0",
        "input 2, image 0",
    ]


def test_an_infinite_output_is_worse_than_any_other() -> None:
    verification = Verification("fp32")
    for by in (1e30, math.nan, 10.0):
        errors = compare_tensors("body", [str(by)], [torch.ones(1)], [torch.ones(1) * by])
        verification = verification.with_findings(Findings(failures=tensor_failures(errors, THRESHOLDS["fp32"])))
    assert verification.worst()[0].startswith("engine 'body', output 'nan': relative error inf")


def test_many_failures_are_not_all_shown() -> None:
    with pytest.raises(VerificationError) as caught:
        require(Verification("fp32", failures=[f"failure {i}." for i in range(100)]))
    assert "failure 19." in str(caught.value)
    assert "failure 20." not in str(caught.value)
    assert "... and 80 more" in str(caught.value)


class Doubles(nn.Module):
    """Modifies its input in place."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mul_(2)


def test_inputs_that_are_changed_in_place_are_the_same_for_both() -> None:
    image = torch.ones(2)
    verification = compare_modules(Doubles(), Doubles(), [(image,)], precision="fp32", thresholds=THRESHOLDS["fp32"])
    assert verification.passed
    assert torch.equal(image, torch.ones(2))


class Finds(nn.Module):
    def __init__(self, *boxes: list[float]) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, images: list[Tensor]) -> list[Detections]:
        return [detections(*self.boxes) for _ in images]


def compared(first: nn.Module, second: nn.Module, **options: bool) -> Verification:
    inputs = [([torch.zeros(3, 8, 8)],)]
    return compare_modules(first, second, inputs, precision="fp32", thresholds=THRESHOLDS["fp32"], **options)


def test_no_detection_anywhere_is_a_failure() -> None:
    verification = compared(Finds(), Finds())
    assert len(verification.failures) == 1
    assert "the detector found no box in any image" in verification.failures[0]
    assert compared(Finds(), Finds(), require_detections=False).passed
    assert compared(Finds(*THREE), Finds(*THREE)).passed


def test_require_raises_every_failure() -> None:
    require(Verification("fp32"))
    with pytest.raises(VerificationError) as caught:
        require(Verification("bf16", failures=["one thing", "another"]))
    assert str(caught.value) == (
        "hybrid_rt[verify]: the hybrid in bf16: expected the detector's results, got \n  one thing\n  another\n. "
        "Nothing was saved. Use precision='fp32', exclude the segment, or loosen thresholds= if the difference is "
        "acceptable. "
        "[results-differ]"
    )


def test_thresholds_of_a_precision_without_any() -> None:
    assert thresholds_of("bf16") == THRESHOLDS["bf16"]
    with pytest.raises(OptionError) as caught:
        thresholds_of("int4")
    assert str(caught.value) == (
        "hybrid_rt[verify]: thresholds: expected a precision with default thresholds (fp32, bf16, fp16, int8), got "
        "'int4'. "
        "Pass thresholds=Thresholds(...)."
    )


def test_results_as_json_hold_every_number() -> None:
    verification = compared(Finds(*THREE), Finds(*THREE[:1]))
    record = verification.to_json()
    assert record["precision"] == "fp32"
    (image,) = record["pictures"]
    told = {"expected": 3, "found": 1, "matched": 1, "min_iou": 1.0, "max_score_difference": 0.0, "found_at_cut": 0}
    assert {name: image[name] for name in told} == told
    assert image["where"] == "input 0, image 0"
    assert json.loads(json.dumps(record)) == record
    assert record["failures"] == verification.failures


def test_demo_bundle_passes(demo_detector: nn.Module, demo_bundle: Path, demo_images: list[Tensor]) -> None:
    verification = verify(demo_detector, demo_bundle, [([demo_images[0]],), (demo_images[1:3],)])
    assert verification.passed, verification.failures
    assert [match.expected for match in verification.pictures] == [match.matched for match in verification.pictures]
    assert len(verification.pictures) == 3


def test_another_detector_than_the_bundles_fails(
    demo_detector: nn.Module, demo_bundle: Path, demo_image: Tensor
) -> None:
    least = demo_detector.roi_heads.score_thresh
    demo_detector.roi_heads.score_thresh = 0.9
    try:
        verification = verify(demo_detector, demo_bundle, [([demo_image],)])
        loose = Thresholds(iou=0.5, score=1.0, recall=0.0, relative_error=1.0)
        assert verify(demo_detector, demo_bundle, [([demo_image],)], thresholds=loose).passed
    finally:
        demo_detector.roi_heads.score_thresh = least
    assert not verification.passed
    assert "boxes matched" in verification.failures[0]


def test_a_box_at_the_threshold_is_not_a_difference() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]])
    labels = torch.ones(3, dtype=torch.int64)

    def detections_with(count: int, scores: list[float]) -> dict[str, torch.Tensor]:
        return {"boxes": boxes[:count], "labels": labels[:count], "scores": torch.tensor(scores[:count])}

    one_more = match_boxes(detections_with(2, [0.9, 0.0501]), detections_with(3, [0.9, 0.0501, 0.0500]), score=1e-3)
    assert (one_more.at_cut, one_more.recall) == (1, 1.0)
    assert match_boxes(detections_with(3, [0.9, 0.0501, 0.0500]), detections_with(2, [0.9, 0.0501])).at_cut == 1


def test_a_box_lost_above_the_threshold_is_a_difference() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    both = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64), "scores": torch.tensor([0.9, 0.8])}
    best = {name: value[:1] for name, value in both.items()}
    match = match_boxes(both, best)
    assert match.at_cut == 0
    assert match.recall < 1.0
    level = {**both, "scores": torch.tensor([0.9999, 0.9998])}
    assert match_boxes(level, {name: value[:1] for name, value in level.items()}).recall < 1.0
    assert match_boxes(both, {name: value[:0] for name, value in both.items()}).recall == 0.0
