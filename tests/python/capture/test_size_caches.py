"""Tests of caches by size, in dicts and under lru_cache, in code that is exported or scripted."""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import small_image
from hybrid_rt.capture.export_head import export_head
from hybrid_rt.capture.size_caches import SizeCache

BY_SIZE: dict[Any, Tensor] = {}
BY_DEFAULT: dict[Any, Any] = collections.defaultdict(lambda: None)


@functools.cache
def cells(height: int, width: int, step: int = 1) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height) * step, torch.arange(width) * step, indexing="ij")
    return torch.stack([x, y]).float()


class Places:
    """Is no module."""

    @staticmethod
    @functools.cache
    def of(height: int, width: int) -> Tensor:
        return torch.arange(height * width).view(height, width) / 8


class Function(nn.Module):
    """Calls a cached function."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] + cells(x.shape[2], int(x.shape[3]))


class Method(Function):
    """Calls a cached method."""

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def places(self, height: int, width: int) -> Tensor:
        return Places.of(height, width) * 2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places(x.shape[2], x.shape[3])


class Dictionary(nn.Module):
    """Caches in a dict of the Python module."""

    def forward(self, x: Tensor) -> Tensor:
        key = (x.shape[2], x.shape[3])
        if key not in BY_SIZE:
            BY_SIZE[key] = torch.arange(key[0] * key[1]).view(*key).float()
        return x + BY_SIZE[key]


class DefaultDictionary(nn.Module):
    """Caches by the number of images in a defaultdict, as YOLACT caches its priors."""

    def forward(self, x: Tensor) -> Tensor:
        if BY_DEFAULT[x.shape[0]] is None:
            BY_DEFAULT[x.shape[0]] = torch.arange(x.shape[0]).view(-1, 1, 1, 1) + 1.0
        return x * BY_DEFAULT[x.shape[0]]


class ClassDictionary(nn.Module):
    """Caches in a dict of the class, by the number of channels, which is no free size."""

    weights: ClassVar[dict[str, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights.setdefault(f"{x.shape[1]} channels", torch.arange(x.shape[1]).view(-1, 1, 1) + 1.0)


KINDS = [Function, Method, Dictionary, DefaultDictionary, ClassDictionary]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_stay_free_and_no_cache_keeps_a_tensor_without_values(kind: type[nn.Module]) -> None:
    detector = kind().eval()
    program = export_head(detector, (torch.rand(2, 3, 24, 32),), []).program.module()
    for size in ((24, 32), (19, 57)):
        x = torch.rand(2, 3, *size)
        expected = detector(x)
        assert type(expected) is Tensor
        torch.testing.assert_close(program(x)[0], expected)
    assert type(BY_SIZE) is dict
    assert isinstance(cells, functools._lru_cache_wrapper)
    assert isinstance(vars(Method)["places"], functools._lru_cache_wrapper)


class Detector(nn.Module):
    """Branches on values, so that only TorchScript takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        found = features[:, :2] + cells(features.shape[2], features.shape[3], step=4)
        return found * 2 if bool(found.max() > 50) else found


class KeepsPlaces(Detector):
    """Fills a list of numbers when the size changes, which it has not since the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.size = (0, 0)
        self.kept = torch.zeros(0)

    def places(self, height, width):  # type: ignore[no-untyped-def]
        if self.size != (height, width):
            values = []
            for y in range(height):
                for x in range(width):
                    values += [x + 0.5, y + 0.5]
            self.kept = torch.tensor(values).view(height, width, 2)
            self.size = (height, width)
        return self.kept

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        found = features[:, :2] + self.places(features.shape[2], features.shape[3]).permute(2, 0, 1)
        return found * 2 if bool(found.max() > 50) else found


@pytest.mark.parametrize("kind", [Detector, KeepsPlaces])
def test_torchscript_sees_the_code_behind_a_cache(kind: type[nn.Module], tmp_path: Path) -> None:
    detector, path = kind().eval(), tmp_path / "cached.pt"
    detector(small_image())  # so that the conversion finds the example's size in the cache
    ranges = {"height": (32, 96), "width": (32, 96)}
    report = hybrid_rt.convert(
        detector, (small_image(),), path, segments=["backbone"], shapes=ranges, engine="torchscript", measure=False
    ).report
    assert report.head == "script"
    hybrid = hybrid_rt.load(path)
    for size in ((48, 40), (96, 80)):
        torch.testing.assert_close(hybrid(small_image(*size)), detector(small_image(*size)))


def test_a_cache_keeps_its_entries() -> None:
    cache = SizeCache({(1, 2): "a"})
    assert (cache[1, 2], cache.get((3, 4)), (1, 2) in cache) == ("a", None, True)
    cache[3, 4] = "b"
    assert cache.get((3, 4)) == "b"
    with pytest.raises(KeyError):
        cache[5, 6]
    assert SizeCache(collections.defaultdict(list))[5] == []
