"""Tests that a package runs without Python, in a root directory with only glibc's libraries, busybox and itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hybrid_rt
from helpers.bare_root import SECONDS, BareRoot, make_bare_root, needs_bare_root
from helpers.bundle_surgery import flip_byte, offset_of, record_names
from helpers.paths import ROOT
from helpers.serving import START_SECONDS, STOP_SECONDS, Server
from helpers.small_detectors import OneConvolution
from hybrid_rt.backends import registry
from hybrid_rt.backends.base import RuntimeFiles
from hybrid_rt.cli.main import main
from hybrid_rt.common.errors import BackendError, BundleError, OptionError
from hybrid_rt.conversion.export import package as package_module
from hybrid_rt.conversion.export import package_contents, shared_libraries
from hybrid_rt.conversion.export.package import MANIFEST, PROGRAMS, Package, package
from programs.test_detect_app import assert_same_detections, detect_in_python

pytestmark = pytest.mark.slow

DOCKERFILE = ROOT / "examples" / "docker" / "Dockerfile"
TORCH = Path(torch.__file__).parent / "lib"
TORCH_VERSION = torch.__version__.partition("+")[0]
HERE = "/opt/hybrid_rt"
"""The package's location in the bare root, as in the Dockerfile's image."""


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a convolution with a variant of every installed backend that runs on CPUs."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    example = (torch.rand(1, 3, 32, 32),)
    engines = sorted(info.name for info in registry.backends() if info.available and "cpu" in info.devices)
    hybrid_rt.convert(
        OneConvolution().eval(), example, path, segments="backbone", engine=engines, shapes=[(32, 32)], measure=False
    )
    return path


@pytest.fixture(scope="module")
def script_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a TorchScript bundle whose file name contains characters special to a shell."""
    path = tmp_path_factory.mktemp("script") / "it's $HOME; a model.pt"
    example = (torch.rand(1, 3, 32, 32),)
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.ReLU()).eval()
    hybrid_rt.convert(network, example, path, segments=["0"], engine="torchscript", measure=False)
    return path


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory, script_bundle: Path) -> Package:
    """Returns a package without libtorch, which is small."""
    return package([script_bundle], tmp_path_factory.mktemp("external") / "dist", torch="external", archive=True)


# A root directory without Python


@dataclass(frozen=True, kw_only=True)
class RootWithPackage(BareRoot):
    """A bare root directory with the package at HERE."""

    package: Package


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path, small_bundle: Path) -> Iterator[RootWithPackage]:
    """Yields a root with both bundles and libtorch. It is removed at the end, because it takes half a gigabyte."""
    root = tmp_path_factory.mktemp("bare")
    make_bare_root(root)
    yield RootWithPackage(root=root, package=package([demo_bundle, small_bundle], root / HERE[1:]))
    shutil.rmtree(root)


@needs_bare_root
def test_the_bare_root_has_no_python(bare: RootWithPackage) -> None:
    licenses = f"{HERE}/licenses"  # texts; torch sorts its texts into directories such as "cutlass/python"
    found = bare.run("find", "/", "-xdev", "-path", licenses, "-prune", "-o", "-name", "*python*", "-print")
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    assert bare.run("sh", "-c", "python3 || python").returncode == 127


@needs_bare_root
def test_detect_in_the_package_gives_the_boxes_of_python(
    bare: RootWithPackage, demo_bundle: Path, demo_image_path: Path
) -> None:
    shutil.copy(demo_image_path, bare.root / "tmp" / "image.png")
    done = bare.run(f"{HERE}/detect", demo_bundle.stem, "/tmp/image.png", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert_same_detections(result["detections"], detect_in_python(demo_bundle, demo_image_path))
    assert result["engines"] == {"backbone": "openvino"}


@needs_bare_root
def test_every_backend_verifies_there(bare: RootWithPackage, small_bundle: Path) -> None:
    backends = bare.package.manifest["backends"]
    assert {"openvino", "torchscript"} <= set(backends)
    for backend in backends:
        done = bare.run(f"{HERE}/detect", small_bundle.stem, "--verify", "--json", "--backend", backend)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["passed"]
        assert result["engines"]["backbone"].startswith(f"{backend} ")


def loaded_there(bare: RootWithPackage, *command: str) -> set[str]:
    """Returns the files that the dynamic linker of a process in the root reports as loaded."""
    done = bare.run(*command, LD_DEBUG="files", LD_DEBUG_OUTPUT="/tmp/linker")
    assert done.returncode == 0, done.stderr
    found = set()
    for log in (bare.root / "tmp").glob("linker.*"):
        lines = [line.partition("calling init: ")[2] for line in log.read_text().splitlines()]
        found |= {os.path.normpath(line) for line in lines if line and not line.startswith("/proc/")}
        log.unlink()
    assert found
    return found


@needs_bare_root
def test_the_libraries_are_exactly_those_that_are_loaded(bare: RootWithPackage, small_bundle: Path) -> None:
    manifest = bare.package.manifest
    loaded = loaded_there(bare, f"{HERE}/serve", "--help")
    for backend in manifest["backends"]:
        loaded |= loaded_there(bare, f"{HERE}/detect", small_bundle.stem, "--verify", "--backend", backend)
    ours = {path for path in loaded if path.startswith(f"{HERE}/")}
    packaged = {file["path"] for file in manifest["files"] if ".so" in Path(file["path"]).name}
    assert {path.removeprefix(f"{HERE}/") for path in ours} == packaged
    [glibc] = [entry for entry in manifest["external"] if entry["name"] == "glibc"]
    assert {Path(path).name for path in loaded - ours} <= {*glibc["libraries"]}
    assert len(manifest["external"]) == 1


@pytest.fixture
def only_image_models(bare: RootWithPackage, small_bundle: Path, tmp_path: Path) -> Iterator[None]:
    """Hides the model that does not take images, because the service refuses it."""
    there = bare.package.directory / "models" / small_bundle.name
    shutil.move(there, tmp_path / "aside.pt")
    yield
    shutil.move(tmp_path / "aside.pt", there)


@needs_bare_root
@pytest.mark.usefixtures("only_image_models")
def test_serve_answers_there(bare: RootWithPackage, demo_bundle: Path, demo_image_path: Path) -> None:
    with serving_there(bare, "--port", "0", user="65534:65534") as server:
        answer = server.detect(demo_image_path, f"?model={demo_bundle.stem}")
        assert answer.status == 200, answer.body
        [entry] = answer.json()["pictures"]
        assert_same_detections(entry["detections"], detect_in_python(demo_bundle, demo_image_path))


@contextmanager
def serving_there(bare: RootWithPackage, *arguments: str, user: str = "0:0") -> Iterator[Server]:
    """Runs the service in the read-only root, without HOME; it has to end with exit code 0 after SIGTERM."""
    process = subprocess.Popen(
        bare.command([f"{HERE}/serve", *arguments], {}, user, read_only=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    server = Server(process)
    reader = threading.Thread(target=server.read, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        start = server.wait_for("serving", seconds=START_SECONDS)
        server.address, server.port = start["address"], start["port"]
        yield server
        [inside] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(inside), signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0, server.lines
    finally:
        process.kill()  # also ends the processes inside
        process.wait()
        reader.join(STOP_SECONDS)
        process.stderr.close()


def dockerfile_instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@needs_bare_root
def test_the_instructions_of_the_dockerfile_work_in_a_bare_root(bare: RootWithPackage) -> None:
    """Carries out each instruction by hand, on the bare root instead of Debian's image."""
    user, command = "0:0", []
    done = []
    for word, rest in dockerfile_instructions():
        if word == "FROM":
            assert rest.split()[0] == "debian:bookworm-slim"
        elif word == "COPY":
            source, target = rest.split()[-2:]
            assert (source, target) in [("dist", HERE), (HERE, HERE)]  # where the fixture copied it
        elif word == "RUN":
            ran = bare.run("sh", "-c", rest)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.count("matches its detector") == 2
        elif word == "USER":
            user = rest
        elif word in ("ENTRYPOINT", "CMD"):
            command += json.loads(rest)
        else:
            assert word == "EXPOSE"
        done.append(word)
    assert {"RUN", "USER", "ENTRYPOINT", "CMD"} <= set(done)
    helped = bare.run(*command, "--help", user=user)
    assert helped.returncode == 0, helped.stderr


@needs_bare_root
def test_a_model_with_other_boxes_fails_the_build_of_the_dockerfile(bare: RootWithPackage, small_bundle: Path) -> None:
    [line] = [rest for word, rest in dockerfile_instructions() if word == "RUN"]
    damaged = bare.root / HERE[1:] / "models" / "a-damaged-one.pt"
    damaged.write_bytes(small_bundle.read_bytes()[:-1000])
    try:
        assert bare.run("sh", "-c", line).returncode != 0
    finally:
        damaged.unlink()


@needs_bare_root
def test_no_proc_is_an_error_and_no_endless_loop(bare: RootWithPackage) -> None:
    command = ["chroot", str(bare.root), "/bin/env", "-i", "PATH=/bin", f"{HERE}/detect", "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert "hybrid_rt[package]: /proc: expected Linux's proc file system, got none" in done.stderr


# Contents


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_the_manifest_lists_every_file_with_its_digest(external: Package) -> None:
    assert json.loads((external.directory / MANIFEST).read_text()) == external.manifest
    listed = external.manifest["files"]
    assert {file["path"] for file in listed} | {MANIFEST} == files_of(external.directory)
    for file in listed:
        path = external.directory / file["path"]
        assert (file["sha256"], file["size"]) == (digest(path), path.stat().st_size)


def test_the_manifest_says_what_needs_each_library(external: Package) -> None:
    needed_by = {file["path"]: file["needed_by"] for file in external.manifest["files"]}
    for path, askers in needed_by.items():
        assert bool(askers) == path.startswith(("bin/", "lib/")), path
        assert {*askers} <= {*needed_by, "backend torchscript"}
    assert needed_by["bin/hybrid-rt-detect"] == ["detect"]
    assert needed_by["lib/hybrid_rt/lib/libhybrid_rt_torchscript.so"] == ["backend torchscript"]
    assert "lib/hybrid_rt/lib/libhybrid_rt.so" in needed_by["lib/system/libcrypto.so.3"]


def test_the_manifest_asks_for_the_newest_glibc_that_a_file_asks_for(external: Package) -> None:
    asked = []
    for path in external.directory.rglob("*"):
        if path.is_file() and shared_libraries.is_elf(path):
            symbols = subprocess.run(["objdump", "-p", path], capture_output=True, text=True, check=True).stdout
            asked += [word[6:] for word in symbols.split() if word.startswith("GLIBC_2")]
    newest = max(asked, key=lambda version: [int(part) for part in version.split(".")])
    assert external.manifest["glibc"] == newest
    assert {"name": "glibc", "version": f">={newest}"}.items() <= external.manifest["external"][0].items()


def test_only_libraries_of_the_chosen_backends_are_copied(external: Package) -> None:
    assert external.manifest["backends"].keys() == {"torchscript"}
    text = "\n".join(files_of(external.directory))
    for other in ("openvino", "onnxruntime", "tvm", "aot_inductor", "cuda"):
        assert other not in text


def test_other_users_may_read_it_and_run_its_programs(external: Package) -> None:
    for path in [external.directory, *external.directory.rglob("*")]:
        is_run = path.is_dir() or path.parent.name == "bin" or path.name in PROGRAMS
        assert path.stat().st_mode & 0o777 == (0o755 if is_run else 0o644), path


def test_the_archive_is_the_directory_and_the_same_each_time(
    external: Package, script_bundle: Path, tmp_path: Path
) -> None:
    assert external.archive is not None
    again = package([script_bundle], tmp_path / "dist", torch="external", archive=True)
    assert again.archive is not None
    assert digest(again.archive) == digest(external.archive)
    with tarfile.open(external.archive) as tar:
        entries = tar.getmembers()
        assert {entry.name for entry in entries if entry.isfile()} == {
            f"dist/{path}" for path in files_of(external.directory)
        }
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in entries} == {(0, 0, 0, "")}
        assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)


def test_the_newest_glibc_is_by_number_and_of_glibc() -> None:
    names = ["GLIBC_2.9", "GLIBC_2.34", "GLIBC_2.3.4", "GLIBC_PRIVATE", "GLIBCXX_3.4.30", "GCC_3.0"]
    assert shared_libraries.newest_glibc(names) == (2, 34)
    assert shared_libraries.newest_glibc(["GLIBCXX_3.4.30"]) == ()


# The start scripts


def run_script(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["env", "-i", *(f"{name}={value}" for name, value in {"PATH": "/usr/bin:/bin", **environment}.items())]
    command += [str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd="/")


def test_an_unnamed_external_torch_is_an_error_with_the_remedy(external: Package, tmp_path: Path) -> None:
    for script in PROGRAMS:
        for given in ({}, {"HYBRID_RT_TORCH": str(tmp_path)}):
            done = run_script(external.directory / script, "--help", **given)
            assert done.returncode == 1
            assert f"expected the directory of libtorch_cpu.so of torch {TORCH_VERSION} in HYBRID_RT_TORCH, got " in (
                done.stderr
            )
            assert "HYBRID_RT_TORCH=/path/to/libtorch/lib" in done.stderr


def test_external_torch_is_in_the_manifest_and_not_in_the_directory(external: Package) -> None:
    [entry] = [entry for entry in external.manifest["external"] if entry["name"] == "libtorch"]
    assert entry["version"] == TORCH_VERSION
    assert entry["variable"] == "HYBRID_RT_TORCH"
    assert entry["libraries"] == ["libc10.so", "libtorch_cpu.so"]
    assert not any("libtorch" in path or "libc10" in path for path in files_of(external.directory))


def test_external_torch_runs_from_its_directory_and_the_rest_from_the_package(
    external: Package, tmp_path: Path
) -> None:
    link = tmp_path / "a link"
    link.symlink_to(external.directory / "detect")
    log = tmp_path / "linker"
    done = run_script(
        link, "--verify", HYBRID_RT_TORCH=str(TORCH), LD_DEBUG="files", LD_DEBUG_OUTPUT=str(log)
    )  # a model whose name has spaces and quotes, through a link
    assert done.returncode == 0, done.stderr
    text = "".join(path.read_text() for path in tmp_path.glob("linker.*"))
    loaded = {os.path.normpath(line.partition("calling init: ")[2]) for line in text.splitlines() if "init: " in line}
    assert str(TORCH / "libtorch_cpu.so") in loaded
    ours = {path for path in loaded if path.startswith(str(external.directory))}
    assert {Path(path).name for path in ours} >= {"libhybrid_rt.so", "libhybrid_rt_torchscript.so", "libstdc++.so.6"}
    torchs = {path for path in loaded if Path(path).is_relative_to(TORCH.parents[1])}
    assert {Path(path).name for path in loaded - ours - torchs} <= {*external.manifest["external"][0]["libraries"]}


def fake_package(directory: Path, models: Sequence[str], **told: Any) -> Path:
    """Makes a package of the start scripts, with programs that print their arguments."""
    facts = {"external": [], "versions": {"torch": "2.15.0"}}
    of_model = [package_contents.Model(Path(name), {}, frozenset()) for name in models]
    texts = package_module._scripts(of_model, facts, told.pop("items", {}), told.pop("named", ()))
    (directory / "bin").mkdir(parents=True)
    (directory / "models").mkdir()
    for name in models:
        (directory / "models" / name).touch()
    for script, program in PROGRAMS.items():
        (directory / script).write_text(texts[script])
        (directory / "bin" / program).write_text('#!/bin/sh\nenv | grep -E "^(LD|HYBRID)_"\nprintf "%s\\n" "$@"\n')
        (directory / script).chmod(0o755)
        (directory / "bin" / program).chmod(0o755)
    return directory


def test_serve_is_given_the_directory_of_models_and_the_users_arguments(tmp_path: Path) -> None:
    directory = fake_package(tmp_path / "a directory", ["a.pt", "b.pt"])
    done = run_script(directory / "serve", "--port", "80 80", LD_LIBRARY_PATH="/theirs")
    libraries = ":".join(
        f"{directory}/lib/{name}" for name in ("hybrid_rt/lib", "torch/lib", "hybrid_rt.libs", "system")
    )
    assert done.stdout.splitlines() == [
        f"LD_LIBRARY_PATH={libraries}:/theirs",
        f"{directory}/models",
        "--port",
        "80 80",
    ]


@pytest.mark.parametrize(
    ("models", "given", "model", "left"),
    [
        (["one model.pt"], ["image.png"], "one model.pt", ["image.png"]),
        (["one model.pt"], ["one model", "image.png"], "one model.pt", ["image.png"]),
        (["a.pt", "b.pt"], ["b", "an image.png", "--json"], "b.pt", ["an image.png", "--json"]),
    ],
)
def test_detect_takes_the_model_that_is_named_or_the_only_one(
    tmp_path: Path, models: list[str], given: list[str], model: str, left: list[str]
) -> None:
    directory = fake_package(tmp_path / "dist", models)
    done = run_script(directory / "detect", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [f"{directory}/models/{model}", *left]


def test_detect_lists_the_models_if_none_of_several_is_named(tmp_path: Path) -> None:
    directory = fake_package(tmp_path / "dist", ["a.pt", "it's b.pt"])
    done = run_script(directory / "detect", "image.png")
    assert done.returncode == 2
    assert "hybrid_rt[package]: model: expected one of a it's b, got 'image.png'." in done.stderr
    assert run_script(directory / "detect", "--help").stdout.splitlines()[1:] == ["--help"]


def test_named_backends_are_the_targets_default(tmp_path: Path) -> None:
    directory = fake_package(tmp_path / "dist", ["a.pt"], named=("torchscript", "openvino"))
    assert "HYBRID_RT_BACKEND=torchscript,openvino" in run_script(directory / "serve").stdout.splitlines()
    theirs = run_script(directory / "serve", HYBRID_RT_BACKEND="openvino").stdout.splitlines()
    assert "HYBRID_RT_BACKEND=openvino" in theirs


def test_plug_ins_of_other_packages_are_found(tmp_path: Path) -> None:
    items = {
        place: package_contents.Item(Path(place))
        for place in ("lib/hybrid_rt/lib/libhybrid_rt_openvino.so", "lib/their package/libhybrid_rt_theirs.so")
    }
    directory = fake_package(tmp_path / "dist", ["a.pt"], items=items)
    assert f"HYBRID_RT_PLUGIN_PATH={directory}/lib/their package" in run_script(directory / "serve").stdout.splitlines()


# Refusals, which leave no files


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Returns the target directory. Checks at the end that nothing else exists, not even a hidden directory."""
    place = tmp_path / "out"
    place.mkdir()
    (place / "kept.txt").write_text("kept")
    yield place / "dist"
    assert {path.name for path in place.iterdir()} <= {"kept.txt", "dist"}


def test_a_missing_bundle_fails(out: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nosuch\.pt: expected a file, got No such file"):
        package([tmp_path / "nosuch.pt"], out)
    assert not out.exists()


def test_an_altered_bundle_fails(out: Path, script_bundle: Path, tmp_path: Path) -> None:
    [name] = [name for name in record_names(script_bundle) if name.endswith("data.pkl")]
    altered = flip_byte(script_bundle, tmp_path / "altered.pt", offset_of(script_bundle, name, 0.5))
    with pytest.raises(BundleError, match="altered"):
        package([altered], out)
    assert not out.exists()


def test_no_bundle_and_two_of_one_name_fail(out: Path, script_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"bundles: expected one or more \.pt files, got none"):
        package([], out)
    same = tmp_path / script_bundle.name
    shutil.copy(script_bundle, same)
    with pytest.raises(OptionError, match=r"expected one bundle of that name, got .* Rename one"):
        package([script_bundle, same], out)
    with pytest.raises(OptionError, match=r"expected a name that ends in \.pt, got model\.bin"):
        package([shutil.copy(script_bundle, tmp_path / "model.bin")], out)
    assert not out.exists()


def test_an_unused_backend_fails_and_the_used_ones_are_listed(out: Path, demo_bundle: Path) -> None:
    with pytest.raises(
        OptionError, match=r"backend: expected one of openvino, torchscript, .* got 'tvm'\. `hybrid-rt add"
    ):
        package([demo_bundle], out, backends=["openvino", "tvm"])
    assert not out.exists()


def test_a_segment_that_no_chosen_backend_runs_fails(out: Path, demo_bundle: Path, script_bundle: Path) -> None:
    with pytest.raises(
        BackendError, match=r"engine '0': expected a variant for CPUs of openvino, got torchscript \(not"
    ):
        package([demo_bundle, script_bundle], out, backends=["openvino"])
    assert not out.exists()


def test_a_variant_for_gpus_is_left_out_and_refused_if_named(
    out: Path, script_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = package_contents.Model(script_bundle, {"0": ["torchscript"]}, frozenset({"tensorrt"}))
    chosen, left_out = package_contents.chosen_backends([model], None)
    assert chosen.keys() == {"torchscript"}
    assert left_out == {"tensorrt": "its variants are not for CPUs, and a package is for CPUs only"}
    with pytest.raises(BackendError, match="a package is for CPUs only"):
        package_contents.chosen_backends([model], ["tensorrt"])


WITHOUT_OPENVINO = """
import sys
from hybrid_rt.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_vendors_library_that_is_missing_is_left_out_and_refused_if_named(out: Path, demo_bundle: Path) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_OPENVINO, "package", str(demo_bundle), "-o", str(out), *more]
        environment = {**os.environ, "HYBRID_RT_OPENVINO_LIBRARY": "/nonexistent.so"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)

    refused = run("--backend", "openvino")
    assert refused.returncode == 1
    assert "hybrid_rt[openvino]: package: expected a backend that can run here" in refused.stderr
    assert "OpenVINO's library can't be opened" in refused.stderr
    assert not out.exists()
    done = run("--external-torch", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["backends"].keys() == {"torchscript"}
    assert "OpenVINO's library can't be opened" in manifest["left_out"]["openvino"]


def test_a_file_that_a_backend_needs_and_that_is_missing_fails(
    out: Path, script_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RuntimeFiles(libraries=("nosuch/libs/libnosuch.so*",))
    monkeypatch.setattr(type(registry.backend("torchscript")), "runtime_files", files)
    with pytest.raises(
        BackendError, match=r"expected .*/nosuch/libs/libnosuch\.so\*, which it needs to run, got no such"
    ):
        package([script_bundle], out)
    assert not out.exists()


def test_a_program_whose_library_is_not_found_fails(
    out: Path, script_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries are not where a copy of the program in another directory searches for them."""
    moved = tmp_path / "elsewhere" / "bin" / "hybrid-rt-detect"
    moved.parent.mkdir(parents=True)
    shutil.copy(package_contents.program("hybrid-rt-detect", "test"), moved)
    monkeypatch.setattr(package_contents, "program", lambda name, scope: str(moved))
    with pytest.raises(BackendError, match=r"libhybrid_rt\.so: expected the library that .*elsewhere.* is linked to"):
        package([script_bundle], out)
    assert not out.exists()


def test_without_pyelftools_the_error_says_how_to_get_it(
    out: Path, script_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "elftools.common.exceptions", None)
    with pytest.raises(OptionError, match=r"pip install 'hybrid_rt\[package\]'"):
        package([script_bundle], out)
    assert not out.exists()


def test_an_existing_directory_is_left_alone(out: Path, script_bundle: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(
            OptionError, match=r"expected a new path or an empty directory, got something else\. Pass an"
        ):
            package([script_bundle], out, torch="external", overwrite=overwrite)
        assert files_of(out) == {"mine.txt"}


def test_a_package_that_is_there_is_replaced_only_if_it_may_be(out: Path, script_bundle: Path) -> None:
    out.mkdir()  # empty, so that nothing is lost
    package([script_bundle], out, torch="external")
    (out / "old.txt").write_text("old")
    with pytest.raises(OptionError, match=r"got a package\. Pass --overwrite to replace it"):
        package([script_bundle], out, torch="external")
    assert (out / "old.txt").exists()
    package([script_bundle], out, torch="external", overwrite=True)
    assert (out / MANIFEST).exists()
    assert not (out / "old.txt").exists()


def test_an_existing_archive_is_left_alone(out: Path, script_bundle: Path) -> None:
    tar = out.with_name("dist.tar")
    tar.write_text("mine")
    with pytest.raises(OptionError, match=r"dist\.tar: expected a new file, got an existing one. Pass --overwrite"):
        package([script_bundle], out, torch="external", archive=True)
    assert tar.read_text() == "mine"
    assert not out.exists()
    tar.unlink()


def test_a_write_that_fails_leaves_the_old_package_and_nothing_else(
    out: Path, script_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package([script_bundle], out, torch="external")
    before = {path: digest(out / path) for path in files_of(out)}
    copy, copied = package_module._copy, []

    def fail_at_the_fifth(source: Path, target: Path) -> tuple[str, int]:
        copied.append(target)
        if len(copied) == 5:
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(package_module, "_copy", fail_at_the_fifth)
    with pytest.raises(
        BundleError, match=r"expected to write the directory, got No space left on device\. Check the free space"
    ):
        package([script_bundle], out, torch="external", overwrite=True)
    assert {path: digest(out / path) for path in files_of(out)} == before


def test_a_missing_output_directory_fails(out: Path, script_bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"expected a path in an existing directory, got no directory .*nosuch"):
        package([script_bundle], out.parent / "nosuch" / "dist")


def test_an_unknown_word_for_torch_fails(out: Path, script_bundle: Path) -> None:
    with pytest.raises(OptionError, match="torch: expected one of include, external, got 'none'"):
        package([script_bundle], out, torch="none")


# The command


def test_the_command_reports_its_output(out: Path, script_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", str(script_bundle), "-o", str(out), "--external-torch", "--backend", "torchscript"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: {len(files_of(out)) - 1} files, ")
    assert f"needs libtorch {TORCH_VERSION}, its directory in HYBRID_RT_TORCH" in printed
    assert "HYBRID_RT_BACKEND" in (out / "serve").read_text()
    assert main(["package", str(script_bundle), "-o", str(out)]) == 2
    assert "hybrid_rt[package]" in capsys.readouterr().err
