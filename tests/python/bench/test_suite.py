"""Tests of the benchmark of all ways to run a detector: cases, processes, results, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.small_detectors import ListDetector, SmallDetector, small_image
from hybrid_rt import OptionError, inspect
from hybrid_rt.bench import run as bench_run
from hybrid_rt.bench import tables, whole_graph
from hybrid_rt.bench.cases import RUNTIMES, Case, cases
from hybrid_rt.bench.processes import Process, ProcessFailed
from hybrid_rt.bench.results import run_all
from hybrid_rt.bench.run import Machine, Result, Settings, Subject, prepare, run
from hybrid_rt.cli.main import main
from hybrid_rt.common.executables import program
from hybrid_rt.common.latency import Latency
from hybrid_rt.verification.boxes import BoxMatch

pytestmark = pytest.mark.slow


class Wavering(ListDetector):
    """Returns other scores in each call."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            boxes, scores, labels = self.detector(image[None])
            found.append({"boxes": boxes, "scores": scores * torch.rand(1), "labels": labels})
        return found


def small(kind: type[ListDetector] = ListDetector) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(SmallDetector()).eval()


def images(count: int = 1) -> list[Tensor]:
    return [small_image(seed=seed)[0] for seed in range(count)]


def subject(kind: type[ListDetector] = ListDetector, count: int = 1) -> Subject:
    return Subject("small", lambda: small(kind), images(count))


# Cases


def test_an_engine_is_measured_in_python_in_cpp_and_as_a_whole_graph() -> None:
    found = cases(["openvino", "openvino:bf16", "tvm"], runtimes=["hybrid", "hybrid-cpp", "whole"])
    assert [case.name for case in found] == [
        "eager, Python",
        "hybrid openvino fp32, Python",
        "hybrid openvino bf16, Python",
        "hybrid tvm fp32, Python",
        "hybrid openvino fp32, C++",
        "hybrid openvino bf16, C++",
        "hybrid tvm fp32, C++",
        "whole detector in openvino fp32, Python",
        "whole detector in openvino bf16, Python",
    ]


def test_all_runtimes_are_the_default_and_python_and_cpp_share_a_file() -> None:
    found = cases(["onnxruntime"])
    assert {case.runtime for case in found} == set(RUNTIMES)
    python, cpp = (next(case for case in found if case.runtime == name) for name in ("hybrid", "hybrid-cpp"))
    assert python.file == cpp.file == "hybrid_onnxruntime_fp32"
    assert cpp.is_cpp
    assert not python.is_cpp


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(OptionError, match=r"runtime: expected one of eager, .*, got 'rust'"):
        cases(["openvino"], runtimes=["rust"])


def test_on_a_gpu_no_engine_is_given_a_whole_detector() -> None:
    found = cases(["torchscript", "aot_inductor"], device="cuda")
    assert {case.runtime for case in found} == set(RUNTIMES) - {"whole"}


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_rt._native.cuda_devices", lambda: ([], "no driver"))
    with pytest.raises(OptionError, match=r"device cuda: expected a CUDA device, got none: no driver"):
        run_all([subject()], cases(["torchscript"]), None, Settings(rounds=1, warm_up=0, threads=1, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_all_runtimes_run_on_a_gpu(tmp_path: Path) -> None:
    chosen = cases(["torchscript"], runtimes=["eager", "torchscript", "torchscript-cpp", "hybrid", "hybrid-cpp"])
    results = run(subject(count=2), chosen, tmp_path, Settings(rounds=2, warm_up=1, device="cuda"))
    assert [result.failure for result in results] == [""] * len(chosen)
    assert [result.differences for result in results] == [[]] * len(chosen)


@pytest.mark.slow
def test_int8_is_calibrated_on_separate_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    chosen = cases(["openvino:int8"], runtimes=["eager", "hybrid-cpp", "whole"])
    given = Subject("small", small, images(1), calibration=images(4)[1:])
    results = run(given, chosen, tmp_path, Settings(rounds=1, warm_up=0, threads=1, int8_options={"int8_seconds": 5}))
    assert [result.failure for result in results] == ["", "", ""]
    assert [result.case.precision for result in results] == ["fp32", "int8", "int8"]
    assert 'type="FakeQuantize"' in (tmp_path / "whole_openvino_int8.pt" / "xml").read_text()
    made = (tmp_path / "hybrid_openvino_int8.pt").stat().st_mtime_ns
    again = prepare(given, chosen, tmp_path, Settings(rounds=3, warm_up=0, threads=1, int8_options={"int8_seconds": 5}))
    assert [result.failure for result in again] == ["", "", ""]
    assert (tmp_path / "hybrid_openvino_int8.pt").stat().st_mtime_ns == made
    monkeypatch.setattr(bench_run._Run, "_made", lambda *_: {"seconds": 7.0, "segments": []})
    (_, changed, _) = prepare(given, chosen, tmp_path, Settings(rounds=3, warm_up=0, threads=2))
    assert changed.prepare_seconds == 7.0


class FindsMasks(nn.Module):
    """Has torchvision's interface, with masks as well as boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        x = images[0]
        boxes = x.mean((1, 2)).reshape(1, 3).repeat(2, 2)[:, :4]
        return [{"boxes": boxes, "labels": boxes[:, 0].long(), "scores": boxes[:, 1], "masks": self.masks(x[None])}]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_whole_graph_gives_all_boxes_of_its_detector(engine: str, tmp_path: Path) -> None:
    """If asked only for boxes, an engine would skip the computation of masks."""
    torch.manual_seed(0)
    detector = FindsMasks().eval()
    image = torch.rand(3, 16, 24)
    whole_graph.build(engine, detector, [image], "fp32", tmp_path / engine)
    (found,) = whole_graph.open_whole(engine, "fp32", tmp_path / engine, 1)([image])
    (expected,) = detector([image])
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].to(tensor.dtype), tensor, atol=1e-4, rtol=1e-4)


# Processes


def answering(code: str, tmp_path: Path) -> Process:
    return Process([sys.executable, "-c", code], tmp_path / "log.txt")


def test_a_process_answers_line_by_line(tmp_path: Path) -> None:
    process = answering("import sys\nfor line in sys.stdin: print('{\"got\": %r}' % int(line), flush=True)", tmp_path)
    assert [process.ask(str(i), 30) for i in (3, 4)] == [{"got": 3}, {"got": 4}]
    process.close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('print(\'{"error": "no such engine"}\')', "^no such engine$"),
        ("import sys; sys.exit('out of luck')", "^ended with exit code 1: out of luck$"),
        ("import os; os.kill(os.getpid(), 9)", r"^ended by signal 9 \(the kernel does that when memory runs out\)$"),
    ],
)
def test_a_process_that_fails_says_why(code: str, reason: str, tmp_path: Path) -> None:
    process = answering(code, tmp_path)
    with pytest.raises(ProcessFailed, match=reason):
        process.ask("run 0", 30)
    process.close()


def test_a_process_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    process = answering("import time, sys\nsys.stdin.close(); time.sleep(600)", tmp_path)
    with pytest.raises(ProcessFailed, match=r"^no answer within 0 s$"):
        process.read(0.1)
    assert process._process.poll() is not None


def test_a_compiler_ends_with_the_benchmark(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "detector.pickle")  # reading it blocks for ever without holding Python's lock
    paths = {name: str(tmp_path / f"{name}") for name in ("detector.pickle", "images.pt")}
    job = {"runtime": "hybrid", "detector": paths["detector.pickle"], "images": paths["images.pt"], "path": "x.pt"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "hybrid_rt.bench.prepare", str(tmp_path / "job.json")]
    process = Process(command, tmp_path / "log.txt", {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    try:
        assert process._process.stdin is not None
        process._process.stdin.close()  # as at the end of this process
        with pytest.raises(ProcessFailed, match=r"^ended with exit code 1$"):
            process.read(60)
    finally:
        process._process.kill()
        process.close()


def test_the_cpp_worker_reports_errors(tmp_path: Path) -> None:
    worker = program("hybrid-rt-bench-worker", "bench")
    without_job = subprocess.run([worker], capture_output=True, text=True, check=False)
    assert without_job.returncode == 2
    assert "usage: hybrid-rt-bench-worker JOB.json" in without_job.stderr
    job = {"runtime": "hybrid", "path": "missing.pt", "images": "missing.pt", "threads": 1, "libraries": []}
    (tmp_path / "job.json").write_text(json.dumps(job))
    process = Process([worker, str(tmp_path / "job.json")], tmp_path / "log.txt")
    with pytest.raises(ProcessFailed, match=r"missing\.pt: expected"):
        process.read(60)
    process.close()


# Runs


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Machine, list[Result]]:
    """Measures working cases and a failing one of a small detector, and returns the files too."""
    output = tmp_path_factory.mktemp("suite") / "out"
    chosen = cases(["torchscript"], runtimes=["torchscript-cpp", "hybrid", "hybrid-cpp"])
    chosen += [Case("whole", "openvino"), Case("whole", "onnxruntime"), Case("hybrid", "no_such_engine")]
    settings = Settings(rounds=3, warm_up=1, threads=1, segments=["backbone"])
    machine, results = run_all([subject(count=2)], chosen, output, settings, note="A note.")
    return output, machine, results


def test_each_case_is_measured_and_gives_eagers_boxes(measured: tuple[Path, Machine, list[Result]]) -> None:
    _, _, results = measured
    *working, _ = results
    runtimes = ["eager", "torchscript-cpp", "hybrid", "hybrid-cpp", "whole", "whole"]
    assert [result.case.runtime for result in working] == runtimes
    for result in working:
        assert result.failure == ""
        assert result.latency is not None
        assert result.latency.count == 3
        assert result.latency.median > 0
        assert result.latency.first > 0
        assert result.load_ms > 0
        assert result.file_bytes > 1000
        assert len(result.boxes) == 2
        assert all(match.matched == match.expected > 5 for match in result.boxes)
        assert (result.differences, result.not_compared) == ([], "")
    python, cpp = working[2:4]
    assert python.engines.keys() == cpp.engines.keys() == {"backbone"}
    assert python.peak_bytes > cpp.peak_bytes > 10_000_000  # no interpreter


def test_a_case_that_fails_says_why_and_the_others_go_on(measured: tuple[Path, Machine, list[Result]]) -> None:
    *_, unknown = measured[2]
    assert unknown.latency is None
    assert unknown.failure.startswith("prepare: OptionError: hybrid_rt[")
    assert "no_such_engine" in unknown.failure
    assert "\n" not in unknown.failure


def test_the_directory_has_json_markdown_and_a_plot(measured: tuple[Path, Machine, list[Result]]) -> None:
    output, _, results = measured
    written = json.loads((output / "bench.json").read_text())
    assert written["rounds"] == 3
    assert written["machine"]["threads"] == 1
    assert [entry["case"]["name"] for entry in written["results"]] == [result.case.name for result in results]
    assert written["results"][2]["latency"]["p99"] > 0
    page = (output / "bench.md").read_text()
    assert "A note." in page
    assert "| hybrid torchscript fp32, C++ |" in page
    assert "Failed:\n\n- hybrid no_such_engine fp32, Python: prepare: OptionError" in page
    with Image.open(output / "small.png") as image:
        assert image.width > 500


def test_boxes_that_differ_are_shown(tmp_path: Path) -> None:
    chosen = cases([], runtimes=["torchscript"])
    results = run(subject(Wavering), chosen, tmp_path, Settings(rounds=1, warm_up=0, threads=1))
    assert results[0].differences == []
    assert results[1].differences[0].startswith("image 0: ")
    assert "boxes matched" in results[1].differences[0]


def test_hybrids_of_fixed_sizes_take_the_images_alone(tmp_path: Path) -> None:
    chosen = cases(["torchscript"], runtimes=["hybrid-cpp"])
    settings = Settings(rounds=1, warm_up=0, threads=1, segments=["backbone"], fixed_sizes=True)
    run(subject(), chosen, tmp_path, settings)
    (segment,) = inspect(tmp_path / "hybrid_torchscript_fp32.pt")["engines"]
    (image,) = segment["variants"][0]["inputs"]
    assert image["min"][2:] == image["max"][2:] == [32, 32]


def test_unrunnable_options_are_refused_before_work(tmp_path: Path) -> None:
    chosen = [Case("eager")]
    with pytest.raises(OptionError, match="rounds: expected at least 1, got 0"):
        run(subject(), chosen, tmp_path, Settings(rounds=0))
    with pytest.raises(OptionError, match="images: expected at least 1, got 0"):
        run(subject(count=0), chosen, tmp_path)

    class Local(ListDetector):
        """A class that no other process can import."""

    with pytest.raises(OptionError, match="small: expected a detector that can be pickled"):
        run(subject(Local), chosen, tmp_path)
    with pytest.raises(OptionError, match="detectors: expected each once, got small, small"):
        run_all([subject(), subject()], chosen, None, Settings(rounds=1, warm_up=0, threads=1))


def test_a_detector_that_eager_cannot_run_is_refused(tmp_path: Path) -> None:
    wrong = Subject("small", small, [torch.zeros(5, 8, 8)])
    with pytest.raises(
        OptionError, match="small: expected a detector that runs in eager mode, got run 0: RuntimeError"
    ):
        run(wrong, [Case("eager")], tmp_path, Settings(rounds=1))


# Output for people

DETECTOR = "helpers.small_detectors:small_list_detector"
NAME = "helpers.small_detectors_small_list_detector"


def result(case: Case, median: float = 0.0, failure: str = "", differences: Sequence[str] = ()) -> Result:
    if failure:
        return Result("net", case, failure)
    match = BoxMatch(expected=10, found=10, matched=9 if differences else 10, min_iou=1.0, max_score_difference=0.0)
    latency = Latency(median, median + 1, median + 2, 50.0, 20)
    return Result("net", case, latency=latency, boxes=[match], differences=list(differences))


RESULTS = [
    result(Case("eager"), 40.0),
    result(Case("hybrid", "openvino"), 10.0, differences=["image 0: 9 of 10 boxes matched"]),
    result(Case("whole", "aot_inductor"), failure="prepare: a | b <c>"),
]


def test_a_table_shows_speed_up_boxes_and_failures() -> None:
    assert [row[0] for row in tables.rows(RESULTS)] == ["eager, Python", "hybrid openvino fp32, Python"]
    assert tables.rows(RESULTS)[1][1:5] == ("10.0", "11.0", "12.0", "4.00")
    assert tables.rows(RESULTS)[1][-1] == "9 of 10: differs"
    page = tables.markdown(Machine.here(2), RESULTS, rounds=20)
    assert "- hybrid openvino fp32, Python: image 0: 9 of 10 boxes matched" in page
    assert r"- whole detector in aot_inductor fp32, Python: prepare: a \| b \<c>" in page


def test_compare_engines_runs_a_detector_in_every_way_that_is_named(
    tmp_path: Path, demo_image_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--runtimes", "eager,torchscript-cpp", "--engine", "torchscript", "--repeat", "1", "--warm-up", "0"]
    where = ["--images", str(demo_image_path), "--threads", "1", "--output", str(tmp_path / "out")]
    assert main(["compare-engines", DETECTOR, *options, *where]) == 0
    captured = capsys.readouterr()
    assert NAME in captured.out
    assert "TorchScript, C++" in captured.out
    assert "notice" not in captured.err
    assert (tmp_path / "out" / f"{NAME}.png").exists()


def test_bench_for_detectors_still_works_and_names_the_new_verb(
    demo_image_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--runtimes", "eager", "--engine", "torchscript", "--repeat", "1", "--warm-up", "0", "--threads", "1"]
    assert main(["bench", "--detector", DETECTOR, "--images", str(demo_image_path), "--json", *options]) == 0
    captured = capsys.readouterr()
    assert [entry["detector"] for entry in json.loads(captured.out)["results"]] == [NAME]
    assert captured.err == "hybrid-rt: notice: bench --detector is now: hybrid-rt compare-engines DETECTOR ...\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "bench: expected MODELs, or --detector, got none"),
        (["a.pt", "--detector", "x:y"], "bench: expected MODELs, or --detector, got both"),
        (
            ["--detector", "x:y", "--coco", "a.json"],
            "bench --detector: expected no options that apply to MODELs only, got --coco",
        ),
        (["--detector", "x:y", "--engine", "onnx"], "onnx"),
        (["--detector", "x:y", "--runtimes", "rust"], "runtime: expected one of"),
        (["--detector", "x:y"], "detector: expected an importable PACKAGE.MODULE:CALLABLE"),
    ],
)
def test_bad_options_of_bench_for_detectors(
    options: list[str], text: str, demo_image_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--images", str(demo_image_path), *options]) == 2
    assert text in capsys.readouterr().err
