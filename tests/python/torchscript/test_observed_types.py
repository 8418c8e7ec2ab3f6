"""Tests of the types that TorchScript does not infer: they are taken from a run of the detector."""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter

from hybrid_rt.capture.observe import observe
from hybrid_rt.torchscript import jit


class Head(nn.Module):
    """A detector of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)


class ImagesWithoutType(Head):
    def forward(self, images):  # type: ignore[no-untyped-def]
        return self.layer(torch.stack(images)).flatten(2)


class ListOfDicts(Head):
    def forward(self, images):  # type: ignore[no-untyped-def]
        found = []
        for image in images:
            scores = self.layer(image[None]).flatten()
            found.append({"scores": scores[scores > 0], "labels": (scores > 0).nonzero()})
        return found


class SeveralLists(Head):
    def forward(self, batch: Tensor) -> Any:
        boxes, scores = [], []
        for values in self.layer(batch):
            boxes.append((values[:4], values[:2]))
            scores.append(values[4])
        return [one + other.sum() for one, other in boxes], scores


class FilledByAMethod(Head):
    def decoded(self, levels, names, scale=2):  # type: ignore[no-untyped-def]
        found = {}
        for level, name in zip(levels, names):  # noqa: B905  (TorchScript's zip has no strict=)
            found[name] = [level * scale]
        return found

    def forward(self, batch: Tensor) -> Any:
        levels = []
        levels.append(self.layer(batch))
        return self.decoded(levels, ["p3"])["p3"][0]


class Optionally(Head):
    def scaled(self, values, factor=None, sizes=None):  # type: ignore[no-untyped-def]
        if factor is not None:
            values = values * factor
        return values if sizes is None else values[:, :, : sizes[0], : sizes[1]]

    def forward(self, batch: Tensor) -> Any:
        values = self.layer(batch)
        return self.scaled(values), self.scaled(values, 3.0, (4, 5))


class WholeNumbers(Head):
    def forward(self, batch: Tensor) -> Any:
        padded = F.pad(batch, (1, 2, 1, 2), "constant", 0)
        values = F.interpolate(self.layer(padded), scale_factor=2, mode="bilinear", align_corners=False)
        return F.normalize(values, p=2, dim=1), F.leaky_relu(values, -1), F.pad(values, [1, 1], value=-1)


class UnpackedSizes(Head):
    def forward(self, batch: Tensor) -> Any:
        values = self.layer(batch)
        size = values.shape[-2:]
        n, c = values.shape[:2]
        found = values.view(n * c, *size).reshape((n, c, *values.shape[2:]))
        return found + torch.ones(1, *size), found.flatten(2).view(n, c, *batch.size()[2:]), batch.new_zeros(*size)


class IntegerNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 4, 1)))
        self.body = IntermediateLayerGetter(layers, {"first": 1, "second": 2})

    def forward(self, batch: Tensor) -> Any:
        found = self.body(batch)
        return found[1] + found[2]


IMAGE, BATCH = torch.rand(3, 8, 9), torch.rand(2, 3, 8, 9)

DETECTORS: list[tuple[Callable[[], nn.Module], Any, Any]] = [
    (ImagesWithoutType, [IMAGE], [IMAGE, IMAGE + 1]),
    (ListOfDicts, [IMAGE], [IMAGE, IMAGE + 1]),
    (SeveralLists, BATCH, torch.rand(3, 3, 5, 4)),
    (FilledByAMethod, BATCH, torch.rand(3, 3, 5, 4)),
    (Optionally, BATCH, torch.rand(3, 3, 5, 7)),
    (WholeNumbers, BATCH, torch.rand(1, 3, 5, 4)),
    (UnpackedSizes, BATCH, torch.rand(1, 3, 5, 4)),
    (IntegerNames, BATCH, torch.rand(1, 3, 5, 4)),
]


@pytest.mark.parametrize(("build", "example", "other"), DETECTORS, ids=lambda value: getattr(value, "__name__", ""))
def test_code_without_types_is_scripted(build: Callable[[], nn.Module], example: Any, other: Any) -> None:
    detector = build().eval().requires_grad_(False)
    with pytest.raises(Exception):  # noqa: B017, PT011  (the compiler's, or the interpreter's)
        torch.jit.script(build().eval())(other)
    types = observe(detector, (example,)).types
    scripted = jit.script_detector(build().eval(), types)
    scripted.load_state_dict(detector.state_dict())
    for inputs in (example, other):
        torch.testing.assert_close(scripted(inputs), detector(inputs))


class OneOrSeveral(Head):
    def total(self, values):  # type: ignore[no-untyped-def]
        return values.sum() if isinstance(values, Tensor) else torch.stack(values).sum()

    def forward(self, batch: Tensor) -> Any:
        return self.total(batch) + self.total([batch, batch])


def test_an_argument_of_two_types_gets_none() -> None:
    types = observe(OneOrSeveral().eval(), (BATCH,)).types
    code = OneOrSeveral.total.__code__
    assert types.arguments((code.co_filename, code.co_firstlineno)) == {}
    code = ListOfDicts.forward.__code__
    types = observe(ListOfDicts().eval(), ([IMAGE],)).types
    place = (code.co_filename, code.co_firstlineno)
    assert types.arguments(place) == {"images": "List[Tensor]"}
    assert types.variables(place) == {"images": "List[Tensor]", "found": "List[Dict[str, Tensor]]"}


class Annotated(Head):
    def forward(self, images: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        for image in images:
            found.append(self.layer(image[None]))
        return found


def test_annotations_of_the_code_are_kept() -> None:
    detector = Annotated().eval()
    types = observe(detector, ([IMAGE],)).types
    assert str(jit.script_detector(detector, types).forward.schema.arguments[1].type) == "List[Tensor]"


def test_a_profile_of_the_caller_is_restored() -> None:
    def profile(*_: Any) -> None:
        pass

    sys.setprofile(profile)
    try:
        observe(Annotated().eval(), ([IMAGE],))
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)


def test_a_profiler_of_the_caller_continues() -> None:
    profiler = cProfile.Profile()
    with profiler:
        observe(Annotated().eval(), ([IMAGE],))
        sorted([3, 1, 2])
    names = {function for _, _, function in pstats.Stats(profiler).stats}  # type: ignore[attr-defined]
    assert "<built-in method builtins.sorted>" in names
