"""Tests that all readers of bundles read files of format version 1, tests/data/format_1."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import torch

import hybrid_rt
from helpers.bundle_surgery import manifest_of, read_record, rewrite_manifest
from helpers.paths import ROOT
from helpers.small_detectors import SmallDetector, small_image
from hybrid_rt import BundleError
from hybrid_rt import bundle as bundle_package
from hybrid_rt.cli.main import main
from hybrid_rt.common.executables import program
from hybrid_rt.conversion.export.package_contents import models_of
from hybrid_rt.conversion.export.triton import export_triton

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

DIRECTORY = ROOT / "tests" / "data" / "format_1"
BANK, FUSED, SINGLE = (DIRECTORY / name for name in ("bank.pt", "fused.pt", "single.pt"))
ALL = [BANK, FUSED, SINGLE]
SCHEMA = json.loads(Path(bundle_package.__file__).with_name("manifest.schema.json").read_text(encoding="utf-8"))


def labels(path: Path) -> list[list[str]]:
    """Returns the backend and precision of each variant of each engine."""
    return [
        [f"{variant['backend']}:{variant['precision']}" for variant in engine["variants"]]
        for engine in hybrid_rt.inspect(path)["engines"]
    ]


def assert_version_2(path: Path) -> None:
    """Checks the file itself, including the engines' states."""
    assert read_record(path, "extra/hybrid_rt/format_version") == b"2"
    written = manifest_of(path)
    assert "segments" not in written
    assert written == hybrid_rt.inspect(path)
    jsonschema.validate(written, SCHEMA)
    states = read_record(path, "constants.pkl")
    assert b"hybrid_rt\nEngine\nq\x00)\x81K\x02" in states


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_files_are_of_version_1(path: Path) -> None:
    assert read_record(path, "extra/hybrid_rt/format_version") == b"1"
    assert "segments" in manifest_of(path)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_inspect_shows_them_in_the_form_of_version_2(path: Path) -> None:
    values = hybrid_rt.inspect(path)
    jsonschema.validate(values, SCHEMA)
    old = manifest_of(path)
    assert "segments" not in values
    assert values["records"] == old["records"]
    for engine, segment in zip(values["engines"], old["segments"], strict=True):
        assert "name" not in engine
        assert "+".join(member["name"] for member in engine["members"]) == segment["name"]
        assert (engine["variants"], engine["table"]) == (segment["variants"], segment["table"])
    assert [error["engine"] for error in values["verification"]["tensors"]] == [
        error["segment"] for error in old["verification"]["tensors"]
    ]


def test_inspect_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(FUSED)]) == 0
    out = capsys.readouterr().out
    assert "engine backbone+head\n  one engine for backbone and head\n" in out
    assert "  backbone+head: greatest relative error " in out


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_check_reports_them_intact(path: Path) -> None:
    (engine,) = hybrid_rt.check(path)
    assert engine.segments == (("backbone", "head") if path == FUSED else ("backbone",))
    assert engine.chosen is not None


@pytest.mark.parametrize("path", [BANK, FUSED], ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["", "openvino:fp32", "torchscript"])
def test_their_boxes_match_the_detector(path: Path, backend: str) -> None:
    check = hybrid_rt.verify_golden(path, backend=backend)
    assert check.passed, check.verification.failures
    assert check.engines[0]["segments"] == (["backbone", "head"] if path == FUSED else ["backbone"])


def test_one_without_a_golden_sample_runs() -> None:
    found = hybrid_rt.load(SINGLE)([torch.rand(3, 48, 64)])
    assert set(found[0]) == {"boxes", "labels", "scores"}
    with pytest.raises(BundleError, match="expected a golden sample, got none"):
        hybrid_rt.verify_golden(SINGLE)


def test_plain_torch_load_runs_them() -> None:
    (engine,) = hybrid_rt.engines(torch.jit.load(str(FUSED)))
    assert (engine["engine"], engine["segments"]) == ("backbone+head", ["backbone", "head"])


@pytest.mark.parametrize("path", [BANK, FUSED], ids=lambda path: path.stem)
def test_the_cpp_program_verifies_them(path: Path) -> None:
    done = subprocess.run(
        [program("hybrid-rt-detect", "test"), path, "--verify", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["passed"] is True
    assert list(told["engines"]) == ["backbone+head" if path == FUSED else "backbone"]


@pytest.mark.parametrize("name", ["backbone+head", "backbone", "head"])
def test_their_engines_open_alone(name: str) -> None:
    engine = hybrid_rt.open_engine(FUSED, name, backend="torchscript")
    assert len(engine(small_image())) == 4


def test_extract_writes_their_artifacts(tmp_path: Path) -> None:
    files = hybrid_rt.extract(FUSED, tmp_path, segment="head")
    assert sorted(file.name for file in files) == [
        "backbone+head-openvino-fp32.bin",
        "backbone+head-openvino-fp32.xml",
        "backbone+head-torchscript-fp32.pt",
    ]


@pytest.mark.parametrize("path", [BANK, FUSED], ids=lambda path: path.stem)
def test_add_variant_writes_version_2(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "more.pt"
    report = hybrid_rt.add_variant(path, "torchscript:bf16", output)
    assert report.verification is not None
    assert report.verification.pictures or report.verification.tensors
    assert_version_2(output)
    ((*_, added, fallback),) = labels(output)
    assert (added, fallback) == ("torchscript:bf16", "torchscript:fp32")
    assert hybrid_rt.verify_golden(output, backend="torchscript:fp32").passed


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_remove_variant_writes_version_2(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "fewer.pt"
    hybrid_rt.remove_variant(path, "openvino", output)
    assert_version_2(output)
    assert not [label for label in labels(output)[0] if label.startswith("openvino")]
    assert hybrid_rt.check(output)[0].chosen is not None


@pytest.mark.parametrize("path", [BANK, SINGLE], ids=lambda path: path.stem)
def test_swap_backbone_writes_version_2(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "swapped.pt"
    torch.manual_seed(1)
    backbone = SmallDetector().eval().requires_grad_(False).backbone
    hybrid_rt.swap_backbone(path, backbone, output, engine="openvino")
    assert_version_2(output)
    assert labels(output) == [["openvino:bf16" if path == BANK else "openvino:fp32", "torchscript:fp32"]]
    assert hybrid_rt.load(output)([torch.rand(3, 64, 96)])


def test_package_knows_their_backends() -> None:
    (fused,) = models_of([FUSED])
    assert {name: list(backends) for name, backends in fused.engines.items()} == {
        "backbone+head": ["openvino", "torchscript"]
    }


def test_export_triton_takes_them(tmp_path: Path) -> None:
    model = export_triton(BANK, tmp_path)
    assert [tensor.name for tensor in model.outputs] == ["boxes__0", "labels__1", "scores__2"]


def test_a_damaged_manifest_of_version_1_is_refused(tmp_path: Path) -> None:
    path = rewrite_manifest(SINGLE, tmp_path / "damaged.pt", lambda manifest: manifest["segments"][0].pop("variants"))
    with pytest.raises(BundleError, match="manifest, an engine: expected 'members', 'variants' and 'table'"):
        hybrid_rt.inspect(path)


@pytest.mark.parametrize("tensors", [7, "x", None, True, {"a": 1}, [7, None]])
def test_a_verification_of_version_1_that_is_not_a_list_is_read(tensors: object, tmp_path: Path) -> None:
    """A value is not treated as its own only element: tools/fuzz found that it was replaced meanwhile."""
    path = rewrite_manifest(
        SINGLE, tmp_path / "changed.pt", lambda manifest: manifest.update(verification={"tensors": tensors})
    )
    assert hybrid_rt.inspect(path)["verification"] == {"tensors": tensors}
