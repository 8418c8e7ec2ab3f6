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
