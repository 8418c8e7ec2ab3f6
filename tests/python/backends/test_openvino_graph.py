"""Tests that rewritten OpenVINO graphs compute the same as the original ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSDHead

openvino = pytest.importorskip("openvino")

from helpers.small_detectors import Changed  # noqa: E402
from hybrid_rt.backends.openvino.group_norm import normalise_by_channels  # noqa: E402
from hybrid_rt.backends.openvino.pixel_order import keep_pixels_together  # noqa: E402
from hybrid_rt.torchscript import jit  # noqa: E402

SHAPES = [(1, 6, 8, 9), (2, 6, 5, 4), (1, 6, 1, 7)]


class Levels(nn.Module):
    """Is a dense head on two feature maps."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.widened = nn.Conv2d(6, 32, 1)
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.widened(x)
        found = self.head([x, x[:, :, ::2, ::2]])
        return tuple(found[name] for name in sorted(found))


def model_of(module: nn.Module, is_dynamic: bool) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    example = torch.rand(*SHAPES[0])
    traced = jit.freeze(jit.trace(module.eval(), (example,), "module"))
    shape = openvino.PartialShape([-1, 6, -1, -1] if is_dynamic else list(SHAPES[0]))
    return openvino.convert_model(traced, example_input=example, input=[(shape, openvino.Type.f32)])


def results(model: Any, shape: tuple[int, ...]) -> list[Tensor]:
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    given = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    return [torch.from_numpy(value.copy()) for value in compiled([given.numpy()]).values()]


# FCOS reshapes boxes and centerness by sizes that it reads elsewhere. They are known to be equal only if they are
# fixed.
HEADS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "RetinaNet": (lambda: RetinaNetHead(32, 3, 5), 4, 4),
    "FCOS": (lambda: FCOSHead(32, 1, 5, num_convs=1), 6, 2),
    "SSD": (lambda: SSDHead([32, 32], [4, 6], 5), 4, 4),
}


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_a_dense_head_computes_the_same_with_pixels_kept_together(name: str, is_dynamic: bool) -> None:
    make, *places = HEADS[name]
    model = model_of(Levels(make()), is_dynamic)
    shapes = SHAPES if is_dynamic else SHAPES[:1]
    expected = [results(model, shape) for shape in shapes]
    assert keep_pixels_together(model) == places[is_dynamic]
    for shape, values in zip(shapes, expected, strict=True):
        for found, value in zip(results(model, shape), values, strict=True):
            assert torch.equal(found, value)
    assert keep_pixels_together(model) == 0


def regrouped(x: Tensor) -> Tensor:
    """Returns a view whose axes are no longer rows and columns of the same map."""
    return x.view(x.shape[0], -1, 3, x.shape[3], x.shape[2]).permute(0, 3, 4, 1, 2).reshape(x.shape[0], -1, 3)


def other_order(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 3, *x.shape[2:]).permute(0, 3, 4, 2, 1).reshape(x.shape[0], -1, 4)


def used_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    turned = x.view(x.shape[0], -1, 3, *x.shape[2:]).permute(0, 3, 4, 1, 2)
    return turned.reshape(x.shape[0], -1, 3), turned.sum(3)


def foreign_size(x: Tensor) -> Tensor:
    turned = x.transpose(2, 3)
    return x.view(x.shape[0], -1, 3, *turned.shape[2:]).permute(0, 3, 4, 1, 2).reshape(x.shape[0], -1, 3)


@pytest.mark.parametrize("change", [regrouped, other_order, used_twice, foreign_size])
def test_operators_without_proven_equality_stay(change: Callable[[Tensor], Any]) -> None:
    model = model_of(Changed(change, nn.Conv2d(6, 12, 3, padding=1)), True)
    expected = results(model, SHAPES[1])
    assert keep_pixels_together(model) == 0
    for found, value in zip(results(model, SHAPES[1]), expected, strict=True):
        assert torch.equal(found, value)


class Normalised(nn.Module):
    """Normalises feature maps in groups, twice."""

    def __init__(self, channels: int, groups: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels, eps=eps, affine=affine)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.GroupNorm(groups, channels, eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.second(self.norm(self.first(x)).relu()))
        return found


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize(
    "module",
    [
        Normalised(32, 8),
        Normalised(12, 1, eps=1e-2),
        Normalised(12, 12, eps=1e-9),
        Normalised(10, 5, affine=False),
    ],
    ids=["groups", "one group", "one channel per group", "without weights"],
)
def test_group_normalisation_by_channels_computes_the_same(module: nn.Module, is_dynamic: bool) -> None:
    model = model_of(module, is_dynamic)
    shapes = SHAPES if is_dynamic else SHAPES[:1]
    expected = [results(model, shape) for shape in shapes]
    assert normalise_by_channels(model) == 2
    assert not [op for op in model.get_ops() if op.get_type_name() == "GroupNormalization"]
    for shape, values in zip(shapes, expected, strict=True):
        for found, value in zip(results(model, shape), values, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    assert normalise_by_channels(model) == 0


class Far(nn.Module):
    """Normalises values that are far from 0 beside their differences, and one group of NaN, and one of infinity."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 6)
        self.register_buffer("offset", torch.tensor([offset] * 4 + [float("nan"), float("inf")])[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x + self.offset)
        return found


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_group_normalisation_by_channels_keeps_digits_groups_and_nan(offset: float) -> None:
    """The square of the mean would exceed the variance by up to 1e9, more than float32's digits."""
    module = Far(offset)
    model = model_of(module, True)
    assert normalise_by_channels(model) == 1
    [found] = results(model, SHAPES[1])
    x = torch.rand(*SHAPES[1], generator=torch.Generator().manual_seed(1))
    exact = module.double()((x + module.offset.float()).double() - module.offset)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=5e-3, equal_nan=True)
    assert torch.isnan(found[:, 4:]).all()
    assert not torch.isnan(found[:, :4]).any()


@pytest.mark.parametrize("shape", [[-1, 6, -1], [-1, -1, -1, -1], [-1, 6, -1, -1, -1]])
def test_group_normalisation_of_other_tensors_stays(shape: list[int]) -> None:
    from openvino import opset13 as opset

    given = opset.parameter(openvino.PartialShape(shape), dtype=openvino.Type.f32)
    scale, shift = opset.constant([2.0] * 6, dtype="float32"), opset.constant([1.0] * 6, dtype="float32")
    normalised = opset.group_normalization(given, scale, shift, 3, 1e-5)
    assert normalise_by_channels(openvino.Model([normalised], [given])) == 0
