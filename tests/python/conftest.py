"""Fixtures: the trained demo detector, images, and bundles converted from it once per run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Inductor would compile a small library for each instruction set that the CPU has, to see if the compiler knows it:
# eight seconds in each process that compiles. It reads this when torch is imported. The test of an artifact that a
# separate process compiled (conversion/test_isolation.py) lets it try, and expects the same instruction set.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Append it after site-packages, so that tests use the installed hybrid_rt and find `models` in the checkout.
from helpers.paths import ROOT

sys.path.append(str(ROOT))

import hybrid_rt
from helpers.external_projects import DOWNSTREAM, build_project
from hybrid_rt.common.images import read_image
from hybrid_rt.conversion.report.measurement import eager_budget
from models import digits_detector

SLOW_COMPILERS = {"aot_inductor", "tvm"}
"""Backends that take two to ten seconds for the smallest segment, twenty times as long as the others do."""


LONG_SECONDS = 60.0


class _ToldAtOnce:
    """Prints failures and long tests as they end, because a run that is stopped prints no summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.nodeid} failed in its {report.when}:\n{report.longreprtext}")
        elif report.duration > LONG_SECONDS:
            self._terminal.write_line(f"\n{report.nodeid}: its {report.when} took {report.duration:.0f} s")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Only the main process has a terminal reporter."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_ToldAtOnce(terminal))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the parameters of slow compilers as slow."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            values = item.callspec.params.values()
            if any(isinstance(value, str) and value in SLOW_COMPILERS for value in values):
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Makes random weights of a test, and of the fixtures that it creates, independent of earlier tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Uses a separate cache, so that the user's is neither written nor read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_RT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _compile_here() -> Iterator[None]:
    """Compiles in this process, because starting one would take longer than most conversions.

    test_isolation.py starts some.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_RT_COMPILE_ISOLATION", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_measurements() -> Iterator[None]:
    """Measures only one round, because tests do not use the figures."""
    before = eager_budget.set(0.0)
    yield
    eager_budget.reset(before)


@pytest.fixture(scope="session")
def demo_detector() -> FasterRCNN:
    return digits_detector.load()


@pytest.fixture(scope="session")
def demo_image_path() -> Path:
    """Returns the path of a PNG that the demo detector was not trained on."""
    return sorted((ROOT / "models" / "held_out").glob("*.png"))[0]


@pytest.fixture(scope="session")
def demo_image(demo_image_path: Path) -> Tensor:
    """Returns the demo image as [3, H, W] in 0..1."""
    return read_image(demo_image_path)


@pytest.fixture(scope="session")
def demo_images() -> list[Tensor]:
    """Returns all held-out images, of several sizes."""
    return [read_image(path) for path in sorted((ROOT / "models" / "held_out").glob("*.png"))]


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory, demo_detector: FasterRCNN, demo_image: Tensor) -> Path:
    """Returns the demo detector in fp32 with OpenVINO and TorchScript variants of the backbone. Do not modify it."""
    path = tmp_path_factory.mktemp("bundles") / "digits.pt"
    hybrid_rt.convert(demo_detector, ([demo_image],), path, segments="backbone", measure=False)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yields Debian's Chromium."""
    from playwright.sync_api import sync_playwright  # not installed where gpu_check runs its tests

    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "install the packages of tools/debian/tests.txt"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def downstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the directory of the programs of tests/downstream, built against the installed package."""
    return build_project(DOWNSTREAM, tmp_path_factory.mktemp("downstream"))


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield
