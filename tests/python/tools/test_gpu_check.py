"""Tests of tools/gpu_check and tools/benchmarks/bare_engine.py as far as possible without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.paths import ROOT

TOOLS = ROOT / "tools"
PAGE = ROOT / "docs" / "hardware.md"
DATE = "2026-01-02"

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@pytest.fixture
def tools() -> SimpleNamespace:
    """Returns the modules of the check."""
    from tools.benchmarks import bare_engine as bench_bare_engine
    from tools.gpu import main as gpu_check
    from tools.gpu import report as gpu_check_report
    from tools.gpu import runner as gpu_check_run

    return SimpleNamespace(bare=bench_bare_engine, check=gpu_check, report=gpu_check_report, run=gpu_check_run)


def run_tool(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)


# The whole tool


@pytest.mark.slow
@needs_no_gpu
def test_without_a_gpu_the_table_says_why_and_the_page_stays(tmp_path: Path) -> None:
    before = PAGE.read_text()
    done = run_tool(TOOLS / "gpu_check", "--no-build", "--python", sys.executable, "--output", tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert lines[0].split() == ["what", "result", "figure"]
    rows = [line for line in lines[2:] if not line.startswith("... and ")]
    assert len(rows) > 20
    assert all(" not run " in row for row in rows)
    assert all("NVIDIA's driver" in row for row in rows)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["device"] == {}
    assert {row["result"] for row in found["rows"]} == {"not run"}
    assert PAGE.read_text() == before


@pytest.mark.slow
@needs_no_gpu
def test_cases_are_chosen_by_words(tools: SimpleNamespace, tmp_path: Path) -> None:
    command = ["-m", "tools.gpu.main", "--output", tmp_path, "--only", "R50-FPN backbone", "--without", "tensorrt"]
    done = run_tool(sys.executable, *command)
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    assert "R50-FPN backbone, torch" in {row["what"] for row in rows}
    assert all(row["what"] == "device" or "R50-FPN backbone" in row["what"] for row in rows)
    assert not any("tensorrt" in row["what"] for row in rows)


@pytest.mark.slow
@needs_no_gpu
def test_without_a_gpu_nothing_is_built(tmp_path: Path) -> None:
    done = run_tool(TOOLS / "gpu_check", "--python", sys.executable, "--output", tmp_path, "--only", "nothing")
    assert done.returncode == 1, done.stderr
    assert "build " in done.stdout
    assert "not tried: torch finds no CUDA device here" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--pack", "/nonexistent"], "--pack: expected a part of tools/gpu_pack, got '/nonexistent'."),
        (["--pack"], "--pack: expected a value, got none."),
        (["--python", "/nonexistent"], "--python: expected an interpreter, got '/nonexistent'."),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: list[str], text: str) -> None:
    done = run_tool(TOOLS / "gpu_check", *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_a_page_without_markers_is_refused_before_the_long_work(
    tools: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Engine by device\n")
    with pytest.raises(SystemExit, match="2"):
        tools.check.main(["--page", str(page), "--output", str(tmp_path)])
    assert "page.md: expected the lines '<!-- gpu_check: begin -->' and " in capsys.readouterr().err
    assert page.read_text() == "# Engine by device\n"


# A case in a separate process


def fake(tools: SimpleNamespace, directory: Path, program: str, seconds: float = 60.0, left: float = 60.0) -> Any:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from pathlib import Path\nfrom tools.gpu.report import Row\nfrom tools.gpu.runner import Writer\n"
    code += f"writer = Writer(Path(sys.argv[1]))\n{program}"
    case = tools.run.Case("a fake case", "tensorrt", seconds)
    return tools.run.run(case, [sys.executable, "-c", code], directory, left, threads=2)


def test_a_case_gives_rows_and_data(tools: SimpleNamespace, tmp_path: Path) -> None:
    outcome = fake(tools, tmp_path, "writer.row(Row('x', 'measured', '1 ms', 'tensorrt')); writer.data(x=1)")
    assert outcome.rows == [tools.report.Row("x", "measured", "1 ms", "tensorrt")]
    assert outcome.data["x"] == 1


def test_a_failing_case_is_a_row_with_its_last_line(tools: SimpleNamespace, tmp_path: Path) -> None:
    outcome = fake(tools, tmp_path, "writer.row(Row('x', 'passed')); raise ValueError('as it says')")
    assert [row.result for row in outcome.rows] == ["passed", "failed"]
    assert outcome.rows[1].figure == "exit code 1: ValueError: as it says"
    assert outcome.rows[1].what == "a fake case"
    assert "Traceback" in outcome.data["log"]


def test_a_refusal_is_distinguished_from_a_failure(tools: SimpleNamespace, tmp_path: Path) -> None:
    program = "writer.data(failure='OptionError: 9.0 is not in the list'); print('[TRT] bye'); sys.exit(3)"
    outcome = fake(tools, tmp_path, program)
    assert [(row.result, row.figure) for row in outcome.rows] == [("refused", "OptionError: 9.0 is not in the list")]


def test_a_crashing_case_is_a_row(tools: SimpleNamespace, tmp_path: Path) -> None:
    program = "import os, signal; print('before', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    outcome = fake(tools, tmp_path, program)
    assert [(row.result, row.figure) for row in outcome.rows] == [("failed", "signal SIGSEGV: before")]


@pytest.mark.slow
def test_a_hanging_case_is_a_row_and_its_children_end(tools: SimpleNamespace, tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    program = (
        "import subprocess, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "writer.row(Row('x', 'passed')); print('compiling', flush=True); time.sleep(60)"
    )
    start = time.monotonic()
    outcome = fake(tools, tmp_path, program, seconds=2.0)
    assert time.monotonic() - start < 30
    assert [row.result for row in outcome.rows] == ["passed", "timed out"]
    assert outcome.rows[1].figure == "ended after 2 s: compiling"
    (stack,) = outcome.data["stacks"].values()
    assert 'File "<string>", line 8 in <module>' in stack  # it slept there
    time.sleep(max(0.0, 6 - (time.monotonic() - start)))
    assert not (tmp_path / "alive").exists()


def test_no_case_starts_after_the_time_limit(tools: SimpleNamespace, tmp_path: Path) -> None:
    outcome = fake(tools, tmp_path, "raise SystemExit(1)", left=3.0)
    assert outcome.rows == [
        tools.report.Row("a fake case", "not run", "the time was spent; --minutes gives more", "tensorrt")
    ]


def test_the_steps_of_the_build_are_rows(tools: SimpleNamespace, tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("-- found\nCMake Error at x:1\n  OpenSSL is missing\n-- end\nA\nB\nnote: from a subprocess\n")
    steps = tmp_path / "steps.tsv"
    steps.write_text(f"environment\t0\t3\t-\nbuild\t1\t9\t{log}\ndoctest\t-\t0\tno header\n")
    assert [(row.what, row.result, row.figure) for row in tools.run.build_rows(steps)] == [
        ("environment", "passed", "3 s"),
        ("build", "failed", "CMake Error at x:1\n  OpenSSL is missing\n-- end\nA"),
        ("doctest", "not run", "no header"),
    ]


def test_every_case_has_an_engine_that_the_page_knows(tools: SimpleNamespace) -> None:
    cases = [case for case, _ in tools.check.gpu_check_cases.CASES.values()]
    assert {case.engine for case in cases} - {""} == set(tools.report.ENGINES)


# Archives for a machine without a network


def packed(directory: Path, limit: int) -> list[Path]:
    from tools.gpu import pack

    archives = []
    for name, size in (("tools.tar.xz", 300), ("library.tar.xz", 3000)):
        content = directory / name.split(".")[0]
        content.write_bytes(bytes(i * i % 251 for i in range(size)))
        subprocess.run(["tar", "-C", directory, "-cJf", directory / name, content.name], check=True)
        archives.append(directory / name)
    return pack._write_parts(archives, directory / "parts", limit)


def unpacked(part: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return run_tool(sys.executable, "-m", "tools.gpu.unpack", part, directory)


def test_parts_are_put_together_once_all_are_there(tmp_path: Path) -> None:
    parts = packed(tmp_path, 350)
    assert len(parts) > 1
    assert all(sum(piece.stat().st_size for piece in part.glob("*.xz.*")) <= 350 for part in parts)
    stash = tmp_path / "stash"
    for part in parts[:-1]:
        done = unpacked(part, stash)
        assert done.returncode == 0, done.stderr
    assert "library.tar.xz: waits for library.tar.xz." in done.stdout
    assert not (stash / "library").exists()
    assert unpacked(parts[-1], stash).returncode == 0
    for name in ("tools", "library"):
        assert (stash / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_first_call_builds_and_the_last_one_measures() -> None:
    from tools.gpu import pack

    assert pack._calls([Path("1")]) == ["tools/gpu_check --pack 1"]
    assert pack._calls([Path("1"), Path("2"), Path("3")]) == [
        "tools/gpu_check --pack 1 --only doctor",
        "tools/gpu_check --pack 2 --no-build --only nothing",
        "tools/gpu_check --pack 3 --no-build --minutes 8",
    ]


def test_a_piece_that_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    part = packed(tmp_path, 1 << 20)[0]
    piece = part / "library.tar.xz.00"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    done = unpacked(part, tmp_path / "stash")
    assert done.returncode == 1
    assert "library.tar.xz.00: expected SHA-256 " in done.stderr
    assert not (tmp_path / "stash" / "library").exists()


# Several calls


def test_a_later_call_adds_to_the_earlier_ones(tools: SimpleNamespace, tmp_path: Path) -> None:
    row, page = tools.report.Row, tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    results = tools.check._Results(tmp_path / "a.json", page)
    results.add([], "facts", {"device": {"name": "GPU A"}})
    results.add([row("boxes", "failed", "signal 11", "torch")], "boxes", {})
    results.add([row("tests", "passed", "3", "torch")], "tests", {"goals": [{"what": "x", "goal": "op", "value": 1.0}]})
    assert "signal 11" in page.read_text()
    later = tools.check._Results(tmp_path / "b.json", page)
    later.add_earlier(json.loads((tmp_path / "a.json").read_text()))
    later.add([row("boxes: demo", "passed", "20", "torch")], "boxes", {})
    assert [(found.what, found.result) for found in later.all_rows()] == [
        ("tests", "passed"),
        ("boxes: demo", "passed"),
        ("goal: x", "measured"),
    ]
    assert "signal 11" not in page.read_text()
    assert later.device == {"name": "GPU A"}


# The table and the page


def results(name: str, *rows: Any) -> dict[str, Any]:
    return {
        "date": DATE,
        "device": {"name": name, "capability": "9.0", "driver": "580.1", "torch": "2.11.0"},
        "rows": [dict(zip(("what", "result", "figure", "engine"), row, strict=True)) for row in rows],
    }


MEASURED = ("R50 backbone", "measured", "1.25 ms", "tensorrt")


def test_a_device_gets_a_section(tools: SimpleNamespace) -> None:
    page = tools.report.page_with(PAGE.read_text(), results("NVIDIA One", MEASURED))
    assert "### NVIDIA One\n\n2026-01-02, capability 9.0, driver 580.1, torch 2.11.0.\n" in page
    assert "| tensorrt, the library that is chosen by itself | measured | R50 backbone: 1.25 ms |" in page
    assert "| aot_inductor | not run |  |" in page
    assert tools.report.NOBODY in PAGE.read_text() or "### " in PAGE.read_text()
    assert tools.report.NOBODY not in page
    assert page.split(tools.report.END)[1] == PAGE.read_text().split(tools.report.END)[1]
    assert page.split(tools.report.BEGIN)[0] == PAGE.read_text().split(tools.report.BEGIN)[0]


def test_ratios_stand_beside_their_goals_on_the_page(tools: SimpleNamespace) -> None:
    section = tools.report.section(results("NVIDIA One", ("goal: op", "measured", "1.020 (goal <= 1.05: reached)", "")))
    assert section.endswith("|---|---|\n| op | 1.020 (goal &lt;= 1.05: reached) |")


def test_a_run_replaces_its_own_devices_section_only(tools: SimpleNamespace) -> None:
    with_report = tools.report.page_with
    first = with_report(with_report(PAGE.read_text(), results("NVIDIA One", MEASURED)), results("NVIDIA Two", MEASURED))
    again = results("NVIDIA One", ("R50 backbone", "measured", "0.99 ms", "tensorrt"))
    second = with_report(first, again)
    assert second.count("### NVIDIA One\n") == second.count("### NVIDIA Two\n") == 1
    assert second.index("### NVIDIA One\n") < second.index("### NVIDIA Two\n")
    assert second == first.replace("1.25 ms", "0.99 ms", 1)
    assert with_report(second, again) == second


def test_states_claim_no_more_than_was_seen(tools: SimpleNamespace) -> None:
    section = tools.report.section(
        results(
            "NVIDIA One",
            ("for current", "refused", "9.0 is not | in\nthe list <b>", "tensorrt_rtx"),
            ("TensorRT", "built", "2 MB", "tensorrt_full"),
            ("tests", "passed", "3 passed", "aot_inductor"),
            ("x", "measured", "2 ms", "torch"),
            ("y", "timed out", "ended", "torch"),
            ("z", "not run", "no package", "operators"),
        )
    )
    lines = section.splitlines()
    assert "| tensorrt, TensorRT-RTX | refused | for current: **refused**: 9.0 is not \\| in the list &lt;b> |" in lines
    assert "| tensorrt, TensorRT | engine built, not run | TensorRT: 2 MB |" in lines
    assert "| aot_inductor | tests ran, not measured | tests: 3 passed |" in lines
    assert any("| measured; 1 failed or refused | x: 2 ms; y: **timed out**: ended |" in line for line in lines)
    assert any(line.endswith("| not run | z: no package |") for line in lines)


@pytest.mark.parametrize("change", ["begin", "end", "order", "twice"])
def test_a_page_without_its_markers_is_refused(tools: SimpleNamespace, change: str) -> None:
    begin, end = tools.report.BEGIN, tools.report.END
    pages = {
        "begin": f"a\n{end}\n",
        "end": f"{begin}\na\n",
        "order": f"{end}\n{begin}\n",
        "twice": f"{begin}{end}{end}",
    }
    with pytest.raises(
        ValueError, match=r"^hybrid_rt\[gpu_check\]: page.md: expected the lines .* in this order, got [012] and"
    ):
        tools.report.page_with(pages[change], results("NVIDIA One"), "page.md")


def test_a_long_table_keeps_the_failures(tools: SimpleNamespace) -> None:
    rows = [tools.report.Row(f"case {i}", "measured", "1 ms\n2 ms") for i in range(60)]
    rows.append(tools.report.Row("the last", "failed", "x" * 500))
    lines = tools.report.table(rows).splitlines()
    assert len(lines) == 40
    assert lines[-2].startswith("the last")
    assert lines[-1] == "... and 24 more in the JSON"
    assert max(map(len, lines)) <= 160


def test_goals_stand_beside_the_ratio(tools: SimpleNamespace) -> None:
    assert tools.report.GOALS["op"].beside(1.02) == "1.020 (goal <= 1.05: reached)"
    assert tools.report.GOALS["op"].beside(1.06) == "1.060 (goal <= 1.05: missed)"
    assert tools.report.GOALS["backbone"].beside(4.5) == "4.50 (goal >= 4: reached)"
    assert tools.report.GOALS["end to end"].beside(2.0) == "2.00 (goal >= 2.5: missed)"


# A backbone's measurement, on the CPU


def test_backbones_are_measured_and_a_refusal_is_a_row(
    tools: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.gpu import measure

    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "allow_tf32", lambda is_allowed: None)
    monkeypatch.setattr(measure, "milliseconds", lambda candidate: float(candidate.call() is not None))
    monkeypatch.setattr(measure, "interleaved", lambda candidates: _called_once(measure, candidates))
    monkeypatch.setattr(measure, "backbone", lambda name: (torch.nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 16, 16)))
    path = tmp_path / "case.json"
    measure.measure_backbone(tools.run.Writer(path), "a backbone", "torchscript", "r50", ("fp32", "fp16"))
    found = json.loads(path.read_text())
    assert [(row["what"], row["result"]) for row in found["rows"]] == [
        ("a backbone fp16", "refused"),
        ("a backbone", "measured"),
    ]
    assert "got 'fp16' for torchscript:fp32" in found["rows"][0]["figure"]
    assert found["data"]["errors"]["torchscript fp32"] < 1e-5
    assert set(found["data"]["latency"]) >= {"torchscript fp32", "TorchScript fp32", "TorchScript tf32"}


def _called_once(measure: ModuleType, candidates: Sequence[Any]) -> dict[str, dict[str, float]]:
    return {candidate.name: {"median_ms": measure.milliseconds(candidate), "p95_ms": 1.0} for candidate in candidates}


# The bare engine


@needs_no_gpu
def test_the_bare_engine_needs_a_device(tmp_path: Path) -> None:
    done = run_tool(sys.executable, "-m", "tools.benchmarks.bare_engine", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("hybrid_rt[bare_engine]: ")
    assert "expected a CUDA device, got none: " in done.stderr or "expected cuda.bindings or pycuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_bare_engine_needs_a_binding(tools: SimpleNamespace) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'cuda'")

    with pytest.raises(tools.bare.BareEngineError) as caught:
        tools.bare.find_cuda([missing])
    assert str(caught.value) == (
        "hybrid_rt[bare_engine]: cuda-python: expected cuda.bindings or pycuda, got missing: No module named "
        "'cuda'. pip install cuda-bindings brings the first."
    )


def test_the_bare_engine_needs_the_vendor(tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(tools.bare.BareEngineError, match=r"vendor: expected the Python module of tensorrt, got tensor"):
        tools.bare.find_vendor(["tensorrt"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/nonexistent.pt"], "/nonexistent.pt: expected a bundle, or a directory of extracted files, got none."),
        ([".", "--shape", "1x3xa"], "--shape: expected sizes such as 1x3x800x1088, got '1x3xa'."),
    ],
    ids=str,
)
def test_the_bare_engine_refuses_arguments_first(
    tools: SimpleNamespace, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools.bare.main(arguments) == 1
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_bundle_without_a_tensorrt_engine_is_refused(
    tools: SimpleNamespace, tmp_path: Path, demo_bundle: Path
) -> None:
    with pytest.raises(tools.bare.BareEngineError, match="expected a bundle with a TensorRT engine, got "):
        tools.bare.extracted(demo_bundle, "", tmp_path)


def test_the_segment_picks_among_extracted_engines(tools: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("backbone-tensorrt-fp16", "head-tensorrt-fp16"):
        (tmp_path / f"{name}.engine").touch()
    path, libraries = tools.bare.extracted(tmp_path, "head", tmp_path)
    assert path.name == "head-tensorrt-fp16.engine"
    assert set(libraries) == {"tensorrt", "tensorrt_rtx"}
    with pytest.raises(tools.bare.BareEngineError, match=r"expected one .* got backbone-tensorrt-fp16\.engine, head-"):
        tools.bare.extracted(tmp_path, "", tmp_path)


class FakeCuda:
    """Counts calls. An event is the number of calls before it was recorded."""

    name = "fake"

    def __init__(self) -> None:
        self.uploaded: list[int] = []
        self.calls = 0

    def upload(self, values: bytes | memoryview) -> int:
        self.uploaded.append(len(values))
        return len(self.uploaded)

    def stream(self) -> str:
        return "stream"

    def handle(self, stream: str) -> int:
        assert stream == "stream"
        return 7

    def event(self) -> list[int]:
        return [0]

    def record(self, event: list[int], stream: str) -> None:
        event[0] = self.calls

    def elapsed(self, start: list[int], end: list[int]) -> float:
        return float(end[0] - start[0])


class FakeVendor:
    """Replaces TensorRT with one engine from images to features."""

    __name__ = "tensorrt"
    __version__ = "10.0"

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.DataType = SimpleNamespace(FLOAT=SimpleNamespace(itemsize=4))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.num_io_tensors, self.num_optimization_profiles = 2, 1

    def Logger(self, level: int) -> None: ...

    Logger.WARNING = 1  # type: ignore[attr-defined]

    def Runtime(self, logger: None) -> FakeVendor:
        return self

    def deserialize_cuda_engine(self, data: bytes) -> FakeVendor | None:
        return self if data == b"engine" else None

    def create_execution_context(self) -> FakeVendor:
        return self

    def set_optimization_profile_async(self, profile: int, stream: int) -> None:
        assert (profile, stream) == (0, 7)

    def get_tensor_name(self, i: int) -> str:
        return ("x", "y")[i]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 32, 32)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return max(shape) <= 32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"] if name == "x" else (1, 5)

    def get_tensor_dtype(self, name: str) -> Any:
        return self.DataType.FLOAT

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.addresses) == {"x", "y"}
        self.cuda.calls += 1
        return True


@pytest.fixture
def engine_file(tmp_path: Path) -> Path:
    path = tmp_path / "backbone-tensorrt-fp16.engine"
    path.write_bytes(b"engine")
    path.with_suffix(".json").write_text(json.dumps({"inputs": ["x"], "outputs": ["y"], "version_compatible": False}))
    return path


def test_the_bare_engine_is_placed_and_timed(tools: SimpleNamespace, engine_file: Path) -> None:
    cuda = FakeCuda()
    engine = tools.bare.Engine(FakeVendor(cuda), cuda, engine_file, 0, [(1, 3, 8, 24)])
    assert engine.inputs == {"x": [1, 3, 8, 24]}
    assert cuda.uploaded == [3 * 8 * 24 * 4, 5 * 4]
    assert tools.bare.time_engine(engine, 5, warm_up=2) == [1.0] * 5
    assert cuda.calls == 7
    best = tools.bare.Engine(FakeVendor(cuda), cuda, engine_file, 0)
    assert best.inputs == {"x": [1, 3, 16, 16]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"profile": 1}, "--profile: expected below 1, got 1."),
        ({"shapes": [(1, 3, 64, 64)]}, "input 'x': expected (1, 3, 8, 8) to (1, 3, 32, 32), got (1, 3, 64, 64)."),
        ({"shapes": [(1,), (2,)]}, "--shape: expected one for each of x, got 2."),
        ({"data": b"other"}, "expected an engine for this GPU and tensorrt 10.0, got one that it does not take"),
    ],
    ids=str,
)
def test_the_bare_engine_says_what_does_not_fit(
    tools: SimpleNamespace, engine_file: Path, change: dict[str, Any], text: str
) -> None:
    cuda = FakeCuda()
    engine_file.write_bytes(change.pop("data", b"engine"))
    with pytest.raises(tools.bare.BareEngineError) as caught:
        tools.bare.Engine(FakeVendor(cuda), cuda, engine_file, **{"profile": 0, "shapes": (), **change})
    assert text in str(caught.value)


def test_the_vendors_module_has_all_names_that_the_bare_engine_uses() -> None:
    module = pytest.importorskip("tensorrt_rtx_bindings")
    fakes = {name for name in vars(FakeVendor) if not name.startswith("_")} - {"Logger", "Runtime"}
    classes = (module.Runtime, module.ICudaEngine, module.IExecutionContext)
    assert {name for name in fakes if not any(hasattr(owner, name) for owner in classes)} == set()
    assert hasattr(module.ICudaEngine, "num_io_tensors")
    assert hasattr(module.ICudaEngine, "num_optimization_profiles")
    assert module.DataType.FLOAT.itemsize == 4
    assert isinstance(module.Logger(module.Logger.WARNING), module.ILogger)
    assert int(module.Logger.ERROR) < int(module.Logger.WARNING) < int(module.Logger.INFO)
