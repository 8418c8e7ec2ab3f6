"""Tests of resizing, pooling and padding on each CPU engine: equal to torch at each size of a range, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hybrid_rt
from hybrid_rt import HybridRTError
from hybrid_rt.backends import registry

pytestmark = pytest.mark.slow

RANGE = (9, 24)

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear 0.7": lambda x: F.interpolate(x, scale_factor=0.7, mode="bilinear", align_corners=False),
    "bilinear 120/88": lambda x: F.interpolate(x, scale_factor=120 / 88, mode="bilinear", align_corners=False),
    "bilinear corners": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True),
    "nearest 1.3": lambda x: F.interpolate(x, scale_factor=1.3, mode="nearest"),
    "nearest-exact 1.7": lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest-exact"),
    "bicubic 0.6": lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", align_corners=False),
    "to its own size": lambda x: F.interpolate(x[:, :, ::2, ::3], size=x.shape[-2:], mode="nearest"),
    "max pool ceil": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool ceil 2": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "average pool ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool ceil without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive average pool": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "reflect": lambda x: F.pad(x, (2, 3, 1, 2), mode="reflect"),
    "replicate": lambda x: F.pad(x, (2, 3, 1, 2), mode="replicate"),
    "padded to sixteen": lambda x: F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16)),
    "cut": lambda x: F.pad(x, (-1, -2, 0, -3)),
}


def engines() -> list[str]:
    """Returns the installed engines that compile quickly."""
    return [name for name in registry.available_for("cpu") if name not in ("tvm", "aot_inductor")]


class After(nn.Module):
    """Applies the operator to a convolution's features."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.operator = operator
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.layer(x))


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_size_is_as_in_torch_or_refused(operator: str) -> None:
    module = After(OPERATORS[operator])
    wrong = []
    for engine in engines():
        try:
            compiled = hybrid_rt.compile_segment(
                module, torch.rand(1, 3, 16, 20), engine=engine, fallback=False,
                shapes={"height": RANGE, "width": RANGE},
            )  # fmt: skip
        except HybridRTError:
            continue
        for height in range(RANGE[0], RANGE[1] + 1):
            image = torch.rand(1, 3, height, RANGE[0] + (height * 5) % (RANGE[1] - RANGE[0] + 1))
            with torch.no_grad():
                expected = module(image)
                try:
                    found = compiled(image)
                except RuntimeError as error:
                    if "expected" not in str(error):
                        wrong.append(f"{engine} at {tuple(image.shape)}: {error}")
                    continue
            if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-3, atol=1e-3):
                wrong.append(f"{engine} at {tuple(image.shape)}")
    assert wrong == []


def windows_of_five(x: Tensor) -> Tensor:
    """Pads to whole windows, as Swin does. 9 and 24, the ends of the range, have equal remainders."""
    x = F.pad(x, (0, -x.shape[3] % 5, 0, -x.shape[2] % 5))
    batch, channels, height, width = x.shape
    return x.view(batch, channels, height // 5, 5, width // 5, 5).sum((3, 5))


@pytest.mark.parametrize("engine", engines())
def test_a_number_equal_at_both_ends_of_a_range_is_not_constant(engine: str) -> None:
    """OpenVINO 2026.4 treats it as a constant if it is given the range."""
    module = After(windows_of_five)
    compiled = hybrid_rt.compile_segment(
        module, torch.rand(1, 3, 16, 20), engine=engine, fallback=False, shapes={"height": RANGE, "width": RANGE}
    )
    for height in range(RANGE[0], RANGE[1] + 1):
        image = torch.rand(1, 3, height, 33 - height)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), module(image), rtol=1e-4, atol=1e-4)
