"""Tests that attributes and buffers of a frozen module become variables of the call."""

# Annotations stay objects, because TorchScript reads those of a class's attributes.

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt import CaptureError
from hybrid_rt.torchscript import jit
from hybrid_rt.torchscript.local_state import make_state_local


class Inner(nn.Module):
    """Keeps values of each type of TorchScript attribute, both assigned and modified in place."""

    seen: Tensor | None
    given: Tensor | None
    frames: list[Tensor]
    named: dict[str, Tensor]
    pair: tuple[Tensor, int]
    sizes: list[int]
    nothing: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.register_buffer("left", torch.zeros(1))
        self.seen, self.given = None, torch.ones(3)
        self.frames, self.nothing, self.sizes = [torch.ones(1)], [], [1, 2]
        self.named, self.pair = {"a": torch.ones(2)}, (torch.ones(2), 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(x.size(0)):
            if self.rows != i:
                self.rows = self.rows + 1
                self.left = self.left + x[i].mean()
        self.frames.append(x.mean().reshape(1))
        self.nothing.append(x.mean())
        self.sizes.append(self.rows)
        given = self.given
        if given is not None:
            given.add_(1)
        before = self.seen
        if before is None:
            self.seen = x.mean()
        else:
            self.seen = before + 1
        self.named["a"].add_(1)
        self.named["b"] = x
        self.pair = (self.pair[0] + 1, self.pair[1] + 1)
        return self._total()

    def _total(self) -> Tensor:
        total = self.left.sum() + self.rows + torch.stack(self.frames).sum() + self.named["a"].sum()
        total = total + len(self.named) + self.pair[0].sum() + self.pair[1] + len(self.sizes) + len(self.nothing)
        seen, given = self.seen, self.given
        if seen is not None and given is not None:
            total = total + seen + given.sum()
        return total


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.register_buffer("previous", torch.zeros(2))
        self.same = self.previous

    def forward(self, x: Tensor) -> Tensor:
        first = self.inner(x) + self.previous.sum()
        self.previous.copy_(torch.ones(2) * x.mean())
        self.same += 1
        return first + self.inner(x) + self.previous.sum()


def frozen(module: nn.Module) -> torch.jit.ScriptModule:
    return jit.freeze(jit.script(module.eval()))


def test_each_call_is_as_the_first() -> None:
    module, x = Outer(), torch.rand(3, 4)
    local = frozen(module)
    names = make_state_local(local)
    assert {"previous", "inner.rows", "inner.frames", "inner.named", "inner.seen", "inner.pair"} <= set(names)
    saved = jit.from_bytes(jit.to_bytes(local))
    expected, after = copy.deepcopy(module)(x), copy.deepcopy(module)
    after(x)
    assert not torch.allclose(after(x), expected)
    for found in (local(x), local(x), saved(x), saved(x), saved(x)):
        assert torch.allclose(found, expected)


def test_threads_share_nothing() -> None:
    module = Outer()
    local = frozen(module)
    make_state_local(local)
    inputs = [torch.rand(rows, 4) for rows in (1, 3, 7, 12)]
    expected = [copy.deepcopy(module)(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: local(inputs[i % 4]), range(200)))
    assert all(torch.allclose(one, expected[i % 4]) for i, one in enumerate(found))


def test_a_module_without_state_stays_as_it_is() -> None:
    module = frozen(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    code = module.code
    assert make_state_local(module) == []
    assert module.code == code


class Box:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class Boxed(nn.Module):
    """Creates an object in each call."""

    def forward(self, x: Tensor) -> Tensor:
        box = Box(x)
        for i in range(x.size(0)):
            if i > 1:
                box = Box(box.value)
                box.value = box.value + 1
        return box.value


def test_objects_of_the_call_are_left_alone() -> None:
    module = frozen(Boxed())
    assert make_state_local(module) == []
    assert torch.equal(module(torch.zeros(3)), torch.ones(3))


def test_an_object_that_is_kept_is_refused() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.box: Any = torch.jit.script(Box)(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.box.value = self.box.value + x
            return self.box.value

    with pytest.warns(FutureWarning):
        keeps = Keeps()
    module = frozen(keeps)
    with pytest.raises(CaptureError, match=r"got a write into '.*value', of an object of another class"):
        make_state_local(module)
