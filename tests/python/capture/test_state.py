"""A detector that keeps something from call to call is refused by name; a cache is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import OneConvolution
from hybrid_rt import CaptureError
from hybrid_rt.capture.state import StateWatch


class Keeps(OneConvolution):
    """Has a buffer and attributes that its subclasses use."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("previous", torch.zeros(1))
        self.total = 0.0
        self.frames: list[Tensor] = []
        self.seen: Any = None


class InPlace(Keeps):
    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch) + self.previous
        self.previous.copy_(features.mean().reshape(1))
        return features


class Assigned(Keeps):
    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch) + self.previous
        self.previous = features.mean().reshape(1)
        return features


class Number(Keeps):
    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch) + self.total
        self.total += 1.0
        return features


class Listed(Keeps):
    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        self.frames = [*self.frames, features][-2:]
        return self.frames[0] + features


class New(Keeps):
    """Begins to keep something with its first call."""

    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        if self.seen is None:
            self.seen = features
        self.seen = self.seen * 0.5 + features
        return self.seen


CASES = [
    (InPlace, "buffer 'previous'"),
    (Assigned, "buffer 'previous'"),
    (Number, "attribute 'total'"),
    (Listed, "attribute 'frames'"),
    (New, "attribute 'seen'"),
]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[name for _, name in CASES])
def test_state_is_refused_by_name_and_the_detector_is_as_before(
    kind: type[Keeps], name: str, verify: bool, tmp_path: Path
) -> None:
    detector = kind().eval()
    watch = StateWatch(detector)
    with pytest.raises(CaptureError, match="it keeps state in") as caught:
        hybrid_rt.convert(
            detector, (torch.rand(1, 3, 16, 16),), tmp_path / "a.pt", segments=["backbone"], verify=verify,
            measure=False,
        )  # fmt: skip
    assert name in str(caught.value)
    assert watch.changed() == []
    assert not (tmp_path / "a.pt").exists()


def test_what_is_counted_but_not_used_is_no_state_and_is_put_back(tmp_path: Path) -> None:
    class Counts(Keeps):
        def forward(self, batch: Tensor) -> Tensor:
            self.previous += 1
            return self.backbone(batch)

    detector = Counts().eval()
    example = (torch.rand(1, 3, 16, 16),)
    hybrid_rt.convert(detector, example, tmp_path / "a.pt", segments=["backbone"], verify=False, measure=False)
    watch = StateWatch(detector)
    detector(*example)
    assert watch.changed() == ["buffer 'previous'"]


def test_changes_are_named_with_their_module_and_put_back() -> None:
    detector = nn.Sequential(Keeps())
    kept: Any = detector[0]
    watch = StateWatch(detector)
    buffer = kept.previous
    buffer += 1
    kept.total, kept.frames, kept.other = 2.0, [torch.ones(2)], torch.ones(1)
    kept.seen = torch.full((1,), float("nan"))
    assert watch.changed() == [
        "buffer '0.previous'", "attribute '0.total'", "attribute '0.frames'", "attribute '0.seen'",
        "attribute '0.other'",
    ]  # fmt: skip
    watch.restore()
    assert watch.changed() == []
    assert kept.previous is buffer
    assert float(buffer) == 0
    assert not hasattr(kept, "other")


def test_weights_are_no_state() -> None:
    layer = nn.Conv2d(3, 3, 1)
    assert StateWatch(layer).changed() == []
    assert not any("weight" in name for name in StateWatch(layer).changed())
