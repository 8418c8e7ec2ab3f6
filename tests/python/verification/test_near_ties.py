"""Tests of detections in any container: rows may change places within near-ties, and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hybrid_rt.verification.verify import THRESHOLDS, compare_results

FP32 = THRESHOLDS["fp32"]


@dataclass
class Found:
    """Detections with names of a user's own."""

    bboxes: Tensor
    confidence: Tensor
    classes: Tensor


class Named(NamedTuple):
    """Detections with a mask per box."""

    boxes: Tensor
    scores: Tensor
    masks: Tensor


def detections() -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes [6, 4], scores [6] and labels [6]; the scores of rows 1 and 2, and of rows 4 and 5, nearly tie."""
    corners = torch.tensor([7.0, 90.0, 2.0, 40.0, 66.0, 21.0])[:, None]
    boxes = torch.cat([corners, corners, corners + 20, corners + 30], dim=1)
    return boxes, torch.tensor([0.9, 0.8, 0.7999, 0.6, 0.5, 0.4999]), torch.tensor([0, 1, 2, 0, 1, 0])


def swapped(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what a hybrid finds whose rounding errors reverse the near-ties."""
    order = torch.tensor([0, 2, 1, 3, 5, 4])
    noise = torch.tensor([0, 2e-4, -1e-4, 0, 1e-4, -1e-4])
    return boxes[order] + 0.01, scores[order] + noise, labels[order]


def masks_of(boxes: Tensor) -> Tensor:
    """Returns a mask [n, 8, 8] per box, which depends on its place."""
    return (boxes[:, :1, None] // 12 == torch.arange(8)).expand(-1, 8, 8).float()


def columns(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([boxes, scores[:, None], labels[:, None].float()], dim=1)


def columns_with_objectness(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Returns rows [n, 7] as YOLOX's: only the product of objectness and class score descends."""
    objectness = torch.where(labels == 1, 0.9, 0.5)
    return torch.cat([boxes, objectness[:, None], (scores / 2 / objectness)[:, None], labels[:, None].float()], dim=1)


WRITTEN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "dict": lambda boxes, scores, labels: {"boxes": boxes, "scores": scores, "labels": labels},
    "dict with several numbers per box": lambda boxes, scores, labels: {
        "boxes": boxes,
        "weights": torch.full_like(scores, 3.0),
        "scores": scores,
        "labels": labels,
        "masks": masks_of(boxes),
    },
    "dict beside other values": lambda boxes, scores, labels: {
        "size": (480, 640),
        "found": {"b": boxes, "s": scores, "l": labels},
    },
    "dataclass": Found,
    "tuple": lambda boxes, scores, labels: (boxes, scores, labels),
    "NamedTuple": lambda boxes, scores, labels: Named(boxes, scores, masks_of(boxes)),
    "list of tuples": lambda boxes, scores, labels: [(boxes, labels, scores), (boxes * 2, labels, scores / 2)],
    "parallel lists": lambda boxes, scores, labels: {
        "boxes": [boxes, boxes * 2],
        "scores": [scores, scores / 2],
        "labels": [labels, labels],
    },
    "batch": lambda boxes, scores, labels: (
        torch.stack([boxes, boxes * 2]),
        torch.stack([scores, scores / 2]),
        torch.stack([labels, labels]),
    ),
    "columns": columns,
    "columns with objectness": columns_with_objectness,
    "batch of columns": lambda boxes, scores, labels: {
        "found": torch.stack([columns(boxes, scores, labels), columns(boxes * 2, scores / 2, labels)])
    },
}


def failures(expected: Any, found: Any) -> list[str]:
    return [failure.text for failure in compare_results(expected, found, FP32, "input 0").failures]


@pytest.fixture(params=WRITTEN.values(), ids=WRITTEN)
def written(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor, Tensor], Any]:
    return request.param


Written = Callable[[Tensor, Tensor, Tensor], Any]


def test_near_ties_may_change_places(written: Written) -> None:
    expected = written(*detections())
    assert not failures(expected, written(*swapped(*detections())))
    assert not failures(written(*swapped(*detections())), expected)
    # An error is that of the rows in the detector's order.
    found = compare_results(expected, written(*swapped(*detections())), FP32, "input 0")
    assert all(error.relative_error <= FP32.relative_error for error in found.tensors)
    assert any(error.relative_error > 0 for error in found.tensors)


def test_other_rows_may_not(written: Written) -> None:
    """A recorded head that keeps the example's order has the right rows at the wrong places."""
    boxes, scores, labels = detections()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    assert failures(written(boxes, scores, labels), written(boxes[order], scores[order], labels[order]))
    # Scores in the right places do not help if the boxes are those of others.
    assert failures(written(boxes, scores, labels), written(boxes[order], scores, labels[order]))


def test_scores_that_do_not_descend_excuse_nothing(written: Written) -> None:
    """A hybrid sorts its own scores. A recorded order leaves near-ties in the example's order."""
    boxes, scores, labels = detections()
    order = torch.tensor([0, 2, 1, 3, 4, 5])
    sides = written(boxes, scores, labels), written(boxes[order], scores[order], labels[order])
    assert failures(*sides)
    assert failures(*reversed(sides))


def test_another_number_of_rows_is_refused(written: Written) -> None:
    assert failures(written(*detections()), written(*(tensor[:5] for tensor in swapped(*detections()))))


def test_another_box_or_label_in_a_near_tie_is_refused(written: Written) -> None:
    boxes, scores, labels = swapped(*detections())
    expected = written(*detections())
    if not isinstance(expected, Named):  # which has no labels
        assert failures(expected, written(boxes, scores, labels.roll(1)))
        assert failures(expected, written(boxes, scores, detections()[2]))
        assert failures(expected, written(detections()[0], scores, labels))
    other = boxes.clone()
    other[1] = boxes[2]  # twice the same row
    assert failures(expected, written(other, scores, labels))
    other[1] = boxes[1] + 20
    assert failures(expected, written(other, scores, labels))


@pytest.mark.parametrize("place", [0, 1, 5])
def test_scores_that_are_not_numbers_excuse_nothing(written: Written, place: int) -> None:
    sides = [list(detections()), list(swapped(*detections()))]
    for side in sides:
        side[1] = side[1].clone()
        side[1][place] = float("nan")
    assert failures(written(*sides[0]), written(*sides[1]))
    assert failures(written(*detections()), written(*sides[1]))


def test_boxes_that_are_not_numbers_are_equal_on_both_sides(written: Written) -> None:
    boxes, scores, labels = detections()
    boxes[1, 0], boxes[2, 1] = float("nan"), float("inf")
    expected = written(boxes, scores, labels)
    assert not failures(expected, written(*swapped(boxes, scores, labels)))
    boxes = boxes.clone()
    boxes[1, 0] = 1.0
    assert failures(expected, written(*swapped(boxes, scores, labels)))


def test_no_rows_and_a_single_one_are_compared(written: Written) -> None:
    none, one = [written(*(tensor[:count] for tensor in detections())) for count in (0, 1)]
    assert not failures(none, none)
    assert not failures(one, one)
    assert failures(none, one)
    assert failures(one, none)


def test_equal_scores_decide_no_order() -> None:
    boxes, scores, labels = detections()
    scores = torch.full_like(scores, 0.5)
    assert failures((boxes, scores, labels), swapped(boxes, scores, labels))
    assert failures((boxes, scores, labels), (boxes.flip(0), scores, labels.flip(0)))


def test_tensors_that_are_no_detections_keep_their_rows() -> None:
    boxes, scores, labels = detections()
    other = swapped(boxes, scores, labels)
    assert failures((boxes, labels), (other[0], other[2]))  # no scores
    assert failures((scores, labels), (other[1], other[2]))  # no boxes
    assert failures((boxes, scores, scores / 2), (other[0], other[1], other[1] / 2))  # which are the scores?
    assert failures((boxes[:, :3], scores, labels), (other[0][:, :3], *other[1:]))
    # A tensor elsewhere has as many rows, so it could belong to the boxes.
    assert failures({"found": (boxes, scores), "more": labels}, {"found": other[:2], "more": other[2]})
    rows = columns(boxes, scores, labels)
    assert failures({"found": rows, "more": [labels]}, {"found": columns(*other), "more": [other[2]]})
    # Columns 4 and 5 are not a score and a label.
    assert failures(columns(boxes, scores * 2, labels), columns(other[0], other[1] * 2, other[2]))
    assert failures(columns(boxes, scores, labels) + 0.25, columns(*other) + 0.25)


def test_the_text_names_the_tensor() -> None:
    boxes, scores, labels = swapped(*detections())
    (text,) = failures(Found(*detections()), Found(boxes + 0.5, scores, labels))[:1]
    assert text.startswith("input 0, output 'output.bboxes': relative error ")


def oracle(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> bool:
    """Tries all orders: true if scores descend, agree by place, and in some order all rows agree."""

    def limit(tensor: Tensor) -> float:
        return float(tensor.abs().max()) * FP32.relative_error if tensor.is_floating_point() else 0.0

    def equal(order: tuple[int, ...]) -> bool:
        pairs = zip(expected, found, strict=True)
        return all(bool(((a - b[list(order)]).double().abs() <= limit(a)).all()) for a, b in pairs)

    orders = itertools.permutations(range(len(expected[0])))
    if equal(next(orders)):
        return True
    for side in (expected, found):
        scores = side[1].tolist()
        if scores != sorted(scores, reverse=True) or len(set(scores)) == 1:
            return False
    if not bool(((expected[1] - found[1]).abs() <= limit(expected[1])).all()):
        return False
    return any(map(equal, orders))


def test_random_rows_are_judged_as_by_all_orders() -> None:
    verdicts: list[bool] = []
    moved = 0
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        count = int(torch.randint(2, 7, (), generator=generator))

        def noise(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        # Boxes and scores on a coarse grid, so that some rows nearly agree with several others.
        scores = 0.9 - 0.0006 * torch.randint(0, 4, (count,), generator=generator) - 0.0001 * noise(count)
        boxes = 100 + 0.07 * torch.randint(0, 3, (count, 1), generator=generator).double().expand(count, 4)
        labels = torch.randint(0, 2, (count,), generator=generator)
        order = scores.argsort(descending=True)
        expected = (boxes[order], scores[order], labels[order])
        size = [0.0, 1e-4, 5e-4][seed % 3]
        other = scores + (noise(count) - 0.5) * size
        order = other.argsort(descending=True) if seed % 7 else torch.randperm(count, generator=generator)
        found = (boxes[order] + (noise(count, 4) - 0.5) * size * 50, other[order], labels[order])
        if seed % 5 == 0:
            found[2][0] ^= 1
        verdict = oracle(expected, found)
        verdicts.append(verdict)
        assert (not failures(expected, found)) == verdict, seed
        table = {"boxes": [expected[0]], "scores": [expected[1]], "labels": [expected[2]]}
        other_table = {"boxes": [found[0]], "scores": [found[1]], "labels": [found[2]]}
        assert (not failures(table, other_table)) == verdict, seed
        moved += verdict and bool((expected[2] != found[2]).any())
    assert 40 < sum(verdicts) < 360
    assert moved > 20


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (2, 3, 6)])
@pytest.mark.parametrize(
    ("change", "is_equal"),
    [
        ((0, 3, 0.05), True),  # of a coordinate up to 120
        ((0, 3, 0.5), False),
        ((3, 4, 5e-4), True),
        ((3, 4, 0.02), False),  # a hundredth of what a coordinate may be off by
        ((1, 5, 1.0), False),
    ],
    ids=["box", "wrong box", "score", "wrong score", "wrong label"],
)
def test_each_field_of_rows_in_one_tensor_is_judged_by_its_own_size(
    shape: tuple[int, ...], change: tuple[int, int, float], is_equal: bool
) -> None:
    expected = columns(*detections())
    expected[:, 5] += 80
    found = expected.clone()
    row, column, off = change
    found[row, column] += off
    assert (failures(expected.view(shape), found.view(shape)) == []) == is_equal


def test_coordinates_within_one_are_judged_beside_large_labels() -> None:
    expected = columns(*detections())
    expected[:, :4] /= 200
    expected[:, 5] += 80
    found = expected.clone()
    found[0, 0] += 0.05
    assert failures(expected, found)


def test_other_tensors_with_six_columns_are_judged_as_a_whole() -> None:
    expected = torch.tensor([[500.0, 1.5, 2.0, 3.0, 4.5, 1.5]] * 3)
    assert not failures(expected, expected + 0.1)
