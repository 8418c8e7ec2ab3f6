"""Tests that a detector that keeps state between calls is refused by name, and that a cache is not."""

from __future__ import annotations

import copy
from collections import deque
from concurrent.futures import ThreadPoolExecutor
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
    """Creates its state in its first call."""

    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        if self.seen is None:
            self.seen = features
        self.seen = self.seen * 0.5 + features
        return self.seen


class Mapped(Keeps):
    """Writes into a dict that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        if "last" in self.kept:
            features = features + self.kept["last"]
        self.kept["last"] = features.mean()
        return features


class Queued(Keeps):
    """Returns the mean of the last two frames."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[Tensor] = deque(maxlen=2)

    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        self.queue.append(features.mean())
        return features + sum(self.queue)


CASES = [
    (InPlace, "buffer 'previous'"),
    (Assigned, "buffer 'previous'"),
    (Number, "attribute 'total'"),
    (Listed, "attribute 'frames'"),
    (New, "attribute 'seen'"),
    (Mapped, "attribute 'kept'"),
    (Queued, "attribute 'queue'"),
]


def converted(detector: nn.Module, path: Path, **options: Any) -> Any:
    example = (torch.rand(1, 3, 16, 16),)
    result = hybrid_rt.convert(
        detector, example, path, segments=["backbone"], engine="torchscript", measure=False, **options
    )
    return result.report


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (InPlace, "auto"),
        (InPlace, "trace"),
        (Assigned, "auto"),
        (Number, "script"),
        (New, "auto"),
        (Mapped, "auto"),
        (Queued, "auto"),
    ],
)
def test_each_call_of_a_hybrid_that_resets_is_as_the_first(kind: type[Keeps], head: str, tmp_path: Path) -> None:
    detector = kind().eval()
    with torch.no_grad():
        detector.previous.fill_(0.25)
    watch = StateWatch(detector)
    report = converted(detector, tmp_path / "a.pt", head=head, state="reset", shapes={"height": (8, 24)})
    assert watch.changed() == []
    assert report.state == [dict(CASES)[kind]]
    assert f"as at conversion before each call: {dict(CASES)[kind]}" in str(report)
    hybrid = hybrid_rt.load(tmp_path / "a.pt")
    for height in (16, 24, 16, 8):
        image = torch.rand(1, 3, height, 16)
        assert torch.allclose(hybrid(image), copy.deepcopy(detector)(image), atol=1e-5)


class Grid(OneConvolution):
    """Caches the grid of the last size, which does not change results."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(1))
        self.height = 0

    def forward(self, batch: Tensor) -> Tensor:
        features = self.backbone(batch)
        if self.height != features.size(2):
            self.height = features.size(2)
            self.rows = torch.arange(self.height).to(features.dtype)
        return features + self.rows[:, None]


def test_threads_with_images_of_several_sizes_share_no_grid(tmp_path: Path) -> None:
    detector = Grid().eval().requires_grad_(False)
    report = converted(detector, tmp_path / "a.pt", shapes={"height": (8, 24)})
    assert report.state == ["buffer 'rows'", "attribute 'height'"]
    hybrid = hybrid_rt.load(tmp_path / "a.pt")
    images = [torch.rand(1, 3, height, 16) for height in (8, 16, 24)]
    expected = [copy.deepcopy(detector)(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: hybrid(images[i % 3]), range(120)))
    assert all(torch.allclose(one, expected[i % 3], atol=1e-5) for i, one in enumerate(found))


def test_state_has_two_valid_options(tmp_path: Path) -> None:
    with pytest.raises(hybrid_rt.OptionError, match=r"state: expected one of refuse, reset, got 'keep'"):
        converted(InPlace().eval(), tmp_path / "a.pt", state="keep")


def test_the_refusal_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="Pass state='reset' to treat each image as the first one"):
        converted(InPlace().eval(), tmp_path / "a.pt", verify=False)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[name for _, name in CASES])
def test_state_is_refused_by_name_and_the_detector_is_as_before(
    kind: type[Keeps], name: str, verify: bool, tmp_path: Path
) -> None:
    detector = kind().eval()
    watch = StateWatch(detector)
    with pytest.raises(CaptureError, match="because of state in") as caught:
        hybrid_rt.convert(
            detector, (torch.rand(1, 3, 16, 16),), tmp_path / "a.pt", segments=["backbone"], verify=verify,
            measure=False,
        )  # fmt: skip
    assert name in str(caught.value)
    assert watch.changed() == []
    assert not (tmp_path / "a.pt").exists()


def test_unused_counters_are_not_state_and_are_restored(tmp_path: Path) -> None:
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


def test_weights_are_not_state() -> None:
    layer = nn.Conv2d(3, 3, 1)
    assert StateWatch(layer).changed() == []
    assert not any("weight" in name for name in StateWatch(layer).changed())
