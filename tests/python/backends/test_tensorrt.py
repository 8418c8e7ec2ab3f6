"""Tests of building TensorRT engines, which needs no GPU, and of refusals; test_tensorrt_run.py runs them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hybrid_rt
from helpers.small_detectors import Alone, small_detector, small_image
from hybrid_rt.backends import registry
from hybrid_rt.backends.aot_inductor import AOTInductorBackend
from hybrid_rt.backends.base import Availability
from hybrid_rt.backends.cache import store
from hybrid_rt.backends.tensorrt import backend as half
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import UNBOUNDED, Artifact

TENSORRT = registry.backend("tensorrt")
builds = pytest.mark.skipif(
    not TENSORRT.availability().available, reason=f"TensorRT's builder: {TENSORRT.availability().reason}"
)
pytestmark = builds
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


class Pyramid(nn.Module):
    """Has convolutions, a batch norm, a resize to another tensor's size, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images)
        coarse = self.deep(fine)
        top = fine + functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return {"0": top, "classes": self.head(coarse.mean((2, 3)))}


RANGES = [(1, 4), (3, 3), (32, 128), (32, 128)]
X = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def program_of(
    segment: nn.Module, *calls: tuple[Any, ...], ranges: Any = None, calibration: Sequence[tuple[Any, ...]] = ()
) -> Program:
    torch.manual_seed(0)
    return capture_alone(Alone(segment.eval()).eval(), "backbone", calls or ((X,),), ranges, calibration)


def pyramid(**options: Any) -> Program:
    torch.manual_seed(0)
    return program_of(Pyramid(), ranges=RANGES, **options)


def built(program: Program, precision: str = "fp32", **options: Any) -> Artifact:
    return TENSORRT.configured("cuda", options).compile(program, precision)


def bindings_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.blobs["bindings"].numpy().tobytes())
    return found


# What is built


def test_facts_for_later_checks_are_recorded_at_build_time() -> None:
    artifact = built(pyramid())
    spec, bindings = artifact.spec, bindings_of(artifact)
    assert spec.device == "cuda"
    assert spec.requirements["compute_capability"] == "8.0,8.6,8.9,12.0,12.1"
    version = tensorrt_rtx().__version__
    assert spec.requirements["tensorrt_rtx"] == "==" + ".".join(version.split(".")[:3])
    assert spec.versions["tensorrt_rtx"] == version
    assert (spec.inputs[0].min, spec.inputs[0].opt, spec.inputs[0].max) == (
        (1, 3, 32, 32),
        (1, 3, 64, 96),
        (4, 3, 128, 128),
    )
    assert bindings["inputs"] == ["images"]
    assert len(bindings["outputs"]) == 2
    assert bindings["profiles"] == [[{"min": [1, 3, 32, 32], "max": [4, 3, 128, 128]}]]
    assert len(artifact.blobs["engine"]) > 1000


def tensorrt_rtx() -> Any:
    (vendor,) = [vendor for vendor in half._vendors()[0] if vendor.is_rtx]
    return vendor.module


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_each_precision_is_built(precision: str) -> None:
    calibration = [(X * i / 4,) for i in range(1, 5)] if precision == "int8" else []
    artifact = built(pyramid(calibration=calibration), precision)
    assert artifact.spec.precision == precision
    assert [spec.dtype for spec in (*artifact.spec.inputs, *artifact.spec.outputs)] == ["float32"] * 3


class Wide(nn.Sequential):
    """Has enough weights for their size to be measurable."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3))


def test_lower_precisions_have_smaller_weights() -> None:
    program = program_of(Wide(), calibration=[(X,)])
    sizes = {name: built(program, name).blobs["engine"].numel() for name in ("fp32", "fp16", "bf16", "int8")}
    weights = 256 * 256 * 9
    assert sizes["fp32"] - sizes["fp16"] == pytest.approx(2 * weights, rel=0.2)
    assert sizes["fp32"] - sizes["bf16"] == pytest.approx(2 * weights, rel=0.2)
    assert sizes["fp32"] - sizes["int8"] == pytest.approx(3 * weights, rel=0.2)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_model_in_another_precision_computes_nearly_the_same(precision: str) -> None:
    """Runs on the CPU, with ONNX Runtime, the model that TensorRT gets for the GPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    calibration = [(X * i / 8,) for i in range(1, 9)]
    program = pyramid(calibration=calibration)
    model = half._model(program, precision, ["images"])
    types = {node.op_type for node in model.graph.node}
    assert types >= ({"QuantizeLinear", "DequantizeLinear"} if precision == "int8" else {"Cast"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": X.numpy()})
    allowed = 0.01 if precision == "fp16" else 0.1
    for expected, values in zip(program.run([X]), found, strict=True):
        assert torch.from_numpy(values).dtype == torch.float32
        error = (torch.from_numpy(values) - expected).abs().max() / expected.abs().max()
        assert 0 < error < allowed  # not 0, which shows that the precision differs


def test_bf16_is_the_models_own_type() -> None:
    from onnx import TensorProto

    model = half._model(pyramid(), "bf16", ["images"])
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {TensorProto.BFLOAT16}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }


def test_int8_is_symmetric_with_biases_as_they_are() -> None:
    from onnx import numpy_helper

    model = half._model(pyramid(calibration=[(X,)]), "int8", ["images"])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(pairs) >= 4
    assert all((constants[node.input[2]] == 0).all() for node in pairs)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    produced = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in convolutions:
        assert node.input[0] in produced
        assert node.input[1] in produced
        assert constants[node.input[2]].dtype == "float32"


def test_static_sizes_are_built_as_they_are() -> None:
    artifact = built(program_of(Pyramid()))
    assert artifact.spec.inputs[0].is_static
    assert bindings_of(artifact)["profiles"] == [[{"min": [1, 3, 64, 96], "max": [1, 3, 64, 96]}]]


def test_several_profiles_are_built() -> None:
    profiles = [{"height": (32, 64)}, {"batch": (1, 2, 4), "height": (96, 128), "width": (96, 128)}]
    artifact = built(pyramid(), profiles=profiles)
    assert bindings_of(artifact)["profiles"] == [
        [{"min": [1, 3, 32, 32], "max": [4, 3, 64, 128]}],
        [{"min": [1, 3, 96, 96], "max": [4, 3, 128, 128]}],
    ]
    assert artifact.spec.inputs[0].min == (1, 3, 32, 32)
    assert artifact.spec.inputs[0].max == (4, 3, 128, 128)


def test_a_dimension_without_an_upper_bound_gets_one() -> None:
    head = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    program = program_of(head, (torch.rand(3, 3, 8, 8),), (torch.rand(2, 3, 8, 8),), (torch.rand(0, 3, 8, 8),))
    assert program.inputs[0].max[0] == UNBOUNDED
    artifact = built(program)
    assert artifact.spec.inputs[0].max == (24, 3, 8, 8)
    assert artifact.spec.inputs[0].min == (0, 3, 8, 8)  # the minimum count is 0, which the C++ part handles
    assert bindings_of(artifact)["profiles"] == [[{"min": [1, 3, 8, 8], "max": [24, 3, 8, 8]}]]
    assert built(program, max_batch=100).spec.inputs[0].max == (100, 3, 8, 8)


class SecondIsUnused(nn.Module):
    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        return images * 2


def test_an_input_that_the_segment_does_not_look_at_has_no_binding() -> None:
    artifact = built(program_of(SecondIsUnused(), (X, torch.ones(2))))
    assert bindings_of(artifact)["inputs"] == ["images", ""]
    assert len(artifact.spec.inputs) == 2


def test_one_capability_is_recorded() -> None:
    artifact = built(pyramid(), compute_capabilities="8.6")
    assert artifact.spec.requirements["compute_capability"] == "8.6"


def test_engines_for_two_gpus_are_added_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    hybrid_rt.convert(
        small_detector(), (small_image(),), path, segments="backbone", engine="torchscript", measure=False
    )
    for capability in ("8.6", "8.9"):
        options = {"tensorrt": {"compute_capabilities": [capability]}}
        report = hybrid_rt.add_variant(path, "tensorrt", device="cuda", options=options, first=True)
    assert report.variants["backbone"] == ["tensorrt:fp32@8.9", "tensorrt:fp32@8.6", "torchscript:fp32"]
    with pytest.raises(hybrid_rt.OptionError, match=r"got 'tensorrt:fp32' for compute_capability 8\.9, tensorrt_rtx"):
        hybrid_rt.add_variant(path, "tensorrt", device="cuda", options=options)
    (check,) = hybrid_rt.check(path, "cuda", capability="8.6")
    assert "8.9" in check.variants[0].refusal
    assert "8.6" not in check.variants[1].refusal


def test_runtime_options_of_tensorrt_rtx_are_recorded() -> None:
    assert {"kernel_specialization", "cuda_graphs"}.isdisjoint(bindings_of(built(pyramid())))
    recorded = bindings_of(built(pyramid(), kernel_specialization="eager", cuda_graphs="whole_graph"))
    assert (recorded["kernel_specialization"], recorded["cuda_graphs"]) == ("eager", "whole_graph")
    with refused("option 'hardware_compatibility': expected the library 'tensorrt', which has this option"):
        built(pyramid(), hardware_compatibility="ampere_plus")


def test_the_builder_reports_progress() -> None:
    told: list[tuple[float, str]] = []
    backend = TENSORRT.configured("cuda", progress=lambda share, what: told.append((share, what)))
    backend.compile(pyramid(), "fp32")
    assert told
    assert all(0 < share <= 1 and what for share, what in told)


def test_the_cache_keeps_one_for_each_option() -> None:
    program = pyramid()
    keys = {
        store.key_of(TENSORRT.configured("cuda", options), program, "fp32")
        for options in ({}, {"tf32": True}, {"compute_capabilities": ["8.6"]}, {"profiles": [{"height": (32, 64)}]})
    }
    assert len(keys) == 4
    assert store.key_of(TENSORRT.configured("cuda", {"tf32": False}), program, "fp32") in keys


def test_int8_is_kept_by_what_it_was_calibrated_on() -> None:
    keys = {store.key_of(TENSORRT, pyramid(calibration=[(X * k,)]), "int8") for k in (1, 2)}
    assert len(keys) == 2


# What is refused when it is built


def refused(text: str) -> Any:
    return pytest.raises(hybrid_rt.HybridRTError, match=re.escape(text))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tf33": True}, "hybrid_rt[tensorrt]: options: expected some of library, frontend, tf32, "),
        ({"tf32": 1}, "option 'tf32': expected true or false, got 1."),
        ({"library": "nvinfer"}, "option 'library': expected one of auto, tensorrt, tensorrt_rtx, got 'nvinfer'."),
        ({"frontend": "uff"}, "option 'frontend': expected one of onnx, torch2trt, got 'uff'."),
        ({"compute_capabilities": []}, "option 'compute_capabilities': expected 'current', or a list such as"),
        ({"compute_capabilities": [8.6]}, "option 'compute_capabilities': expected 'current', or a list such as"),
        ({"profiles": []}, "option 'profiles': expected a list of {'batch': (min, max)"),
        ({"profiles": [{"depth": (1, 2)}]}, "option 'profiles': expected a list of {'batch': (min, max)"),
        ({"profiles": [{"height": (64, 32)}]}, "option 'profiles': expected a list of {'batch': (min, max)"),
        ({"max_batch": 0}, "option 'max_batch': expected an integer from 1 to"),
        ({"optimization_level": 6}, "option 'optimization_level': expected an integer from 0 to 5, got 6."),
        ({"hardware_compatibility": "all"}, "option 'hardware_compatibility': expected one of none, ampere_plus, "),
        ({"kernel_specialization": "later"}, "option 'kernel_specialization': expected one of lazy, eager, none, got"),
        ({"cuda_graphs": True}, "option 'cuda_graphs': expected one of off, whole_graph, got True."),
        (
            {"library": "tensorrt", "cuda_graphs": "whole_graph"},
            "option 'cuda_graphs': expected the library 'tensorrt_rtx', which has this option, got 'whole_graph' for "
            "'tensorrt'. Leave it out, or pass the option library='tensorrt_rtx'.",
        ),
        (
            {"library": "tensorrt", "compute_capabilities": ["8.6"]},
            "option 'compute_capabilities': expected the library 'tensorrt_rtx'",
        ),
        (
            {"library": "tensorrt_rtx", "version_compatible": True},
            "option 'version_compatible': expected the library 'tensorrt', which has this option, got True",
        ),
    ],
    ids=str,
)
def test_unknown_options_are_refused(options: dict[str, Any], text: str) -> None:
    with refused(text) as caught:
        TENSORRT.configured("cuda", options)
    assert isinstance(caught.value, hybrid_rt.OptionError)


def test_a_gpu_that_this_library_does_not_build_for_is_refused() -> None:
    """TensorRT-RTX does not support 9.0, the compute capability of an H100."""
    with refused("option 'compute_capabilities': expected GPUs that this TensorRT-RTX builds for: ") as caught:
        built(pyramid(), compute_capabilities=["9.0"])
    assert "got 9.0. For other GPUs, use TensorRT on a machine that has one" in str(caught.value)


def a_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: str) -> None:
    """Pretends that the driver has one device."""
    monkeypatch.setattr(half, "_current_gpu", lambda: {"name": name, "capability": capability})


def test_the_library_may_not_build_for_the_present_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H100, TensorRT-RTX 1.7.1 built an engine for "current" and then refused to run it."""
    a_gpu(monkeypatch, "NVIDIA H100 80GB HBM3", "9.0")
    with refused(
        "option 'compute_capabilities': expected GPUs that this TensorRT-RTX builds for: 7.5, 8.0, "
    ) as caught:
        built(pyramid(), compute_capabilities="current")
    assert "got 9.0. For other GPUs" in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "fits"), [("8.6", True), ("12.0", True), ("7.5", False), ("9.0", False)], ids=str
)
def test_auto_skips_a_library_that_does_not_build_for_the_present_gpu(
    capability: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu(monkeypatch, "a GPU", capability)
    vendor = half.Vendor("tensorrt_rtx", tensorrt_rtx())
    monkeypatch.setattr(half, "_vendors", lambda: ([vendor], []))
    available = Availability(True)
    monkeypatch.setattr(AOTInductorBackend, "availability", lambda self: available)
    assert (TENSORRT.configured("cuda", {}).misfit() == "") is fits
    assert registry.best_for("cuda") == ("tensorrt" if fits else "aot_inductor")
    assert TENSORRT.configured("cuda", {"compute_capabilities": [capability]}).misfit() == ""


@needs_none
def test_building_for_the_present_gpu_needs_one() -> None:
    with refused("segment 'backbone': expected a GPU, because tensorrt_rtx") as caught:
        built(pyramid(), compute_capabilities="current")
    assert "got none: NVIDIA's driver" in str(caught.value)


def test_a_profile_outside_the_segments_range_is_refused() -> None:
    text = "segment 'backbone', input 'images', dimension 2: expected sizes that the segment accepts, 1..4 x 3"
    with refused(text):
        built(pyramid(), profiles=[{"height": (32, 256)}])


def test_sizes_without_an_upper_bound_are_refused() -> None:
    program = program_of(Pyramid(), ranges=[(1, 4), (3, 3), (32, UNBOUNDED), (32, 128)])
    with refused(
        "input 'images', dimension 2: expected an upper bound, which TensorRT needs, got sizes of 32 or more."
    ):
        built(program)
    assert built(program, profiles=[{"height": (32, 128)}]).spec.inputs[0].max == (4, 3, 128, 128)


class InDouble(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.double()


def test_a_type_that_tensorrt_lacks_is_refused() -> None:
    with refused("segment 'backbone', tensor 'output': expected one of float32, ") as caught:
        built(program_of(InDouble()))
    assert "got float64." in str(caught.value)


class Determinant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x[..., :4, :4])


class HasDeterminant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Determinant())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_the_parsers_message_names_the_module_in_the_users_code() -> None:
    with refused("segment 'backbone': expected operations that TensorRT's ONNX parser supports, got") as caught:
        built(program_of(HasDeterminant()))
    text = str(caught.value)
    assert re.search(r"Det in backbone\.layers\.2 \(.*test_tensorrt\.py\(\d+\): forward\): ", text)
    assert "Exclude that module from the segment (segments=), or use another engine." in text


def test_int8_without_calibration_data_is_refused_before_long_work(tmp_path: Path) -> None:
    with refused("calibration_data: expected some tens of tuples of arguments, with which tensorrt:int8 is calibrated"):
        hybrid_rt.convert(Alone(Pyramid()).eval(), (X,), tmp_path / "x.pt", engine="tensorrt", precision="int8")
    with refused(
        "calibration_data: expected an engine in int8 to calibrate, got only openvino:fp32, torchscript:fp32."
    ):
        hybrid_rt.convert(Alone(Pyramid()).eval(), (X,), tmp_path / "x.pt", calibration_data=[(X,)])
    with refused(
        "calibration_data: expected the tuple of the detector's positional arguments, or a dict of its arguments"
    ):
        hybrid_rt.convert(
            Alone(Pyramid()).eval(),
            (X,),
            tmp_path / "x.pt",
            engine="tensorrt",
            precision="int8",
            calibration_data=[X],  # type: ignore[list-item]
        )


def test_options_of_an_engine_that_is_not_compiled_are_refused(tmp_path: Path) -> None:
    with refused(
        "options: expected options only for the compiled engines (openvino, torchscript), got options for tensorrt."
    ):
        hybrid_rt.convert(Alone(Pyramid()).eval(), (X,), tmp_path / "x.pt", options={"tensorrt": {"tf32": True}})
    with refused("hybrid_rt[openvino]: options: expected some of int8_max_error, int8_seconds, got 'tf32'."):
        hybrid_rt.convert(Alone(Pyramid()).eval(), (X,), tmp_path / "x.pt", options={"openvino": {"tf32": True}})


def test_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    with refused("device: expected one of cpu, cuda, which the engines are compiled for, got 'cuda:0'."):
        hybrid_rt.convert(Alone(Pyramid()).eval(), (X,), tmp_path / "x.pt", device="cuda:0")


# torch2trt


@pytest.mark.skipif(find_spec("torch2trt") is not None, reason="torch2trt is installed")
def test_without_torch2trt_the_error_says_where_to_get_it() -> None:
    with refused(
        "segment 'backbone', frontend 'torch2trt': expected torch2trt to be installed, got ModuleNotFoundError"
    ):
        built(pyramid(), frontend="torch2trt")
    assert sys.modules.get("tensorrt") is None or hasattr(sys.modules["tensorrt"], "Builder")


@pytest.mark.skipif(find_spec("torch2trt") is None, reason="torch2trt is not installed: it is in no registry")
def test_torch2trt_builds_an_engine() -> None:
    artifact = built(program_of(Wide(), ranges=RANGES), frontend="torch2trt")
    assert artifact.spec.versions["frontend"] == "torch2trt"
    assert bindings_of(artifact)["profiles"] == [[{"min": [1, 3, 32, 32], "max": [4, 3, 128, 128]}]]


def test_torch2trt_has_fp32_alone() -> None:
    with refused("frontend 'torch2trt': expected fp32: newer versions of TensorRT compute in the types of the network"):
        built(pyramid(), "fp16", frontend="torch2trt")
