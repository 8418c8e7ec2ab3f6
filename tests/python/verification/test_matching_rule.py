"""Tests of the matching rule for boxes on random detections, against a small reference, and of its bindings."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_rt import THRESHOLDS, Thresholds, Verification, _native
from hybrid_rt.verification.boxes import BoxMatch, compare_detections, differences, match_boxes, matching_boxes
from hybrid_rt.verification.verify import compare_results

FP32 = THRESHOLDS["fp32"]
BF16 = THRESHOLDS["bf16"]

Detections = dict[str, Tensor]


def with_thin_boxes(seed: int) -> tuple[Detections, Detections]:
    """Returns boxes with sides below a pixel, zero, negative or usual, and the same moved by up to 0.02 pixels."""
    generator = torch.Generator().manual_seed(seed)
    count = 8
    sides = torch.tensor([0.0, 0.0, 0.3, 1.1, 30.0, -2.0])[torch.randint(6, (count, 2), generator=generator)]
    corners = torch.rand(count, 2, generator=generator) * 60
    expected = {
        "boxes": torch.cat([corners, corners + sides], dim=1).double(),
        "labels": torch.zeros(count),
        "scores": torch.linspace(0.9, 0.6, count),
    }
    size = [0.0, 0.005, 0.01, 0.02][seed % 4]
    moved = expected["boxes"] + (torch.rand(count, 4, generator=generator, dtype=torch.float64) - 0.5) * 2 * size
    if seed % 5 == 0:  # coordinates in 0..1: a thousandth of the image is a pixel there
        expected["boxes"], moved = expected["boxes"] / 1000, moved / 1000
    if seed % 3 == 0:
        expected["boxes"][0, 0] = moved[0, 0] = math.inf
        expected["boxes"][1] = moved[1] = math.nan
        expected["boxes"][2, 1] = math.inf
    return expected, {**expected, "boxes": moved}


def perturbed(seed: int) -> tuple[Detections, Detections]:
    """Returns detections of a crowded image with masks and keypoints, and the same with noise."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    count = int(noise(1) * 12)
    corners = noise(count, 2) * 60
    expected = {
        "boxes": torch.cat([corners, corners + noise(count, 2) * 40], dim=1),
        "labels": (noise(count) * 2).long(),
        "scores": (noise(count) * (0.3 if seed % 3 == 0 else 1)).sort(descending=True).values,
        "masks": (noise(count, 1, 12, 10) - 0.3).clamp(0, 1),
        "keypoints": torch.cat([noise(count, 5, 2) * 60, torch.ones(count, 5, 1)], dim=2),
        "keypoints_scores": noise(count, 5),
    }
    order = torch.randperm(count, generator=generator)[: max(0, count - seed % 3)] if seed % 4 else torch.arange(count)
    size, inner = 10.0 ** -(seed % 6), 10.0 ** -(seed // 6 % 5)
    found = {name: value[order] for name, value in expected.items()}
    found["boxes"] = found["boxes"] + (noise(len(order), 4) - 0.5) * size * 10
    found["scores"] = found["scores"] + (noise(len(order)) - 0.5) * size * 0.1
    found["masks"] = found["masks"] + (noise(len(order), 1, 12, 10) - 0.5) * inner
    found["keypoints"] = found["keypoints"] + (noise(len(order), 5, 3) - 0.5) * inner * torch.tensor([90.0, 90, 0.1])
    if seed % 5 == 0 and len(order):
        found["labels"] = found["labels"].roll(1)
    if seed % 7 == 0 and len(order):
        found["scores"][-1] = float("nan")
    if seed % 11 == 0 and count:
        found = {name: torch.cat([value, expected[name][:2]]) for name, value in found.items()}
    if seed % 13 == 0:
        found.pop("masks")
    return expected, found


# The reference: plain Python over numbers, box by box, written from docs/precision-and-verification.md.

CUT, HALF, MASK_PIXELS, KEYPOINT_PIXELS = 1e-3, 0.5, 2, 2.0


def off(a: float, b: float) -> float:
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b)


def overlap(a: list[float], b: list[float], pixel: float) -> float:
    """Returns the IoU, or for boxes with a side below a pixel the agreement of their edges, if that is larger."""
    if all(off(*pair) == 0 for pair in zip(a, b, strict=True)):
        return 1.0
    if not any(box[2] - box[0] < pixel or box[3] - box[1] < pixel for box in (a, b)):
        return iou(a, b)
    by_edges = 1.0
    for low, high in ((0, 2), (1, 3)):
        span = max(pixel, max(a[high], b[high]) - min(a[low], b[low]))
        by_edges *= max(0.0, 1 - (off(a[low], b[low]) + off(a[high], b[high])) / span)
    return max(iou(a, b), by_edges)


def iou(a: list[float], b: list[float]) -> float:
    if a == b:
        return 1.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    return shared / max(sum(areas) - shared, 1e-12)


def as_numbers(detections: Detections) -> dict[str, list[Any]]:
    return {
        name: (value >= HALF).flatten(1).tolist() if name == "masks" else value.double().tolist()
        for name, value in detections.items()
    }


def pixel_of(detections: dict[str, list[Any]]) -> float:
    """Returns a pixel, or a thousandth of the image if coordinates are in 0..1."""
    values = [abs(value) for box in detections["boxes"] for value in box]
    return 1e-3 if values and all(value <= 2 for value in values) else 1.0


def reference_pairs(a: dict[str, list[Any]], b: dict[str, list[Any]], limits: Thresholds) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    pixel = pixel_of(a)
    for i, box in enumerate(a["boxes"]):
        free = [
            (overlap(box, b["boxes"][j], pixel), -j)
            for j in range(len(b["boxes"]))
            if j not in [taken for _, taken in pairs]
            and a["labels"][i] == b["labels"][j]
            and overlap(box, b["boxes"][j], pixel) >= limits.iou
            and off(a["scores"][i], b["scores"][j]) <= limits.score
        ]
        if free:
            pairs.append((i, -max(free)[1]))
    return pairs


def reference_at_cut(scores: list[float], matched: set[int], others: list[float], limits: Thresholds) -> int:
    lowest = math.nan if any(map(math.isnan, others)) else min(others, default=1.0)
    if not lowest < HALF:
        return 0
    tolerance = min(CUT, limits.score)
    return sum(i not in matched and abs(score - lowest) <= tolerance for i, score in enumerate(scores))


def reference_masks_differ(a: dict[str, Any], b: dict[str, Any], pairs: list[tuple[int, int]], least: float) -> int:
    differ = 0
    for i, j in pairs:
        both = list(zip(a["masks"][i], b["masks"][j], strict=True))
        union = sum(one or other for one, other in both)
        overlap = sum(one and other for one, other in both) / union if union else 1.0
        differ += overlap < least and sum(one != other for one, other in both) > MASK_PIXELS
    return differ


def reference_keypoints_differ(
    a: dict[str, Any], b: dict[str, Any], pairs: list[tuple[int, int]], limits: Thresholds
) -> int:
    differ = 0
    for i, j in pairs:
        x1, y1, x2, y2 = a["boxes"][i]
        allowed = max(KEYPOINT_PIXELS, limits.keypoint_distance * math.sqrt(max(0.0, x2 - x1) * max(0.0, y2 - y1)))
        for (x, y, seen), (other_x, other_y, other_seen) in zip(a["keypoints"][i], b["keypoints"][j], strict=True):
            is_near = math.hypot(x - other_x, y - other_y) <= allowed and abs(seen - other_seen) <= limits.score
            differ += not is_near
    return differ


@pytest.mark.parametrize("limits", [FP32, BF16], ids=["fp32", "bf16"])
def test_random_detections_are_matched_as_by_the_reference(limits: Thresholds) -> None:
    verdicts = set()
    for seed in range(150):
        expected, found = perturbed(seed)
        a, b = as_numbers(expected), as_numbers(found)
        match = compare_detections(expected, found, limits, "here")
        pairs = reference_pairs(a, b, limits)
        assert matching_boxes(expected, found, limits) == pairs, seed
        counts = (len(a["scores"]), len(b["scores"]), len(pairs))
        assert (match.expected, match.found, match.matched) == counts, seed
        assert match.expected_at_cut == reference_at_cut(a["scores"], {i for i, _ in pairs}, b["scores"], limits), seed
        assert match.found_at_cut == reference_at_cut(b["scores"], {j for _, j in pairs}, a["scores"], limits), seed
        overlaps = [overlap(a["boxes"][i], b["boxes"][j], pixel_of(a)) for i, j in pairs]
        assert match.min_iou == pytest.approx(min(overlaps, default=1.0))
        if "masks" in found:
            assert match.masks == len(pairs)
            assert match.masks_differ == reference_masks_differ(a, b, pairs, limits.mask_iou), seed
        else:
            assert (match.masks, match.masks_differ, match.min_mask_iou) == (0, 0, None)
        assert match.keypoints == 5 * len(pairs)
        assert match.keypoints_differ == reference_keypoints_differ(a, b, pairs, limits), seed
        verification = Verification("").with_findings(compare_results([expected], [found], limits, "here"))
        assert verification.pictures == [compare_detections(expected, found, limits, "here, image 0")]
        texts = differences(match, limits)
        assert all(text in " ".join(verification.failures) for text in texts), seed
        text = " ".join(verification.failures)
        verdicts |= {word for word in ("boxes matched", "masks differ", "keypoints are", "fields") if word in text}
        verdicts.add(str(verification.passed))
        verdicts |= {"at cut"} if match.at_cut else set()
    # Each kind of verdict occurred.
    assert verdicts == {"boxes matched", "masks differ", "keypoints are", "fields", "True", "False", "at cut"}


def test_boxes_thinner_than_a_pixel_are_matched_as_by_the_reference() -> None:
    matched = []
    for seed in range(60):
        expected, found = with_thin_boxes(seed)
        pairs = reference_pairs(as_numbers(expected), as_numbers(found), FP32)
        assert matching_boxes(expected, found, FP32) == pairs, seed
        matched.append(len(pairs))
        if seed % 4 == 0:
            assert match_boxes(expected, found).max_box_drift == 0
            assert len(pairs) == (8 if seed % 3 else 7), seed  # all but the box that is infinite on one side alone
    assert len(set(matched)) > 4  # some were too far off, some not


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_scores_boxes_and_keypoints_that_are_infinite_on_both_sides_are_equal(value: float) -> None:
    one = {
        "boxes": torch.tensor([[0.0, 0.0, value, 10.0], [20.0, 0.0, 30.0, 10.0]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, value]),
        "keypoints": torch.tensor([[[1.0, value, 1.0]], [[1.0, 2.0, value]]]),
    }
    match = compare_detections(one, {name: tensor.clone() for name, tensor in one.items()}, FP32, "here")
    assert (match.matched, match.max_score_difference, match.max_box_drift, match.keypoints_differ) == (2, 0.0, 0.0, 0)
    for name in ("boxes", "scores", "keypoints"):
        other = {**one, name: one[name].nan_to_num(0.5, 0.5, 0.5)}
        for sides in ((one, other), (other, one)):
            assert differences(compare_detections(*sides, FP32, "here"), FP32), name


def test_values_of_a_match_that_was_worked_out_by_hand() -> None:
    expected = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.9, 0.8, 0.0503], dtype=torch.float64),
    }
    found = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0]]),
        "labels": torch.tensor([1, 5]),
        "scores": torch.tensor([0.85, 0.05], dtype=torch.float64),
    }
    assert compare_detections(expected, found, BF16, "here") == BoxMatch(
        expected=3,
        found=2,
        matched=1,  # the first; the second has another label
        min_iou=pytest.approx(0.9),
        max_score_difference=pytest.approx(0.05),
        expected_at_cut=1,  # 0.0503 is equal to 0.05 within the tolerance
        found_at_cut=1,
        max_box_drift=1.0,
        where="here",
        lost="the detector's box of label 2, score 0.800 at (20.0, 0.0, 30.0, 10.0) has no match",
    )


ONE = torch.tensor([1.0, -2.0, 3.5])


@pytest.mark.parametrize(
    ("found", "errors", "failures"),
    [
        ((ONE, {"a": ONE}), [0.0, 0.0], []),
        ((ONE, {"a": ONE * 1.0005}), [0.0, 0.0005], []),
        (
            (ONE * 1.25, {"a": -ONE}),
            [0.25, 2.0],
            [
                "here, output 'output.0': relative error 0.25 (allowed 0.001), cosine 1.000000",
                "here, output 'output.1.a': relative error 2 (allowed 0.001), cosine -1.000000",
            ],
        ),
        (
            (ONE[:2], {"a": ONE.double()}),
            [math.inf, math.inf],
            [
                "here, output 'output.0': relative error inf (allowed 0.001), cosine 0.000000",
                "here, output 'output.1.a': relative error inf (allowed 0.001), cosine 0.000000",
            ],
        ),
        ((ONE, {"b": ONE}), [], ["here: output 'output.1.a' expected, none found"]),
        ((ONE,), [], ["here: 2 tensors expected, 1 found"]),
        (
            (torch.tensor([1.0, math.nan, 3.0]), {"a": torch.zeros(3)}),
            [math.inf, 1.0],
            [
                "here, output 'output.0': relative error inf (allowed 0.001), cosine 0.000000",
                "here, output 'output.1.a': relative error 1 (allowed 0.001), cosine 1.000000",
            ],
        ),
    ],
)
def test_tensors_are_judged(found: Any, errors: list[float], failures: list[str]) -> None:
    verification = Verification("").with_findings(compare_results((ONE, {"a": ONE}), found, FP32, "here"))
    assert [error.relative_error for error in verification.tensors] == pytest.approx(errors, rel=1e-4)
    assert verification.failures == failures


# The records of both languages


def properties(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if isinstance(value, property)}


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([math.inf, 2.0], [math.inf, 2.001], 0.0005),  # of the finite values only
        ([-math.inf, math.nan], [-math.inf, math.nan], 0.0),
        ([math.inf, 1.0], [-math.inf, 1.0], math.inf),
        ([math.nan, 1.0], [math.inf, 1.0], math.inf),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([3e38, 1.0], [math.inf, 1.0], math.inf),
    ],
)
def test_values_that_are_not_finite(expected: list[float], found: list[float], error: float) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16 if error == math.inf else torch.float32):
        tensors = (torch.tensor(side, dtype=dtype) for side in (expected, found))
        known = _native.output_error("", *tensors, FP32.relative_error)
        assert known.relative_error == pytest.approx(error, rel=1e-3)
        assert math.isfinite(known.cosine)


def test_both_languages_have_the_same_thresholds() -> None:
    assert properties(_native.Thresholds) == {field.name for field in fields(Thresholds)}
    left_out = _native.Thresholds()
    assert {name: getattr(left_out, name) for name in asdict(FP32)} == asdict(FP32)
    assert {name: getattr(BF16.to_native(), name) for name in asdict(BF16)} == asdict(BF16)


def test_both_languages_match_alike() -> None:
    assert properties(_native.BoxMatch) == {field.name for field in fields(BoxMatch)}
    expected, found = perturbed(4)
    match = match_boxes(expected, found, iou=0.5)
    assert BoxMatch.from_native(match.to_native()) == match
