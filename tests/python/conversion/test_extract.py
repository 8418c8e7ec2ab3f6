"""Tests of extracting a bundle's artifacts to plain files that the vendors' tools can open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hybrid_rt
from capture.test_fused import Detector
from helpers.bundle_surgery import flip_byte, manifest_of, offset_of, rewrite, rewrite_manifest, save_with_backends
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BundleError, OptionError
from hybrid_rt.cli.main import main
from hybrid_rt.torchscript import jit


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small detector with OpenVINO and TorchScript variants of its backbone. Do not modify it."""
    path = tmp_path_factory.mktemp("extract") / "detector.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone")
    return path


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extract") / "fused.pt"
    detector = Detector().requires_grad_(False).eval()
    hybrid_rt.convert(detector, (small_image(),), path, segments=["backbone", "head"], engine="torchscript")
    return path


def test_each_variant_has_its_files(bundle_path: Path, tmp_path: Path) -> None:
    files = hybrid_rt.extract(bundle_path, tmp_path / "made" / "by it")
    assert [file.name for file in files] == [
        "backbone-openvino-fp32.xml",
        "backbone-openvino-fp32.bin",
        "backbone-torchscript-fp32.pt",
    ]
    assert sorted(files) == sorted((tmp_path / "made" / "by it").iterdir())


def test_openvino_reads_the_model_and_gives_the_same_boxes(bundle_path: Path, tmp_path: Path) -> None:
    import openvino

    xml, _ = hybrid_rt.extract(bundle_path, tmp_path, backend="openvino")
    model = openvino.compile_model(openvino.Core().read_model(xml), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = [torch.from_numpy(values) for values in model([small_image().numpy()]).values()]
    expected = small_detector().backbone(small_image())
    torch.testing.assert_close(found, list(expected.values()), rtol=1e-4, atol=1e-5)


def test_torch_loads_the_module_and_gives_the_same_boxes(bundle_path: Path, tmp_path: Path) -> None:
    (file,) = hybrid_rt.extract(bundle_path, tmp_path, backend="torchscript")
    found = jit.open_archive(file)(small_image())
    expected = small_detector().backbone(small_image())
    torch.testing.assert_close(list(found), list(expected.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("segment", ["backbone", "head", "backbone+head", None])
def test_an_engine_is_known_by_each_of_its_segments(fused: Path, tmp_path: Path, segment: str | None) -> None:
    (file,) = hybrid_rt.extract(fused, tmp_path, segment=segment)
    assert file.name == "backbone+head-torchscript-fp32.pt"


def test_missing_files_and_devices(bundle_path: Path, fused: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\[extract\]: segment: expected one of backbone, got 'neck'"):
        hybrid_rt.extract(bundle_path, tmp_path, segment="neck")
    with pytest.raises(OptionError, match=r"segment: expected one of backbone, head, backbone\+head, got 'neck'"):
        hybrid_rt.extract(fused, tmp_path, segment="neck")
    with pytest.raises(OptionError, match=r"backend: expected one of openvino, torchscript, got 'tensorrt'"):
        hybrid_rt.extract(bundle_path, tmp_path, backend="tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_installed_has_its_blobs_names(tmp_path: Path) -> None:
    path = save_with_backends(tmp_path / "x.pt", ["nosuch", "nosuch"])
    names = [file.name for file in hybrid_rt.extract(path, tmp_path / "files")]
    assert names == ["backbone-nosuch-fp32.module", "backbone-nosuch-fp32-2.module"]


def test_names_from_a_file_stay_inside_the_directory(bundle_path: Path, tmp_path: Path) -> None:
    def rename(manifest: dict) -> None:
        manifest["engines"][0]["members"][0]["name"] = "../../outside"
        manifest["engines"][0]["variants"][0]["blobs"][0]["name"] = "/../x"
        manifest["engines"][0]["variants"][0]["backend"] = "../nosuch"

    path = rewrite_manifest(bundle_path, tmp_path / "x.pt", rename)
    directory = tmp_path / "deep" / "down"
    files = hybrid_rt.extract(path, directory)
    assert {file.parent for file in files} == {directory}
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted([path, *files])


@pytest.mark.slow
def test_no_engine_is_opened(bundle_path: Path, tmp_path: Path) -> None:
    code = (
        "import sys, hybrid_rt; hybrid_rt.extract(sys.argv[1], sys.argv[2]); "
        "loaded = open('/proc/self/maps').read(); "
        "assert 'libhybrid_rt_openvino' not in loaded and 'libopenvino' not in loaded and 'openvino' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, bundle_path, tmp_path], check=True, timeout=300)


# damaged files, directories without write permission


def test_an_altered_artifact_is_not_written(bundle_path: Path, tmp_path: Path) -> None:
    manifest = hybrid_rt.inspect(bundle_path)
    blob = manifest["engines"][0]["variants"][0]["blobs"][1]
    (record,) = [name for name, entry in manifest["records"].items() if entry["sha256"] == blob["sha256"]]
    path = flip_byte(bundle_path, tmp_path / "x.pt", offset_of(bundle_path, record, 0.5))
    directory = tmp_path / "files"
    with pytest.raises(BundleError, match=r"\[extract\]: .*x.pt: expected the artifacts as they were saved, got "):
        hybrid_rt.extract(path, directory)
    assert not (directory / "backbone-openvino-fp32.bin").exists()
    (untouched,) = hybrid_rt.extract(path, directory, backend="torchscript")
    assert untouched.stat().st_size > 0


def test_an_artifact_that_was_exchanged_is_not_written(bundle_path: Path, tmp_path: Path) -> None:
    manifest = hybrid_rt.inspect(bundle_path)
    blob = manifest["engines"][0]["table"][0]
    (record,) = [name for name, entry in manifest["records"].items() if entry["sha256"] == blob["sha256"]]
    path = rewrite(bundle_path, tmp_path / "x.pt", {record: lambda data: bytes([data[0] ^ 1]) + data[1:]}, sign=False)
    with pytest.raises(BundleError, match="got other bytes of "):
        hybrid_rt.extract(path, tmp_path / "files")
    path = rewrite(bundle_path, tmp_path / "y.pt", {record: None}, sign=False)
    with pytest.raises(BundleError, match=r"expected the artifacts as they were saved, got "):
        hybrid_rt.extract(path, tmp_path / "files")


def test_files_that_are_not_bundles(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("no bundle")
    with pytest.raises(BundleError, match="expected a TorchScript archive"):
        hybrid_rt.extract(path, tmp_path)
    with pytest.raises(BundleError, match="expected a file"):
        hybrid_rt.extract(tmp_path / "missing.pt", tmp_path)


def test_a_truncated_file(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(bundle_path.read_bytes()[:-200])
    with pytest.raises(BundleError, match="expected a TorchScript archive"):
        hybrid_rt.extract(path, tmp_path)


def test_a_directory_that_is_a_file(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        BundleError, match=r"\[extract\]: .*file: expected a directory that can be written, got File exists"
    ):
        hybrid_rt.extract(bundle_path, tmp_path / "file")
    with pytest.raises(BundleError, match=r"expected a directory that can be written, got Not a directory"):
        hybrid_rt.extract(bundle_path, tmp_path / "file" / "inner")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(bundle_path: Path, tmp_path: Path) -> None:
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o500)
    with pytest.raises(BundleError, match="expected to write the file, got Permission denied"):
        hybrid_rt.extract(bundle_path, directory)


# the command line


def test_on_the_command_line(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["extract", str(bundle_path), str(tmp_path), "--segment", "backbone", "--backend", "openvino"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / "backbone-openvino-fp32.xml"),
        str(tmp_path / "backbone-openvino-fp32.bin"),
    ]
    assert main(["extract", str(bundle_path), str(tmp_path), "--segment", "neck"]) == 2
    assert "segment: expected one of backbone, got 'neck'" in capsys.readouterr().err
    assert main(["extract", str(tmp_path / "missing.pt"), str(tmp_path)]) == 1
    assert "expected a file" in capsys.readouterr().err


def test_the_manifest_s_digests_are_those_of_the_files(bundle_path: Path, tmp_path: Path) -> None:
    import hashlib

    files = hybrid_rt.extract(bundle_path, tmp_path)
    manifest = manifest_of(bundle_path)
    blobs = [blob for variant in manifest["engines"][0]["variants"] for blob in variant["blobs"]]
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [blob["sha256"] for blob in blobs]
