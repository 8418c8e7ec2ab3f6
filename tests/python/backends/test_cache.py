"""Tests of the cache of compiled artifacts: hits, misses, and disk errors, none of which may fail a conversion."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from filelock import FileLock
from torch import nn

import hybrid_rt
from helpers.small_detectors import Backbone, small_detector, small_image
from hybrid_rt.backends.base import Availability, Backend
from hybrid_rt.backends.cache import artifact_file, store
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.cli.main import main
from hybrid_rt.common.errors import BackendError, OptionError
from hybrid_rt.common.specs import Artifact, blob_from_bytes


class CountingBackend(Backend):
    """Compiles to an artifact of 1000 bytes and an empty blob, and counts its calls."""

    name = "counting"
    precisions = ("fp32", "bf16")
    version: ClassVar[str] = "1"

    def __init__(self) -> None:
        self.calls = 0

    def availability(self) -> Availability:
        return Availability(True, version=self.version)

    def compile(self, program: Program, precision: str) -> Artifact:
        self.calls += 1
        spec = self.spec(program, precision, versions={"counting": self.version})
        return Artifact(spec, {"bytes": blob_from_bytes(bytes(range(250)) * 4), "empty": blob_from_bytes(b"")})


class NewerBackend(CountingBackend):
    version = "2"


class OtherBackend(CountingBackend):
    name = "other"


class GpuBackend(CountingBackend):
    device = "cuda"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the directory of an empty cache."""
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYBRID_RT_CACHE_SIZE", raising=False)
    return tmp_path / "cache"


def program_of(
    backbone: nn.Module | None = None, side: int = 32, ranges: list[tuple[int, int]] | None = None
) -> Program:
    return capture_alone(small_detector(backbone), "backbone", [(small_image(side, side),)], ranges)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.artifact"))


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def segments() -> list[str]:
    return [entry.segment for entry in store.entries()]


# Hits and misses


def test_the_second_time_is_a_hit_with_the_same_artifact(directory: Path) -> None:
    backend = CountingBackend()
    first, first_hit = store.get_or_compile(backend, program_of(), "fp32")
    second, second_hit = store.get_or_compile(backend, program_of(), "fp32")
    assert (first_hit, second_hit, backend.calls) == (False, True, 1)
    assert second.spec == first.spec
    assert list(second.blobs) == ["bytes", "empty"]
    assert all(torch.equal(second.blobs[name], first.blobs[name]) for name in first.blobs)


def changed_weight() -> Program:
    backbone = small_detector().backbone
    backbone.second[0].bias[-1] += 1e-6
    return program_of(backbone)


def other_stride() -> Program:
    backbone = small_detector().backbone
    backbone.first[0].stride = (1, 1)
    return program_of(backbone)


def other_activation() -> Program:
    backbone = small_detector().backbone
    backbone.second[1] = nn.GELU()
    return program_of(backbone)


def renamed_input() -> Program:
    program = program_of()
    return dataclasses.replace(program, inputs=(dataclasses.replace(program.inputs[0], name="renamed"),))


@pytest.mark.parametrize(
    ("backend", "program", "precision"),
    [
        (CountingBackend, changed_weight, "fp32"),
        (CountingBackend, other_stride, "fp32"),
        (CountingBackend, other_activation, "fp32"),
        (CountingBackend, lambda: program_of(side=48), "fp32"),
        (CountingBackend, lambda: program_of(ranges=[(1, 1), (3, 3), (32, 64), (32, 32)]), "fp32"),
        (CountingBackend, renamed_input, "fp32"),
        (CountingBackend, program_of, "bf16"),
        (NewerBackend, program_of, "fp32"),
        (OtherBackend, program_of, "fp32"),
        (GpuBackend, program_of, "fp32"),
    ],
    ids=["weight", "graph", "operator", "size", "range", "name", "precision", "version", "backend", "device"],
)
def test_a_change_is_a_miss(
    directory: Path, backend: type[CountingBackend], program: Callable[[], Program], precision: str
) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    assert store.get_or_compile(backend(), program(), precision)[1] is False
    assert store.get_or_compile(backend(), program(), precision)[1] is True
    assert len(files(directory)) == 2


@pytest.mark.parametrize(("module", "attribute"), [(torch, "__version__"), (artifact_file, "FORMAT")])
def test_another_version_is_a_miss(
    directory: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, attribute: str
) -> None:
    before = store.key_of(CountingBackend(), program_of(), "fp32")
    monkeypatch.setattr(module, attribute, "another")
    assert store.key_of(CountingBackend(), program_of(), "fp32") != before


def test_another_source_of_the_compiler_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for i in range(2):
        (tmp_path / f"compile_half_{i}.py").write_text(f"VERSION = {i}\n")
        __import__(f"compile_half_{i}")
        digests.append(store._code_digest(f"compile_half_{i}"))
    assert digests[0] != digests[1]


def test_the_name_of_the_segment_and_the_image_do_not_matter(directory: Path) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    detector = nn.Sequential(small_detector()).eval()
    program = capture_alone(detector, "0.backbone", [(small_image(seed=1),)])
    assert store.get_or_compile(CountingBackend(), program, "fp32")[1] is True


def test_a_segment_that_has_no_digest_is_compiled_each_time(directory: Path) -> None:
    class Sparse(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("constant", torch.zeros(1, 3, 32, 32).to_sparse())

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward(images + self.constant)

    backend = CountingBackend()
    assert [store.get_or_compile(backend, program_of(Sparse()), "fp32")[1] for _ in range(2)] == [False, False]
    assert backend.calls == 2
    assert files(directory) == []


def test_a_compiler_that_refuses_leaves_nothing(directory: Path) -> None:
    class Refusing(CountingBackend):
        def compile(self, program: Program, precision: str) -> Artifact:
            raise BackendError.make("refusing", "segment", expected="nothing", got="something")

    for _ in range(2):
        with pytest.raises(BackendError, match="expected nothing"):
            store.get_or_compile(Refusing(), program_of(), "fp32")
    assert files(directory) == []


# convert()


def test_convert_reports_cache_hits_and_makes_the_same_bundle(directory: Path, tmp_path: Path) -> None:
    def converted(name: str) -> hybrid_rt.ConversionReport:
        return hybrid_rt.convert(small_detector(), (small_image(),), tmp_path / name).report

    cold, warm = converted("cold.pt"), converted("warm.pt")
    assert [variant.cached for variant in cold.engines[0].variants] == [False, False]
    assert [variant.cached for variant in warm.engines[0].variants] == [True, True]
    assert (str(cold).count(" miss "), str(cold).count(" hit ")) == (2, 0)
    assert (str(warm).count(" miss "), str(warm).count(" hit ")) == (0, 2)
    assert warm.to_json()["engines"][0]["variants"][0]["cached"] is True
    assert hybrid_rt.inspect(tmp_path / "warm.pt")["engines"] == hybrid_rt.inspect(tmp_path / "cold.pt")["engines"]


# Several processes at once


class SlowBackend(CountingBackend):
    """Compiles slowly enough for the other processes to arrive."""

    def compile(self, program: Program, precision: str) -> Artifact:
        artifact = super().compile(program, precision)
        time.sleep(0.5)
        return artifact


def test_threads_that_need_the_same_artifact_compile_it_once(directory: Path) -> None:
    backend, hits = SlowBackend(), []
    programs = [program_of() for _ in range(4)]

    def work(program: Program) -> None:
        hits.append(store.get_or_compile(backend, program, "fp32")[1])

    threads = [threading.Thread(target=work, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(hits) == [False, True, True, True]
    assert backend.calls == 1


class WaitingBackend(CountingBackend):
    """Compiles when it reads a line from stdin."""

    def compile(self, program: Program, precision: str) -> Artifact:
        print("compiling", flush=True)
        sys.stdin.readline()
        return super().compile(program, precision)


@pytest.mark.slow
def test_a_process_waits_for_another_that_compiles_the_same(directory: Path) -> None:
    program = "import test_cache as t; print(t.store.get_or_compile(t.WaitingBackend(), t.program_of(), 'fp32')[1])"
    hits = []
    waiting = threading.Thread(
        target=lambda: hits.append(store.get_or_compile(WaitingBackend(), program_of(), "fp32")[1]), daemon=True
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "compiling\n"
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert other.communicate("go\n", timeout=120)[0] == "False\n"
    waiting.join(120)
    assert hits == [True]
    assert len(files(directory)) == 1


def test_a_process_that_waits_too_long_compiles_by_itself(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "COMPILE_SECONDS", 0.01)
    backend, program = CountingBackend(), program_of()
    (directory / ".locks").mkdir(parents=True)
    stuck = FileLock(directory / ".locks" / store.key_of(backend, program, "fp32")[:2])
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with stuck:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert store.get_or_compile(backend, program, "fp32")[1] is False
    finally:
        done.set()
        holder.join()
    assert backend.calls == 1


# The size limit


def test_the_least_recently_used_entry_is_evicted_first(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of()
    for name in ("first", "second", "third"):
        backend = CountingBackend()
        named = dataclasses.replace(program, name=name, inputs=(dataclasses.replace(program.inputs[0], name=name),))
        store.get_or_compile(backend, named, "fp32")
        for path in files(directory):
            age(path, 10)
        if name == "second":  # used again, so that the first is now the more recent one
            first = dataclasses.replace(program, inputs=(dataclasses.replace(program.inputs[0], name="first"),))
            assert store.get_or_compile(backend, first, "fp32")[1] is True
    assert segments() == ["third", "first", "second"]
    largest = max(path.stat().st_size for path in files(directory))
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", str(3 * largest + 10))
    named = dataclasses.replace(program, name="fourth")
    store.get_or_compile(CountingBackend(), named, "fp32")
    assert segments() == ["fourth", "third", "first"]


def test_entries_above_the_bound_are_not_kept_and_evict_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "999")
    assert store.get_or_compile(CountingBackend(), program_of(side=48), "fp32")[1] is False
    assert len(files(directory)) == 1


def test_size_0_switches_it_off(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "0")
    backend = CountingBackend()
    assert [store.get_or_compile(backend, program_of(), "fp32")[1] for _ in range(2)] == [False, False]
    assert backend.calls == 2
    assert len(files(directory)) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 5 * 2**30),
        ("123", 123),
        ("5G", 5 * 2**30),
        ("1.5k", 1536),
        ("2 MiB", 2**21),
        ("1TB", 2**40),
        ("0", 0),
        ("0M", 0),
    ],
)
def test_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", text)
    assert store.bound() == size


@pytest.mark.parametrize("text", ["-1", "5X", "G", "five", "1e9", "5G5", "\u0665"])
def test_an_invalid_size_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", text)
    with pytest.raises(OptionError) as caught:
        store.get_or_compile(CountingBackend(), program_of(), "fp32")
    assert str(caught.value) == (
        "hybrid_rt[cache]: HYBRID_RT_CACHE_SIZE: expected a number of bytes, or one with K, M, G or T, such as 5G, "
        f"got '{text}'. Set 0 to turn the cache off."
    )


# The directory


def test_the_directory_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HYBRID_RT_CACHE", "~/own")
    assert store.cache_directory() == tmp_path / "own"
    monkeypatch.setenv("HYBRID_RT_CACHE", "")
    assert store.cache_directory() == Path("/xdg/hybrid_rt")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert store.cache_directory() == tmp_path / ".cache" / "hybrid_rt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_directory() == tmp_path / ".cache" / "hybrid_rt"


def test_a_user_without_a_home_gets_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRID_RT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.warns(
        RuntimeWarning, match="HYBRID_RT_CACHE: expected a directory, since this user has no home directory, got none"
    ):
        assert store.get_or_compile(CountingBackend(), program_of(), "fp32")[1] is False


def test_a_directory_that_cannot_be_written_is_a_warning(directory: Path) -> None:
    directory.write_text("a file")  # where even root cannot create a directory
    backend = CountingBackend()
    with pytest.warns(RuntimeWarning) as told:
        assert store.get_or_compile(backend, program_of(), "fp32")[1] is False
    assert len(told) == 1
    assert (
        f"hybrid_rt[cache]: directory {directory}: expected to write an entry, got File exists. Nothing is kept"
        in str(told[0].message)
    )
    assert backend.calls == 1
    assert directory.read_text() == "a file"


def test_a_full_disk_is_a_warning_and_leaves_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact_file, "write", full)
    with pytest.warns(RuntimeWarning, match="got No space left on device"):
        assert store.get_or_compile(CountingBackend(), program_of(), "fp32")[1] is False
    assert [path.name for path in directory.iterdir()] == [".locks"]


# Damage


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped_blob(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flipped_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"fp32"', b'"fp16"'))


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(os.urandom(3000))


def of_another_key(path: Path) -> None:
    artifact_file.write(path, artifact_file.read(path, key=path.stem), key="0" * 64, segment="backbone")


@pytest.mark.parametrize(
    "damage",
    [truncated, flipped_blob, flipped_header, longer, empty, foreign, of_another_key],
    ids=lambda f: f.__name__,
)
def test_a_damaged_entry_is_rebuilt(directory: Path, damage: Callable[[Path], None]) -> None:
    backend = CountingBackend()
    made, _ = store.get_or_compile(backend, program_of(), "fp32")
    (path,) = files(directory)
    damage(path)
    again, hit = store.get_or_compile(backend, program_of(), "fp32")
    assert (hit, backend.calls) == (False, 2)
    assert torch.equal(again.blobs["bytes"], made.blobs["bytes"])
    assert store.get_or_compile(backend, program_of(), "fp32")[1] is True


def test_half_written_entries_of_killed_processes_are_removed(directory: Path) -> None:
    old, new = directory / f".{'0' * 64}.artifact.old", directory / f".{'0' * 64}.artifact.new"
    for path in (old, new):
        path.mkdir(parents=True)
        (path / "half").touch()
    age(old, 2 * store.ABANDONED_SECONDS)
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    assert not old.exists()
    assert new.exists()


# entries(), clear() and the command line


def test_list_and_clear(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    store.get_or_compile(OtherBackend(), dataclasses.replace(program_of(), name="roi_heads.box_head"), "bf16")
    (directory / "notes.txt").write_text("mine")
    size = sum(path.stat().st_size for path in files(directory)) / 1e6
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert f"{directory}: 2 entries, {size:.1f} MB of at most 5368.7 MB\n" in out
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in out.splitlines() if line.startswith("│")]
    assert sorted(rows) == [["backbone", "counting", "fp32", "0.0"], ["roi_heads.box_head", "other", "bf16", "0.0"]]
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"{directory}: removed 2 entries, {size:.1f} MB\n"
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == f"{directory}: 0 entries, 0.0 MB of at most 5368.7 MB\n"
    assert (directory / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["tvm_tuning", "tensorrt_timing", "tensorrt_rtx"])
def test_clear_removes_what_backends_keep_beside_the_entries(directory: Path, name: str) -> None:
    (directory / name).mkdir(parents=True)
    (directory / name / "0.cache").write_bytes(b"kernels")
    (directory / "mine").mkdir()
    assert store.clear() == []
    assert not (directory / name).exists()
    assert (directory / "mine").exists()


def test_list_and_clear_as_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    (path,) = files(directory)
    assert main(["cache", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (entry,) = told.pop("entries")
    assert told == {"folder": str(directory), "bound": 5 * 2**30, "size": path.stat().st_size}
    assert (entry["path"], entry["segment"], entry["size"]) == (str(path), "backbone", path.stat().st_size)
    assert entry["made"][:4] == entry["used"][:4] == f"{time.localtime().tm_year}"
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(directory), "removed": 1, "size": told["size"]}
    assert files(directory) == []


def test_list_names_a_damaged_entry_and_says_when_it_is_off(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.get_or_compile(CountingBackend(), program_of(), "fp32")
    empty(files(directory)[0])
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "0")
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "1 entry, 0.0 MB and switched off (HYBRID_RT_CACHE_SIZE=0)" in out
    assert "│ (damaged) " in out


def test_a_missing_directory_counts_as_empty(directory: Path) -> None:
    assert store.entries() == []
    assert store.clear() == []
    assert not directory.exists()


def test_the_command_line_names_a_bad_size(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "much")
    assert main(["cache", "list"]) == 2
    assert "HYBRID_RT_CACHE_SIZE: expected a number of bytes" in capsys.readouterr().err
