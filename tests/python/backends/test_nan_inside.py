"""NaN and infinities that arise inside a segment, of finite inputs: each engine's outputs have them where torch's do.

The exceptions are listed here and in docs/limits.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt.backends import registry
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.torchscript import jit

Operator = Callable[[Tensor], Tensor]

MAKERS: dict[str, Operator] = {
    "0 / 0": lambda x: x / x,
    "log": lambda x: torch.log(x - 0.5),
    "sqrt": lambda x: torch.sqrt(x - 0.5),
    "rsqrt": lambda x: torch.rsqrt(x - 0.5),
    "power": lambda x: (x - 0.5) ** 0.5,
    "infinity - infinity": lambda x: torch.exp(x * 120) - torch.exp(x * 120),
    "0 * infinity": lambda x: (1 / x) * x,
    "acos": lambda x: torch.acos(x * 4 - 1.5),
    "softmax of -infinity": lambda x: torch.softmax(torch.log(x.clamp(0, 1) * (x > 0.5)), 1),
    "mean of none": lambda x: (x * (x > 0.9)).sum(1, keepdim=True) / (x > 0.9).float().sum(1, keepdim=True) + x,
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
}

AFTER: dict[str, Operator] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda y: y.clamp(0, 1),
    "clamp min": lambda y: y.clamp(min=0),
    "leaky relu": lambda y: F.leaky_relu(y, 0.1),
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard swish": F.hardswish,
    "hard sigmoid": F.hardsigmoid,
    "exp": torch.exp,
    "abs": torch.abs,
    "max pool": lambda y: F.max_pool2d(y, 2),
    "max pool ceil": lambda y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True),
    "average pool": lambda y: F.avg_pool2d(y, 2),
    "global max": lambda y: F.adaptive_max_pool2d(y, 1),
    "pooled relu": lambda y: F.max_pool2d(F.relu(y), 2),
    "largest": lambda y: y.amax(1),
    "smallest": lambda y: y.min(1).values,
    "maximum": lambda y: torch.maximum(y, y.flip(1)),
    "minimum": lambda y: torch.minimum(y, y.flip(1)),
    "softmax": lambda y: torch.softmax(y, 1),
    "log softmax": lambda y: torch.log_softmax(y, 1),
    "mean": lambda y: y.mean(1),
    "convolution": lambda y: F.relu(F.conv2d(y, torch.full((2, 4, 3, 3), 0.1), padding=1)),
    "bilinear": lambda y: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False),
    "group norm": lambda y: F.group_norm(y, 2, torch.ones(4), torch.zeros(4)),
    "greater": lambda y: (y > 0).float(),
    "less": lambda y: (y < 9).float(),
    "unequal": lambda y: (y != y).float(),
    "where": lambda y: torch.where(y > 0, y, torch.zeros_like(y)),
    "masked": lambda y: torch.where(y == y, F.relu(y), torch.ones_like(y)),
    "sign": torch.sign,
    "sort": lambda y: y.sort(1).values,
    "top k": lambda y: y.topk(2, 1).values,
    "first largest": lambda y: (y + torch.arange(4.0).view(4, 1, 1) / 100).argmax(1),
    "first smallest": lambda y: (y + torch.arange(4.0).view(4, 1, 1) / 100).argmin(1),
    "less itself": lambda y: y - y,
    "times 0": lambda y: y * 0,
}

LOST: dict[str, set[str]] = {
    "openvino": {"sort", "top k"},
    "onnxruntime": set(),
    "torchscript": set(),
    "tvm": {"less itself", "times 0"},
}
"""Where an engine computes something else from NaN (docs/limits.md)."""

REFUSED = {"tvm": {"global max", "largest", "smallest", "bilinear", "group norm", "sort", "top k", "log of sum"}}
"""Operators that an engine does not take."""

MASKED: dict[str, Operator] = {
    "minus infinity": lambda x: x.masked_fill(x < 0.3, -math.inf),
    "infinity": lambda x: torch.where(x < 0.3, math.inf, x),
    "log of 0": lambda x: torch.log(x * (x > 0.3)),
    "1 / 0": lambda x: 1 / (x * (x > 0.3)),
}
"""Makers of infinities."""

AFTER_INFINITY: dict[str, Operator] = {
    **{name: AFTER[name] for name in ("relu", "clamp", "clamp min", "pooled relu")},
    **{name: AFTER[name] for name in ("max pool", "max pool ceil", "global max")},
    **{name: AFTER[name] for name in ("largest", "smallest", "maximum", "minimum", "sign", "sort", "top k")},
    **{name: AFTER[name] for name in ("first largest", "first smallest")},
    "log of sum": lambda y: (-y.abs()).logsumexp(1),
    "softmax": lambda y: torch.softmax(-y.abs(), 1),
    "softmax of infinity": lambda y: torch.softmax(1 / (1 / y), 1),
}


class All(nn.Module):
    """Several operators on what another one makes of an input."""

    def __init__(self, maker: Operator, operators: list[Operator]) -> None:
        super().__init__()
        self.maker = maker
        self.operators = operators

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(operator(self.maker(x)) for operator in self.operators)


def usual() -> Tensor:
    return torch.rand(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.55


def unusual() -> Tensor:
    """Returns finite numbers of which some are 0, some negative below an offset, some large."""
    x = usual()
    x[0, 1, 3, 4] = x[0, :, 5, 6] = 0.0
    x[0, 2, 1, 1] = 0.2
    x[0, 3, 7, 2] = 0.95
    return x


def differing(maker: Operator, operators: dict[str, Operator], engine: str, example: Tensor) -> set[str]:
    """Returns the names of the operators whose output on what the maker returns is not torch's."""
    taken = {name: operator for name, operator in operators.items() if name not in REFUSED.get(engine, ())}
    module = All(maker, list(taken.values())).eval()
    compiled = hybrid_rt.compile_segment(module, usual(), engine=engine, fallback=False)
    near = {"rtol": 1e-3, "atol": 1e-4, "equal_nan": True}
    pairs = zip(taken, module(example), compiled(example), strict=True)
    return {name for name, one, other in pairs if not torch.allclose(one.float(), other.float(), **near)}


ENGINES = [name for name in LOST if name in registry.available_for("cpu")]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_make_nan_where_torch_does(engine: str) -> None:
    assert all(maker(unusual()).isnan().any() for maker in MAKERS.values())
    known = {"infinity - infinity"} if engine == "tvm" else set()
    assert differing(lambda x: x, MAKERS, engine, unusual()) == known


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("maker", ["0 / 0", "log"])
def test_nan_is_kept_or_is_a_known_limit(maker: str, engine: str) -> None:
    assert differing(MAKERS[maker], AFTER, engine, unusual()) == LOST[engine]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("maker", MASKED)
def test_infinities_are_kept(maker: str, engine: str) -> None:
    """A maximum that starts from the least finite number gives that number for a window of minus infinities."""
    example = unusual()
    example[0, :, 2:5, 2:5] = example[0, :, 7] = example[0, 0, 0] = 0
    assert MASKED[maker](example).isinf().all(1).any()
    assert differing(MASKED[maker], AFTER_INFINITY, engine, example) == set()


@pytest.mark.skipif("openvino" not in ENGINES, reason="not installed")
@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x: F.max_pool2d(F.relu(F.conv2d(x, torch.ones(2, 4, 3, 3))), 2), 0),
        (lambda x: F.relu(F.normalize(x, dim=1)), 0),
        (lambda x: F.relu(F.layer_norm(x, (12,))), 0),
        (lambda x: F.relu((x - x.mean(1, keepdim=True)) / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)), 0),
        (lambda x: F.relu((x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-5)), 0),
        (lambda x: F.relu(x * 16 / x.shape[2]), 0),
        (lambda x: F.relu(x / x.sum(1, keepdim=True)), 1),
        (lambda x: F.max_pool2d(F.relu(torch.log(x)), 2), 2),
        (lambda x: F.relu(torch.log(x.clamp(min=1e-5))), 0),
        (lambda x: torch.softmax(x.masked_fill(x < 0, -math.inf), 1), 0),
        (lambda x: x.masked_fill(x < 0, -math.inf).amax(1), 1),
        (lambda x: F.relu(x.masked_fill(x < 0, -math.inf)).amax(1), 0),
        (lambda x: x.masked_fill(x < 0, -math.inf).logsumexp(1), 0),
    ],
)
def test_only_values_after_a_nan_producing_operator_are_changed(function: Operator, count: int) -> None:
    """Layers of usual networks stay as OpenVINO's kernels have them, so that nothing gets slower."""
    import openvino

    from hybrid_rt.backends.openvino.keep_nan import keep_nan

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    traced = jit.freeze(capture_alone(Alone(Module()).eval(), "backbone", [(usual(),)]).traced())
    assert keep_nan(openvino.convert_model(traced, example_input=usual())) == count
