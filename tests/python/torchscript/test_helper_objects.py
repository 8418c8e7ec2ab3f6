"""Tests that a scripted head may use plain objects: box coders, configurations, lists of them beside ModuleLists."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import functools
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from hybrid_rt.torchscript.jit.helper_objects import use_modules_for_objects

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Coder:
    """Decodes boxes, as detectors' own coders do: no argument has a type."""

    def __init__(self, center=0.1, size=0.2):
        self.center, self.size = center, size
        self.limit = torch.tensor(4.0)

    def decode(self, codes, priors):
        sides = priors[:, 2:] * torch.exp(torch.minimum(codes[:, 2:] * self.size, self.limit))
        return self.corners(priors[:, :2] + codes[:, :2] * self.center * priors[:, 2:], sides)

    @staticmethod
    def corners(centers, sides):
        return torch.cat([centers - sides / 2, centers + sides / 2], 1)


class Scaled(Coder):
    """Is called like a function, and holds another object."""

    def __init__(self, factor):
        super().__init__()
        self.scale = SimpleNamespace(factor=factor)

    def __call__(self, boxes):
        return boxes * self.scale.factor


@dataclass
class Settings:
    """A detector's configuration."""

    threshold: float = 0.4
    sizes: list[int] = field(default_factory=lambda: [4, 8])


class WithObjects(nn.Module):
    """Finds boxes with a coder, a callable object and two configurations."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
        self.coder = Coder(0.2)
        self.scaled = Scaled(2.0)
        self.settings = Settings()
        self.args = Namespace(most=20)

    def forward(self, images):
        found = self.backbone(images)[0].flatten(1).t()
        priors = torch.ones(found.shape[0], 4) * self.settings.sizes[1]
        boxes = self.scaled(self.coder.decode(found[:, :4], priors))
        scores = found[:, 4].sigmoid()
        kept = torch.where(scores > self.settings.threshold)[0][: self.args.most]
        if len(kept) == 0:
            return boxes[:1], scores[:1]
        return boxes[kept], scores[kept]


class Cascade(nn.Module):
    """Refines boxes in stages: each has a head, a predictor and a coder, which is no module."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(12, 16) for _ in range(3))
        self.predictors = nn.ModuleList(nn.Linear(16, 4) for _ in range(3))
        self.coders = [Coder(0.1), Coder(0.2), Coder(0.4)]

    def stages(self, features, boxes, targets=None):
        for head, predictor, coder in zip(self.heads, self.predictors, self.coders):  # noqa: B905
            boxes = coder.decode(predictor(torch.relu(head(torch.cat([features, boxes], 1)))), boxes)
        return boxes, targets

    def forward(self, images):
        none: list[dict[str, Tensor]] | None = None
        if len(images) > 7:
            none = [{"boxes": images[0]}]
        features = self.backbone(images)[0].flatten(1).t()
        return self.stages(features, torch.ones(features.shape[0], 4) * 8, none)[0]


def converted(detector: nn.Module, path: Path) -> Any:
    image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    hybrid_rt.convert(
        detector, (image,), path, segments=["backbone"], head="script", engine="torchscript", measure=False
    )
    return hybrid_rt.load(path)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", [WithObjects, Cascade])
def test_a_scripted_head_uses_plain_objects(tmp_path: Path, kind: type[nn.Module]) -> None:
    detector = made(kind)
    before = {name: id(value) for name, value in vars(detector).items()}
    hybrid = converted(detector, tmp_path / "a.pt")
    assert {name: id(value) for name, value in vars(detector).items()} == before
    for seed in (1, 2):
        image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(seed)) * seed
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-4, atol=1e-4)


def test_an_object_in_two_places_becomes_one_module() -> None:
    detector = nn.Module()
    detector.first = detector.second = shared = Coder()
    detector.listed = [shared, Coder(0.3)]
    assert use_modules_for_objects(detector)
    assert detector.first is detector.second is detector.listed[0]
    assert isinstance(detector.listed, nn.ModuleList)
    assert detector.listed[1].center == 0.3


def test_what_torchscript_reads_stays_as_it_is() -> None:
    detector = nn.Linear(2, 2)
    detector.names = ["a", "b"]
    detector.sizes = (1, 2)
    detector.function = torch.relu
    detector.kind = torch.float32
    detector.place = torch.device("cpu")
    before = dict(vars(detector))
    assert not use_modules_for_objects(detector)
    assert vars(detector) == before


@pytest.mark.parametrize("function", [functools.partial(torch.clamp, min=0.0), Coder().decode, torch.tensor(1.0).add])
def test_a_callable_that_is_no_object_of_python_code_stays_as_it_is(function: Any) -> None:
    """A module in its place would do nothing when it is called."""
    detector = nn.Module()
    detector.activation = function
    assert not use_modules_for_objects(detector)
    assert detector.activation is function


def test_an_object_in_place_of_a_method_stays_as_it_is(tmp_path: Path) -> None:
    detector = made(WithObjects)
    detector.forward = functools.partial(detector.forward)
    with pytest.raises(hybrid_rt.CaptureError, match=r"'functools\.partial' object") as caught:
        converted(detector, tmp_path / "a.pt")
    assert caught.value.code == "head-not-scriptable"
    detector.forward = Coder()
    use_modules_for_objects(detector)
    assert isinstance(detector.forward, Coder)
