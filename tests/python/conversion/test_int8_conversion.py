"""Tests of precision="int8" and "auto" in convert, add_variant, swap_backbone, compile_segment and the CLI."""

from __future__ import annotations

import importlib
import json
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Backbone, ListDetector, SmallDetector
from hybrid_rt.backends import registry
from hybrid_rt.bundle import archive
from hybrid_rt.capture.calibration import record_calibration
from hybrid_rt.cli.main import main
from hybrid_rt.common.errors import BackendError, HybridRTError, OptionError, VerificationError
from hybrid_rt.common.executables import program as find_program
from hybrid_rt.common.progress import Steps
from hybrid_rt.conversion.auto_precision import Candidate, candidates, choose, fastest
from hybrid_rt.conversion.calibration import FEW_SAMPLES, MOST_SAMPLES, calibration_samples, warn_of_few
from hybrid_rt.conversion.options import EngineOptions
from hybrid_rt.conversion.report.data import PrecisionTrial
from hybrid_rt.conversion.report.html import report_html
from hybrid_rt.conversion.tightening import MOST_TRIES, build_until_right
from hybrid_rt.verification.result import Failure, Findings

convert_module, variants_module = (
    importlib.import_module(f"hybrid_rt.conversion.{name}") for name in ("convert", "edit.variants")
)

needs_nncf = pytest.mark.skipif(bool(registry.backend("openvino").missing("int8")), reason="nncf is not installed")


def detector() -> nn.Module:
    torch.manual_seed(0)
    return ListDetector(SmallDetector()).eval()


def image(seed: int) -> Tensor:
    return torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(seed))


def samples(count: int = 12) -> list[tuple[list[Tensor]]]:
    return [([image(i)],) for i in range(count)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> hybrid_rt.ConversionResult:
    path = tmp_path_factory.mktemp("int8") / "int8.pt"
    with torch.no_grad():
        return hybrid_rt.convert(
            detector(),
            ([image(0)],),
            path,
            engine=["openvino", "onnxruntime"],
            precision="int8",
            calibration_data=iter(samples()),
            options={"onnxruntime": {"int8_max_error": 0.1}},
            report=path.with_suffix(".json"),
        )


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "fp32.pt"
    with torch.no_grad():
        hybrid_rt.convert(detector(), ([image(0)],), path, engine="torchscript", measure=False)
    return path


@needs_nncf
@pytest.mark.slow
def test_a_hybrid_in_int8_loads_and_gives_the_boxes(converted: hybrid_rt.ConversionResult) -> None:
    path = Path(converted.report.path)
    hybrid = hybrid_rt.load(path, backend="openvino:int8", strict=True)
    (engine,) = hybrid_rt.engines(hybrid)
    assert engine["precision"] == "int8"
    assert "int8" in engine["description"]
    (found,), (expected,) = hybrid([image(0)]), detector()([image(0)])
    assert len(found["boxes"]) == pytest.approx(len(expected["boxes"]), rel=0.2)
    assert hybrid_rt.verify_golden(path).passed


@needs_nncf
@pytest.mark.slow
def test_each_engine_in_int8_runs_with_the_file(converted: hybrid_rt.ConversionResult) -> None:
    for name in ("openvino:int8", "onnxruntime:int8", "torchscript"):
        assert hybrid_rt.verify_golden(converted.report.path, backend=name).passed, name


@needs_nncf
@pytest.mark.slow
def test_the_cpp_program_verifies_int8(converted: hybrid_rt.ConversionResult) -> None:
    program = find_program("hybrid-rt-detect", "test")
    for engine in ("openvino:int8", "onnxruntime:int8"):
        command = [program, converted.report.path, "--verify", "--backend", engine]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "int8" in done.stdout, done.stdout


@needs_nncf
@pytest.mark.slow
def test_the_report_says_how_it_was_quantised(converted: hybrid_rt.ConversionResult) -> None:
    variants = [variant for engine in converted.report.engines for variant in engine.variants]
    known = [variant.quantization for variant in variants if variant.precision == "int8"]
    assert len(known) == 2
    assert all(found is not None and found.samples == 12 and found.error <= found.max_error for found in known)
    assert "openvino in int8, backbone+detector.classes: calibrated on 12 samples" in str(converted.report)
    values = json.loads(Path(converted.report.path).with_suffix(".json").read_text())
    assert values["engines"][0]["variants"][0]["quantization"]["samples"] == 12
    assert "openvino in int8, " in report_html(converted.report)
    manifest = archive.read_manifest(converted.report.path)
    assert manifest.engines[0].variants[0].versions["int8"].startswith("calibrated on 12 samples")


@needs_nncf
@pytest.mark.slow
def test_a_bundle_calibrates_itself(fp32: Path, tmp_path: Path) -> None:
    added, swapped = tmp_path / "added.pt", tmp_path / "swapped.pt"
    report = hybrid_rt.add_variant(fp32, "openvino", added, precision="int8", calibration_data=samples(), first=True)
    assert report.variants == {"backbone+detector.classes": ["openvino:int8", "torchscript:fp32"]}
    assert hybrid_rt.verify_golden(added).passed
    torch.manual_seed(1)
    result = hybrid_rt.swap_backbone(added, Backbone().eval(), swapped, calibration_data=samples())
    assert result.variants == ["openvino in int8", "torchscript in fp32"]
    (engine,) = hybrid_rt.engines(hybrid_rt.load(swapped))
    assert engine["precision"] == "int8"


@needs_nncf
@pytest.mark.slow
def test_a_segment_alone_is_compiled_in_int8() -> None:
    torch.manual_seed(0)
    backbone = Backbone().eval()
    data = [(image(i)[None],) for i in range(FEW_SAMPLES)]
    compiled = hybrid_rt.compile_segment(backbone, data[0], precision="int8", calibration_data=data, strict=True)
    assert compiled.running()["precision"] == "int8"
    found, right = compiled(*data[1])["coarse"], backbone(*data[1])["coarse"]
    assert float((found - right).abs().max() / right.abs().max()) < 0.2


@pytest.mark.slow
def test_a_segment_alone_takes_the_fastest_precision() -> None:
    torch.manual_seed(0)
    backbone = Backbone().eval()
    data = [(image(i)[None],) for i in range(FEW_SAMPLES)]
    compiled = hybrid_rt.compile_segment(
        backbone, data[0], engine="onnxruntime", precision="auto", calibration_data=data, strict=True
    )
    assert compiled.running()["precision"] in ("fp32", "int8")
    found, right = compiled(*data[1])["coarse"], backbone(*data[1])["coarse"]
    assert float((found - right).abs().max() / right.abs().max()) < 0.2


# Bad input


def refused(text: str) -> Any:
    return pytest.raises(OptionError, match=text)


def convert_int8(path: Path, data: Any, **options: Any) -> None:
    given = {"engine": "onnxruntime", "precision": "int8", "measure": False, **options}
    hybrid_rt.convert(detector(), ([image(0)],), path / "x.pt", calibration_data=data, **given)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, r"calibration_data: expected tuples of arguments, e\.g\. a list or a generator of them, got None"),
        (7, r"calibration_data: expected tuples of arguments, .* got int"),
        ("images", r"calibration_data: expected tuples of arguments, .* got str"),
        ([image(0)], r"calibration_data: expected the tuple of the detector's positional arguments.* got Tensor"),
        ([], r"calibration_data: expected some tens of tuples of arguments, with which onnxruntime:int8 is calibrated"),
        ([([torch.full((3, 32, 48), torch.nan)],)] * 12, r"calibration_data\[0\]: expected finite numbers, got NaN"),
        ([*samples(11), ([image(0) / 0],)], r"calibration_data\[11\]: expected finite numbers, got an infinite number"),
        ([([torch.rand(1, 32, 48)],)] * 12, r"calibration_data\[0\]: expected arguments that the detector takes"),
        ([("a path.png",)] * 12, r"calibration_data\[0\]: expected arguments that the detector takes"),
    ],
)
def test_calibration_data_of_another_kind_is_refused(tmp_path: Path, data: Any, text: str) -> None:
    with refused(text):
        convert_int8(tmp_path, data)
    assert not (tmp_path / "x.pt").exists()


def test_calibration_data_without_int8_is_refused(tmp_path: Path) -> None:
    with refused("calibration_data: expected an engine in int8 to calibrate, got only"):
        convert_int8(tmp_path, samples(), precision="fp32")


def test_a_bundle_takes_only_tuples(fp32: Path) -> None:
    with refused("calibration_data: expected tuples of the detector's positional arguments, got dict among them"):
        hybrid_rt.add_variant(fp32, "onnxruntime", precision="int8", calibration_data=[{"images": [image(0)]}])
    with refused("calibration_data: expected some tens of tuples of arguments"):
        hybrid_rt.add_variant(fp32, "onnxruntime", precision="int8")


def test_few_samples_are_a_warning_with_their_number() -> None:
    with pytest.warns(RuntimeWarning, match="calibration_data: expected some tens of samples, got 3"):
        warn_of_few(samples(3), "convert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few(samples(FEW_SAMPLES), "convert")


def test_every_way_warns_of_few_samples(fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt  # before the long work starts

    monkeypatch.setattr(convert_module, "working_copy", stop)
    monkeypatch.setattr(variants_module, "compile_program", stop)
    given: dict[str, Any] = {"engine": "onnxruntime", "precision": "int8", "calibration_data": samples(3)}
    with pytest.warns(RuntimeWarning, match=r"hybrid_rt\[convert\].* got 3"), pytest.raises(KeyboardInterrupt):
        hybrid_rt.convert(detector(), ([image(0)],), tmp_path / "x.pt", **given)
    with pytest.warns(RuntimeWarning, match=r"hybrid_rt\[add-variant\].* got 3"), pytest.raises(KeyboardInterrupt):
        hybrid_rt.add_variant(fp32, output=tmp_path / "x.pt", **given)


def test_no_more_samples_are_read_than_are_taken() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield ([image(0)],)

    assert len(calibration_samples(detector(), endless(), "convert")) == read == MOST_SAMPLES


def test_recorded_samples_are_thinned_to_the_memory() -> None:
    small = detector()
    one = 3 * 32 * 48 * 4
    names = ["backbone", "detector.classes"]
    runs = record_calibration(small, names, samples(32), ["backbone"], most_bytes=8 * one)
    assert len(runs) == 8
    firsts = [run["backbone"][0][0]["images"] for run in runs]
    assert torch.equal(firsts[1], image(4)[None])  # every fourth image
    assert all(next(iter(run["detector.classes"][0][0].values())).is_meta for run in runs)


def test_without_nncf_the_text_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(
        BackendError, match=r"openvino:int8.*int8 needs the nncf package.*pip install 'hybrid_rt\[int8\]'"
    ):
        convert_int8(tmp_path, samples(), engine="openvino")


@pytest.mark.parametrize("value", [0, -1, "1", True, float("nan"), float("inf")])
def test_options_of_int8_are_positive_numbers(tmp_path: Path, value: Any) -> None:
    with refused("option 'int8_seconds': expected a number above 0"):
        convert_int8(tmp_path, samples(), options={"onnxruntime": {"int8_seconds": value}})


# Fewer int8 layers where boxes differ


def test_int8_is_compiled_again_with_half_of_the_error_until_it_is_right() -> None:
    engines = EngineOptions("onnxruntime", "int8", calibration_data=samples())
    limits: list[float] = []

    def build(further: EngineOptions) -> float:
        limits.append(dict(further.options or {}).get("onnxruntime", {}).get("int8_max_error", 0.15))
        return limits[-1]

    built, given_up = build_until_right(engines, build, lambda limit: "boxes" if limit > 0.1 else "", Steps(False))
    assert limits == [0.15, 0.075]
    assert built == 0.075
    assert [entry.reason for entry in given_up] == ["boxes"]
    limits.clear()
    build_until_right(engines, build, lambda limit: "boxes", Steps(False))
    assert len(limits) == MOST_TRIES


def test_fp32_that_differs_is_not_compiled_again() -> None:
    tries: list[EngineOptions] = []
    build_until_right(EngineOptions("onnxruntime"), tries.append, lambda built: "boxes", Steps(False))
    assert len(tries) == 1


# precision="auto"


@pytest.mark.parametrize(
    ("times", "taken"),
    [
        ({"fp32": 10.0, "bf16": 9.6, "int8": 9.5}, "fp32"),
        ({"fp32": 10.0, "bf16": 9.4, "int8": 9.0}, "bf16"),
        ({"fp32": 10.0, "bf16": 9.6, "int8": 9.4}, "int8"),
        ({"fp32": 10.0, "bf16": 5.0, "int8": 2.0}, "int8"),
        ({"fp32": 10.0, "bf16": 20.0}, "fp32"),
        ({"bf16": 20.0}, "bf16"),
    ],
)
def test_fewer_bits_are_taken_if_they_are_faster_by_a_margin(times: dict[str, float], taken: str) -> None:
    found, trials = fastest(times)
    assert found == taken
    assert [trial.precision for trial in trials if not trial.reason] == [taken]


def options_for(engine: Any, **given: Any) -> EngineOptions:
    return EngineOptions(engine, "auto", **given)


def test_candidates_are_what_engine_and_data_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid_rt._native, "cpu_flags", lambda: {"avx2"})
    found, left_out = candidates(options_for("openvino"))
    assert [engines.precision for engines in found] == ["fp32"]
    reasons = {trial.precision: trial.reason for trial in left_out}
    assert reasons == {
        "fp16": "no engine that was named has it",
        "bf16": "this CPU has no instructions for it (avx512_bf16 or amx_bf16)",
        "int8": "no calibration_data was given",
    }
    monkeypatch.setattr(hybrid_rt._native, "cpu_flags", lambda: {"avx512_bf16"})
    found, _ = candidates(options_for("onnxruntime", calibration_data=samples()))
    assert [engines.precision for engines in found] == ["fp32", "int8"]
    assert [bool(engines.calibration_data) for engines in found] == [False, True]
    found, _ = candidates(options_for("openvino"))
    assert [engines.precision for engines in found] == ["fp32", "bf16"]


def test_auto_refuses_engines_with_a_precision_and_missing_devices() -> None:
    with refused(r"engine: expected names without a precision, since precision='auto' chooses it, got openvino:bf16"):
        candidates(options_for(["openvino:bf16", "torchscript"]))
    with refused(r"precision: expected the name of a precision.*got 'auto' for 'cuda' on a machine without a GPU"):
        candidates(options_for("torchscript", device="cuda"))


class _Hybrid:
    def __init__(self, name: str) -> None:
        self.name = name


def chosen(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, float], failures: dict[str, Any]
) -> tuple[str, dict[str, str]]:
    def build(engines: EngineOptions) -> str:
        failure = failures.get(engines.precision)
        if isinstance(failure, HybridRTError):
            raise failure
        return engines.precision

    def candidate(built: str) -> Candidate:
        return Candidate(_Hybrid(built), failures.get(built, ""))  # type: ignore[arg-type]

    monkeypatch.setattr(hybrid_rt._native, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(
        "hybrid_rt.conversion.auto_precision._times",
        lambda hybrids, example: {name: times[name] for name in hybrids},
    )
    engines = options_for("openvino", calibration_data=samples())
    built, options, trials = choose(engines, build, candidate, (), Steps(False))
    assert options.precision == built
    return built, {trial.precision: trial.reason for trial in trials}


@needs_nncf
def test_fast_candidates_that_fail_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fp32": 10.0, "bf16": 5.0, "int8": 2.0}
    assert chosen(monkeypatch, times, {})[0] == "int8"
    taken, reasons = chosen(monkeypatch, times, {"int8": "3 of 9 boxes"})
    assert (taken, reasons["int8"]) == ("bf16", "not verified: 3 of 9 boxes")
    error = BackendError.make("openvino", "segment", expected="a", got="b")
    taken, reasons = chosen(monkeypatch, times, {"int8": error, "bf16": error})
    assert taken == "fp32"
    assert "expected a, got b" in reasons["int8"]
    taken, _ = chosen(monkeypatch, times, {"fp32": "x", "bf16": "x", "int8": "x"})
    assert taken == "fp32"  # which verification refuses
    with pytest.raises(BackendError):
        chosen(monkeypatch, times, {"fp32": error, "bf16": error, "int8": error})


@pytest.mark.slow
def test_auto_writes_the_precision_that_it_took(tmp_path: Path) -> None:
    path = tmp_path / "auto.pt"
    result = hybrid_rt.convert(
        detector(), ([image(0)],), path, engine="onnxruntime", precision="auto", calibration_data=samples()
    )
    (taken,) = [trial.precision for trial in result.report.precisions if not trial.reason]
    assert result.report.precision == taken
    assert archive.read_manifest(path).engines[0].variants[0].precision == taken
    timed = {trial.precision for trial in result.report.precisions if trial.milliseconds is not None}
    assert timed == {"fp32", "int8"}
    assert f"precision {taken}: " in str(result.report)


def with_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> None:
    """Replaces measured times by these, so that results do not depend on the machine."""
    monkeypatch.setattr(
        "hybrid_rt.conversion.auto_precision._times",
        lambda hybrids, example: {name: times[name] for name in hybrids},
    )


def test_add_variant_adds_the_fastest_precision(monkeypatch: pytest.MonkeyPatch, fp32: Path, tmp_path: Path) -> None:
    path = tmp_path / "auto.pt"
    with_times(monkeypatch, {"fp32": 10.0, "int8": 5.0})
    report = hybrid_rt.add_variant(fp32, "onnxruntime", path, precision="auto", calibration_data=samples())
    (engine,) = archive.read_manifest(path).engines
    assert [variant.label for variant in engine.variants] == ["onnxruntime:int8", "torchscript:fp32"]
    assert [trial.line for trial in report.precisions[engine.name] if not trial.reason] == ["int8: 5.0 ms, taken"]
    assert f"{engine.name}, precision fp32: 10.0 ms, 2.00 times as long as int8" in str(report)
    assert report.verification is not None
    assert (report.verification.precision, report.verification.passed) == ("int8", True)
    assert len(report.verification.pictures) == 1
    assert hybrid_rt.verify_golden(path).passed


def test_add_variant_does_not_take_a_precision_whose_boxes_differ(
    monkeypatch: pytest.MonkeyPatch, fp32: Path, tmp_path: Path
) -> None:
    path = tmp_path / "auto.pt"
    with_times(monkeypatch, {"fp32": 10.0, "int8": 5.0})

    def fewer_boxes(expected: Any, found: Any, limits: Any, where: str) -> Findings:
        return Findings(failures=[Failure(f"{where}: a box is missing")] if "int8" in where else [])

    monkeypatch.setattr("hybrid_rt.conversion.edit.variants.compare_results", fewer_boxes)
    report = hybrid_rt.add_variant(fp32, "onnxruntime", path, precision="auto", calibration_data=samples())
    (trials,) = report.precisions.values()
    assert {trial.precision: trial.reason for trial in trials}["int8"].endswith(": a box is missing")
    assert archive.read_manifest(path).engines[0].variants[0].label == "onnxruntime:fp32"
    monkeypatch.setattr(
        "hybrid_rt.conversion.edit.variants.compare_results",
        lambda *_: Findings(failures=[Failure("a box is missing")]),
    )
    with pytest.raises(VerificationError, match=r"precision='auto': expected a precision whose results are right"):
        hybrid_rt.add_variant(fp32, "onnxruntime", path, precision="auto")


def test_add_variant_refuses_where_the_fastest_is_there(
    monkeypatch: pytest.MonkeyPatch, fp32: Path, tmp_path: Path
) -> None:
    path = tmp_path / "auto.pt"
    hybrid_rt.add_variant(fp32, "onnxruntime", path, verify=False)
    before = path.read_bytes()
    with_times(monkeypatch, {"fp32": 5.0, "int8": 10.0})
    with refused(r"precision='auto': expected a variant that is faster .* onnxruntime:fp32 is the fastest, and in"):
        hybrid_rt.add_variant(path, "onnxruntime", precision="auto", calibration_data=samples(), verify=False)
    assert path.read_bytes() == before
    with refused(r"\[add-variant\]: engine: expected names without a precision"):
        hybrid_rt.add_variant(path, "onnxruntime:int8", precision="auto")


def test_swap_backbone_takes_the_fastest_precision(monkeypatch: pytest.MonkeyPatch, fp32: Path, tmp_path: Path) -> None:
    path = tmp_path / "swapped.pt"
    with_times(monkeypatch, {"fp32": 10.0, "int8": 5.0})
    report = hybrid_rt.swap_backbone(
        fp32, detector().backbone, path, engine="onnxruntime", precision="auto",
        calibration_data=samples(),
    )  # fmt: skip
    assert report.variants == ["onnxruntime in int8", "torchscript in fp32"]
    assert [trial.precision for trial in report.precisions] == ["fp32", "fp16", "bf16", "int8"]
    assert "precision int8: 5.0 ms, taken" in str(report)
    assert report.verification is not None
    assert report.verification.precision == "int8"


def test_a_trial_is_one_line() -> None:
    assert PrecisionTrial("bf16", 11.34, "").line == "bf16: 11.3 ms, taken"
    assert PrecisionTrial("int8", None, "no calibration_data was given").line == "int8: no calibration_data was given"


# The command line


@needs_nncf
@pytest.mark.slow
def test_the_command_line_calibrates_on_a_directory(fp32: Path, tmp_path: Path) -> None:
    for i in range(FEW_SAMPLES):
        pixels = (image(i) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    target = tmp_path / "int8.pt"
    arguments = ["add-variant", str(fp32), "--engine", "onnxruntime", "--precision", "int8", "--output", str(target)]
    assert main([*arguments, "--calibration-data", str(tmp_path)]) == 0
    assert archive.read_manifest(target).engines[0].variants[0].precision == "int8"
