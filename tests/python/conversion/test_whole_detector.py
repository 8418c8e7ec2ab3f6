"""Tests that a detector becomes one engine if an engine can run all of it, and is split into segments otherwise."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

import hybrid_rt
from helpers.small_detectors import small_image
from hybrid_rt import BackendError, OptionError
from hybrid_rt.backends import registry
from hybrid_rt.common.tensor_tree import tensors_in

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

OPTIONS: dict[str, Any] = {"engine": "openvino", "measure": False, "progress": False}
SIZES = {"height": (16, 64), "width": (16, 64)}


def block(channels: int, made: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, made, 3, stride, 1), nn.BatchNorm2d(made), nn.SiLU())


class YoloLike(nn.Module):
    """Has a list of layers with skip connections between them, and boxes decoded over a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block(3, 8, 2), block(8, 8), block(8, 16, 2), block(16, 8), block(16, 8)])
        self.heads = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)])

    def levels(self, x: Tensor) -> list[Tensor]:
        fine = self.layers[1](self.layers[0](x))
        coarse = self.layers[3](self.layers[2](fine))
        up = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        both = self.layers[4](torch.cat([up[:, :, : fine.shape[2], : fine.shape[3]], fine], 1))
        return [self.heads[0](both), self.heads[1](coarse)]

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for level in self.levels(x):
            rows, columns = torch.arange(level.shape[2]), torch.arange(level.shape[3])
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).to(level.dtype)
            boxes = torch.cat([level[:, :2].sigmoid() + grid, level[:, 2:4].exp()], 1)
            found.append(torch.cat([boxes, level[:, 4:].sigmoid()], 1).flatten(2))
        return torch.cat(found, 2).transpose(1, 2)


class DetrLike(nn.Module):
    """Has a backbone, a transformer and learned queries."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = block(3, 16, 4)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.rand(1, 5, 16))
        self.logits, self.boxes = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        memory = self.backbone(pixel_values).flatten(2).transpose(1, 2)
        found = self.transformer(memory, self.queries.expand(memory.shape[0], -1, -1))
        return {"logits": self.logits(found), "pred_boxes": self.boxes(found).sigmoid()}


class Crnn(nn.Module):
    """Has convolutions and an LSTM over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(block(3, 8, 2), nn.AdaptiveAvgPool2d((1, None)))
        self.rnn = nn.LSTM(8, 8, bidirectional=True)
        self.letters = nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        columns, _ = self.rnn(self.layers(x).squeeze(2).permute(2, 0, 1))
        return self.letters(columns).log_softmax(2)


@dataclass
class Faces:
    """A result that is a dataclass with a string."""

    scores: Tensor
    boxes: Tensor
    kind: str = "face"


class ONetLike(nn.Module):
    """Has a classifier and a regressor on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.PReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 8, 3), nn.Flatten()
        )
        self.dense = nn.LazyLinear(16)
        self.scores, self.boxes = nn.Linear(16, 2), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Faces:
        features = self.dense(self.trunk(x)).relu()
        return Faces(self.scores(features).softmax(1), self.boxes(features))


class Masks(NamedTuple):
    """A result that is a named tuple."""

    masks: Tensor
    extra: list[Tensor]


class UNet(nn.Module):
    """Downsamples, upsamples, and has a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = block(3, 8), block(8, 16, 2)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Masks:
        fine = self.down(x)
        up = self.up(self.deep(fine))[:, :, : x.shape[2], : x.shape[3]]
        return Masks(self.out(torch.cat([fine, up], 1)).sigmoid(), [fine])


def made(detector: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        detector = type(detector)()
        detector(small_image())
    return detector.requires_grad_(False).eval()


def converted(detector: nn.Module, path: Path, **options: Any) -> tuple[Any, Any]:
    report = hybrid_rt.convert(detector, (small_image(),), path, **{**OPTIONS, **options}).report
    return hybrid_rt.load(path), report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shapes", "other"),
    [
        (YoloLike, SIZES, (1, 3, 48, 33)),
        (YoloLike, None, (1, 3, 32, 32)),
        (DetrLike, SIZES, (1, 3, 61, 40)),
        (Crnn, SIZES, (1, 3, 16, 64)),
        (ONetLike, {"batch": (1, 8)}, (5, 3, 32, 32)),
        (UNet, {**SIZES, "batch": (1, 4)}, (2, 3, 37, 50)),
    ],
)
def test_a_detector_of_only_tensors_is_one_engine(
    kind: type[nn.Module], shapes: Any, other: tuple[int, ...], tmp_path: Path
) -> None:
    detector = made(kind())
    hybrid, report = converted(detector, tmp_path / "a.pt", shapes=shapes)
    assert [engine.name for engine in report.engines] == [kind.__name__]
    assert (report.given_up, report.detector, report.head) == ([], kind.__name__, "script")
    [share] = report.shares
    assert (share.share, share.chosen) == (1.0, True)
    image = torch.rand(other, generator=torch.Generator().manual_seed(2))
    expected, found = detector(image), hybrid(image)
    if isinstance(expected, Faces):
        assert found.pop("kind") == "face"
        expected = {"scores": expected.scores, "boxes": expected.boxes}
    assert list(found) == list(expected) if isinstance(expected, dict) else True
    if isinstance(expected, Masks):
        assert torch.equal(found.masks, found[0])
        assert isinstance(found.extra, list)
    for want, have in zip(tensors_in(expected), tensors_in(found), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_optional_arguments_stay_and_are_checked(tmp_path: Path) -> None:
    hybrid, _ = converted(made(DetrLike()), tmp_path / "a.pt")
    hybrid(small_image(), pixel_mask=None)
    with pytest.raises(torch.jit.Error, match=r"hybrid_rt\[head\]: pixel_mask: expected None, as in the example"):
        hybrid(small_image(), torch.ones(1, 32, 32))


@pytest.mark.slow
def test_code_that_computes_from_sizes_is_right_at_each_of_them(tmp_path: Path) -> None:
    """A trace would keep the side length of the example."""

    class Squared(YoloLike):
        def forward(self, x: Tensor) -> Tensor:
            side = max(x.shape[2], x.shape[3])
            return super().forward(nn.functional.pad(x, (0, side - x.shape[3], 0, side - x.shape[2])))

    detector = made(Squared())
    hybrid, report = converted(detector, tmp_path / "a.pt", shapes=SIZES)
    assert [engine.name for engine in report.engines] == ["Squared"]
    for size in ((20, 60), (60, 20), (33, 47)):
        image = torch.rand(1, 3, *size)
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-3, atol=1e-3)


class WithNms(YoloLike):
    """Ends with operators that depend on values."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)[0]
        boxes = torch.cat([found[:, :2], found[:, :2] + found[:, 2:4]], 1)
        kept = nms(boxes, found[:, 4], 0.5)
        return {"boxes": boxes[kept], "scores": found[kept, 4]}


class Lists(UNet):
    """Takes a list of any number of images."""

    def forward(self, images: list[Tensor]) -> Masks:
        return super().forward(torch.stack(images) if isinstance(images, list) else images)


class Counted(UNet):
    """Returns a number that depends on the size."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).masks, x.shape[3]


def is_whole(detector: nn.Module, example: tuple[Any, ...], tmp_path: Path, **options: Any) -> bool:
    settings = {**OPTIONS, "engine": "torchscript", **options}
    report = hybrid_rt.convert(detector, example, tmp_path / "a.pt", **settings).report
    assert report.given_up == []
    return any(engine.name == type(detector).__name__ for engine in report.engines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [WithNms, Counted])
def test_a_detector_that_cannot_be_one_engine_is_not_tried_as_one(kind: type[nn.Module], tmp_path: Path) -> None:
    assert not is_whole(made(kind()), (small_image(),), tmp_path)


def test_a_list_of_images_stays_one_of_any_length(tmp_path: Path) -> None:
    assert not is_whole(made(Lists()), ([small_image()[0]],), tmp_path, head="trace")


@pytest.mark.parametrize(
    "options", [{"fuse": False}, {"segments": ["down"]}, {"engine": ["torchscript:bf16"]}, {"verify": False}]
)
def test_the_whole_is_left_alone_where_pieces_are_asked_for(options: dict[str, Any], tmp_path: Path) -> None:
    assert not is_whole(made(UNet()), (small_image(),), tmp_path, **options, head="trace")


@pytest.mark.slow
def test_one_segment_that_does_all_of_the_work_keeps_its_name(tmp_path: Path) -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = nn.Sequential(block(3, 8), block(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.unet(x)

    _, report = converted(made(Alone()), tmp_path / "a.pt")
    assert [engine.name for engine in report.engines] == ["unet"]


@pytest.mark.slow
def test_weights_that_are_in_no_submodule_are_in_the_whole(tmp_path: Path) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight)

    detector = made(Functional())
    hybrid, report = converted(detector, tmp_path / "a.pt")
    assert [engine.name for engine in report.engines] == ["Functional"]
    torch.testing.assert_close(hybrid(small_image()), detector(small_image()), rtol=1e-3, atol=1e-4)
    with pytest.raises(OptionError, match="a submodule that takes at least 1% of the work"):
        converted(detector, tmp_path / "b.pt", fuse=False)


@pytest.mark.slow
def test_an_engine_that_refuses_the_whole_gets_the_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    kind = type(registry.backend("openvino"))
    compiled = kind.compile

    def of_pieces(self: Any, program: Any, precision: str) -> Any:
        if program.name == "UNet":
            raise BackendError.make("openvino", f"segment '{program.name}'", expected="what it knows", got="another")
        return compiled(self, program, precision)

    monkeypatch.setattr(kind, "compile", of_pieces)
    detector = made(UNet())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Falling back to the next engine")
        hybrid, report = converted(detector, tmp_path / "a.pt")
    assert {variant.backend for engine in report.engines for variant in engine.variants} == {"openvino", "torchscript"}
    assert "UNet" not in [engine.name for engine in report.engines]
    [given_up] = report.given_up
    assert given_up.what == "one engine for the whole UNet"
    assert "hybrid_rt[openvino]: segment 'UNet': expected what it knows, got another." in given_up.reason
    torch.testing.assert_close(hybrid(small_image())[0], detector(small_image())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_whole_engine_with_other_boxes_is_replaced_by_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    kind = type(registry.backend("openvino"))
    compiled = kind.compile

    def of_another(self: Any, program: Any, precision: str) -> Any:
        if program.name == "UNet":
            for parameter in program.members[0].module.parameters():
                parameter.mul_(2)
            program.__dict__.pop("_traced", None)
        try:
            return compiled(self, program, precision)
        finally:
            if program.name == "UNet":
                for parameter in program.members[0].module.parameters():
                    parameter.div_(2)

    monkeypatch.setattr(kind, "compile", of_another)
    hybrid, report = converted(made(UNet()), tmp_path / "a.pt")
    assert "UNet" not in [engine.name for engine in report.engines]
    [given_up] = report.given_up
    assert "relative error" in given_up.reason
    torch.testing.assert_close(hybrid(small_image())[0], made(UNet())(small_image())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_cut_of_a_detector_does_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw, clock = random.Random(0), [0.0]

    def perf_counter() -> float:
        clock[0] += draw.random()
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", perf_counter)
    kinds: list[Callable[[], nn.Module]] = [WithNms, UNet]
    for kind in kinds:
        names = set()
        for _ in range(3):
            detector = made(kind())
            report = hybrid_rt.convert(
                detector, (small_image(),), tmp_path / "a.pt", engine="torchscript", measure=False
            ).report
            names.add(tuple(engine.name for engine in report.engines))
        assert len(names) == 1
