"""Tests that results that the detector itself does not reproduce do not refuse a hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt import THRESHOLDS, Verification, VerificationError
from hybrid_rt.verification.golden import SampleChoice
from hybrid_rt.verification.self_noise import reconciled, run_with_noise, with_noise
from hybrid_rt.verification.verify import compare_modules, compare_results, compare_tensors

LIMITS = THRESHOLDS["fp32"]
INF, NAN = float("inf"), float("nan")


class Returns(nn.Module):
    """Computes its result by a function; in eval mode."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.compute(x)


def compared(detector: Any, hybrid: Any, x: Tensor) -> Verification:
    return compare_modules(Returns(detector), Returns(hybrid), [(x,)], precision="fp32", thresholds=LIMITS)


def rows_by_score(x: Tensor) -> Tensor:
    """Returns rows [1, n, 3] sorted by scores that differ only in the last bits; each has its own place and label."""
    scores = x.flatten()
    rows = torch.stack([scores, torch.arange(len(scores)) * 10.0, torch.arange(len(scores)) % 3 + 1.0], dim=1)
    return rows[scores.argsort(descending=True)][None]


NEAR_TIES = 0.5 + torch.arange(20) * 6e-8
"""Scores that differ by one rounding."""


def test_rows_whose_scores_tie_may_change_places() -> None:
    found = compared(rows_by_score, lambda x: rows_by_score(x).flip(1), NEAR_TIES)
    assert found.passed, found.failures
    assert [error.relative_error < 1e-3 for error in found.tensors] == [True]


@pytest.mark.parametrize("change", [lambda r: r * torch.tensor([1.0, 1.01, 1.0]), lambda r: r[:, :1].expand_as(r)])
def test_rows_of_other_values_are_wrong_in_any_order(change: Any) -> None:
    found = compared(rows_by_score, lambda x: change(rows_by_score(x).flip(1)), NEAR_TIES)
    assert "relative error" in found.failures[0]


@pytest.mark.parametrize("special", [INF, -INF, NAN])
def test_a_value_that_is_not_finite_hides_no_other_in_a_row(special: float) -> None:
    def rows(x: Tensor) -> Tensor:
        return torch.cat([rows_by_score(x), torch.full((1, 1, 3), special)], dim=1)

    assert compared(rows, lambda x: rows(x).flip(1), NEAR_TIES).passed
    assert not compared(rows, lambda x: rows(x).flip(1) * 1.01, NEAR_TIES).passed


def test_reordered_rows_are_wrong_if_the_detector_has_a_fixed_order() -> None:
    apart = torch.linspace(0, 1, 20)
    assert not compared(rows_by_score, lambda x: rows_by_score(x).flip(1), apart).passed


def test_a_random_order_is_not_accepted() -> None:
    def shuffled(x: Tensor) -> Tensor:
        return rows_by_score(x)[:, torch.randperm(20)]

    assert not compared(shuffled, shuffled, NEAR_TIES).passed


def test_tensors_that_are_sorted_together_are_put_in_order_together() -> None:
    expected = (torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[[1.0], [2.0], [3.0]]]))
    swapped = [expected[0], expected[1][:, [2, 1, 0]]]
    other = torch.tensor([[[2.0], [1.0], [3.0]]])
    known = reconciled(expected, swapped, lambda _: [expected[0], other], 1e-3)
    assert torch.equal(known.found[1], expected[1])
    assert not known.undetermined


ROWS = torch.arange(12.0).view(1, 4, 3)
SWAPPED = ROWS[:, [0, 2, 1, 3]]


def test_a_near_tie_that_few_runs_with_noise_show_is_found() -> None:
    """One of seven runs changes places, and the hybrid's rounding does."""
    known = reconciled([ROWS], [SWAPPED], lambda seed: [SWAPPED if seed == 6 else ROWS], 1e-3)
    assert torch.equal(known.found[0], ROWS)
    assert not known.undetermined


def test_many_runs_with_noise_excuse_no_more_rows_than_they_change() -> None:
    seeds: list[int] = []

    def rerun(seed: int) -> list[Tensor]:
        seeds.append(seed)
        return [torch.cat([ROWS[:, :3], ROWS[:, 3:] + seed], 1)]

    found = torch.cat([ROWS[:, :2], ROWS[:, 2:] + 50], 1)
    known = reconciled([ROWS], [found], rerun, 1e-3)
    assert torch.equal(known.found[0], found)
    assert seeds == list(range(8))


def test_a_late_run_that_loses_every_row_does_not_end_the_comparison() -> None:
    known = reconciled([ROWS], [ROWS + 50], lambda seed: [ROWS - 70 if seed == 7 else ROWS], 1e-3)
    assert torch.equal(known.found[0], ROWS + 50)
    assert not known.undetermined


def test_results_that_the_detector_never_repeats_are_neither_compared_nor_accepted() -> None:
    black = torch.zeros(1, 3, 8, 8)
    noise = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))
    found = compared(noise, lambda x: noise(x) + 1e-3, black)
    assert "nothing was compared" in found.failures[0]
    assert "noise of 1e-6" in found.not_run[0]


def test_a_determined_input_beside_it_is_enough() -> None:
    norm = nn.InstanceNorm2d(3)
    images = [(torch.zeros(1, 3, 8, 8),), (torch.rand(1, 3, 8, 8),)]
    hybrid = Returns(lambda x: norm(x) + (1e-5 if bool((x == 0).all()) else 0))
    assert compare_modules(Returns(norm), hybrid, images, precision="fp32", thresholds=LIMITS).passed


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_special_values_that_both_sides_have_are_equal(value: float) -> None:
    one = torch.tensor([1.0, value, 3.0])
    (error,) = compare_tensors("s", ["o"], [one], [one.clone()])
    assert error.relative_error == 0
    assert compared(lambda x: one, lambda x: one.clone(), torch.ones(1)).passed


@pytest.mark.parametrize(("expected", "found"), [(INF, -INF), (NAN, INF), (INF, 1e30), (1.0, NAN), (NAN, 1.0)])
def test_special_values_of_one_side_alone_are_wrong(expected: float, found: float) -> None:
    (error,) = compare_tensors("s", ["o"], [torch.tensor([1.0, expected])], [torch.tensor([1.0, found])])
    assert not error.relative_error <= 1e-3
    result = compared(lambda x: torch.tensor([1.0, expected]), lambda x: torch.tensor([1.0, found]), torch.ones(1))
    assert not result.passed


def test_noise_is_of_the_size_of_a_rounding_and_repeats() -> None:
    image, labels = torch.rand(3, 4, 4) * 255, torch.ones(2, dtype=torch.int64)
    first, second = with_noise((image, labels), 1), with_noise((image, labels), 1)
    assert 0 < float((first[0] - image).abs().max()) <= 255e-6 * 1.1
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], labels)


class OfBytes(nn.Module):
    """Takes an image in bytes, and calls a layer on its values in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.layers = nn.Sequential(nn.Identity(), nn.Identity())
        self.layers[1].register_forward_pre_hook(lambda _, arguments: self.seen.append(arguments[0]))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.layers(image.float() / 255)
        return found


def test_an_image_in_bytes_gets_its_noise_inside_the_detector() -> None:
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    detector = OfBytes()
    plain = detector(image)
    noisy = run_with_noise(detector, (image,), 1)
    assert 0 < float((noisy - plain).abs().max()) <= 1e-6 * 1.1  # once, although two submodules are called
    assert torch.equal(run_with_noise(detector, (image,), 1), noisy)
    assert torch.equal(detector(image), plain)  # no hook stays


def detections(x: Tensor, shift: float = 0.0, widths: tuple[float, ...] = (0.0, 0.3, 20.0)) -> list[dict[str, Tensor]]:
    """Returns boxes of these widths, whose positions depend on the input like rounding errors."""
    left = torch.arange(len(widths)) * 40.0 + x[: len(widths)] * 30 + shift
    boxes = torch.stack([left, left * 0, left + torch.tensor(widths), left + 10], dim=1)
    return [{"boxes": boxes, "scores": torch.full((len(widths),), 0.9), "labels": torch.ones(len(widths))}]


def test_boxes_thinner_than_a_pixel_may_be_off_by_a_rounding() -> None:
    x = torch.rand(3)
    assert compared(detections, lambda x: detections(x, 3e-3), x).passed


def test_the_detector_runs_no_more_often_than_needed() -> None:
    x = torch.tensor([0.2, 0.5, 0.9])
    runs: list[Tensor] = []

    def of_jittery_widths(x: Tensor, factor: float = 300000.3) -> Any:
        """Returns boxes below a pixel whose widths depend on rounding."""
        return detections(x, widths=tuple(((x.double() * factor) % 1 * 0.5).tolist()))

    def counted(x: Tensor) -> Any:
        runs.append(x)
        return of_jittery_widths(x)

    assert compared(counted, lambda x: of_jittery_widths(x, 330000.7), x).passed
    assert 2 <= len(runs) < 4
    runs.clear()
    assert not compared(counted, lambda x: detections(x, 2.0), x).passed
    assert len(runs) == 9


def test_no_box_may_be_off_by_pixels() -> None:
    x = torch.rand(3)
    assert not compared(detections, lambda x: detections(x, 2.0), x).passed
    assert not compared(detections, lambda x: detections(x, widths=(0.0, 0.3, 25.0)), x).passed


def test_boxes_of_a_detector_that_repeats_them_are_not_widened() -> None:
    x = torch.rand(3)
    assert not compared(
        lambda x: detections(x * 0, widths=(0.5,) * 3), lambda x: detections(x * 0, 0.02, widths=(0.5,) * 3), x
    ).passed


def test_without_the_detector_the_rule_of_the_target_holds_alone() -> None:
    verification = Verification("fp32").with_findings(
        compare_results(rows_by_score(NEAR_TIES), rows_by_score(NEAR_TIES).flip(1), LIMITS, "golden sample")
    )
    assert not verification.passed


class TopQueries(nn.Module):
    """Returns the best cells by score; in a black image all scores are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(3, 1, 3)
        self.places = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, places = self.scores(x).flatten(1), self.places(x)
        rows = torch.linspace(0, 1, places.shape[2])[:, None] + torch.linspace(0, 1, places.shape[3]) * 7
        best, cells = scores.topk(9, dim=1)
        return best, (places + rows).flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).transpose(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "segment",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4)),
        TopQueries(),
    ],
    ids=["instance norm", "group norm", "top-k"],
)
def test_a_black_image_refuses_no_segment(segment: nn.Module, tmp_path: Path) -> None:
    detector = Alone(segment).eval()
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    hybrid_rt.convert(detector, (image,), tmp_path / "a.pt", segments=["backbone"], head="trace", measure=False)


class WithAnchors(nn.Module):
    """Returns features, and anchors that are infinite at the border."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = torch.linspace(0, 1, x.shape[3])
        return x * 2, torch.log(centres / (1 - centres))


def test_infinities_between_segment_and_head_convert(tmp_path: Path) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = WithAnchors()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features, anchors = self.backbone(x)
            return features, anchors.sigmoid()

    path = tmp_path / "a.pt"
    result = hybrid_rt.convert(Head().eval(), (torch.rand(1, 3, 8, 8),), path, segments=["backbone"], measure=False)
    assert result.report.golden.startswith("input")


def test_a_result_that_only_the_detector_can_judge_is_not_a_golden_sample() -> None:
    one, other = (torch.zeros(1),), (torch.ones(1),)
    result = rows_by_score(NEAR_TIES)
    choice = SampleChoice(one, result, LIMITS)
    choice(one, result, result.flip(1))
    assert choice.sample("fp32") is None
    choice(other, result, result)
    sample = choice.sample("fp32")
    assert sample is not None
    assert sample.inputs is other


def test_infinities_in_the_result_are_in_the_golden_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    hybrid_rt.convert(
        Alone(WithAnchors()).eval(), (torch.rand(1, 3, 8, 8),), path, segments=["backbone"], head="trace",
        measure=False,
    )  # fmt: skip
    assert hybrid_rt.verify_golden(path).passed
    assert hybrid_rt.verify(Alone(WithAnchors()).eval(), path, [(torch.rand(1, 3, 8, 8),)]).passed


def test_a_wrong_engine_is_refused_beside_an_input_that_is_not_determined(tmp_path: Path) -> None:
    class Wrong(nn.Module):
        """Behaves like a trace of it: wrong on all other images."""

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.instance_norm(x) * (2.0 if float(x.max()) > 0.99 else 1.0)

    detector = Alone(Wrong()).eval()
    image = torch.rand(1, 3, 8, 8) * 0.5
    with pytest.raises((VerificationError, hybrid_rt.CaptureError)):
        hybrid_rt.convert(
            detector, (image,), tmp_path / "a.pt", segments=["backbone"], head="trace", measure=False,
            verify_inputs=[(torch.ones(1, 3, 8, 8) * torch.rand(8),), (image * 2 + 0.01,)],
        )  # fmt: skip
