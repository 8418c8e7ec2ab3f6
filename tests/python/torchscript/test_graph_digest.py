"""Tests of the digest of a traced module: equal for equal computations in every process, otherwise different."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt.torchscript import jit
from hybrid_rt.torchscript.graph_digest import NoDigest, graph_digest


def scripted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    with jit.quiet():
        return torch.jit.script(function)


@scripted
def doubled_while_small(x: Tensor) -> Tensor:
    while bool(x.abs().sum() < 100):
        x = x * 2
    return x


@scripted
def tripled_while_small(x: Tensor) -> Tensor:
    while bool(x.abs().sum() < 100):
        x = x * 3
    return x


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def weighted(build: Callable[[], nn.Module], change: float = 0.0) -> nn.Module:
    """Returns a module with the same weights each time, except that ``change`` is added to the last one."""
    module = build().eval()
    with torch.no_grad():
        for value in module.state_dict().values():
            value.copy_(torch.arange(value.numel()).reshape(value.shape) % 7)
            value.view(-1)[-1] += change if value.is_floating_point() else 0
    return module


def added(last: float) -> nn.Module:
    """Returns a module with a tensor constant that differs only at its end, which a print of it omits."""
    constant = torch.zeros(1, 3, 100, 100)
    constant[..., -1] = last
    return Function(lambda x: x[:, :3, :1, :1] + constant)


def digest_of(module: nn.Module) -> str:
    return graph_digest(jit.trace(module.eval(), (torch.ones(1, 3, 8, 8),), "test"))


MODULES = {
    "conv": lambda: weighted(lambda: nn.Conv2d(3, 4, 3)),
    "another weight": lambda: weighted(lambda: nn.Conv2d(3, 4, 3), change=0.5),
    "stride": lambda: weighted(lambda: nn.Conv2d(3, 4, 3, stride=2)),
    "padding": lambda: weighted(lambda: nn.Conv2d(3, 4, 3, padding=1)),
    "dilation": lambda: weighted(lambda: nn.Conv2d(3, 4, 3, dilation=2)),
    "no bias": lambda: weighted(lambda: nn.Conv2d(3, 4, 3, bias=False)),
    "double": lambda: Function(lambda x: x.double()),
    "half": lambda: Function(lambda x: x.half()),
    "norm": lambda: weighted(lambda: nn.BatchNorm2d(3)),
    "eps": lambda: weighted(lambda: nn.BatchNorm2d(3, eps=1.0000001e-5)),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh gelu": lambda: nn.GELU("tanh"),
    "constant": lambda: added(1.0),
    "another constant": lambda: added(2.0),
    "bool": lambda: Function(lambda x: x + True),
    "int": lambda: Function(lambda x: x + 1),
    "float": lambda: Function(lambda x: x + 1.0),
    "order": lambda: Function(lambda x: (x + 1) - (x * 2)),
    "other order": lambda: Function(lambda x: (x * 2) - (x + 1)),
    "loop": lambda: Function(doubled_while_small),
    "other loop": lambda: Function(tripled_while_small),
}


def test_modules_that_differ_have_different_digests() -> None:
    digests = {name: digest_of(build()) for name, build in MODULES.items()}
    same = {digest: [name for name in digests if digests[name] == digest] for digest in digests.values()}
    assert [names for names in same.values() if len(names) > 1] == []


@pytest.mark.slow
def test_digests_are_the_same_in_another_process() -> None:
    here = [digest_of(build()) for build in MODULES.values()]
    # Trace in the opposite order, because TorchScript renames the second of two classes of the same name.
    program = (
        "import test_graph_digest as t; "
        "print(*reversed([t.digest_of(build()) for build in reversed(t.MODULES.values())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.split() == here


def test_names_of_modules_and_classes_do_not_matter() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MODULES["conv"]()

        def forward(self, value: Tensor) -> Tensor:
            result = self.layer(value)
            return result

    assert digest_of(Named()) == digest_of(nn.Sequential(MODULES["conv"]())) == digest_of(MODULES["conv"]())


def test_weights_that_do_not_reach_the_output_do_not_matter() -> None:
    module = MODULES["conv"]()
    module.unused = nn.Linear(2, 2)
    assert digest_of(module) == digest_of(MODULES["conv"]())


def test_the_layout_of_weights_matters() -> None:
    assert digest_of(MODULES["conv"]().to(memory_format=torch.channels_last)) != digest_of(MODULES["conv"]())


class InPython(nn.Module):
    @torch.jit.ignore
    def in_python(self, x):  # type: ignore[no-untyped-def]
        return x.cos()

    def forward(self, x: Tensor) -> Tensor:
        return self.in_python(x)


def test_code_that_is_not_in_the_graph_has_no_digest() -> None:
    with pytest.raises(NoDigest, match="prim::PythonOp"):
        graph_digest(jit.script(InPython()))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.ones(1, 3, 8, 8).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant


def test_a_sparse_weight_has_no_digest() -> None:
    with pytest.raises(NoDigest, match="sparse"):
        digest_of(Sparse())
