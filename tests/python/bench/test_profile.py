"""Tests of hybrid_rt.profile and ``hybrid-rt profile``: the parts of a call and the layers of its engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hybrid_rt
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import InputError, OptionError
from hybrid_rt.backends.base import LayerTime
from hybrid_rt.backends.onnxruntime.layers import _layers
from hybrid_rt.backends.openvino.backend import OpenVINOBackend
from hybrid_rt.bundle.call_parts import profiled_calls
from hybrid_rt.cli.main import main


def image(seed: int = 0) -> Tensor:
    """Returns an image so large that each convolution takes at least a microsecond, the profilers' resolution."""
    return small_image(160, 192, seed=seed)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "x.pt"
    hybrid_rt.convert(small_detector(), (image(),), path, segments="backbone", measure=False)
    return path


def test_the_parts_add_up_to_the_call(bundle: Path) -> None:
    found = hybrid_rt.profile(bundle, repeat=3, threads=1)
    assert sum(part.milliseconds for part in found.parts) == pytest.approx(found.profiled_ms, rel=1e-6)
    assert sum(part.share for part in found.parts) == pytest.approx(1, rel=1e-6)
    [engine] = [part for part in found.parts if part.kind == "engine"]
    assert (engine.name, engine.calls) == ("backbone", 1)
    operators = {part.name: part for part in found.parts if part.kind == "operator"}
    assert operators["hybrid_rt::nms"].place == "after backbone"
    assert found.inputs == [[1, 3, 160, 192]]
    assert found.threads == 1
    assert found.latency.count == 3
    assert found.limits.tflops["fp32"] > 0 < found.limits.copy_gb_per_s
    assert found.limits.convolution_tflops.keys() == found.limits.tflops.keys()
    assert found.limits.convolution_tflops["fp32"] > 0


def test_inputs_that_an_engine_copied_are_counted() -> None:
    """cpp/backends/tensorrt/call.cpp records them like this, within its engine's event."""
    record = torch.profiler.record_function

    def call(x: Tensor) -> None:
        for name, copies in (("backbone", 2), ("head", 0), ("head", 1)):
            with record(f"hybrid_rt engine {name}"), record("a vendor's own"):
                for _ in range(copies):
                    with record("hybrid_rt copied input"):
                        x.clone()
        x.clone()

    parts = profiled_calls(call, (torch.ones(3),), 2).parts
    assert {part.name: part.copied_inputs for part in parts if part.kind == "engine"} == {"backbone": 2, "head": 1}
    assert not any(part.copied_inputs for part in parts if part.kind != "engine")


def test_the_layers_of_openvino_and_their_operations(bundle: Path) -> None:
    [engine] = hybrid_rt.profile(bundle, (image(seed=1),), repeat=1).engines
    assert (engine.engine, engine.backend, engine.precision, engine.reason) == ("backbone", "openvino", "fp32", "")
    counted = {layer.name: layer.operations for layer in engine.layers if layer.operations}
    convolutions = [module for module in small_detector().backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(counted) == len(convolutions)
    assert all(layer.milliseconds > 0 for layer in engine.layers)
    assert engine.tflops is not None
    assert engine.tflops > 0


def test_the_nodes_of_onnxruntime_and_their_operations(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    hybrid_rt.convert(small_detector(), (image(),), path, engine="onnxruntime", segments="backbone", measure=False)
    [engine] = hybrid_rt.profile(path, repeat=1, threads=1).engines
    assert (engine.backend, engine.reason) == ("onnxruntime", "")
    convolutions = [module for module in small_detector().backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    counted = [layer.operations for layer in engine.layers if layer.operations]
    assert len(counted) == len(convolutions)
    assert convolutions[0].out_channels % 16  # ONNX Runtime adds channels to fill its vectors
    assert sum(counted) == sum(layer.operations for layer in openvino_layers(path))
    assert all(layer.milliseconds > 0 and layer.kind for layer in engine.layers)
    assert engine.tflops is not None


def openvino_layers(path: Path) -> list[LayerTime]:
    """Returns the layers of the same segment, measured by OpenVINO."""
    hybrid_rt.add_variant(path, "openvino", first=True, verify=False)
    [engine] = hybrid_rt.profile(path, backend="openvino", repeat=1, threads=1).engines
    return engine.layers


def test_the_last_call_of_a_profile_counts() -> None:
    def node(name: str, start: int, duration: int, **arguments: Any) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": arguments}

    matrix = {"input_type_shape": [{"float": [4, 8]}, {"float": [8, 2]}], "output_type_shape": [{"float": [4, 2]}]}
    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 50},
        node("early", 10, 5, op_name="Relu"),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50},
        node("second", 120, 7, op_name="Relu"),
        node("first", 110, 9, op_name="MatMul", **matrix),
        node("nothing", 130, 0, op_name="Shape"),
    ]
    assert _layers(events, []) == [
        LayerTime("first", "MatMul", 0.009, 2 * 4 * 8 * 2),
        LayerTime("second", "Relu", 0.007, 0),
    ]


def test_an_engine_without_a_profiler_says_so(bundle: Path) -> None:
    [engine] = hybrid_rt.profile(bundle, backend="torchscript", repeat=1).engines
    assert engine.layers == []
    assert engine.reason == "the vendor has no profiler that Python reaches"
    assert engine.tflops is None


def test_a_vendors_profiler_that_fails_leaves_the_rest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("Check 'x' failed at core.cpp:84:\nno counters")

    monkeypatch.setattr(OpenVINOBackend, "layer_times", failing)
    found = hybrid_rt.profile(bundle, repeat=1)
    assert found.engines[0].reason == "its profiler failed: Check 'x' failed at core.cpp:84:"
    assert found.parts


def test_the_command_prints_tables_or_json_and_writes_a_trace(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    assert main(["profile", str(bundle), "--repeat", "2", "--trace", str(trace)]) == 0
    shown = capsys.readouterr()
    assert "engine backbone" in shown.out
    assert "backbone · openvino fp32" in shown.out
    assert "this machine, in the same run: matrix product" in shown.out
    assert shown.err == ""
    events = json.loads(trace.read_text())["traceEvents"]
    assert any(event.get("name") == "hybrid_rt engine backbone" for event in events)
    assert main(["profile", str(bundle), "--repeat", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"parts", "engines", "limits", "latency", "decode_ms"} <= set(found)


def test_bad_arguments(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="repeat: expected at least 1, got 0"):
        hybrid_rt.profile(bundle, repeat=0)
    with pytest.raises(hybrid_rt.HybridRTError, match="expected"):
        hybrid_rt.profile(bundle, trace=tmp_path / "missing" / "trace.json")
    with pytest.raises(
        InputError, match=r"the inputs: expected inputs that the bundle accepts, got .*expected 1x3x160x192 float32"
    ):
        hybrid_rt.profile(bundle, (small_image(40, 56),))
    without = tmp_path / "y.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), without, segments="backbone", measure=False, golden=False)
    with pytest.raises(hybrid_rt.BundleError, match="expected a golden sample, got none"):
        hybrid_rt.profile(without)
