"""Tests of detection heads as single operators, against the operators of torch and torchvision that they replace."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, poolers

import hybrid_rt  # noqa: F401  registers the operators

OURS = torch.ops.hybrid_rt
NAN, INF = float("nan"), float("inf")


def random_boxes(count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * 300
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 60], 1).to(dtype)


def best_above(scores: Tensor, threshold: float, wanted: int) -> tuple[Tensor, Tensor]:
    """Selects scores as RetinaNet and FCOS do: from all scores, compacted afterwards."""
    scores = scores.flatten()
    passing = torch.where(scores > threshold)[0]
    best, order = scores[passing].topk(min(wanted, len(passing)))
    return best, passing[order]


def ssd_reference(
    boxes: Tensor, scores: Tensor, threshold: float, wanted: int, overlap: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = [best_above(scores[:, label].clone(), threshold, wanted) for label in range(1, scores.shape[1])]
    candidates = torch.cat([boxes[indices] for _, indices in chosen])
    best = torch.cat([values for values, _ in chosen])
    labels = torch.cat([torch.full_like(indices, label) for label, (_, indices) in enumerate(chosen, 1)])
    kept = batched_nms(candidates, best, labels, overlap)[:most]
    return candidates[kept], best[kept], labels[kept]


def floats_around(probability: float, count: int) -> Tensor:
    """Returns consecutive floats around the logit of a probability; around 0, multiples of the spacing below 1."""
    logit = math.log(probability / (1 - probability))
    step = 2.0 ** (math.frexp(max(abs(logit), 1.0))[1] - 25)
    return (logit + (torch.arange(count, dtype=torch.float64) - count / 2) * step).float()


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 6000, 20_000])
@pytest.mark.parametrize("levels", [1, 7, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batched_nms_is_torchvisions(count: int, levels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count + levels)
    if levels > 7 and dtype == torch.float64:
        levels = 20  # eager mode runs a Python loop per class
    boxes = random_boxes(count, generator, dtype)
    scores = (torch.rand(count, generator=generator) * 50).round().to(dtype) / 50  # many scores are equal
    classes = torch.randint(levels, (count,), generator=generator)
    kept = OURS.batched_nms(boxes, scores, classes, 0.3)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, batched_nms(boxes, scores, classes, 0.3))


@pytest.mark.parametrize("classes", [[-3, 5], [2**40, 2**40 + 1], [-(2**62), 2**62]])
def test_batched_nms_takes_any_class(classes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(1200, generator), torch.rand(1200, generator=generator)
    idxs = torch.tensor(classes)[torch.randint(2, (1200,), generator=generator)]
    assert torch.equal(OURS.batched_nms(boxes, scores, idxs, 0.3), batched_nms(boxes, scores, idxs, 0.3))


@pytest.mark.parametrize("count", [600, 1500])
def test_batched_nms_of_values_that_are_not_finite(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes, scores = random_boxes(count, generator), torch.randn(count, generator=generator)
    scores[::7], scores[1::7], scores[2::7], scores[3::14], scores[10::14] = NAN, INF, -INF, 0.0, -0.0
    classes = torch.randint(3, (count,), generator=generator)
    assert torch.equal(OURS.batched_nms(boxes, scores, classes, 0.3), batched_nms(boxes, scores, classes, 0.3))
    boxes[5, 2], boxes[9, 0], boxes[14] = NAN, -INF, INF
    assert torch.equal(OURS.batched_nms(boxes, scores, classes, 0.3), batched_nms(boxes, scores, classes, 0.3))


@pytest.mark.parametrize("count", [600, 1500])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0, NAN])
def test_batched_nms_of_odd_thresholds_and_strides(count: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes = random_boxes(count, generator).t().contiguous().t()
    scores = torch.rand(count, 2, generator=generator)[:, 1]
    classes = torch.randint(3, (count, 2), generator=generator)[:, 0]
    kept = OURS.batched_nms(boxes, scores, classes, threshold)
    assert torch.equal(kept, batched_nms(boxes, scores, classes, threshold))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssd_detections_are_those_of_a_loop_over_classes(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors, classes = [(700, 12), (3, 2), (2500, 40)][seed % 3]
    boxes = random_boxes(anchors, generator, dtype)
    logits = torch.randn(anchors, classes, generator=generator).to(dtype) * 3
    if seed >= 3:
        logits = logits.round()  # ties among the best and at the cut-off
    arguments = (boxes, logits.softmax(1), 0.02, 30, 0.45, 200)
    found = OURS.ssd_detections(*arguments)
    assert_equal(found, ssd_reference(*arguments))
    assert len(found[0]) > 0


@pytest.mark.parametrize(
    ("threshold", "wanted", "most"), [(2.0, 30, 200), (0.0, 10**6, 10**6), (-1.0, 5, 3), (0.02, 0, 9), (0.02, 30, 0)]
)
def test_ssd_detections_of_odd_options(threshold: float, wanted: int, most: int) -> None:
    generator = torch.Generator().manual_seed(1)
    arguments = (random_boxes(90, generator), torch.rand(90, 21, generator=generator), threshold, wanted, 0.5, most)
    assert_equal(OURS.ssd_detections(*arguments), ssd_reference(*arguments))


def test_ssd_detections_of_many_candidates_in_threads() -> None:
    generator = torch.Generator().manual_seed(2)
    arguments = (random_boxes(6000, generator), torch.rand(6000, 50, generator=generator), 0.01, 20, 0.45, 300)
    assert_equal(OURS.ssd_detections(*arguments), ssd_reference(*arguments))


def test_ssd_detections_of_equal_scores_follow_torchs_order() -> None:
    scores = torch.full((500, 5), 0.2)
    arguments = (random_boxes(500, torch.Generator().manual_seed(1)), scores, 0.1, 40, 0.9, 100)
    found = OURS.ssd_detections(*arguments)
    assert_equal(found, ssd_reference(*arguments))
    assert len(found[0]) == 100


def test_ssd_detections_of_scores_at_the_threshold_and_not_finite() -> None:
    scores = torch.rand(64, 6, generator=torch.Generator().manual_seed(2))
    at_cut = torch.tensor(0.3)
    scores[:9, 1] = at_cut
    scores[9:18, 2] = at_cut.nextafter(torch.tensor(1.0))
    scores[::5, 3], scores[::6, 4] = NAN, INF
    arguments = (random_boxes(64, torch.Generator().manual_seed(3)), scores, 0.3, 20, 0.5, 100)
    assert_equal(OURS.ssd_detections(*arguments), ssd_reference(*arguments))


def test_ssd_detections_without_anchors() -> None:
    boxes, scores, labels = OURS.ssd_detections(torch.zeros(0, 4), torch.zeros(0, 3), 0.1, 10, 0.5, 10)
    assert (boxes.shape, scores.shape, labels.shape, labels.dtype) == ((0, 4), (0,), (0,), torch.int64)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (700, 91), (5000, 64)])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.999, 0.0, 1.0, -0.5, 1e-20, NAN])
def test_sigmoid_topk_is_that_of_all_scores(shape: tuple[int, int], threshold: float) -> None:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0])) * 4
    scores, indices = OURS.sigmoid_topk(logits, threshold, 100)
    expected, where = best_above(logits.sigmoid(), threshold, 100)
    torch.testing.assert_close(scores, expected, rtol=2e-7, atol=0)
    assert torch.equal(indices, where)


@pytest.mark.parametrize("threshold", [1e-6, 0.05, 0.5, 0.9, 0.999])
def test_sigmoid_topk_takes_exactly_what_passes_at_the_threshold(threshold: float) -> None:
    """The logits are consecutive floats around the threshold, so that every bit has to be eager mode's."""
    logits = floats_around(threshold, 8192)
    scores, indices = OURS.sigmoid_topk(logits, threshold, 10000)
    assert_equal((scores, indices), best_above(logits.sigmoid(), threshold, 10000))
    assert 0 < len(scores) < len(logits)


def test_sigmoid_topk_of_equal_scores_follows_torchs_order() -> None:
    logits = torch.randint(-3, 4, (4096, 8), generator=torch.Generator().manual_seed(0)).float()
    assert_equal(OURS.sigmoid_topk(logits, 0.1, 1000), best_above(logits.sigmoid(), 0.1, 1000))
    saturated = torch.full((64, 64), 200.0)
    assert_equal(OURS.sigmoid_topk(saturated, 0.5, 50), best_above(saturated.sigmoid(), 0.5, 50))


def test_sigmoid_topk_of_values_that_are_not_finite() -> None:
    logits = torch.zeros(128)
    logits[::3], logits[1::5], logits[2::7] = NAN, INF, -INF
    for threshold in (0.4, 0.5, 0.0, -1.0):
        assert_equal(OURS.sigmoid_topk(logits, threshold, 1000), best_above(logits.sigmoid(), threshold, 1000))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_sigmoid_topk_of_other_floats(dtype: torch.dtype) -> None:
    logits = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_equal(OURS.sigmoid_topk(logits, 0.5, 30), best_above(logits.sigmoid(), 0.5, 30))


@pytest.mark.parametrize("values", [torch.zeros(0, 9), torch.zeros(5, 0), torch.full((5, 9), -9.0)])
def test_sigmoid_topk_of_nothing(values: Tensor) -> None:
    scores, indices = OURS.sigmoid_topk(values, 0.5, 10)
    assert (scores.shape, indices.shape, indices.dtype) == ((0,), (0,), torch.int64)


def centered(logits: Tensor, centerness: Tensor) -> Tensor:
    return torch.sqrt(logits.sigmoid() * centerness.sigmoid())


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.0, 1.0, -1.0, 1e-9, NAN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_centered_sigmoid_topk_is_that_of_all_scores(threshold: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(512, 64, generator=generator) * 3).to(dtype)
    centerness = (torch.randn(512, 1, generator=generator) * 3).to(dtype)
    centerness[3], centerness[4], centerness[5], logits[6, 6], logits[7, 7] = NAN, INF, -INF, NAN, INF
    scores, indices = OURS.centered_sigmoid_topk(logits, centerness, threshold, 300)
    expected, where = best_above(centered(logits, centerness), threshold, 300)
    torch.testing.assert_close(scores, expected, rtol=2e-7, atol=0)
    assert torch.equal(indices, where)


@pytest.mark.parametrize("center", [-2.0, 0.0, 9.0])
def test_centered_sigmoid_topk_takes_exactly_what_passes_at_the_threshold(center: float) -> None:
    target = 0.3**2 / torch.tensor(center, dtype=torch.float64).sigmoid().item()
    logits, centerness = floats_around(target, 4096).view(64, 64), torch.full((64, 1), center)
    found = OURS.centered_sigmoid_topk(logits, centerness, 0.3, 10000)
    assert_equal(found, best_above(centered(logits, centerness), 0.3, 10000))
    assert 0 < len(found[0]) < logits.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (17, 7), (400, 91), (3, 0)])
def test_class_probabilities_are_torchs_softmax(shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 9).to(dtype)
    if len(logits) > 1 and shape[1]:
        logits[0, 0], logits[1], logits[2, 1] = NAN, -INF, INF
    for given in (logits, logits.t(), logits[None]):
        torch.testing.assert_close(OURS.class_probabilities(given), given.softmax(-1), rtol=0, atol=0, equal_nan=True)


def boxes_of_all_levels(generator: torch.Generator) -> Tensor:
    """Returns boxes of random sizes, and squares and strips around each size at which the level changes."""
    random = random_boxes(3000, generator) * torch.rand(3000, 1, generator=generator) * 8
    sides = [2.0**power * 224 for power in range(-4, 4)]
    near = [math.nextafter(side, side * step) for side in sides for step in (0, 2)]
    near += [side * (1 + step * 1e-7) for side in sides for step in range(-30, 31)]
    squares = torch.tensor([[0.0, 0.0, side, side] for side in near])
    strips = torch.tensor([[-3.0, 5.0, 2 * side - 3, side / 2 + 5] for side in near])
    return torch.cat([random, squares, strips])


ODD_BOXES = torch.tensor(
    [[0, 0, 0, 0], [5, 5, 5, 9], [9, 0, 0, 9], [9, 9, 0, 0], [0, 0, NAN, 9], [0, 0, INF, 9], [0, 0, INF, INF]]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(
    "options", [(2, 5, 224, 4, 1e-6), (0, 3, 64, 1, 1e-6), (3, 3, 224, 4, 0.0), (2, 6, 100, 3, 0.5)]
)
def test_box_levels_are_those_of_torchvisions_mapper(
    options: tuple[int, int, int, int, float], dtype: torch.dtype
) -> None:
    boxes = torch.cat([boxes_of_all_levels(torch.Generator().manual_seed(3)), ODD_BOXES]).to(dtype)
    mapper = poolers.LevelMapper(*options)
    expected = mapper(list(boxes.split([len(boxes) - 50, 50])))
    assert_equal((OURS.box_levels(boxes, *options),), (expected,))
    if options[0] < options[1]:
        assert len(expected.unique()) > options[1] - options[0]
    wide = torch.cat([boxes[:, :1], boxes], 1)[:, 1:]
    assert_equal((OURS.box_levels(wide, *options),), (expected,))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 15, 16, 33, 100, 257, 1000])
def test_box_levels_of_any_number_of_boxes(count: int) -> None:
    boxes = boxes_of_all_levels(torch.Generator().manual_seed(count))[-count - 1 : -1]
    assert_equal((OURS.box_levels(boxes, 2, 5, 224, 4, 1e-6),), (poolers.LevelMapper(2, 5)([boxes]),))


def pooling_inputs(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor, list[float]]:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 20, side, side + 3, generator=generator).to(dtype) for side in (32, 16, 8)]
    features[1] = features[1].contiguous(memory_format=torch.channels_last)
    images = torch.randint(2, (70, 1), generator=generator)
    rois = torch.cat([images, random_boxes(70, generator) * 0.4], 1).to(dtype)
    levels = torch.randint(3, (70,), generator=generator)
    return features, rois, levels, [0.25, 0.125, 0.0625]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("stray", [False, True])
def test_multiscale_roi_align_pools_each_box_on_its_level(dtype: torch.dtype, stray: bool) -> None:
    features, rois, levels, scales = pooling_inputs(dtype)
    if stray:  # a box without a level is 0, as for boxes with NaN in torchvision
        levels[3], levels[4] = -(2**63), 3
    expected = torch.zeros(70, 20, 3, 2, dtype=dtype)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        rows = levels == level
        expected[rows] = torch.ops.torchvision.roi_align(feature, rois[rows], scale, 3, 2, 2, False)
    assert torch.equal(OURS.multiscale_roi_align(features, rois, levels, scales, 3, 2, 2), expected)


def test_multiscale_roi_align_without_boxes() -> None:
    features, rois, levels, scales = pooling_inputs(torch.float32)
    assert OURS.multiscale_roi_align(features, rois[:0], levels[:0], scales, 7, 7, 2).shape == (0, 20, 7, 7)


def test_multiscale_roi_align_names_the_row_of_a_faulty_box() -> None:
    features, rois, levels, scales = pooling_inputs(torch.float32)
    rois[60, 0] = 2
    with pytest.raises(RuntimeError, match=re.escape("expected rois[:, 0] to index a batch of 2, got 2 in row 60")):
        OURS.multiscale_roi_align(features, rois, levels, scales, 3, 2, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f, r, v, s: (f[:2], r, v, s), "expected features of one level or more, and a scale per level"),
        (lambda f, r, v, s: ([], r, v, []), "expected features of one level or more, and a scale per level"),
        (lambda f, r, v, s: ([f[0], f[1][0], f[2]], r, v, s), "expected input of shape [N, C, H, W]"),
        (lambda f, r, v, s: ([f[0], f[1][:, 1:], f[2]], r, v, s), "expected the same channels on all levels, 20"),
        (lambda f, r, v, s: (f, r.double(), v, s), "expected rois of the dtype of input, Float"),
        (lambda f, r, v, s: (f, r, v[1:], s), "expected levels of dtype Long and shape [70]"),
        (lambda f, r, v, s: (f, r, v.int(), s), "expected levels of dtype Long and shape [70]"),
    ],
)
def test_multiscale_roi_align_says_what_it_refuses(change: Any, text: str) -> None:
    arguments = change(*pooling_inputs(torch.float32))
    with pytest.raises(RuntimeError, match=re.escape(f"hybrid_rt[operators]: multiscale_roi_align: {text}")):
        OURS.multiscale_roi_align(*arguments, 3, 2, 2)


BOXES, SCORES, CLASSES = torch.ones(3, 4), torch.ones(3), torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("batched_nms", (torch.ones(3, 5), SCORES, CLASSES, 0.5), "expected dets of shape [N, 4]"),
        ("batched_nms", (BOXES.half(), SCORES.half(), CLASSES, 0.5), "expected dets of dtype Float or Double"),
        ("batched_nms", (BOXES, SCORES.double(), CLASSES, 0.5), "expected scores of the dtype of dets, Float"),
        ("batched_nms", (BOXES, SCORES, CLASSES.int(), 0.5), "expected idxs of dtype Long and shape [3]"),
        ("batched_nms", (BOXES, SCORES, CLASSES[1:], 0.5), "expected idxs of dtype Long and shape [3]"),
        ("ssd_detections", (torch.ones(3), BOXES, 0.1, 9, 0.5, 9), "expected boxes of shape [A, 4]"),
        ("ssd_detections", (BOXES, torch.ones(2, 5), 0.1, 9, 0.5, 9), "expected scores of shape [3, C]"),
        ("ssd_detections", (BOXES, torch.ones(3, 1), 0.1, 9, 0.5, 9), "expected scores of shape [3, C]"),
        ("ssd_detections", (BOXES.half(), BOXES.half(), 0.1, 9, 0.5, 9), "expected boxes of dtype Float or Double"),
        ("ssd_detections", (BOXES, BOXES.double(), 0.1, 9, 0.5, 9), "expected scores of the dtype and device"),
        ("ssd_detections", (BOXES, BOXES, 0.1, -1, 0.5, 9), "expected topk_candidates of 0 or more, got -1"),
        ("sigmoid_topk", (CLASSES, 0.1, 9), "expected floating-point logits, got Long [3]"),
        ("sigmoid_topk", (BOXES, 0.1, -1), "expected topk_candidates of 0 or more, got -1"),
        ("class_probabilities", (CLASSES,), "expected floating-point logits of shape [..., C], got Long [3]"),
        ("class_probabilities", (torch.tensor(1.0),), "expected floating-point logits of shape [..., C], got Float []"),
        ("box_levels", (CLASSES, 2, 5, 224, 4, 1e-6), "expected floating-point boxes of shape [K, 4], got Long [3]"),
        ("box_levels", (torch.ones(3, 5), 2, 5, 224, 4, 1e-6), "expected floating-point boxes of shape [K, 4]"),
        ("centered_sigmoid_topk", (SCORES, BOXES[:, :1], 0.1, 9), "expected logits of shape [A, C]"),
        ("centered_sigmoid_topk", (BOXES, SCORES, 0.1, 9), "expected centerness of shape [3, 1]"),
        ("centered_sigmoid_topk", (BOXES, BOXES[:2, :1], 0.1, 9), "expected centerness of shape [3, 1]"),
        ("centered_sigmoid_topk", (BOXES, BOXES[:, :1].double(), 0.1, 9), "expected centerness of the dtype and"),
    ],
)
def test_operators_say_what_they_refuse(name: str, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"hybrid_rt[operators]: {name}: {text}")):
        getattr(OURS, name)(*arguments)


class Everything(nn.Module):
    """Calls each operator once."""

    def forward(self, boxes: Tensor, logits: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        scores, indices = OURS.sigmoid_topk(logits, 0.5, 5)
        best, places = OURS.centered_sigmoid_topk(logits, logits[:, :1], 0.5, 5)
        kept = OURS.batched_nms(boxes, logits[:, 0].contiguous(), torch.ones_like(boxes[:, 0]).long(), 0.5)
        found = OURS.ssd_detections(boxes, OURS.class_probabilities(logits), 0.1, 5, 0.5, 5)
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
        levels = OURS.box_levels(boxes, 5, 5, 224, 4, 1e-6)
        pooled = OURS.multiscale_roi_align([features], rois, levels, [1.0], 3, 2, 2)
        return scores, indices, best, places, kept, *found, pooled


def test_a_module_with_the_operators_is_exported() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = (random_boxes(30, generator), torch.randn(30, 4, generator=generator), torch.rand(1, 3, 8, 8))
    exported = torch.export.export(Everything(), inputs)
    assert_equal(exported.module()(*inputs), Everything()(*inputs))
    assert "30" in str(list(exported.graph.nodes)[-2].meta["val"].shape)  # one pooled box per box
