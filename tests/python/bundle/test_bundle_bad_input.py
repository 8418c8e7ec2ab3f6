"""Tests of invalid files and inputs: each gives a clear error of this package, never a crash or a partial file."""

from __future__ import annotations

import _ctypes
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hybrid_rt
from helpers.bundle_surgery import (
    DIGEST,
    MANIFEST,
    flip_byte,
    offset_of,
    read_record,
    record_names,
    rewrite,
    rewrite_manifest,
    run_python,
    save_with_backends,
    small_artifact,
)
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BackendError, BundleError, InputError, OptionError
from hybrid_rt.common.specs import blob_from_bytes

DAMAGED = "The file was altered or damaged: copy or convert it again."

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small detector with an OpenVINO and a TorchScript variant of its backbone. Do not modify it."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    shapes = {"height": (16, 64), "batch": (1, 2)}
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", shapes=shapes)
    return path


def blob_records(path: Path, backend: str) -> list[str]:
    """Returns the records that contain a backend's blobs."""
    manifest = hybrid_rt.inspect(path)
    variants = manifest["engines"][0]["variants"]
    digests = {blob["sha256"] for variant in variants if variant["backend"] == backend for blob in variant["blobs"]}
    return [name for name, entry in manifest["records"].items() if entry["sha256"] in digests]


def assert_refused(path: Path, *texts: str) -> None:
    """Checks that every function that opens a bundle refuses the file."""
    for opened in (hybrid_rt.load, hybrid_rt.inspect, hybrid_rt.check):
        with pytest.raises(BundleError) as caught:
            opened(path)
        assert str(caught.value).startswith(f"hybrid_rt[bundle]: {path}")
        for text in texts:
            assert text in str(caught.value)


# Other files than bundles


@pytest.mark.parametrize("content", [b"", b"not a bundle\n" * 100, b"PK\x03\x04", bytes(100_000)])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert_refused(
        path,
        ": expected a TorchScript archive, got something else, or a truncated file. "
        "Copy the file again; hybrid_rt.convert() writes bundles.",
    )


def test_a_directory_and_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path, f"{tmp_path}: expected a file, got no regular file. Check the path.")
    missing = tmp_path / "missing.pt"
    assert_refused(missing, f"{missing}: expected a file, got ", "Check the path.")
    assert_refused(tmp_path / "missing" / "x.pt", "expected a file, got ")


def test_a_torchscript_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(path))
    assert_refused(
        path,
        "expected a bundle of hybrid_rt, got an archive without hybrid_rt's manifest. "
        "hybrid_rt.convert() writes bundles; torch.jit.load() opens other TorchScript files.",
    )


def test_weights_saved_by_torch(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    assert_refused(path, "expected a bundle of hybrid_rt, got an archive without hybrid_rt's manifest.")


def test_a_plain_zip(tmp_path: Path) -> None:
    path = tmp_path / "plain.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(path, "expected ")


def test_a_bundle_saved_by_plain_torch_is_not_a_bundle(small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.pt"
    hybrid_rt.load(small_bundle).save(str(path))
    assert_refused(path, "got an archive without hybrid_rt's manifest")


# Damage


@pytest.mark.parametrize("twentieth", range(20))
def test_truncated_file_fails(small_bundle: Path, tmp_path: Path, twentieth: int) -> None:
    data = small_bundle.read_bytes()
    path = tmp_path / "truncated.pt"
    path.write_bytes(data[: len(data) * twentieth // 20])
    assert_refused(path, "expected a TorchScript archive, got something else, or a truncated file.")


def test_one_byte_short_fails(demo_bundle: Path, tmp_path: Path) -> None:
    data = demo_bundle.read_bytes()
    path = tmp_path / "short.pt"
    path.write_bytes(data[:-1])
    assert_refused(path, "expected ")


def test_a_flipped_byte_in_the_manifest_fails(small_bundle: Path, tmp_path: Path) -> None:
    position = offset_of(small_bundle, MANIFEST, 0.5)
    assert_refused(flip_byte(small_bundle, tmp_path / "flipped.pt", position), DAMAGED)


@pytest.mark.parametrize("name", [DIGEST, "extra/hybrid_rt/format_version"])
def test_a_flipped_byte_beside_the_manifest_fails(small_bundle: Path, tmp_path: Path, name: str) -> None:
    assert_refused(flip_byte(small_bundle, tmp_path / "flipped.pt", offset_of(small_bundle, name)), "expected ")


def head_records(path: Path) -> list[str]:
    records = hybrid_rt.inspect(path)["records"]
    left_out = ("is_blob", "is_golden")  # these are checked only when they are used
    return [name for name, entry in records.items() if entry["size"] and not any(map(entry.get, left_out))]


def test_a_flipped_byte_in_any_record_of_the_head_fails(small_bundle: Path, tmp_path: Path) -> None:
    names = head_records(small_bundle)
    assert "data.pkl" in names
    assert "constants.pkl" in names
    assert any(name.startswith("code/") and name.endswith(".py") for name in names)
    assert any(name.startswith("constants/") for name in names)
    for name in names:
        middle = offset_of(small_bundle, name, 0.5)
        path = flip_byte(small_bundle, tmp_path / "flipped.pt", middle)
        for opened in (hybrid_rt.load, hybrid_rt.check):
            with pytest.raises(BundleError) as caught:
                opened(path)
            assert f"{path}, record '{name}': expected " in str(caught.value)
            assert str(caught.value).endswith(DAMAGED)


@pytest.mark.parametrize("name", ["data.pkl", "constants.pkl", "constants/3"])
def test_a_record_of_the_head_that_was_replaced_with_a_valid_checksum_fails(
    small_bundle: Path, tmp_path: Path, name: str
) -> None:
    path = rewrite(small_bundle, tmp_path / "replaced.pt", {name: lambda data: data[:-1] + b"\x00"}, sign=False)
    with pytest.raises(BundleError) as caught:
        hybrid_rt.load(path)
    assert f"{path}, record '{name}': expected the SHA-256 " in str(caught.value)


def test_a_missing_record_fails(small_bundle: Path, tmp_path: Path) -> None:
    path = rewrite(small_bundle, tmp_path / "missing.pt", {"constants/3": None})
    with pytest.raises(BundleError, match=r"record 'constants/3': expected it to be there, got none"):
        hybrid_rt.load(path)


def test_a_manifest_without_digest_fails(small_bundle: Path, tmp_path: Path) -> None:
    path = rewrite(small_bundle, tmp_path / "unsigned.pt", {DIGEST: None})
    assert_refused(path, "manifest: expected its SHA-256 beside it, got none.", DAMAGED)


def test_a_flipped_byte_in_an_engine_fails_in_load_and_check(small_bundle: Path, tmp_path: Path) -> None:
    names = blob_records(small_bundle, "openvino")
    assert len(names) == 2
    for name in names:
        middle = offset_of(small_bundle, name, 0.5)
        path = flip_byte(small_bundle, tmp_path / "flipped.pt", middle)
        with pytest.raises(BundleError) as caught:
            hybrid_rt.load(path)
        assert str(caught.value).startswith("hybrid_rt[")
        assert "expected " in str(caught.value)
        with pytest.raises(BundleError, match=f"record '{name}'"):
            hybrid_rt.check(path)


def test_a_flipped_byte_in_a_variant_that_does_not_run_fails_in_check(small_bundle: Path, tmp_path: Path) -> None:
    (name,) = blob_records(small_bundle, "torchscript")
    path = flip_byte(small_bundle, tmp_path / "flipped.pt", offset_of(small_bundle, name) + 100)
    with pytest.raises(BundleError, match=f"record '{name}'"):
        hybrid_rt.check(path)
    with pytest.raises(BundleError, match="expected "):
        hybrid_rt.load(path, backend="torchscript")


def test_plain_torch_load_detects_an_altered_engine_at_the_first_run(small_bundle: Path, tmp_path: Path) -> None:
    xml, *_ = blob_records(small_bundle, "openvino")
    path = rewrite(small_bundle, tmp_path / "altered.pt", {xml: lambda data: data.replace(b"Relu", b"ReLu", 1)})
    assert read_record(path, xml) != read_record(small_bundle, xml)
    module = torch.jit.load(str(path))
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            module(small_image())
        assert "hybrid_rt[openvino]: engine 'backbone', blob 'xml': expected the SHA-256 " in str(caught.value)
        assert DAMAGED in str(caught.value)


@pytest.mark.slow
def test_bytes_flipped_anywhere_never_crash(small_bundle: Path, tmp_path: Path) -> None:
    """Checks that a file that still loads gives the right result: the byte was padding or in an unused variant."""
    image = small_image()
    expected = hybrid_rt.load(small_bundle)(image)
    size = small_bundle.stat().st_size
    refused = 0
    for i in range(100):
        path = flip_byte(small_bundle, tmp_path / "flipped.pt", size * i // 100)
        try:
            found = hybrid_rt.load(path)(image)
        except BundleError:
            refused += 1
        else:
            assert all(map(torch.equal, expected, found))
    assert refused > 50


# Other versions


def test_a_newer_format_is_refused_with_advice(small_bundle: Path, tmp_path: Path) -> None:
    path = rewrite(small_bundle, tmp_path / "newer.pt", {"extra/hybrid_rt/format_version": lambda _: b"3"})
    assert_refused(
        path, "expected format version 1 or 2, got 3. Upgrade hybrid_rt: the file was made by a newer version."
    )


@pytest.mark.parametrize("version", [b"", b"one", b"-1", b"1\n"])
def test_an_invalid_format_version_is_damage(small_bundle: Path, tmp_path: Path, version: bytes) -> None:
    path = rewrite(small_bundle, tmp_path / "odd.pt", {"extra/hybrid_rt/format_version": lambda _: version})
    assert_refused(path, "format version: expected a number, got something else.", DAMAGED)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (3, "Upgrade hybrid_rt: the file was made by a newer version."),
        (0, "Convert the detector again: the file is too old."),
    ],
)
def test_another_state_version_of_an_engine_is_refused(
    small_bundle: Path, tmp_path: Path, version: int, remedy: str
) -> None:
    # The pickle of the state is NEWOBJ of the class, then BININT1 and the version.
    state = b"hybrid_rt\nEngine\nq\x00)\x81K"

    def other(data: bytes) -> bytes:
        assert data.count(state + b"\x02") == 1
        return data.replace(state + b"\x02", state + bytes([version]))

    path = rewrite(small_bundle, tmp_path / "state.pt", {"constants.pkl": other})
    with pytest.raises(BundleError) as caught:
        hybrid_rt.load(path)
    assert f"hybrid_rt[engine]: state version: expected 1 or 2, got {version}. {remedy}" in str(caught.value)
    with pytest.raises(RuntimeError, match=rf"hybrid_rt\[engine\]: state version: expected 1 or 2, got {version}"):
        torch.jit.load(str(path))


# Manifests and states written by other software: valid digests, wrong content


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("records"),
        lambda manifest: manifest.update(records=[]),
        lambda manifest: manifest.update(records={"data.pkl": 5}),
        lambda manifest: manifest.update(records={"data.pkl": {"sha256": 5}}),
        lambda manifest: manifest.update(records={"data.pkl": {}}),
    ],
)
def test_a_manifest_without_proper_records_fails(
    small_bundle: Path, tmp_path: Path, change: Callable[[dict], object]
) -> None:
    path = rewrite_manifest(small_bundle, tmp_path / "odd.pt", change)
    for opened in (hybrid_rt.load, hybrid_rt.check):
        with pytest.raises(BundleError, match="expected "):
            opened(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("engines"),
        lambda manifest: manifest.update(engines=5),
        lambda manifest: manifest.update(engines=[{}]),
        lambda manifest: manifest["engines"][0].update(variants=[]),
        lambda manifest: manifest["engines"][0]["variants"][0].pop("backend"),
        lambda manifest: manifest["engines"][0]["variants"][0].update(backend=5),
        lambda manifest: manifest["engines"][0]["variants"][0]["inputs"][0].update(dtype="float33"),
        lambda manifest: manifest["engines"][0]["variants"][0]["inputs"][0].update(max=[1]),
    ],
)
def test_a_manifest_without_proper_segments_fails_in_check(
    small_bundle: Path, tmp_path: Path, change: Callable[[dict], object]
) -> None:
    path = rewrite_manifest(small_bundle, tmp_path / "odd.pt", change)
    with pytest.raises(BundleError, match=r"expected .* got "):
        hybrid_rt.check(path)


def test_a_manifest_that_is_not_json_fails(small_bundle: Path, tmp_path: Path) -> None:
    text = b"{no json"
    changes = {MANIFEST: lambda _: text, DIGEST: lambda _: hashlib.sha256(text).hexdigest().encode()}
    path = rewrite(small_bundle, tmp_path / "odd.pt", changes, sign=False)
    assert_refused(path, "expected ")


FIELDS = {"segments": '["backbone"]', "variants": "[]", "table": "[]"}
TABLE = json.dumps([{"size": 3, "sha256": "00"}])
SPEC = {
    "backend": "torchscript",
    "precision": "fp32",
    "device": "cpu",
    "inputs": [],
    "outputs": [],
    "requirements": {},
    "versions": {},
    "blobs": [{"name": "module", "pieces": [[0, 0, 3]], "size": 3, "sha256": "00"}],
}
# Pieces that repeat one megabyte 300 times.
REPEATED = {**SPEC, "blobs": [{"name": "module", "pieces": [[0, 0, 1 << 20]] * 300, "size": 300 << 20, "sha256": "00"}]}


@pytest.mark.parametrize(
    ("fields", "blobs", "text"),
    [
        ({}, [], "hybrid_rt[engine]: state: expected a field 'segments', got none."),
        ({"segments": "[]"}, [], "state, field 'segments': expected a JSON array of at least one name, got []."),
        (
            {"segments": "backbone"},
            [],
            "state, field 'segments': expected a JSON array of at least one name, got backb",
        ),
        ({"segments": "[1]"}, [], "state, field 'segments': expected a JSON array of at least one name, got [1]."),
        ({"segments": '["s"]'}, [], "hybrid_rt[engine]: state: expected a field 'variants', got none."),
        (FIELDS, [], "hybrid_rt[bundle]: artifact specs: expected a JSON array of at least one, got []."),
        ({**FIELDS, "variants": "{"}, [], "artifact specs: expected a JSON array of at least one, got {."),
        ({**FIELDS, "variants": "[5]"}, [], "artifact spec: expected a field 'backend', got none."),
        ({**FIELDS, "variants": json.dumps([SPEC])}, [], "blob 'module' of torchscript: expected an index below 0"),
        ({"segments": '["s"]', "variants": json.dumps([SPEC])}, [], "state: expected a field 'table', got none."),
        ({**FIELDS, "variants": json.dumps([SPEC]), "table": "5"}, [], "table of blobs: expected a JSON array, got 5."),
        ({**FIELDS, "variants": json.dumps([SPEC]), "table": TABLE}, [], "blobs: expected 1, got 0."),
        (
            {**FIELDS, "variants": json.dumps([SPEC]), "table": TABLE},
            [torch.zeros(4, dtype=torch.uint8)],
            "blobs, entry 0: expected 3 bytes, got 4.",
        ),
        (
            {**FIELDS, "variants": json.dumps([SPEC]).replace("[0, 0, 3]", "[0, 1, 3]"), "table": TABLE},
            [torch.zeros(3, dtype=torch.uint8)],
            "blob 'module' of torchscript: expected a piece within 3 bytes, got 3 from 1 on.",
        ),
        (
            {**FIELDS, "variants": json.dumps([REPEATED]), "table": json.dumps([{"size": 1 << 20, "sha256": "00"}])},
            [torch.zeros(1 << 20, dtype=torch.uint8)],
            "blob 'module' of torchscript: expected at most 269484032 bytes of all blobs, got 314572800.",
        ),
        (
            {**FIELDS, "variants": json.dumps([SPEC]), "table": TABLE},
            [torch.zeros(3)],
            "blobs: expected contiguous one-dimensional uint8 CPU tensors, got a 1-dimensional float32 tensor on cpu.",
        ),
        (
            {**FIELDS, "variants": json.dumps([SPEC]), "table": TABLE},
            [torch.zeros(1, 3, dtype=torch.uint8)],
            "got a 2-dimensional uint8 tensor on cpu.",
        ),
    ],
)
def test_an_engine_with_a_malformed_state_is_refused(
    fields: dict[str, str], blobs: list[torch.Tensor], text: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.classes.hybrid_rt.Engine(fields, blobs)
    assert text in str(caught.value)
    assert "convert the detector again" in str(caught.value).lower()


# Missing backends


def test_no_variant_that_can_run_lists_each_with_reason_and_remedy(tmp_path: Path) -> None:
    path = save_with_backends(tmp_path / "nosuch.pt", ["nosuch", "norsuch"])
    with pytest.raises(BackendError) as caught:
        hybrid_rt.load(path)
    text = str(caught.value)
    assert text.startswith("hybrid_rt[variants]: engine 'backbone': expected a variant that can run on this machine")
    for name in ("nosuch", "norsuch"):
        assert f"\n  {name} (fp32): hybrid_rt[{name}]: backend: expected one of " in text
        assert f"(libhybrid_rt_{name}.so), or name its directory in HYBRID_RT_PLUGIN_PATH." in text
    assert (
        "Install what a variant lacks, ask for another one (HYBRID_RT_BACKEND or backend=), or convert with an" in text
    )
    (segment,) = hybrid_rt.check(path)
    assert segment.chosen is None
    assert ["libhybrid_rt_" in variant.refusal for variant in segment.variants] == [True, True]
    assert hybrid_rt.inspect(path)["engines"][0]["variants"][0]["backend"] == "nosuch"


def test_plain_torch_load_says_at_the_first_run_that_no_variant_can_run(tmp_path: Path) -> None:
    module = torch.jit.load(str(save_with_backends(tmp_path / "nosuch.pt", ["nosuch"])))
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[variants\]: engine 'backbone': expected a variant that can"):
        module(small_image())


def test_with_a_fallback_a_missing_backend_does_not_matter(tmp_path: Path) -> None:
    path = save_with_backends(tmp_path / "fallback.pt", ["nosuch", "torchscript"])
    module = hybrid_rt.load(path)
    (engine,) = hybrid_rt.engines(module)
    assert engine["backend"] == "torchscript"
    assert [variant["chosen"] for variant in engine["variants"]] == [False, True]
    assert "libhybrid_rt_nosuch.so" in engine["variants"][0]["refusal"]
    image = small_image()
    assert torch.allclose(module(image)[1], small_detector()(image)[1])


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("torchscript", "hybrid_rt[script]: the TorchScript variant, record 'archive': expected "),
        ("openvino", "hybrid_rt[openvino]: artifact: expected "),
    ],
)
def test_an_engine_that_its_runtime_cannot_read_is_replaced_by_the_next(
    tmp_path: Path, backend: str, told: str
) -> None:
    good = small_artifact()
    names = ("xml", "weights") if backend == "openvino" else ("module",)
    garbage = {name: blob_from_bytes(b"no engine " * 9) for name in names}
    bad = replace(good, spec=replace(good.spec, backend=backend), blobs=garbage)
    module = hybrid_rt.load(save_with_backends(tmp_path / "bad.pt", [bad, good]))
    (engine,) = hybrid_rt.engines(module)
    assert [variant["chosen"] for variant in engine["variants"]] == [False, True]
    assert told in engine["variants"][0]["refusal"]
    module(small_image())
    with pytest.raises(BackendError, match=re.escape(f"none of 1:\n  {backend} (fp32): {told}")):
        hybrid_rt.load(save_with_backends(tmp_path / "only_bad.pt", [bad]))


def test_the_environment_names_the_backend(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hybrid_rt.engines(hybrid_rt.load(small_bundle))[0]["backend"] == "openvino"
    monkeypatch.setenv("HYBRID_RT_BACKEND", "torchscript")
    (engine,) = hybrid_rt.engines(hybrid_rt.load(small_bundle))
    assert engine["backend"] == "torchscript"
    assert engine["variants"][0]["refusal"] == "only 'torchscript' was requested"
    assert hybrid_rt.check(small_bundle)[0].chosen.backend == "torchscript"
    # The argument takes precedence over the environment.
    assert hybrid_rt.engines(hybrid_rt.load(small_bundle, backend="openvino"))[0]["backend"] == "openvino"


def test_plain_torch_load_follows_the_environment(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_BACKEND", "torchscript")
    module = torch.jit.load(str(small_bundle))
    assert hybrid_rt.engines(module)[0]["backend"] == ""
    module(small_image())
    assert hybrid_rt.engines(module)[0]["backend"] == "torchscript"


def test_an_unknown_backend_in_the_environment_fails(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_BACKEND", "opnvino")
    with pytest.raises(BackendError) as caught:
        hybrid_rt.load(small_bundle)
    assert "\n  openvino (fp32): only 'opnvino' was requested" in str(caught.value)
    assert "\n  torchscript (fp32): only 'opnvino' was requested" in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", ""])
def test_a_device_that_does_not_exist(small_bundle: Path, device: str) -> None:
    with pytest.raises(OptionError) as caught:
        hybrid_rt.load(small_bundle, device)
    assert "device: expected a device such as 'cpu' or 'cuda:0', got '" + device in str(caught.value)


def test_a_device_that_no_variant_has(small_bundle: Path) -> None:
    with pytest.raises(BackendError) as caught:
        hybrid_rt.load(small_bundle, "meta")
    assert "openvino (fp32): runs on cpu, not on meta" in str(caught.value)
    assert "torchscript (fp32): runs on cpu and cuda, not on meta" in str(caught.value)


LOAD_AND_TELL = """
import json, sys, torch, hybrid_rt
from helpers.small_detectors import small_image
module = hybrid_rt.load(sys.argv[1])
boxes = module(small_image())[0]
backends = {info.name: [info.available, info.reason] for info in hybrid_rt.backends()}
print(json.dumps({"engines": hybrid_rt.engines(module), "boxes": len(boxes), "backends": backends}))
"""


@pytest.mark.slow
def test_without_the_vendors_library_the_fallback_runs(small_bundle: Path) -> None:
    done = run_python(LOAD_AND_TELL, small_bundle, HYBRID_RT_OPENVINO_LIBRARY="/nonexistent/libopenvino_c.so")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (engine,) = told["engines"]
    assert engine["backend"] == "torchscript"
    refusal = engine["variants"][0]["refusal"]
    assert refusal.startswith("OpenVINO's library can't be opened (/nonexistent/libopenvino_c.so: ")
    assert refusal.endswith("Install it: pip install openvino.")
    assert told["boxes"] > 0
    assert told["backends"]["openvino"][0] is False
    assert "/nonexistent/libopenvino_c.so" in told["backends"]["openvino"][1]


@pytest.mark.slow
def test_plugins_that_cannot_be_opened_are_listed_with_the_reason(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "libhybrid_rt_garbage.so").write_bytes(b"no shared library " * 50)
    (tmp_path / "libhybrid_rt_empty.so").touch()
    (tmp_path / "libhybrid_rt_directory.so").mkdir()
    (tmp_path / "unrelated.txt").touch()
    installed = Path(hybrid_rt._native.__file__).parent / "lib"
    # One shared library that is not a plug-in, and a plug-in under a wrong name.
    shutil.copy(_ctypes.__file__, tmp_path / "libhybrid_rt_foreign.so")
    shutil.copy(installed / "libhybrid_rt_torchscript.so", tmp_path / "libhybrid_rt_renamed.so")
    directories = f"{tmp_path}:{tmp_path / 'missing'}:"
    done = run_python(LOAD_AND_TELL, small_bundle, HYBRID_RT_PLUGIN_PATH=directories)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["engines"][0]["backend"] == "openvino"
    for name in ("garbage", "empty", "directory"):
        available, reason = told["backends"][name]
        assert available is False
        assert "the plug-in can't be opened: " in reason
        assert f"libhybrid_rt_{name}.so" in reason
    assert "exports no hybrid_rt_plugin" in told["backends"]["foreign"][1]
    assert "says that it is 'torchscript'; rename the file or the backend" in told["backends"]["renamed"][1]
    assert told["backends"]["torchscript"][0] is True


# Inputs of an engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> torch.ScriptObject:
    """Returns an engine of the small detector's backbone for batches of 1 to 4 and heights of 16 to 64."""
    from hybrid_rt.backends import registry
    from hybrid_rt.bundle.blob_table import pack
    from hybrid_rt.capture.program import capture_alone
    from hybrid_rt.conversion.assemble.engine_module import make_engine

    detector = small_detector()
    program = capture_alone(detector, "backbone", [(small_image(),)], [(1, 4), (3, 3), (16, 64), (32, 32)])
    made = make_engine(["backbone"], pack([registry.backend("torchscript").compile(program, "fp32")]))
    made.prepare("", torch.device("cpu"), 0, False)
    return made


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([], "inputs: expected 1 tensors, got 0. Call it as the detector's own head does."),
        ([torch.zeros(1, 3, 32, 32)] * 2, "inputs: expected 1 tensors, got 2."),
        (
            [torch.zeros(1, 3, 32, 32, dtype=torch.float64)],
            "input 'images': expected float32, got float64. Convert the input before the call.",
        ),
        ([torch.zeros(1, 3, 32, 32, dtype=torch.uint8)], "input 'images': expected float32, got uint8."),
        (
            [torch.zeros(3, 32, 32)],
            "input 'images': expected 4 dimensions (1..4x3x16..64x32 float32), got 3 (3x32x32). "
            "Add or remove the batch dimension.",
        ),
        ([torch.tensor(1.0)], "input 'images': expected 4 dimensions (1..4x3x16..64x32 float32), got 0 (a scalar)."),
        (
            [torch.zeros(1, 3, 65, 32)],
            "input 'images', dimension 2: expected 1..4x3x16..64x32 float32, got 1x3x65x32. "
            "Resize the images, or convert again with shapes= that cover this size.",
        ),
        (
            [torch.zeros(1, 3, 15, 32)],
            "input 'images', dimension 2: expected 1..4x3x16..64x32 float32, got 1x3x15",
        ),
        (
            [torch.zeros(0, 3, 32, 32)],
            "input 'images', dimension 0: expected 1..4x3x16..64x32 float32, got 0x3x",
        ),
        ([torch.zeros(5, 3, 32, 32)], "input 'images', dimension 0: expected"),
        ([torch.zeros(1, 4, 32, 32)], "input 'images', dimension 1: expected"),
        (
            [torch.zeros(1, 3, 32, 32, device="meta")],
            "input 'images': expected a tensor on cpu, got one on meta. Move the input",
        ),
    ],
)
def test_an_input_that_breaks_the_contract_is_refused(
    engine: torch.ScriptObject, inputs: list[torch.Tensor], text: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        engine.run(inputs)
    assert f"hybrid_rt[torchscript]: engine 'backbone', {text}" in str(caught.value)
    if not inputs or inputs[0].device.type == "cpu":  # the dispatcher checks the device before the operator does
        with pytest.raises((RuntimeError, InputError)) as caught:
            torch.ops.hybrid_rt.run_engine(engine, inputs)
        assert f"hybrid_rt[torchscript]: engine 'backbone', {text}" in str(caught.value)


@pytest.mark.parametrize("size", [(1, 16), (4, 64), (2, 33)])
def test_inputs_at_the_bounds_run(engine: torch.ScriptObject, size: tuple[int, int]) -> None:
    batch, height = size
    images = torch.rand(batch, 3, height, 32)
    fine, coarse = torch.ops.hybrid_rt.run_engine(engine, [images])
    expected = small_detector().backbone(images)
    assert torch.allclose(fine, expected["fine"], atol=1e-5)
    assert torch.allclose(coarse, expected["coarse"], atol=1e-5)


def test_an_input_that_is_not_contiguous_runs(engine: torch.ScriptObject) -> None:
    images = torch.rand(1, 3, 32, 64)[..., ::2]
    (fine, _) = torch.ops.hybrid_rt.run_engine(engine, [images])
    assert torch.allclose(fine, small_detector().backbone(images)["fine"], atol=1e-5)


def test_an_image_beyond_the_bounds_says_so_through_the_detector(small_bundle: Path) -> None:
    module = hybrid_rt.load(small_bundle)
    with pytest.raises(RuntimeError) as caught:
        module(small_image(80, 32))
    assert "hybrid_rt[openvino]: engine 'backbone', input 'images', dimension 2: expected 1..2x3x16..64x32" in str(
        caught.value
    )
    module(small_image(48, 32))  # the module still works


def test_an_engine_holds_its_records(small_bundle: Path) -> None:
    assert set(hybrid_rt.inspect(small_bundle)["records"]) == set(record_names(small_bundle)) - {
        "extra/hybrid_rt/format_version",
        MANIFEST,
        DIGEST,
    }
