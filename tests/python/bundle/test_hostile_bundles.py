"""Tests that malicious bundles with matching digests are refused with an error of this package, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hybrid_rt
from helpers.bundle_surgery import (
    DIGEST,
    MANIFEST,
    record_names,
    rewrite,
    rewrite_manifest,
    run_python,
    save_with_backends,
)
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BundleError
from hybrid_rt.backends import registry
from hybrid_rt.capture.program import capture_alone

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

OPENED: list[Callable[[Path], Any]] = [hybrid_rt.load, hybrid_rt.inspect, hybrid_rt.check]
DEEP = "[" * 100_000 + "]" * 100_000


def signed(text: bytes) -> dict[str, Callable[[bytes], bytes]]:
    """Returns changes that replace the manifest by a text and adjust its digest."""
    return {MANIFEST: lambda _: text, DIGEST: lambda _: hashlib.sha256(text).hexdigest().encode()}


def with_text(path: Path, output: Path, change: Callable[[str], str]) -> Path:
    text = change(json.dumps(hybrid_rt.inspect(path)))
    return rewrite(path, output, signed(text.encode()), sign=False)


def append(path: Path, output: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    output.write_bytes(path.read_bytes())
    with warnings.catch_warnings(), zipfile.ZipFile(output, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile warns about the duplicate name
        archive.writestr(f"{archive.namelist()[0].split('/', 1)[0]}/{name}", content, method)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("field", ["engines", "anything"])
def test_a_manifest_with_endless_nesting(field: str, small_bundle: Path, tmp_path: Path) -> None:
    def nested(text: str) -> str:
        return text[:-1] + f', "{field}": {DEEP}}}'

    path = with_text(small_bundle, tmp_path / "deep.pt", nested)
    done = run_python(
        "import sys, hybrid_rt\n"
        "for opened in (hybrid_rt.load, hybrid_rt.inspect, hybrid_rt.check):\n"
        "    try: opened(sys.argv[1])\n"
        "    except hybrid_rt.BundleError as error:\n"
        "        print('nested at most 64 deep' in str(error), len(str(error)) < 1000)\n",
        path,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 6), done.stderr


def test_a_manifest_of_more_than_16_mib(small_bundle: Path, tmp_path: Path) -> None:
    """A parsed manifest takes several times its size."""
    path = rewrite_manifest(small_bundle, tmp_path / "long.pt", lambda m: m.update(class_names=["a" * (16 << 20)]))
    for opened in OPENED:
        with pytest.raises(BundleError, match=r"manifest\.json': expected at most 16777216 bytes, got 167\d+\."):
            opened(path)


def test_brackets_in_names_are_no_nesting(small_bundle: Path, tmp_path: Path) -> None:
    names = ["\\", '"' + "[" * 200, "{" * 200]
    path = rewrite_manifest(small_bundle, tmp_path / "names.pt", lambda m: m.update(class_names=names))
    assert hybrid_rt.inspect(path)["class_names"] == names


def test_an_error_shows_the_beginning_of_what_it_got(small_bundle: Path, tmp_path: Path) -> None:
    path = with_text(small_bundle, tmp_path / "long.pt", lambda text: text.replace("float32", "é" * 70_000))
    for opened in OPENED:
        with pytest.raises(BundleError, match=r"expected a dtype of torch, got 'é+\.\.\.\.") as caught:
            opened(path)
        assert len(str(caught.value).encode()) < 10_000


@pytest.mark.parametrize("place", ["name", "digest"])
def test_control_characters_of_a_manifest_are_escaped_in_the_error(
    place: str, small_bundle: Path, tmp_path: Path
) -> None:
    """A NUL used to end the message in the middle."""

    def change(manifest: dict) -> None:
        entry = manifest["records"]["data.pkl"]
        if place == "name":
            manifest["records"]["a\0\x1b[31m"] = entry
        else:
            entry["sha256"] = "a\0\x1b[31m"

    path = rewrite_manifest(small_bundle, tmp_path / "odd.pt", change)
    with pytest.raises(BundleError, match=r"a\\x00\\x1b\[31m.*, got .*convert it again\."):
        hybrid_rt.check(path)


def test_a_record_that_the_manifest_does_not_name(small_bundle: Path, tmp_path: Path) -> None:
    path = append(small_bundle, tmp_path / "more.pt", "constants/99", b"who looks at this?")
    for opened in OPENED:
        with pytest.raises(BundleError, match=r"record 'constants/99': expected one that the manifest names"):
            opened(path)


@pytest.mark.parametrize("name", ["byteorder", "extra/hybrid_rt/anything", "code/other.py"])
def test_records_that_change_how_others_are_read(name: str, small_bundle: Path, tmp_path: Path) -> None:
    path = append(small_bundle, tmp_path / "more.pt", name, b"big")
    with pytest.raises(BundleError):
        hybrid_rt.check(path)


def test_a_record_outside_of_the_archives_directory(small_bundle: Path, tmp_path: Path) -> None:
    """Found by the fuzzer of bundles: this was an error of torch."""
    root = zipfile.ZipFile(small_bundle).namelist()[0].split("/", 1)[0].encode()
    data = small_bundle.read_bytes()
    path = tmp_path / "outside.pt"
    path.write_bytes(data.replace(root + b"/constants.pkl", root + b"-constants.pkl"))
    assert path.read_bytes() != data
    for opened in (*OPENED, hybrid_rt.extract, hybrid_rt.remove_variant):
        arguments = {hybrid_rt.extract: [tmp_path / "out"], hybrid_rt.remove_variant: ["torchscript"]}.get(opened, [])
        with pytest.raises(BundleError, match="names of records: expected all of them in the archive's own directory"):
            opened(path, *arguments)


@pytest.mark.parametrize("name", ["constants.pkl", "data.pkl", MANIFEST])
def test_a_duplicate_record(name: str, small_bundle: Path, tmp_path: Path) -> None:
    path = append(small_bundle, tmp_path / "twice.pt", name, b"the other one")
    for opened in OPENED:
        with pytest.raises(BundleError):
            opened(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [MANIFEST, DIGEST, "extra/hybrid_rt/format_version", "data.pkl"])
def test_a_record_that_unpacks_to_gigabytes(name: str, small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(small_bundle) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(f"/{name}"):
                new.writestr(entry.filename, old.read(entry.filename))
                continue
            with new.open(zipfile.ZipInfo(entry.filename), "w", force_zip64=True) as stream:
                stream._compressor = zipfile.zlib.compressobj(1, zipfile.zlib.DEFLATED, -15)  # type: ignore[attr-defined]
                stream._zinfo.compress_type = zipfile.ZIP_DEFLATED
                for _ in range(1024):
                    stream.write(bytes(1 << 20))
    done = run_python(
        "import resource, sys, hybrid_rt\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for opened in (hybrid_rt.load, hybrid_rt.inspect, hybrid_rt.check):\n"
        "    try: opened(sys.argv[1])\n"
        "    except hybrid_rt.BundleError as error: print('expected' in str(error))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10)\n",
        path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True", done.stdout


def with_dtype(path: Path, dtype: str) -> Path:
    """Saves the small detector on OpenVINO in a file that declares the given dtype for the engine's outputs."""
    program = capture_alone(small_detector(), "backbone", [(small_image(),)])
    artifact = registry.backend("openvino").compile(program, "fp32")
    outputs = tuple(replace(output, dtype=dtype) for output in artifact.spec.outputs)
    return save_with_backends(path, [replace(artifact, spec=replace(artifact.spec, outputs=outputs))])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool"])
def test_outputs_keep_the_dtype_of_the_engine(dtype: str, tmp_path: Path) -> None:
    """With a wider dtype, more bytes would be copied than exist."""
    module = hybrid_rt.load(with_dtype(tmp_path / "dtype.pt", dtype))
    with pytest.raises(Exception, match=r"expected .* bytes, got another dtype in"):
        module(small_image())


@pytest.mark.slow
def test_one_file_changes_nothing_for_another(tmp_path: Path) -> None:
    """Their bytes are equal, so that one of them could get the other's engine."""
    first = hybrid_rt.load(with_dtype(tmp_path / "bad.pt", "float64"))
    second = hybrid_rt.load(with_dtype(tmp_path / "good.pt", "float32"))
    assert second(small_image())
    with pytest.raises(Exception, match="another dtype"):
        first(small_image())


def test_the_file_that_was_checked_is_the_one_that_is_loaded(small_bundle: Path, tmp_path: Path) -> None:
    """Two files, one of them altered, alternate under one name: the file loaded is the good one, or it is refused."""
    (code,) = [name for name in record_names(small_bundle) if name.endswith(".py")][:1]
    bad = rewrite(small_bundle, tmp_path / "bad.pt", {code: lambda text: text + b"\n# altered\n"}, sign=False)
    with pytest.raises(BundleError, match="SHA-256"):
        hybrid_rt.load(bad)
    contents, path, stop = [small_bundle.read_bytes(), bad.read_bytes()], tmp_path / "current.pt", threading.Event()
    path.write_bytes(contents[0])

    def swap() -> None:
        chance = random.Random(0)  # strictly alternating files might stay in step with the loads
        while not stop.is_set():
            (tmp_path / "next").write_bytes(chance.choice(contents))
            (tmp_path / "next").replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes: Counter[str] = Counter()
    try:
        for _ in range(60):
            try:
                module = hybrid_rt.load(path)
            except BundleError:
                outcomes["refused"] += 1
            else:
                outcomes["altered" if "# altered" in module.code else "good"] += 1
    finally:
        stop.set()
        thread.join()
    assert outcomes["good"]
    assert not outcomes["altered"]
