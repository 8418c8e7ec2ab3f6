"""Tests of tools/benchmarks/readme.py: the README shows exactly the measured figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import ROOT
from hybrid_rt.bench.cases import Case
from hybrid_rt.bench.run import Machine, Result
from hybrid_rt.common.latency import Latency
from tools.benchmarks import readme

PAGE = (ROOT / "README.md").read_text()
MACHINE = asdict(Machine("Intel(R) Xeon(R) CPU @ 2.80GHz", 2, 2, "Linux", "3.11", {}, "2026-11-27"))


def latency(median: float) -> Latency:
    return Latency(median, median, median, median, 10)


def detectors(bf16_engine: str = "openvino bf16") -> dict[str, Any]:
    """Returns the content of a bench.json, made by the classes that write it."""
    names = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")
    medians = {"fp32": 1000.4, "bf16": 500.0}
    results = [Result(name, Case("torchscript-cpp"), latency=latency(1999.0)) for name in names]
    for precision, median in medians.items():
        engines = {"backbone": bf16_engine if precision == "bf16" else "openvino fp32"}
        case = Case("hybrid-cpp", "openvino", precision)
        results += [Result(name, case, latency=latency(median), engines=engines) for name in names]
    values: dict[str, Any] = json.loads(json.dumps([result.to_json() for result in results]))
    return {"machine": MACHINE, "results": values}


def everything() -> dict[str, Any]:
    cases = {"eager fp32": 0.74519, "hybrid bf16": 0.74521, "hybrid int8": 0.74344}
    cases |= {"whole graph bf16": 0.74168, "whole graph int8": 0.48521}
    step = {"share": 0.7, "latency_ms": {"p50": 20.0, "p99": 30.66}}
    return {
        "detectors": detectors(),
        "accuracy": {
            "machine": MACHINE,
            "pictures": 200,
            "results": {case: {"mAP": value, "mAP50": 0.9} for case, value in cases.items()},
        },
        "service": {"machine": MACHINE, "limits": [{"workers": 2, "throughput": 88.04}], "ladder": [step]},
        "overhead": {"machine": MACHINE, "noop_us": 1.34},
    }


def test_the_page_shows_the_kept_results() -> None:
    """Fails for figures edited by hand or not rendered after a measurement.

    To render: python -m tools.benchmarks.readme --render.
    """
    assert readme.with_block(PAGE, "") != PAGE
    assert list(readme.kept()) == list(readme.MEASUREMENTS)
    assert readme.with_block(PAGE, readme.table(readme.kept())) == PAGE


def test_the_page_has_at_most_ninety_lines_and_one_table() -> None:
    assert len(PAGE.splitlines()) <= 90
    assert len(re.findall(r"^\|---", PAGE, re.MULTILINE)) == 1


def test_all_results_make_six_rows() -> None:
    lines = readme.table(everything()).splitlines()
    where = "[Intel Xeon, 2 cores, 2026-11-27](docs/measured"
    assert lines[2:] == [
        "| Faster R-CNN R50-FPN, fp32, C++ | 1.99 times as fast as frozen TorchScript (1000 instead of 1999 ms) "
        f"| {where}/detectors.json) |",
        "| Faster R-CNN R50-FPN, bf16, C++ | 3.99 times as fast as frozen TorchScript (500 instead of 1999 ms) "
        f"| {where}/detectors.json) |",
        "| RetinaNet and FCOS R50-FPN, fp32, C++ | 1.99 and 1.99 times as fast as frozen TorchScript "
        f"(1000 instead of 1999 ms, 1000 instead of 1999 ms) | {where}/detectors.json) |",
        "| mAP of the demo detector, 200 images | hybrid 0.7452 in bf16 and 0.7434 in int8, whole graph 0.7417 and "
        f"0.4852, eager in fp32 0.7452 | {where}/accuracy.json) |",
        "| `hybrid-rt-serve`, SSDLite, 2 workers | 88.0 images per second; p99 30.7 ms at 70% of it "
        f"| {where}/service.json) |",
        f"| No-op engine called from C++ | 1.3 us per call | {where}/overhead.json) |",
    ]


@pytest.mark.parametrize("engine", ["openvino fp32 (this CPU has no bf16 instructions)", "openvino bf16 (emulated)"])
def test_bf16_without_its_instructions_is_not_shown(engine: str) -> None:
    text = readme.table({"detectors": detectors(engine)})
    assert "bf16" not in text
    assert "Faster R-CNN R50-FPN, fp32" in text


def test_a_case_that_failed_has_no_row() -> None:
    results = detectors()
    for result in results["results"]:
        if result["detector"] == "fcos_resnet50_fpn":
            result["latency"] = None
    assert "RetinaNet" not in readme.table({"detectors": results})


@pytest.mark.parametrize("page", ["no marks", f"{readme.END}{readme.BEGIN}", f"{readme.BEGIN}\n{readme.BEGIN}"])
def test_a_page_without_markers_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="once, got"):
        readme.with_block(page, "| table |")


@pytest.mark.parametrize(("name", "written"), [("accuracy", ""), ("service", "load.json")])
def test_files_of_the_tool_are_kept(name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        output = Path(command[-1])
        if written:
            output /= written
        output.write_text('{"measured": 1}\n')

    monkeypatch.setattr(readme, "KEPT", tmp_path / "measured")
    monkeypatch.setattr(subprocess, "run", run)
    readme.measure(name)
    measurement = readme.MEASUREMENTS[name]
    assert commands[0][:3] == [sys.executable, "-m", measurement.module]
    assert commands[0][-2] == "--output"
    assert readme.kept() == {name: {"measured": 1}}


def test_the_tools_take_the_arguments() -> None:
    """Checks that their parsers accept each option passed."""
    for measurement in readme.MEASUREMENTS.values():
        source = (ROOT / (measurement.module.replace(".", "/") + ".py")).read_text()
        for option in [*(text for text in measurement.arguments if text.startswith("--")), "--output"]:
            assert f'"{option}"' in source
