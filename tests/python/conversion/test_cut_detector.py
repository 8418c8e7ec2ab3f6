"""Tests of detectors without suitable modules: the dense part is cut out of the exported graph as one engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import nms

import hybrid_rt
from helpers.small_detectors import small_image
from hybrid_rt import BackendError, OptionError
from hybrid_rt.capture.program import Program
from hybrid_rt.common.tensor_tree import tensors_in
from hybrid_rt.conversion import attempts

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

SIZES = {"height": (16, 96), "width": (16, 96)}
OPTIONS: dict[str, Any] = {"engine": "openvino", "fallback": False, "measure": False, "shapes": SIZES}


class Functional(nn.Module):
    """Computes in functions instead of submodules."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 3, 3, 3, generator=generator) * 0.3)
        self.second = nn.Parameter(torch.randn(5, 8, 3, 3, generator=generator) * 0.3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = functional.conv2d(functional.conv2d(images, self.first, stride=2).relu(), self.second)[0].flatten(1)
        boxes = torch.cat([-cells[1:3].exp(), cells[3:5].exp()]).t() * 8
        return boxes[kept := nms(boxes, cells[0], 0.5)], cells[0].sigmoid()[kept]


class Yolo(nn.Module):
    """Has a list of in-place layers, grids cached by size, and code that TorchScript does not support."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
            for i in (3, 8, 8)
        )
        self.heads = nn.ModuleList([nn.Conv2d(8, 7, 1), nn.Conv2d(8, 7, 1)])
        for head in self.heads:
            nn.init.normal_(head.weight)
            nn.init.constant_(head.bias, -0.6)  # so that a black image has no boxes instead of many with equal scores
        self.grids: dict[tuple[int, int], Tensor] = {}

    def grid(self, height: int, width: int) -> Tensor:
        if (height, width) not in self.grids:
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            self.grids[height, width] = torch.stack([columns, rows], -1).reshape(-1, 2).float()
        return self.grids[height, width]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = [x := layer(x) for layer in self.layers][1:]
        found = []
        for level, head, stride in zip(levels, self.heads, (4, 8), strict=True):
            cells = head(level).flatten(2).transpose(1, 2)[0]
            centers = (cells[:, :2].sigmoid() + self.grid(*level.shape[2:])) * stride
            sides = cells[:, 2:4].exp() * stride
            found.append(torch.cat([centers - sides / 2, centers + sides / 2, cells[:, 4:].sigmoid()], 1))
        boxes, scores = torch.cat(found).split([4, 3], 1)
        best, labels = scores.max(**{"dim": 1})
        mask = best > 0.4
        kept = nms(boxes[mask], best[mask], 0.5)
        return {"boxes": boxes[mask][kept], "scores": best[mask][kept], "labels": labels[mask][kept]}


class Branching(Functional):
    """Branches on values, which no graph contains; with modules as segments, the second convolution is in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = functional.conv2d(self.backbone(images), self.second)[0].flatten(1)
        scores = cells[0].sigmoid() if cells.max() > -100 else cells[0]
        return torch.sort(scores, **{"descending": True})[0], cells


def converted(detector: nn.Module, path: Path, **options: Any) -> Any:
    detector.eval().requires_grad_(False)
    return hybrid_rt.convert(detector, (small_image(32, 48),), path, **{**OPTIONS, **options}).report


def assert_equal(detector: nn.Module, path: Path) -> None:
    hybrid = hybrid_rt.load(path)
    for i, size in enumerate([(32, 48), (96, 16), (17, 53)]):
        image = small_image(*size, seed=i)
        expected, found = list(tensors_in(detector(image))), list(tensors_in(hybrid(image)))
        assert len(expected) == len(found) > 0
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Functional, Yolo])
def test_the_part_is_one_engine_and_equal_at_unseen_sizes(kind: type[nn.Module], tmp_path: Path) -> None:
    detector, path = kind(), tmp_path / "cut.pt"
    report = converted(detector, path)
    assert (report.head, [engine.name for engine in report.engines], report.given_up) == ("export", ["dense"], [])
    assert report.head_refused["script"]
    assert report.shares[0].share > 0.7
    assert_equal(detector, path)
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[.*expected .*16\.\.96.*got"):
        hybrid_rt.load(path)(small_image(128, 48))


@pytest.mark.slow
def test_two_conversions_give_the_same_engines(tmp_path: Path) -> None:
    detector, found = Functional(), []
    for name in ("one.pt", "other.pt"):
        report = converted(detector, tmp_path / name, golden=False, verify=False, segments="graph")
        shares = [(share.name, share.share, share.chosen) for share in report.shares]
        found.append((report.head, shares, hybrid_rt.inspect(tmp_path / name)["engines"]))
    assert found[0] == found[1]
    assert found[0][2]


@pytest.mark.slow
def test_an_operator_that_an_engine_refuses_is_left_out_of_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_programs = attempts.compile_programs
    tried: list[bool] = []

    def refusing(programs: Sequence[Program], *arguments: Any, **options: Any) -> Any:
        tried.append("aten.exp." in programs[0].members[0].module.code)
        if tried[-1]:
            raise BackendError.make("openvino", "engine 'dense'", expected="its operators", got="aten::exp")
        return compile_programs(programs, *arguments, **options)

    monkeypatch.setattr(attempts, "compile_programs", refusing)
    detector, path = Functional(), tmp_path / "cut.pt"
    report = converted(detector, path)
    assert [engine.name for engine in report.engines] == ["dense"]
    assert tried == [True, False]
    assert [(entry.instead, "aten::exp" in entry.reason) for entry in report.given_up] == [("a smaller part", True)]
    assert_equal(detector, path)


@pytest.mark.slow
def test_without_a_graph_segments_end_at_module_borders(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="The hybrid keeps the branches and loops of the example"):
        report = converted(Branching(), tmp_path / "borders.pt", segments="graph")
    assert ([engine.name for engine in report.engines], report.head) == (["backbone"], "trace")
    (given_up,) = report.given_up
    assert given_up.what == "one engine for the largest part of Branching's exported graph"
    assert (given_up.instead, given_up.code) == ("segments at module borders", "branch-on-values")


def test_a_recorded_head_has_no_graph() -> None:
    with pytest.raises(OptionError, match="segments='graph': expected head='auto' or 'export', got 'trace'"):
        hybrid_rt.convert(Functional().eval(), (small_image(32, 48),), "x.pt", segments="graph", head="trace")
