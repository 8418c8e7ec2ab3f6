"""Tests of counted work and of the choice of segments from it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from helpers.small_detectors import small_detector, small_image
from hybrid_rt.capture.counted_work import Work, WorkCounter
from hybrid_rt.capture.observe import observe
from hybrid_rt.capture.segments import shares_of
from hybrid_rt.capture.side_effects import find_side_effects


def counted(module: nn.Module, *inputs: Tensor) -> Work:
    found: list[Work] = []
    with torch.no_grad(), WorkCounter(found.append):
        module.eval()(*inputs)
    return sum(found, Work())


def test_products_count_each_multiplication_and_addition() -> None:
    assert counted(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 10, 12)).operations == 2 * 27 * 8 * 120
    assert counted(nn.Linear(16, 4, bias=False), torch.zeros(5, 16)).operations == 2 * 16 * 4 * 5
    assert counted(nn.ConvTranspose2d(4, 2, 2, 2, bias=False), torch.zeros(1, 4, 3, 3)).operations == 2 * 4 * 8 * 9


def test_other_operators_count_the_elements_of_their_result_and_views_none() -> None:
    assert counted(nn.ReLU(), torch.zeros(1, 3, 10, 12)) == Work(360, 2 * 360 * 4, 2 * 360 * 4 * 8 + 200_000)
    assert counted(nn.Flatten(), torch.zeros(1, 3, 10, 12)).bytes == 0


@pytest.mark.parametrize(
    ("module", "inputs", "least"),
    [
        (nn.LSTM(32, 64), (torch.zeros(20, 1, 32),), 2 * 20 * 4 * 64 * (32 + 64)),
        (nn.GRU(32, 64, batch_first=True), (torch.zeros(1, 20, 32),), 2 * 20 * 3 * 64 * (32 + 64)),
        (nn.MultiheadAttention(32, 4, batch_first=True), (torch.zeros(1, 20, 32),) * 3, 2 * 20 * 4 * 32 * 32),
        (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (torch.zeros(1, 20, 32),), 2 * 20 * 2 * 32 * 64),
    ],
)
def test_operators_that_hold_several_products_count_them(
    module: nn.Module, inputs: tuple[Tensor, ...], least: int
) -> None:
    assert counted(module, *inputs).operations >= least


def test_the_parts_of_a_detector_are_parts_of_its_work() -> None:
    seen = observe(small_detector(), (small_image(),))
    assert 0 < seen.uses["backbone.first"].work.cost < seen.uses["backbone"].work.cost < seen.work.cost
    parts = (seen.uses[f"backbone.{name}"].work for name in ("first", "second"))
    assert sum(parts, Work()) == seen.uses["backbone"].work
    alone = counted(small_detector(), small_image())
    assert seen.work == alone  # without the work of the observers


class WithNms(nn.Module):
    """Has parts with similar shares of the time, and one near the minimum share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        boxes, scores = self.boxes(x).flatten(2)[0].T, self.scores(x).flatten()
        kept = nms(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].exp()], 1), scores, 0.5)
        return boxes[kept], scores[kept]


@pytest.mark.parametrize("make", [small_detector, WithNms])
def test_the_choice_does_not_depend_on_the_clock(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    detector, inputs = make().eval(), (small_image(),)
    findings = find_side_effects(detector, inputs)
    draw = random.Random(0)
    clock = [0.0]

    def perf_counter() -> float:
        clock[0] += draw.choice([1e-6, 1e-3, draw.random() * 0.1])
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", perf_counter)
    choices, times = set(), set()
    for _ in range(5):
        shares = shares_of(observe(detector, inputs), findings, None)
        choices.add(tuple((share.name, share.share, share.chosen, share.reason) for share in shares))
        times.add(tuple(share.milliseconds for share in shares))
    assert len(choices) == 1
    assert len(times) == 5
