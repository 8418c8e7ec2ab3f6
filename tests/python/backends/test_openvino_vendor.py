"""Tests that OpenVINO and NNCF report nothing to their makers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from helpers.processes import run_while_it_works
from hybrid_rt.conversion.isolation.limits import ISOLATION

pytest.importorskip("openvino")
pytest.importorskip("openvino_telemetry")

TESTS = Path(__file__).parents[1]

CI = ("CI", "TF_BUILD", "JENKINS_URL")
"""OpenVINO's telemetry sends nothing if one of these is set."""


def run(code: str, home: Path, isolation: str = "1") -> None:
    """Runs code as a user of the home directory ``home``, whose machine is not one for CI."""
    usual = {name: value for name, value in os.environ.items() if name not in CI}
    own = {"HOME": str(home), "HYBRID_RT_CACHE": str(home / "cache"), ISOLATION: isolation, "PYTHONPATH": str(TESTS)}
    done = run_while_it_works([sys.executable, "-W", "ignore", "-c", code], env={**usual, **own})
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["0", "1"])
def test_a_conversion_sends_no_telemetry(tmp_path: Path, isolation: str) -> None:
    run(
        "import hybrid_rt\n"
        "from helpers.small_detectors import small_detector, small_image\n"
        "example = (small_image(),)\n"
        f"hybrid_rt.convert(small_detector(), example, {str(tmp_path / 'x.pt')!r}, engine='openvino', measure=False)",
        tmp_path,
        isolation,
    )
    assert (tmp_path / "x.pt").exists()
    assert not (tmp_path / "intel").exists()


@pytest.mark.slow
def test_nncf_sends_no_telemetry(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    run("from hybrid_rt.backends.openvino.vendor import import_nncf; import_nncf()", tmp_path)
    assert not (tmp_path / "intel").exists()


@pytest.mark.slow
def test_a_user_s_own_import_of_the_telemetry_stays(tmp_path: Path) -> None:
    run(
        "import sys\n"
        "from hybrid_rt.backends.openvino.vendor import import_openvino\n"
        "import_openvino()\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "import openvino_telemetry\n"
        "assert import_openvino() is sys.modules['openvino']",
        tmp_path,
    )
