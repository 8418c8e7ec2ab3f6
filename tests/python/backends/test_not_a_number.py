"""Tests that engines propagate NaN as torch does: a damaged image must not give plausible values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.backends import registry

NAN = float("nan")


class Features(nn.Module):
    """Has a convolution, ReLU and pooling, which may hide NaN, and integer labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.layer(x).relu()
        return features, nn.functional.max_pool2d(features, 2), features.argmax(1)


class Holes(nn.Module):
    """Fills holes in a depth image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, depth: Tensor) -> Tensor:
        return self.layer(torch.where(torch.isnan(depth), 0.0, depth)).relu()


def engines() -> list[str]:
    """Returns the installed engines. AOTInductor compiles for too long; its own tests check the same."""
    return [name for name in registry.available_for("cpu") if name != "aot_inductor"]


def with_engine(module: nn.Module, example: Tensor, engine: str) -> tuple[nn.Module, nn.Module]:
    """The module in eval mode, and its engine."""
    module.eval().requires_grad_(False)
    return module, hybrid_rt.compile_segment(module, example, engine=engine, fallback=False)


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines())
def test_nan_comes_out_where_eager_has_it_and_the_next_call_is_as_before(engine: str) -> None:
    image = torch.rand(1, 3, 8, 12)
    module, compiled = with_engine(Features(), image, engine)
    damaged = image.clone()
    damaged[0, 1, 3, 4] = NAN
    for _ in range(2):  # the first run at a size copies outputs that later runs write in place
        for expected, found in zip(module(damaged)[:2], compiled(damaged)[:2], strict=True):
            assert expected.isnan().any()
            assert found.isnan()[expected.isnan()].all()
        for expected, found in zip(module(image), compiled(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines())
def test_a_segment_that_asks_for_nan_answers_for_itself(engine: str) -> None:
    depth = torch.rand(1, 1, 8, 12)
    module, compiled = with_engine(Holes(), depth, engine)
    depth[0, 0, 2:4, 5] = NAN
    torch.testing.assert_close(compiled(depth), module(depth), rtol=1e-4, atol=1e-5)
