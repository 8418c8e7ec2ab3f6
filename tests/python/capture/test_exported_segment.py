"""Tests of segments that cannot be traced and are exported: right at every size, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hybrid_rt
from helpers.small_detectors import Alone, Changed, OneConvolution
from hybrid_rt import CaptureError
from hybrid_rt.backends import registry
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.capture.size_checks import right_at_sizes
from hybrid_rt.capture.size_samples import Effort
from hybrid_rt.torchscript import jit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

RANGES = {"height": (16, 64), "width": (16, 64)}


class Detector(nn.Module):
    """Has a segment, under a head that TorchScript compiles."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Changed(change)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def to_square(x: Tensor) -> Tensor:
    side = max(x.shape[-2:])
    return F.pad(x, (0, side - x.shape[3], 0, side - x.shape[2]))


def cut_to_square(x: Tensor) -> Tensor:
    side = min(x.shape[2], x.shape[3])
    return x[:, :, :side, :side]


def to_windows(x: Tensor) -> Tensor:
    down, right = -x.shape[2] % 8, -x.shape[3] % 8
    return F.pad(x, (0, right, 0, down)) if down or right else x


def to_rounded_square(x: Tensor) -> Tensor:
    side = -(-max(x.shape[-2:]) // 8) * 8
    return F.pad(x, (0, side - x.shape[3], 0, side - x.shape[2]))


def with_grid(x: Tensor) -> Tensor:
    side = max(x.shape[2], x.shape[3])
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(x.shape[3]), indexing="xy")
    return x.mean((2, 3))[:, :, None, None] + (rows * 100 + columns).float()


def not_too_long(x: Tensor) -> Tensor:
    if x.shape[2] > 2 * x.shape[3] or x.shape[3] > 2 * x.shape[2]:
        raise ValueError("an image that is longer than two of its sides")
    return to_square(x)


def program_of(change: Callable[[Tensor], Any], *sizes: tuple[int, int]) -> Program:
    detector = Detector(change).eval()
    inputs = [(torch.rand(1, 3, *size),) for size in sizes]
    return capture_alone(detector, "backbone", inputs, [(1, 1), (3, 3), (16, 64), (16, 64)])


@pytest.mark.slow
@pytest.mark.parametrize("change", [to_square, cut_to_square, to_windows, to_rounded_square, with_grid])
def test_openvino_is_right_at_every_height(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    detector, path = Detector(change).eval(), tmp_path / "a.pt"
    options: dict[str, Any] = {"engine": "openvino", "fallback": False, "shapes": RANGES, "measure": False}
    hybrid_rt.convert(detector, (torch.rand(1, 3, 32, 48),), path, segments=["backbone"], **options)
    hybrid = hybrid_rt.load(path)
    for height in range(16, 65):
        image = torch.rand(1, 3, height, (height * 7) % 49 + 16)
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["script", "export", "trace"])
def test_the_head_checks_the_assumptions_of_the_segment(head: str, tmp_path: Path) -> None:
    detector, path = Detector(not_too_long).eval(), tmp_path / "a.pt"
    options: dict[str, Any] = {"engine": "torchscript", "shapes": RANGES, "measure": False, "head": head}
    hybrid_rt.convert(detector, (torch.rand(1, 3, 32, 48),), path, segments=["backbone"], **options)
    hybrid = hybrid_rt.load(path)
    for size in ((32, 48), (48, 32), (61, 31)):
        image = torch.rand(1, 3, *size)
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-3, atol=1e-3)
    with pytest.raises(
        torch.jit.Error, match=r"expected .* x\.shape\[3\] <= 2 \* x\.shape\[2\].* got \[1, 3, 16, 64\]"
    ):
        hybrid(torch.rand(1, 3, 16, 64))


class TwoSegments(nn.Module):
    """Has two segments that share an engine. The second one computes from sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.backbone = Changed(not_too_long)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(self.stem(x))


@pytest.mark.parametrize(
    ("detector", "names", "where"),
    [(Detector(not_too_long), ["backbone"], "inputs"), (TwoSegments(), ["stem", "backbone"], "outputs")],
    ids=["alone", "behind another one"],
)
def test_an_engine_without_the_head_checks_it_too(
    detector: nn.Module, names: list[str], where: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    options: dict[str, Any] = {"engine": "torchscript", "shapes": RANGES, "measure": False}
    hybrid_rt.convert(detector.eval(), (torch.rand(1, 3, 32, 48),), path, segments=names, **options)
    (stored,) = hybrid_rt.inspect(path)["engines"]
    assert any("2 * " in text for text, _ in stored["conditions"][where])
    engine = hybrid_rt.open_engine(path, "backbone")
    image = torch.rand(1, 3, 61, 31)
    torch.testing.assert_close(engine(image)[-1], detector(image), rtol=1e-3, atol=1e-3)
    told = r"expected .*shape\[3\] <= 2 \* .*shape\[2\], got \[1, 3, 16, 64\]"
    with pytest.raises(hybrid_rt.InputError, match=told):
        engine(torch.rand(1, 3, 16, 64))
    with pytest.raises(hybrid_rt.InputError, match="expected 4 dimensions"):
        engine(torch.rand(3, 16, 64))


def test_a_recording_that_holds_is_kept() -> None:
    program = right_at_sizes(program_of(lambda x: x.relu(), (32, 48), (48, 40)), Effort())
    assert not program.by_export
    assert program.conditions(program.members[0]) == []


def test_a_branch_that_no_example_covers_is_refused_with_both_reasons() -> None:
    program = program_of(lambda x: x[:, :, ::2] if x.shape[2] > 40 else x, (32, 48), (48, 40))
    with pytest.raises(
        CaptureError, match=r"right for every size.*torch\.export does not help: .*one for 16\.\.40"
    ) as caught:
        right_at_sizes(program, Effort())
    assert "another result" in str(caught.value)


def test_unrecordable_heads_are_exported() -> None:
    class Refusing(OneConvolution):
        """Contains code that only the tracer refuses."""

        def forward(self, batch: Tensor) -> Tensor:
            if torch._C._get_tracing_state() is not None:
                raise RuntimeError("not while it is recorded")
            return super().forward(batch)

    image = torch.rand(1, 3, 32, 48)
    program = right_at_sizes(capture_alone(Alone(Refusing()).eval(), "backbone", [(image,)]), None)
    assert program.by_export
    torch.testing.assert_close(program.traced()(image), program.run([image]))


def test_sizes_from_fractions_are_left_to_engines_of_64_bits() -> None:
    def scaled(x: Tensor) -> Tensor:
        return F.interpolate(x, size=[math.floor(side * 0.37) for side in x.shape[2:]])

    program = right_at_sizes(program_of(scaled, (32, 48), (48, 40)), Effort())
    assert program.by_export
    assert program.has_float_sizes
    assert program.wide_numbers() == "sizes computed from fractions, as floats of 64 bits"
    with pytest.raises(CaptureError, match="expected sizes that ONNX computes as torch does"):
        program.onnx()


@pytest.mark.parametrize("indexing", ["ij", "xy"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_grid_is_written_by_views(indexing: str, count: int) -> None:
    def grids(x: Tensor) -> tuple[Tensor, ...]:
        axes = [torch.arange(size) for size in (x.shape[2], x.shape[3], 3)[:count]]
        return (*torch.meshgrid(*axes, indexing=indexing), x)

    program = replace(program_of(grids, (32, 48), (48, 40)), by_export=True)
    assert "aten::meshgrid" not in {node.kind() for node in jit.nodes_of(program.traced().member_0.graph)}
    for call in program.calls:
        for want, have in zip(call.outputs, program.traced()(*call.inputs), strict=True):
            torch.testing.assert_close(have, want)


def test_the_stored_segment_gives_further_variants(tmp_path: Path) -> None:
    if not registry.backend("onnxruntime").availability().available:
        pytest.skip("onnxruntime is not installed")
    detector, path = Detector(to_square).eval(), tmp_path / "a.pt"
    options: dict[str, Any] = {"engine": "torchscript", "shapes": RANGES, "measure": False}
    hybrid_rt.convert(detector, (torch.rand(1, 3, 32, 48),), path, segments=["backbone"], **options)
    hybrid_rt.add_variant(path, "onnxruntime", first=True)
    hybrid = hybrid_rt.load(path)
    for size in ((20, 60), (60, 20)):
        image = torch.rand(1, 3, *size)
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-3, atol=1e-3)
