"""Tests of int8 on CPUs: layers that lose too much accuracy stay in fp32, and no result is silently wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt.backends import registry
from hybrid_rt.backends.openvino.int8 import quiet
from hybrid_rt.backends.quantization import options as int8_options
from hybrid_rt.backends.quantization import search as search_module
from hybrid_rt.backends.quantization.record import BLOB, KeptLayer, Quantization
from hybrid_rt.backends.quantization.search import SearchFailed, search
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import Artifact
from hybrid_rt.conversion.assemble.engine_module import engine_module
from hybrid_rt.torchscript import jit

needs_nncf = pytest.mark.skipif(bool(registry.backend("openvino").missing("int8")), reason="nncf is not installed")

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason))
    for name in ("openvino", "onnxruntime")
    for reason in [registry.backend(name).missing("int8") or registry.backend(name).availability().reason]
]


class Outlier(nn.Module):
    """Has two branches; in one convolution, one channel of the second branch is a thousand times larger."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.classes = nn.Conv2d(8, 4, 1)
        self.boxes = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(x)
        return self.classes(features), self.boxes(features)


def images(count: int, height: int = 24, width: int = 32) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(count)
    return [(torch.rand(1, 3, height + 8 * (i % 2), width, generator=generator),) for i in range(count)]


def outlier() -> nn.Module:
    torch.manual_seed(0)
    made = Outlier().eval()
    made.boxes[0].weight.data[0] *= 1000  # its range leaves only a step or two for the other channels
    made.boxes[1].weight.data[:, 0] /= 1000
    return made


def program_of(segment: nn.Module) -> Program:
    calls = [*images(1), (torch.rand(2, 3, 40, 48),)]
    return capture_alone(Alone(segment).eval(), "backbone", calls, None, images(12))


def compiled(backend: str, program: Program, **options: float) -> Artifact:
    return registry.backend(backend).configured("cpu", options).compile(program, "int8")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def program() -> Program:
    with torch.no_grad():
        return program_of(outlier())


@pytest.fixture(scope="module")
def artifact(backend: str, program: Program) -> Artifact:
    with torch.no_grad():
        return compiled(backend, program, int8_max_error=0.02)


def record_of(artifact: Artifact) -> Quantization:
    record = Quantization.of(artifact.blobs)
    assert record is not None
    return record


def relative_errors(artifact: Artifact, program: Program, x: Tensor) -> list[float]:
    engine = engine_module(program, [artifact])
    engine.engine.prepare("", torch.device("cpu"), 1, False)
    found = torch.ops.hybrid_rt.run_engine(engine.engine, [x])
    expected = program.run([x])
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.slow
def test_layers_that_break_the_limit_stay_in_fp32(artifact: Artifact) -> None:
    record = record_of(artifact)
    assert record.error <= 0.02 < record.error_everywhere
    assert 0 < len(record.kept) < record.layers
    assert {layer.name for layer in record.kept} <= {"backbone.boxes.0", "backbone.boxes.1"}
    assert record.samples == 12
    assert record.milliseconds.keys() == {"fp32", "int8", "int8 everywhere"}
    assert record.kept[0].name in artifact.spec.versions["int8"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3, 24, 32), (3, 3, 17, 31), (1, 3, 8, 8), (2, 3, 96, 56)])
def test_every_output_is_right_at_every_size(artifact: Artifact, program: Program, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    assert max(relative_errors(artifact, program, x)) < 0.1


@pytest.mark.slow
def test_without_a_kept_layer_the_outlier_is_far_off(backend: str, program: Program) -> None:
    record = record_of(compiled(backend, program, int8_max_error=1000.0))
    assert record.kept == ()
    assert record.error == record.error_everywhere > 0.02


@pytest.mark.slow
def test_a_limit_that_no_layer_keeps_is_refused(backend: str, program: Program) -> None:
    with pytest.raises(hybrid_rt.BackendError, match=r"expected outputs at most 1e-09 off .* got .* at best"):
        compiled(backend, program, int8_max_error=1e-9)


OVERFLOW = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy, openvino
core = openvino.Core()
model = core.read_model(sys.argv[1])
run = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
numpy.save(sys.argv[3], run([numpy.load(sys.argv[2])])[0])
"""
"""Runs in a separate process, because oneDNN reads the environment only once."""


class Saturating(nn.Module):
    """Multiplies large inputs by large weights of one sign, so that pairs of 8 bit products overflow 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        for convolution in (self.first, self.second):
            convolution.weight.data = 1 - convolution.weight.data.abs() / 10
            convolution.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def run_by(model: Any, isa: str, x: Tensor, directory: Path) -> Tensor:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(model, str(directory / "model.xml"), compress_to_fp16=False)
    numpy.save(directory / "input.npy", x.numpy())
    arguments = [str(directory / name) for name in ("model.xml", "input.npy", "output.npy")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", OVERFLOW, *arguments], env=environment, check=True, timeout=300)
    return torch.from_numpy(numpy.load(directory / "output.npy"))


@needs_nncf
@pytest.mark.slow
def test_int8_is_right_on_a_cpu_without_vnni(tmp_path: Path) -> None:
    """NNCF's default, 8 bit weights except in the first layer, is silently wrong there."""
    nncf, openvino = pytest.importorskip("nncf"), pytest.importorskip("openvino")
    segment = Saturating().eval()
    data = [(0.9 + call[0] / 10,) for call in images(12)]
    program = capture_alone(Alone(segment).eval(), "backbone", data[:2], None, data)
    blobs = compiled("openvino", program).blobs
    ours = openvino.Core().read_model(blobs["xml"].numpy().tobytes(), blobs["weights"].numpy().tobytes())
    (right,) = program.run(data[0])
    for isa in ("AVX2", "ALL"):
        assert off(run_by(ours, isa, data[0][0], tmp_path), right) < 0.03, isa
    plain = openvino.convert_model(jit.freeze(program.traced()), example_input=program.examples)
    with quiet():
        theirs = nncf.quantize(plain, nncf.Dataset([[x.numpy()] for (x,) in data], list), subset_size=len(data))
    assert off(run_by(theirs, "AVX2", data[0][0], tmp_path), right) > 0.1


def off(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().max() / right.abs().max())


class Pyramid(nn.Module):
    """Resizes levels to each other's sizes, and both returns and reads one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.inner, self.outer = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(x).relu()
        coarse = self.coarse(fine).relu()
        up = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return self.outer(self.inner(fine) + up), coarse, nn.functional.max_pool2d(coarse, 1, 2)


@pytest.mark.slow
def test_one_engine_is_right_at_sizes_that_follow_each_other(backend: str) -> None:
    """Runs one engine at large, small, odd, batched and large sizes: an earlier version was wrong at free sizes."""
    torch.manual_seed(0)
    program = program_of(Pyramid().eval())
    engine = engine_module(program, [compiled(backend, program)])
    engine.engine.prepare("", torch.device("cpu"), 1, False)
    for i, shape in enumerate(
        [(1, 96, 128), (1, 16, 24), (1, 37, 61), (3, 24, 40), (1, 96, 128), (1, 8, 8), (2, 64, 32)]
    ):
        x = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(i))
        found = torch.ops.hybrid_rt.run_engine(engine.engine, [x])
        for got, right in zip(found, program.run([x]), strict=True):
            assert got.shape == right.shape
            assert off(got, right) < 0.1, shape


@needs_nncf
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_free_sizes_give_what_fixed_ones_give(precision: str) -> None:
    """Compares one quantized model at free and at fixed sizes: an earlier version was wrong at free sizes."""
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    program = program_of(Pyramid().eval())
    blobs = compiled("openvino", program).blobs
    core = openvino.Core()
    model = core.read_model(blobs["xml"].numpy().tobytes(), blobs["weights"].numpy().tobytes())
    hints = {"INFERENCE_PRECISION_HINT": precision}
    free = core.compile_model(model, "CPU", hints)
    for i, shape in enumerate([(1, 96, 128), (1, 16, 24), (2, 37, 61), (1, 96, 128), (1, 8, 8)]):
        x = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(i))
        fixed = model.clone()
        fixed.reshape(list(x.shape))
        alone = core.compile_model(fixed, "CPU", hints)
        for got, wanted in zip(free([x.numpy()]).values(), alone([x.numpy()]).values(), strict=True):
            assert off(torch.from_numpy(got), torch.from_numpy(wanted)) < 0.03, shape


# The search, on a fake quantiser


class StandIn:
    """Has layers whose errors add up. A model is the set of layers that are in int8."""

    def __init__(self, errors: Mapping[str, float], branches: Mapping[str, Collection[str]] | None = None) -> None:
        self.costs, self.layers, self.edges = dict(errors), list(errors), [next(iter(errors))]
        self.branches = branches or {"output": set(errors)}
        self.looked_at: list[str] = []

    def quantize(self, kept: Collection[str]) -> set[str]:
        return set(self.layers) - set(kept)

    def alone(self, layer: str) -> set[str]:
        self.looked_at.append(layer)
        return {layer}

    def errors(self, model: set[str]) -> dict[str, float]:
        return {
            name: sum(self.costs[layer] for layer in model if layer in layers) for name, layers in self.branches.items()
        }


def test_exact_engines_keep_no_layer() -> None:
    found = search(StandIn({"a": 0.01, "b": 0.02}), 0.1, 10)
    assert (found.kept, found.model) == ((), {"a", "b"})


def test_the_fewest_layers_are_kept_and_named_with_their_errors() -> None:
    errors = {f"layer {i}": 0.001 for i in range(20)} | {f"bad {i}": 1.0 + i for i in range(5)}
    found = search(StandIn(errors), 0.1, 10)
    assert found.kept == tuple(KeptLayer(f"bad {i}", 1.0 + i) for i in range(5))
    assert found.error == pytest.approx(0.02)
    assert found.everywhere == pytest.approx(15.02)


def test_a_branch_is_kept_where_half_of_the_layers_are_not_enough() -> None:
    errors = {"stem": 0.01, **{f"scores {i}": 0.06 for i in range(4)}, "boxes": 0.01}
    branches = {"scores": {f"scores {i}" for i in range(4)}, "boxes": {"boxes"}}
    found = search(StandIn(errors, branches), 0.05, 10)
    assert {layer.name for layer in found.kept} == branches["scores"]


@pytest.mark.parametrize("cost", [1.0, float("nan"), float("inf")])
def test_an_unreachable_accuracy_ends_the_search(cost: float) -> None:
    with pytest.raises(SearchFailed, match="at best, with half of the layers"):
        search(StandIn({f"layer {i}": cost for i in range(8)}), 0.1, 10)


def test_the_time_budget_ends_the_search_and_edges_are_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(search_module, "time", SimpleNamespace(monotonic=monotonic))
    stand_in = StandIn({f"layer {i}": 1.0 for i in range(50)})
    stand_in.edges = ["layer 49"]
    with pytest.raises(SearchFailed, match=r"at best when the 20 s of the search were over"):
        search(stand_in, 0.1, 20)
    assert stand_in.looked_at[0] == "layer 49"
    assert 0 < len(stand_in.looked_at) < 20


def test_options_are_halved_and_checked() -> None:
    assert int8_options.tightened({}) == {"int8_max_error": 0.075}
    assert int8_options.tightened({"int8_max_error": 0.1, "int8_seconds": 5}) == {
        "int8_max_error": 0.05,
        "int8_seconds": 5,
    }
    with pytest.raises(hybrid_rt.OptionError, match="expected some of int8_max_error, int8_seconds, got 'bits'"):
        int8_options.checked("openvino", {"bits": 8})


def test_a_record_survives_and_a_broken_one_is_dropped() -> None:
    record = Quantization(
        12, 4, (KeptLayer("a", 0.2), KeptLayer("b")), 0.05, 0.3, 0.15, {"int8": 2.0, "int8 everywhere": 1.5}
    )
    assert Quantization.of({BLOB: record.to_blob()}) == record
    assert record.summary == (
        "calibrated on 12 samples, outputs 5.0% off (30.0% with all 4 layers in int8), 2 kept in fp32, which cost "
        "0.5 ms of 2.0: a (20.0%), b"
    )
    assert Quantization.of({}) is None
    assert Quantization.of({BLOB: torch.zeros(3, dtype=torch.uint8)}) is None


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.slow
def test_a_segment_without_layers_is_refused(backend: str) -> None:
    program = program_of(Nothing())
    with pytest.raises(
        hybrid_rt.BackendError, match="expected a layer that int8 computes, such as a convolution, got none"
    ):
        compiled(backend, program)


def test_a_segment_that_was_not_called_on_the_samples_is_refused(backend: str) -> None:
    program = capture_alone(Alone(outlier()).eval(), "backbone", images(1))
    with pytest.raises(
        hybrid_rt.BackendError,
        match=r"expected calibration samples within the .* got none.*calibration_data=.*\[sizes-not-taken\]$",
    ):
        compiled(backend, program)


@needs_nncf
def test_a_layer_that_nncf_refuses_is_named(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    import nncf

    def refuse(model: Any, *others: Any, ignored_scope: Any = None, **options: Any) -> Any:
        ignored = set(ignored_scope.names) if ignored_scope is not None else set()
        if not any("boxes.0" in name for name in ignored):
            raise RuntimeError("unsupported")
        return model

    monkeypatch.setattr(nncf, "quantize", refuse)
    with pytest.raises(hybrid_rt.BackendError, match=r"RuntimeError: unsupported; at backbone\.boxes\.0\b"):
        compiled("openvino", program)
