"""Tests of concurrent calls in a bundle's engines: `concurrency` of load."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Backbone, SmallDetector, small_image
from hybrid_rt import OptionError

pytestmark = pytest.mark.slow

WIDE = 9000
"""Columns of a product whose weights exceed what the OpenVINO engine copies for each call."""


class LargeBackbone(Backbone):
    """Returns the same levels plus a product whose weights take 70 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(8, 2048)
        self.wide = nn.Linear(2048, WIDE)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().forward(images)
        moved = self.wide(self.narrow(levels["coarse"].mean((2, 3)))).mean(1)
        return {"fine": levels["fine"], "coarse": levels["coarse"] + moved[:, None, None, None]}


class Work(Backbone):
    """Takes long enough for its CPU time to be measured: 1.4 GMAC for 512x512."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 64, 64, 64, 8)
        self.body = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().forward(images)
        return {"fine": levels["fine"], "coarse": self.body(levels["coarse"])}


def detector_with(backbone: type[Backbone]) -> SmallDetector:
    torch.manual_seed(0)
    return SmallDetector(backbone()).eval()


def saved(backbone: type[Backbone], path: Path, images: Tensor, verify: bool = True) -> Path:
    detector = detector_with(backbone)
    hybrid_rt.convert(detector, (images,), path, segments="backbone", engine="openvino", measure=False, verify=verify)
    return path


@pytest.fixture(scope="module", params=[Backbone, LargeBackbone])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SmallDetector]:
    path = tmp_path_factory.mktemp("concurrency") / "detector.pt"
    return saved(request.param, path, small_image()), detector_with(request.param)


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_more_threads_than_calls_side_by_side_get_their_own_results(
    bundle: tuple[Path, SmallDetector], concurrency: int
) -> None:
    path, detector = bundle
    module = hybrid_rt.load(path, threads=1, concurrency=concurrency, warm_up=[(32, 32)])
    inputs = [small_image() + i for i in range(5)]
    expected = [detector(x) for x in inputs]
    together = threading.Barrier(len(inputs), timeout=60)

    def call(i: int) -> list[tuple[Tensor, ...]]:
        together.wait()
        with torch.inference_mode():
            return [module(inputs[i]) for _ in range(20)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        for results, right in zip(pool.map(call, range(len(inputs))), expected, strict=True):
            for result in results:
                for got, wanted in zip(result, right, strict=True):
                    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_description_says_how_many(bundle: tuple[Path, SmallDetector]) -> None:
    path, _ = bundle
    module = hybrid_rt.load(path, threads=1, concurrency=2)
    (engine,) = hybrid_rt.engines(module)
    assert engine["description"].endswith(", 1 threads for each of 2 calls")


def test_a_call_with_one_thread_runs_in_the_calling_thread(tmp_path: Path) -> None:
    images = small_image(512, 512)
    # Do not verify, because rounding changes the order of so many boxes with such similar scores.
    path = saved(Work, tmp_path / "work.pt", images, verify=False)
    module = hybrid_rt.load(path, threads=1, concurrency=2)

    def shares() -> tuple[float, float]:
        torch.set_num_threads(1)
        with torch.inference_mode():
            module(images)
            module(images)
            of_thread, of_process = time.thread_time(), time.process_time()
            for _ in range(10):
                module(images)
            return time.thread_time() - of_thread, time.process_time() - of_process

    with ThreadPoolExecutor(1) as pool:
        of_thread, of_process = pool.submit(shares).result()
    assert of_thread > 0.9 * of_process


def test_impossible_numbers_are_refused(bundle: tuple[Path, SmallDetector]) -> None:
    path, _ = bundle
    with pytest.raises(OptionError, match="threads, concurrency: expected 0 or more, and 1 or more, got 1 and 0"):
        hybrid_rt.load(path, threads=1, concurrency=0)


def test_failures_in_a_warm_up_call_are_reported(bundle: tuple[Path, SmallDetector]) -> None:
    path, _ = bundle
    with pytest.raises(OptionError, match=r"warm_up at 5x7: expected the detector to run, got "):
        hybrid_rt.load(path, threads=1, concurrency=2, warm_up=[(5, 7)])
