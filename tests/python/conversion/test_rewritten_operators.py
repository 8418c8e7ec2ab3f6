"""Tests that C++ programs run torchvision's operators in heads and segments without torchvision's library."""

from __future__ import annotations

import subprocess
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d, ps_roi_align, ps_roi_pool, roi_align, roi_pool

import hybrid_rt
from helpers.small_detectors import Backbone, small_image
from hybrid_rt import CaptureError
from hybrid_rt.common.executables import program as find_program
from hybrid_rt.torchscript import head_operators

RANGES = {"height": (32, 64), "width": (32, 64)}


def rois(features: Tensor) -> Tensor:
    """Returns three boxes that depend on the features."""
    size = features[0].mean() * 0 + 2
    return torch.stack([size * 0, size, size / 2, size * 3, size * 2]).unsqueeze(0).repeat(3, 1)


class Pools(nn.Module):
    """Has a head with one pooling operator."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)["coarse"]
        boxes = rois(features)
        if self.pool == "roi_align":
            return roi_align(features, boxes, [2, 2], 0.5)
        if self.pool == "roi_pool":
            return roi_pool(features, boxes, [2, 2], 0.5)
        if self.pool == "ps_roi_pool":
            return ps_roi_pool(features, boxes, 2, 0.5)
        return ps_roi_align(features, boxes, 2, 0.5, 2)


class Deforms(nn.Module):
    """Has a head that is a deformable convolution, with or without a mask."""

    def __init__(self, has_mask: bool) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.offsets = nn.Conv2d(8, 18, 3, padding=1)
        self.masks = nn.Conv2d(8, 9, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 8, 3, 3))
        self.has_mask = has_mask

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)["coarse"]
        if self.has_mask:
            mask = self.masks(features).sigmoid()
            return deform_conv2d(features, self.offsets(features), self.weight, padding=(1, 1), mask=mask)
        return deform_conv2d(features, self.offsets(features), self.weight, padding=(1, 1))


class DeformableBackbone(nn.Module):
    """Is a segment with a deformable convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Deforms(True)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


class Doubles(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images) * 2


def seeded(kind: Any, *arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*arguments).requires_grad_(False).eval()


def code_of(path: Path) -> str:
    """Returns all code in the file, including TorchScript variants, without the source that errors show."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".debug_pkl")]
        return "".join(archive.read(name).decode("latin-1") for name in names)


def convert(detector: nn.Module, path: Path, **options: Any) -> Any:
    result = hybrid_rt.convert(
        detector, (small_image(40, 48),), path, segments=options.pop("segments", "backbone"), measure=False,
        engine=options.pop("engine", "torchscript"), shapes=RANGES, **options,
    )  # fmt: skip
    hybrid = hybrid_rt.load(path, backend="torchscript")
    for size in ((40, 48), (64, 33)):
        image = small_image(*size, seed=1)
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-4, atol=1e-5)
    return result


def assert_runs_in_cpp(path: Path) -> None:
    command = [find_program("hybrid-rt-detect", "test"), path, "--verify", "--backend", "torchscript"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("head", ["script", "export", "trace"])
@pytest.mark.parametrize("pool", ["roi_align", "roi_pool", "ps_roi_pool", "ps_roi_align"])
def test_a_head_that_pools(pool: str, head: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    result = convert(seeded(Pools, pool), path, head=head)
    assert f"hybrid_rt::{pool}" in result.report.head_operators
    assert "ops.torchvision" not in code_of(path)


@pytest.mark.parametrize("head", ["script", "export", "trace"])
@pytest.mark.parametrize("has_mask", [True, False])
def test_a_head_that_is_a_deformable_convolution(head: str, has_mask: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    result = convert(seeded(Deforms, has_mask), path, head=head)
    assert "hybrid_rt::deform_conv2d" in result.report.head_operators
    if has_mask:
        assert_runs_in_cpp(path)


def test_a_segment_with_a_deformable_convolution_runs_in_cpp(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    convert(Doubles(seeded(DeformableBackbone)).eval(), path, engine=["openvino", "torchscript"])
    assert "ops.torchvision" not in code_of(path)
    assert_runs_in_cpp(path)


def test_a_stored_segment_is_compiled_with_torchvision_s_operators_again(tmp_path: Path) -> None:
    path, wider = tmp_path / "a.pt", tmp_path / "b.pt"
    detector = Doubles(seeded(DeformableBackbone)).eval()
    convert(detector, path)
    hybrid_rt.add_variant(path, "openvino", wider)
    image = small_image(40, 48, seed=2)
    torch.testing.assert_close(hybrid_rt.load(wider, backend="openvino")(image), detector(image), rtol=1e-3, atol=1e-4)


def test_rewriting_reaches_branches_and_called_modules_and_can_be_undone() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            return roi_pool(x, boxes, [1, 1], 1.0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            if bool(x.sum() > 0):
                return ps_roi_pool(x, boxes, 1, 1.0)
            return self.inner(x, boxes)

    scripted = head_operators.jit.script(Outer().eval())
    boxes = torch.tensor([[0.0, 1, 1, 4, 4]])
    expected = [scripted(sign * torch.ones(1, 2, 8, 8), boxes) for sign in (1, -1)]
    assert head_operators.rewrite(scripted) == ["hybrid_rt::ps_roi_pool", "hybrid_rt::roi_pool"]
    opened = head_operators.jit.from_bytes(head_operators.jit.to_bytes(scripted))
    assert head_operators.rewrite(opened) == ["hybrid_rt::ps_roi_pool", "hybrid_rt::roi_pool"]
    for sign, wanted in zip((1, -1), expected, strict=True):
        assert torch.equal(opened(sign * torch.ones(1, 2, 8, 8), boxes), wanted)
    head_operators.restore(opened)
    kinds = {
        node.kind() for graph in head_operators.jit.graphs_of(opened) for node in head_operators.jit.nodes_of(graph)
    }
    assert {"torchvision::ps_roi_pool", "torchvision::roi_pool"} <= kinds
    assert not any(kind.startswith("hybrid_rt::") for kind in kinds)


@torch.library.custom_op("hybrid_rt_head_tests::half", mutates_args=())
def half(x: Tensor) -> Tensor:
    return x / 2


@half.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Halves(nn.Module):
    """Calls a custom operator, in the head or in the segment."""

    def __init__(self, in_segment: bool) -> None:
        super().__init__()
        self.backbone = HalvesInside() if in_segment else Backbone()
        self.in_segment = in_segment

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)["coarse"]
        return features * 2 if self.in_segment else torch.ops.hybrid_rt_head_tests.half(features)


class HalvesInside(Backbone):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"coarse": torch.ops.hybrid_rt_head_tests.half(self.first(images))}


@pytest.mark.parametrize("in_segment", [False, True])
def test_an_operator_that_cpp_lacks_is_warned_of_with_its_name(in_segment: bool, tmp_path: Path) -> None:
    place = r"segment 'backbone' on torchscript" if in_segment else "the detector's head"
    with pytest.warns(RuntimeWarning, match=rf"{place}: expected .*, got hybrid_rt_head_tests::half\. .* must load"):
        convert(seeded(Halves, in_segment), tmp_path / "a.pt", head="script")


def test_operators_of_torch_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head_operators.check_foreign(["hybrid_rt::nms", "hybrid_rt::run_engine"], "here")
    with pytest.raises(
        CaptureError, match=r"no operators of torchvision other than torchvision::nms.*got torchvision::other"
    ):
        head_operators.check_foreign(["torchvision::other"], "here")
