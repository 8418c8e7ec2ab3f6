"""Tests of the sizes at which segments are compared, and of Python code that computes from sizes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hybrid_rt
from helpers.small_detectors import Alone, OneConvolution
from hybrid_rt import CaptureError, HybridRTError, OptionError
from hybrid_rt.capture.call_recording import Recorded, record_runs, recording
from hybrid_rt.capture.observe import observe
from hybrid_rt.capture.program import capture, varies_in_rows_alone
from hybrid_rt.capture.size_checks import _at_other_sizes
from hybrid_rt.capture.size_samples import Effort, Unneeded, drawn_sizes, record_sizes, sized_inputs, sized_runs
from hybrid_rt.common.image_inputs import ImageInputs
from hybrid_rt.common.specs import UNBOUNDED
from models import torchvision_detectors

BATCH = ImageInputs({(0,): "NCHW"})
RANGES = {"height": (16, 64), "width": (16, 64)}


class Convolution(nn.Module):
    """Applies a convolution to the result of ``prepare``."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare
        self.layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.prepare(x))


def to_square(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    side = max(height, width)
    return F.pad(x, (0, side - width, 0, side - height))


def letterboxed(x: Tensor) -> Tensor:
    factor = 32 / max(x.shape[-2:])
    return F.interpolate(x, size=[max(4, int(side * factor)) for side in x.shape[-2:]])


def upright(x: Tensor) -> Tensor:
    return x.transpose(2, 3) if x.shape[2] > x.shape[3] else x


def to_windows(x: Tensor) -> Tensor:
    down, right = -x.shape[2] % 8, -x.shape[3] % 8
    return F.pad(x, (0, right, 0, down)) if down or right else x


def halved_if_large(x: Tensor) -> Tensor:
    return x[:, :, ::2, ::2] if x.shape[2] * x.shape[3] > 1500 else x


def detector_of(prepare: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Alone(Convolution(prepare)).eval()


def convert(detector: nn.Module, path: Path, **options: Any) -> Any:
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    settings = {"segments": ["backbone"], "head": "trace", "measure": False, "shapes": RANGES, **options}
    hybrid_rt.convert(detector, (image,), path, **settings)
    return hybrid_rt.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [to_square, letterboxed, upright, to_windows, halved_if_large])
def test_code_that_computes_from_sizes_is_refused_or_right_at_every_size(
    prepare: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    detector = detector_of(prepare)
    refusal = ""
    try:
        hybrid = convert(detector, tmp_path / "a.pt")
    except HybridRTError as error:
        refusal = str(error)
    if refusal:
        assert "segment 'backbone'" in refusal or "engine 'backbone'" in refusal
        assert "x3x" in refusal  # the size
        assert not (tmp_path / "a.pt").exists()
        return
    with torch.no_grad():
        for height, width in ((32, 48), (48, 32), (17, 61), (61, 17), (33, 64), (50, 51)):
            image = torch.rand(1, 3, height, width)
            torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-3, atol=1e-3)


def test_the_text_names_the_size_the_segment_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="a recording on 1x3x16x16 that is right for every size") as caught:
        convert(detector_of(upright), tmp_path / "a.pt")
    for part in ("segment 'backbone'", "another result", "computes from sizes", "attribute", "shapes=", "segments="):
        assert part in str(caught.value)


def test_it_converts_for_the_size_of_the_example_alone(tmp_path: Path) -> None:
    convert(detector_of(upright), tmp_path / "a.pt", shapes=None)


def test_without_verification_nothing_is_compared(tmp_path: Path) -> None:
    convert(detector_of(upright), tmp_path / "a.pt", verify=False)


def test_a_module_alone_is_compared_at_further_sizes_too() -> None:
    with pytest.raises(HybridRTError, match="right for every size"):
        hybrid_rt.compile_segment(Convolution(upright).eval(), torch.rand(1, 3, 32, 48), shapes=RANGES)


class Grid(nn.Module):
    """Adds a grid that it caches for the size of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: Any = None
        self.grid = torch.empty(0)
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape[2:]:
            rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3])
            self.grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).float()
            self.shape = x.shape[2:]
        return self.layer(x) + self.grid


@pytest.mark.parametrize("shapes", [RANGES, [(32, 48), (48, 32)], [(48, 32), (32, 48), (16, 96)]])
def test_a_grid_that_is_kept_by_size_is_computed_at_each_size(shapes: Any, tmp_path: Path) -> None:
    detector = Alone(Grid()).eval()
    hybrid = convert(detector, tmp_path / "a.pt", shapes=shapes)
    assert detector.get_submodule("backbone").shape is None  # unchanged
    for size in ((32, 48), (48, 32)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-3, atol=1e-3)


def test_a_batch_of_the_ranges_reaches_every_segment(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) * 2)

    detector = Two().eval()
    hybrid = convert(detector, tmp_path / "a.pt", segments=["first", "second"], shapes={"batch": (1, 4)})
    batch = torch.rand(4, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(hybrid(batch), detector(batch), rtol=1e-3, atol=1e-3)


def test_an_unknown_effort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'thorough', got 'much'"):
        convert(detector_of(lambda x: x), tmp_path / "a.pt", verify="much")
    with pytest.raises(OptionError, match="'thorough'"):
        hybrid_rt.compile_segment(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), verify="much")


def test_drawn_sizes_are_telling_and_always_the_same() -> None:
    sizes = drawn_sizes((16, 200), (16, 200), 24)
    assert sizes == drawn_sizes((16, 200), (16, 200), 24)
    assert sizes[:2] == [(16, 200), (200, 16)]
    assert len(set(sizes)) == len(sizes) == 24
    assert all(16 <= side <= 200 for size in sizes for side in size)
    assert {height > width for height, width in sizes} == {True, False}
    assert any(height % 2 and width % 2 for height, width in sizes)
    assert any(side % 8 in (1, 7) for size in sizes for side in size)


def test_drawn_sizes_of_narrow_and_of_vast_ranges() -> None:
    assert drawn_sizes((32, 32), (32, 32), 8) == [(32, 32)]
    assert {size[0] for size in drawn_sizes((64, 65), (64, 64), 8)} == {64, 65}
    assert all(height * width <= 1 << 20 for height, width in drawn_sizes((32, 8192), (32, 8192), 50))


def test_every_size_of_a_list_is_tried() -> None:
    sizes = [(8, 12), (12, 8), (9, 9)]
    runs = sized_runs(nn.Identity(), (torch.rand(1, 3, 8, 8),), BATCH, sizes, 9)
    assert [tuple(arguments[0].shape[2:]) for _, arguments in runs] == sizes


def test_images_that_a_detector_resizes_are_compared_small_and_in_both_orientations() -> None:
    detector = torchvision_detectors.build("fasterrcnn_mobilenet_v3_large_fpn", min_size=320)
    runs = list(sized_runs(detector, ([torch.rand(3, 80, 90)],), ImageInputs({(0, 0): "CHW"}), None, 4))
    sizes = [resizing.transform(*arguments)[0].tensors.shape[2:] for resizing, arguments in runs]
    assert all(32 <= side <= 192 for size in sizes for side in size)
    assert {height > width for height, width in sizes} == {True, False}
    assert detector.transform.min_size == (320,)


def test_the_example_alone_has_no_further_sizes() -> None:
    assert not list(sized_runs(nn.Identity(), (torch.rand(1, 3, 8, 8),), BATCH, None, 9))
    assert not list(sized_runs(nn.Identity(), (torch.zeros(4),), ImageInputs(), RANGES, 9))


def test_further_inputs_keep_their_proportion() -> None:
    image, features = torch.rand(1, 3, 32, 64), torch.rand(1, 8, 16, 32)
    ranges = [[(1, 2), (3, 3), (16, 64), (16, 64)], [(1, UNBOUNDED), (8, 8), (1, UNBOUNDED), (1, UNBOUNDED)]]
    found = list(sized_inputs((image, features), ranges, 12))
    assert found
    for one, other in found:
        assert one.shape[0] == other.shape[0]
        assert one.shape[2] == other.shape[2] * 2
        assert one.shape[3] == other.shape[3] * 2


def test_calls_that_differ_in_rows_alone_are_compared_twice() -> None:
    detector = Alone(nn.Conv2d(3, 4, 3)).eval()
    observation = observe(detector, (torch.rand(1, 3, 20, 20),))
    runs = [
        recording_of(detector, torch.rand(rows, 3, side, 20)) for side, rows in ((20, 2), (20, 3), (20, 4), (24, 5))
    ]
    program = capture(observation, ["backbone"], runs[:1], sizes=runs)
    assert [tuple(call.inputs[0].shape[:3:2]) for call in program.sizes] == [(2, 20), (3, 20), (5, 24)]


def test_calls_that_differ_in_rows_alone_are_not_compared_again_if_three_are_known() -> None:
    detector = Alone(nn.Conv2d(3, 4, 3)).eval()
    observation = observe(detector, (torch.rand(1, 3, 20, 20),))
    runs = [
        recording_of(detector, torch.rand(rows, 3, side, 20)) for side, rows in ((20, 2), (20, 3), (20, 4), (24, 5))
    ]
    further = [recording_of(detector, torch.rand(rows, 3, side, 20)) for side, rows in ((20, 6), (24, 6), (24, 7))]
    program = capture(observation, ["backbone"], runs, sizes=further)
    assert [tuple(call.inputs[0].shape[:3:2]) for call in program.sizes] == [(6, 24), (7, 24)]


def test_a_recording_is_checked_at_each_size_and_at_one_other_number_of_rows() -> None:
    detector = Alone(nn.Conv2d(3, 4, 3)).eval()
    observation = observe(detector, (torch.rand(1, 3, 20, 20),))
    runs = [
        recording_of(detector, torch.rand(rows, 3, side, 20)) for side, rows in ((20, 2), (20, 3), (20, 4), (24, 5))
    ]
    program = capture(observation, ["backbone"], runs)
    checked = [tuple(call.inputs[0].shape[:3:2]) for call in _at_other_sizes(program)]
    assert tuple(program.examples[0].shape[:3:2]) == (2, 20)
    assert checked == [(3, 20), (5, 24)]


def recording_of(detector: nn.Module, image: Tensor) -> Recorded:
    with torch.no_grad(), recording(detector, ["backbone"]) as run:
        detector(image)
    return run


class TwoStages(nn.Module):
    """Maps a batch to rows, as many as values are positive, and counts how far its runs got."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.box_head = nn.Linear(4, 2)
        self.finished = 0

    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        found: Tensor = self.box_head(features.permute(0, 2, 3, 1)[features[:, 0] > 0])
        self.finished += 1
        return found


def test_runs_at_further_sizes_end_before_segments_that_differ_in_rows_alone() -> None:
    detector = TwoStages().eval()
    example = torch.rand(1, 3, 9, 9) - 0.5
    observation = observe(detector, (example,))
    names = ["backbone", "box_head"]
    runs = record_runs(detector, names, [(torch.rand(1, 3, side, 8) - 0.5,) for side in (7, 9, 12, 20)])
    assert not varies_in_rows_alone(observation, ["backbone"], runs)
    assert varies_in_rows_alone(observation, ["box_head"], runs)
    assert not varies_in_rows_alone(observation, ["box_head"], runs[:1])

    def recorded(unneeded: Unneeded) -> list[Recorded]:
        sizes = ((detector, (torch.rand(1, 3, side, 8),)) for side in (10, 11))
        return record_sizes(sizes, names, Effort(0, least=2), unneeded)

    before = detector.finished
    runs = recorded(Unneeded(["box_head"], {"backbone": 1}))
    assert detector.finished == before
    assert [len(run["backbone"]) for run in runs] == [1, 1]
    assert [run["box_head"] for run in runs] == [[], []]
    assert not detector.box_head._forward_pre_hooks
    assert [len(run["box_head"]) for run in recorded(Unneeded(["box_head"], {"backbone": 2}))] == [1, 1]
    assert detector.finished == before + 2


def test_the_part_of_a_run_that_is_left_out_counts_towards_the_budget() -> None:
    def looked_at(cost: int) -> int:
        sizes = ((detector, (torch.rand(1, 3, 8, 8),)) for _ in range(9))
        unneeded = Unneeded(["box_head"], {"backbone": 1}, cost)
        return len(record_sizes(sizes, ["backbone", "box_head"], Effort(10**9, least=3), unneeded))

    detector = TwoStages().eval()
    assert (looked_at(0), looked_at(10**9)) == (9, 3)


def test_the_choice_of_sizes_follows_counted_work_not_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at(cost: int) -> int:
        runs = ((OneConvolution(), (torch.rand(1, 3, 8, 8),)) for _ in range(9))
        return len(record_sizes(runs, ["backbone"], Effort(cost, least=3)))

    unhurried = [looked_at(cost) for cost in (0, 3_500_000, 10**12)]
    clock = itertools.count(step=1000)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert [looked_at(cost) for cost in (0, 3_500_000, 10**12)] == unhurried
    assert unhurried[::2] == [3, 9]
    assert 3 < unhurried[1] < 9
