"""Tests that errors name faults of the detector: failures, random numbers, rounding beyond fp32, missing weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hybrid_rt
from hybrid_rt import HybridRTError, OptionError, VerificationError
from hybrid_rt.conversion.causes import explained

IMAGE = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"engine": "torchscript", "measure": False}


class Net(nn.Module):
    """Has convolutions, whose result a subclass uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.changed(self.backbone(images))

    def changed(self, x: Tensor) -> Tensor:
        return x


def refusal(detector: nn.Module, tmp_path: Path, *example: Any, **options: Any) -> HybridRTError:
    with pytest.raises(HybridRTError) as caught:
        hybrid_rt.convert(detector.eval(), example or (IMAGE,), tmp_path / "a.pt", **{**QUICK, **options})
    assert not (tmp_path / "a.pt").exists()
    return caught.value


# The detector fails


class TooManyChannels(Net):
    def changed(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.ones(4, 17, 1, 1))


class WithoutMessage(Net):
    def changed(self, x: Tensor) -> Tensor:
        return x + next(iter(self.named_buffers()))[1]


@pytest.mark.parametrize(
    ("detector", "example", "told"),
    [
        (TooManyChannels(), (IMAGE,), ["RuntimeError: Given groups=1", "return F.conv2d(x, torch.ones(4, 17, 1, 1))"]),
        (WithoutMessage(), (IMAGE,), ["StopIteration without a message", "return x + next(iter("]),
        (Net(), (IMAGE, 3), ["TypeError: ", "positional arguments but 3 were given", "1: 3"]),
        (Net(), ([IMAGE[0]],), ["TypeError: conv2d()", "0.0: float32 [3, 32, 48]"]),
        (Net(), (IMAGE.byte(),), ["RuntimeError: ", "0: uint8 [1, 3, 32, 48]"]),
        (Net(), ({"image": IMAGE},), ["TypeError: conv2d()", "0.image: float32 [1, 3, 32, 48]"]),
    ],
    ids=["channels", "without a message", "arguments", "list", "bytes", "dict"],
)
def test_a_detector_that_fails_is_named_with_its_line_and_what_was_passed(
    detector: nn.Module, example: tuple[Any, ...], told: list[str], tmp_path: Path
) -> None:
    error = refusal(detector, tmp_path, *example)
    assert isinstance(error, OptionError)
    assert error.code == "detector-fails"
    assert str(error).startswith(
        f"hybrid_rt[convert]: example_inputs: expected arguments that {type(detector).__name__}"
    )
    for part in [*told, "float32 [1, 3, 32, 48]" if example[0] is IMAGE else "(at "]:
        assert part in str(error)
    assert error.__cause__ is not None


def test_a_further_input_that_the_detector_does_not_take_is_named_by_its_position(tmp_path: Path) -> None:
    error = refusal(Net(), tmp_path, verify_inputs=[(IMAGE,), (torch.rand(1, 4, 32, 48),)])
    assert error.code == "detector-fails"
    assert str(error).startswith("hybrid_rt[convert]: input 2: expected arguments that Net runs on, got RuntimeError")


def test_a_module_alone_that_fails_is_named_too() -> None:
    with pytest.raises(
        OptionError, match=r"^hybrid_rt\[compile_segment\]: example: .*\[1, 4, 32, 48\].*\[detector-fails\]"
    ):
        hybrid_rt.compile_segment(Net().eval(), torch.rand(1, 4, 32, 48))


# No weights


def test_lazy_modules_without_a_call(tmp_path: Path) -> None:
    error = refusal(nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d()), tmp_path)
    assert error.code == "detector-not-ready"
    assert "got uninitialised lazy weights: 0.weight, 0.bias, 1.weight" in str(error)
    assert "Run detector(...) once" in str(error)


def test_lazy_modules_are_ordinary_after_a_call(tmp_path: Path) -> None:
    detector = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU()).eval()
    expected = detector(IMAGE)
    hybrid_rt.convert(detector, (IMAGE,), tmp_path / "a.pt", **QUICK)
    torch.testing.assert_close(hybrid_rt.load(tmp_path / "a.pt")(IMAGE), expected)


def test_the_error_for_a_meta_detector_does_not_suggest_the_cpu(tmp_path: Path) -> None:
    error = refusal(Net().to("meta"), tmp_path)
    assert error.code == "detector-not-ready"
    assert "On 'meta' they have no values: build it on the CPU, or call to_empty(device='cpu')" in str(error)


# Noise in the detector


class Drops(Net):
    def changed(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


class AddsNoise(Net):
    def changed(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Draws(Net):
    def changed(self, x: Tensor) -> Tensor:
        return x * torch.rand(16, 1, 1)


@pytest.mark.parametrize("kind", [Drops, AddsNoise, Draws])
def test_random_numbers_are_named_with_their_line(kind: type[Net], tmp_path: Path) -> None:
    error = refusal(kind(), tmp_path)
    assert error.code == "draws-random-numbers"
    assert "got random numbers, drawn by aten::" in str(error)
    assert "test_causes.py:" in str(error)


class Shuffles(Net):
    """Returns rows in another order in each call, which also happens with near-ties."""

    def changed(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return rows[:, torch.randperm(rows.shape[1])]


class ShufflesInPython(Net):
    def changed(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return rows[:, torch.tensor(random.sample(range(1232), 1232))]


@pytest.mark.parametrize("kind", [Shuffles, ShufflesInPython])
def test_a_random_order_is_not_rounding(kind: type[Net], tmp_path: Path) -> None:
    error = refusal(kind(), tmp_path, head="trace")
    assert error.code == "draws-random-numbers"


class DrawsWithoutUse(Net):
    def changed(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand(1) < 2, x, -x)


def test_harmless_random_numbers_are_reported(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"detector DrawsWithoutUse: .* got aten::rand \(.*test_causes.py:"):
        hybrid_rt.convert(DrawsWithoutUse().eval(), (IMAGE,), tmp_path / "a.pt", **QUICK)


def failure(code: str) -> VerificationError:
    return VerificationError.make("verify", "the hybrid", expected="a", got="b", code=code)


class Autocast(Net):
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.backbone(images)
        return found.float()


class Narrow(Net):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images.to(self.dtype)).float()


@pytest.mark.parametrize(
    ("detector", "dtype"),
    [(Autocast(), "bfloat16"), (Narrow(torch.bfloat16), "bfloat16"), (Narrow(torch.float16), "float16")],
    ids=["autocast", "bfloat16", "float16"],
)
def test_a_detector_that_rounds_more_than_fp32_is_named(detector: nn.Module, dtype: str) -> None:
    precision = {"bfloat16": "bf16", "float16": "fp16"}[dtype]
    for code in ("outputs-differ", "results-differ", "no-head-fits"):
        told = str(explained(failure(code), detector.eval(), (IMAGE,)))
        assert f"The detector itself computes in torch.{dtype} (" in told
        assert "test_causes.py:" in told
        assert f"thresholds=hybrid_rt.THRESHOLDS['{precision}']. [{code}]" in told


def test_other_failures_have_another_cause() -> None:
    for detector, code in ((Net(), "outputs-differ"), (Drops(), "no-segment-pays"), (Autocast(), "")):
        error = failure(code)
        assert explained(error, detector.eval(), (IMAGE,)) is error
