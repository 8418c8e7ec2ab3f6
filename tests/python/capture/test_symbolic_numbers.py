"""Tests of int(), float(), isinstance() and sizes in code that torch.export records."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_rt.capture.export_head import export_head
from hybrid_rt.capture.symbolic_numbers import symbolic_numbers


class Converts(nn.Module):
    """Converts sizes with int() and float()."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = map(int, x.shape[2:])
        half = int(height // 2)
        return torch.arange(half * width, dtype=torch.float32) / float(width)


class Asks(nn.Module):
    """Takes another branch for values that are not int."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2]
        return x + 1 if isinstance(size, int) else x


class Keeps(nn.Module):
    """Caches positions by size."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = (x.shape[2], x.shape[3], str(x.device))
        kept = self.places.get(key)
        if kept is None:
            kept = torch.arange(key[0] * key[1]).view(key[0], key[1]).float()
            self.places[key] = kept
        assert key in self.places
        return x + self.places[key]


class Chooses(nn.Module):
    """Reads a table with an entry per size; a free size has none."""

    def __init__(self) -> None:
        super().__init__()
        self.table = {24: torch.ones(1), 32: torch.zeros(1)}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[x.shape[2]]


@pytest.mark.parametrize("kind", [Converts, Asks, Keeps])
def test_sizes_stay_free(kind: type[nn.Module]) -> None:
    detector = kind().eval()
    example = torch.rand(1, 3, 24, 32)
    detector(example)
    program = export_head(detector, (example,), []).program.module()
    for size in ((24, 32), (32, 24), (19, 57)):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(program(x)[0], detector(x))
    assert type(detector.__dict__.get("places", {})) is dict


def test_a_table_by_size_fixes_the_size() -> None:
    head = export_head(Chooses().eval(), (torch.rand(1, 3, 24, 32),), [])
    assert [head.takes([(1, 3, height, 32)]) for height in (24, 32)] == [True, False]
    assert "return x + self.table[x.shape[2]]" in head.fixed


def _look_at_int(here: dict[str, Any]) -> None:
    assert here["int"] is not builtins.int
    assert isinstance(3, here["int"])
    assert not isinstance(3.0, here["int"])
    assert here["int"]("7") == 7
    assert here["int"] == builtins.int
    assert issubclass(bool, here["int"])
    raise ZeroDivisionError


def test_names_are_unchanged_after_an_error() -> None:
    here = vars(sys.modules[__name__])
    with pytest.raises(ZeroDivisionError), symbolic_numbers(Converts()):
        _look_at_int(here)
    assert "int" not in here
    assert "float" not in here
