"""Tests of restricting the backends that may run code from a file."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hybrid_rt
from helpers.bundle_surgery import save_with_backends, small_artifact
from helpers.small_detectors import small_image
from hybrid_rt import BackendError, OptionError
from hybrid_rt.cli.main import main
from hybrid_rt.common.executables import program
from hybrid_rt.common.specs import Artifact, blob_from_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


LIBRARY = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen(MARK, "w")); }
"""


def test_a_native_library_runs_only_if_load_permits_it(tmp_path: Path) -> None:
    """The constructors of a library run when it is opened, even if it is invalid."""
    mark, source, library = tmp_path / "it ran", tmp_path / "library.c", tmp_path / "library.so"
    source.write_text(LIBRARY)
    subprocess.run(["cc", f'-DMARK="{mark}"', "-shared", "-fPIC", "-o", library, source], check=True)
    usual = small_artifact()
    blobs = {"library": blob_from_bytes(library.read_bytes()), "conditions": blob_from_bytes(b"")}
    native = Artifact(replace(usual.spec, backend="aot_inductor"), blobs)
    path = save_with_backends(tmp_path / "native.pt", [native, usual])

    hybrid_rt.inspect(path)
    hybrid_rt.check(path)
    hybrid_rt.extract(path, tmp_path / "files")
    hybrid_rt.load(path, backend="torchscript")
    hybrid_rt.load(path, allow=["torchscript", "openvino"])
    assert not mark.exists()
    assert backend_of(hybrid_rt.load(path)) == "torchscript"  # it was not made by AOTInductor
    assert mark.exists()


def backend_of(module: torch.jit.ScriptModule) -> str:
    (engine,) = hybrid_rt.engines(module)
    return str(engine["backend"])


def test_unnamed_backends_do_not_run(small_bundle: Path) -> None:
    assert backend_of(hybrid_rt.load(small_bundle)) == "openvino"
    module = hybrid_rt.load(small_bundle, allow=["torchscript"])
    assert backend_of(module) == "torchscript"
    (engine,) = hybrid_rt.engines(module)
    refused, ran = engine["variants"]
    assert "only 'torchscript' may run here" in refused["refusal"]
    assert ran["chosen"]
    assert backend_of(hybrid_rt.load(small_bundle, allow=["openvino:fp32"])) == "openvino"


def test_the_policy_is_above_what_the_caller_prefers(small_bundle: Path) -> None:
    for opened in (
        lambda **options: hybrid_rt.load(small_bundle, **options),
        lambda **options: hybrid_rt.open_engine(small_bundle, "backbone", **options),
    ):
        with pytest.raises(BackendError, match="only 'torchscript' may run here: the policy of allow= or HYBRID_RT_A"):
            opened(backend="openvino", allow=["torchscript"])
        with pytest.raises(BackendError, match="only 'onnxruntime', 'tvm' may run here"):
            opened(allow=["onnxruntime", "tvm"])
        with pytest.raises(BackendError, match="only 'openvino:bf16' may run here"):
            opened(allow=["openvino:bf16"])
    with pytest.raises(BackendError, match="strict"):
        hybrid_rt.load(small_bundle, strict=True, allow=["torchscript"])


@pytest.mark.parametrize("allow", [[], [""], ""])
def test_an_empty_policy_is_refused(allow: list[str], small_bundle: Path) -> None:
    with pytest.raises(OptionError, match="allow: expected at least one backend's name"):
        hybrid_rt.load(small_bundle, allow=allow)


def test_the_environment_is_the_policy_of_everything_in_the_process(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRID_RT_ALLOW", " torchscript , onnxruntime")
    assert backend_of(hybrid_rt.load(small_bundle)) == "torchscript"
    (engine,) = hybrid_rt.check(small_bundle)
    assert engine.chosen is not None
    assert engine.chosen.backend == "torchscript"
    assert backend_of(hybrid_rt.load(small_bundle, allow=["openvino"])) == "openvino"  # the argument takes precedence
    plain = torch.jit.load(str(small_bundle))  # without our library's check
    plain(small_image())
    assert backend_of(plain) == "torchscript"
    monkeypatch.setenv("HYBRID_RT_ALLOW", " , ")
    with pytest.raises(BackendError, match="may run here"):
        hybrid_rt.load(small_bundle)


def test_check_names_the_permitted_variants(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small_bundle), "--allow", "torchscript"]) == 0
    said = capsys.readouterr().out
    assert "openvino (fp32): only 'torchscript' may run here" in said
    assert "torchscript (fp32): runs" in said
    assert main(["check", str(small_bundle), "--allow", "tvm"]) == 1


def test_the_programs_obey_the_policy(demo_bundle: Path, demo_image_path: Path) -> None:
    command = [program("hybrid-rt-detect", "test"), str(demo_bundle), str(demo_image_path), "--json", "--allow"]
    done = subprocess.run([*command, "onnxruntime,torchscript"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["engines"].values()) == {"torchscript"}
    served = [program("hybrid-rt-serve", "test"), str(demo_bundle), "--port", "0", "--allow", "tvm"]
    for refused in ([*command, "tvm"], served):
        done = subprocess.run(refused, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 4
        assert "only 'tvm' may run here" in done.stderr
