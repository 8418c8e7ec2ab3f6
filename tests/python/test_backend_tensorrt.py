"""TensorRT up to the edge of a device: TensorRT-RTX builds engines without a GPU; what runs them needs one."""

from __future__ import annotations

import json
import os
import re
import subprocess
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
from hybrid_rt import cache, registry
from hybrid_rt.backends import tensorrt as half
from hybrid_rt.capture import Program, capture_alone
from hybrid_rt.programs import program as installed
from hybrid_rt.specs import UNBOUNDED, Artifact

TENSORRT = registry.backend("tensorrt")
pytestmark = pytest.mark.skipif(
    not TENSORRT.availability().available, reason=f"TensorRT's builder: {TENSORRT.availability().reason}"
)
NO_GPU = "no CUDA device is here" if not torch.cuda.is_available() else ""
needs_gpu = pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)
needs_none = pytest.mark.skipif(not NO_GPU, reason="a CUDA device is here")


class Pyramid(nn.Module):
    """Convolutions, a batch norm, a resize to another tensor's size, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        fine = self.stem(pictures)
        coarse = self.deep(fine)
        top = fine + functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return {"0": top, "classes": self.head(coarse.mean((2, 3)))}


class Alone(nn.Module):
    """A detector that is its backbone, for any arguments."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *arguments: Any) -> Any:
        return self.backbone(*arguments)


class Detector(nn.Module):
    """One that scripts."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return self.backbone(pictures)


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


def test_what_later_checks_need_is_recorded_when_it_is_built() -> None:
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
    assert bindings["inputs"] == ["pictures"]
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
    """Enough weights to see their size."""

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
    """By ONNX Runtime, which runs on the CPU what TensorRT is given for the GPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    calibration = [(X * i / 8,) for i in range(1, 9)]
    program = pyramid(calibration=calibration)
    model = half._model(program, precision, ["pictures"])
    types = {node.op_type for node in model.graph.node}
    assert types >= ({"QuantizeLinear", "DequantizeLinear"} if precision == "int8" else {"Cast"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pictures": X.numpy()})
    allowed = 0.01 if precision == "fp16" else 0.1
    for expected, values in zip(program.run([X]), found, strict=True):
        assert torch.from_numpy(values).dtype == torch.float32
        error = (torch.from_numpy(values) - expected).abs().max() / expected.abs().max()
        assert 0 < error < allowed  # not 0: it was computed otherwise


def test_bf16_is_the_models_own_type() -> None:
    from onnx import TensorProto

    model = half._model(pyramid(), "bf16", ["pictures"])
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {TensorProto.BFLOAT16}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }


def test_int8_is_symmetric_with_biases_as_they_are() -> None:
    from onnx import numpy_helper

    model = half._model(pyramid(calibration=[(X,)]), "int8", ["pictures"])
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
    assert artifact.spec.inputs[0].min == (0, 3, 8, 8)  # none of what is counted: the run half takes care of it
    assert bindings_of(artifact)["profiles"] == [[{"min": [1, 3, 8, 8], "max": [24, 3, 8, 8]}]]
    assert built(program, max_batch=100).spec.inputs[0].max == (100, 3, 8, 8)


class SecondIsUnused(nn.Module):
    def forward(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        return pictures * 2


def test_an_input_that_the_segment_does_not_look_at_has_no_binding() -> None:
    artifact = built(program_of(SecondIsUnused(), (X, torch.ones(2))))
    assert bindings_of(artifact)["inputs"] == ["pictures", ""]
    assert len(artifact.spec.inputs) == 2


def test_one_capability_is_recorded() -> None:
    artifact = built(pyramid(), compute_capabilities="8.6")
    assert artifact.spec.requirements["compute_capability"] == "8.6"


def test_the_builder_tells_how_far_it_is() -> None:
    backend = TENSORRT.configured("cuda")
    told: list[tuple[float, str]] = []
    backend.progress = lambda share, what: told.append((share, what))
    backend.compile(pyramid(), "fp32")
    assert told
    assert all(0 < share <= 1 and what for share, what in told)


def test_the_cache_keeps_one_for_each_option() -> None:
    program = pyramid()
    keys = {
        cache.key_of(TENSORRT.configured("cuda", options), program, "fp32")
        for options in ({}, {"tf32": True}, {"compute_capabilities": ["8.6"]}, {"profiles": [{"height": (32, 64)}]})
    }
    assert len(keys) == 4
    assert cache.key_of(TENSORRT.configured("cuda", {"tf32": False}), program, "fp32") in keys


def test_int8_is_kept_by_what_it_was_calibrated_on() -> None:
    keys = {cache.key_of(TENSORRT, pyramid(calibration=[(X * k,)]), "int8") for k in (1, 2)}
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
        ({"max_batch": 0}, "option 'max_batch': expected a whole number of 1 to"),
        ({"optimization_level": 6}, "option 'optimization_level': expected a whole number of 0 to 5, got 6."),
        ({"hardware_compatibility": "all"}, "option 'hardware_compatibility': expected one of none, ampere_plus, "),
    ],
    ids=str,
)
def test_options_that_there_are_not_are_refused(options: dict[str, Any], text: str) -> None:
    with refused(text) as caught:
        TENSORRT.configured("cuda", options)
    assert isinstance(caught.value, hybrid_rt.OptionError)


def test_a_gpu_that_this_library_does_not_build_for_is_refused() -> None:
    """9.0, the H100's, is not among those of TensorRT-RTX."""
    with refused("option 'compute_capabilities': expected GPUs that this TensorRT-RTX builds for: ") as caught:
        built(pyramid(), compute_capabilities=["9.0"])
    assert "got 9.0. For other GPUs take TensorRT on a machine that has one" in str(caught.value)


@needs_none
def test_building_for_the_gpu_that_is_here_needs_one() -> None:
    with refused("segment 'backbone': expected a GPU, for which tensorrt_rtx") as caught:
        built(pyramid(), compute_capabilities="current")
    assert "got none: NVIDIA's driver" in str(caught.value)


def test_a_profile_outside_the_segments_range_is_refused() -> None:
    text = "segment 'backbone', input 'pictures', dimension 2: expected sizes that the segment takes, 1..4 x 3"
    with refused(text):
        built(pyramid(), profiles=[{"height": (32, 256)}])


def test_sizes_without_an_upper_bound_are_refused() -> None:
    program = program_of(Pyramid(), ranges=[(1, 4), (3, 3), (32, UNBOUNDED), (32, 128)])
    with refused("input 'pictures', dimension 2: expected an upper bound, which TensorRT needs, got sizes from 32 on."):
        built(program)
    assert built(program, profiles=[{"height": (32, 128)}]).spec.inputs[0].max == (4, 3, 128, 128)


class InDouble(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.double()


def test_a_type_that_tensorrt_has_not_is_refused() -> None:
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
    with refused("segment 'backbone': expected operations that TensorRT's ONNX parser takes, got") as caught:
        built(program_of(HasDeterminant()))
    text = str(caught.value)
    assert re.search(r"Det in backbone\.layers\.2 \(.*test_backend_tensorrt\.py\(\d+\): forward\): ", text)
    assert "Leave the module that it names out of the segment (segments=), or take another engine." in text


def test_int8_without_calibration_data_is_refused_before_long_work(tmp_path: Path) -> None:
    with refused("calibration_data: expected some tens of tuples of arguments, on which tensorrt:int8 is calibrated"):
        hybrid_rt.convert(Detector(Pyramid()).eval(), (X,), tmp_path / "x.pt", engine="tensorrt", precision="int8")
    with refused("calibration_data: expected an engine in int8 with it, got only openvino:fp32, torchscript:fp32."):
        hybrid_rt.convert(Detector(Pyramid()).eval(), (X,), tmp_path / "x.pt", calibration_data=[(X,)])
    with refused("calibration_data: expected tuples of the detector's positional arguments, got Tensor among them."):
        hybrid_rt.convert(
            Detector(Pyramid()).eval(),
            (X,),
            tmp_path / "x.pt",
            engine="tensorrt",
            precision="int8",
            calibration_data=[X],  # type: ignore[list-item]
        )


def test_options_of_an_engine_that_is_not_compiled_are_refused(tmp_path: Path) -> None:
    with refused(
        "options: expected those of the engines that are compiled (openvino, torchscript), got some for tensorrt."
    ):
        hybrid_rt.convert(Detector(Pyramid()).eval(), (X,), tmp_path / "x.pt", options={"tensorrt": {"tf32": True}})
    with refused("hybrid_rt[openvino]: options: expected none: it has no options of its own, got 'tf32'."):
        hybrid_rt.convert(Detector(Pyramid()).eval(), (X,), tmp_path / "x.pt", options={"openvino": {"tf32": True}})


def test_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    with refused("device: expected what the engines are compiled for, one of cpu, cuda, got 'cuda:0'."):
        hybrid_rt.convert(Detector(Pyramid()).eval(), (X,), tmp_path / "x.pt", device="cuda:0")


# torch2trt


@pytest.mark.skipif(find_spec("torch2trt") is not None, reason="torch2trt is installed")
def test_without_torch2trt_its_frontend_says_where_it_is() -> None:
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


# In bundles


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TensorRT for GPUs, OpenVINO for the CPU, TorchScript for both."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tensorrt") / "bank.pt"
    result = hybrid_rt.convert(
        Detector(Pyramid()).eval(),
        (X,),
        path,
        segments=["backbone"],
        engine=["tensorrt:fp16", "tensorrt", "openvino"],
        shapes={"height": (32, 128), "width": (32, 128)},
        options={"tensorrt": {"compute_capabilities": ["8.6", "8.9"]}},
        measure=False,
        verify_inputs=(),
    )
    if NO_GPU:
        assert result.report.verification is not None
        not_run = result.report.verification.not_run
        assert len(not_run) == 2
        assert all("it was compiled for a CUDA device, and there is none" in text for text in not_run), not_run
    return path


@needs_none
def test_on_a_cpu_the_bank_runs_openvino_and_says_that_there_is_no_cuda_device(bank: Path) -> None:
    module = hybrid_rt.load(bank)
    (segment,) = hybrid_rt.engines(module)
    assert segment["backend"] == "openvino"
    refusals = {f"{v['backend']}:{v['precision']}": v["refusal"] for v in segment["variants"]}
    for name in ("tensorrt:fp16", "tensorrt:fp32"):
        assert refusals[name].startswith("it was compiled for a CUDA device, and there is none: NVIDIA's driver (")
    assert refusals["openvino:fp32"] == ""
    assert set(module(X)) == {"0", "classes"}


@needs_none
def test_loading_it_on_cuda_says_that_there_is_no_device(bank: Path) -> None:
    with refused("hybrid_rt[bundle]: device cuda: expected a CUDA device, got none: NVIDIA's driver (") as caught:
        hybrid_rt.load(bank, device="cuda")
    assert isinstance(caught.value, hybrid_rt.OptionError)
    with refused("hybrid_rt[bundle]: device cuda:1: expected a CUDA device, got none"):
        hybrid_rt.open_segment(bank, "backbone", "cuda:1")


@needs_none
def test_nothing_is_left_where_only_tensorrt_may_run(bank: Path) -> None:
    with refused("expected a variant that can run on this machine, got none of 4:") as caught:
        hybrid_rt.load(bank, backend="tensorrt")
    assert str(caught.value).count("it was compiled for a CUDA device, and there is none") == 2
    assert str(caught.value).count("only 'tensorrt' was asked for") == 2


@needs_none
@pytest.mark.parametrize(
    ("capability", "text"),
    [
        (
            "9.0",
            "it was built for GPUs of compute capability 8.6,8.9, here is a GPU of capability 9.0; convert",
        ),
        ("8.6", ""),
    ],
)
def test_the_check_tells_of_another_machines_gpu(bank: Path, capability: str, text: str) -> None:
    (segment,) = hybrid_rt.check(bank, "cuda", capability=capability)
    refusal = segment.variants[0].refusal
    if text:
        assert refusal.startswith(text)
    else:
        assert "capability" not in refusal  # what the library says is another matter


def test_the_bundle_is_inspected_and_extracted_anywhere(bank: Path, tmp_path: Path) -> None:
    (segment,) = hybrid_rt.inspect(bank)["segments"]
    kinds = [(v["backend"], v["precision"], v["device"]) for v in segment["variants"]]
    assert kinds == [
        ("tensorrt", "fp16", "cuda"),
        ("tensorrt", "fp32", "cuda"),
        ("openvino", "fp32", "cpu"),
        ("torchscript", "fp32", "cpu"),
    ]
    names = {path.name for path in hybrid_rt.extract(bank, tmp_path, backend="tensorrt")}
    assert {Path(name).suffix for name in names} == {".engine", ".json"}


def test_an_altered_engine_is_found(bank: Path, tmp_path: Path) -> None:
    data = bytearray(bank.read_bytes())
    (segment,) = hybrid_rt.inspect(bank)["segments"]
    engine = hybrid_rt.extract(bank, tmp_path / "engines", backend="tensorrt")
    largest = max((path for path in engine if path.suffix == ".engine"), key=lambda path: path.stat().st_size)
    start = bytes(data).index(largest.read_bytes()[:4096])
    data[start + 2000] ^= 1
    altered = tmp_path / "altered.pt"
    altered.write_bytes(data)
    with pytest.raises(hybrid_rt.BundleError, match="expected the SHA-256"):
        hybrid_rt.check(altered)
    assert segment["variants"][0]["blobs"]


def test_add_variant_adds_tensorrt_from_the_stored_segment(bank: Path, tmp_path: Path) -> None:
    smaller = tmp_path / "smaller.pt"
    hybrid_rt.remove_variant(bank, "tensorrt", smaller)
    report = hybrid_rt.add_variant(
        smaller, "tensorrt:bf16", first=True, options={"tensorrt": {"compute_capabilities": ["12.0"]}}
    )
    assert report.variants["backbone"][0] == "tensorrt:bf16"
    if NO_GPU:
        assert any("tensorrt" in note and "there is none" in note for note in report.notes)
    (segment,) = hybrid_rt.inspect(smaller)["segments"]
    assert segment["variants"][0]["requirements"]["compute_capability"] == "12.0"


@needs_none
def test_compile_segment_strictly_is_an_engine_or_an_error() -> None:
    torch.manual_seed(0)
    with refused("compile_segment]: strict: expected a CUDA device, on which tensorrt:fp32 runs, got none: NVIDIA's"):
        hybrid_rt.compile_segment(Pyramid().eval(), X, engine="tensorrt", strict=True)


@needs_none
def test_moving_a_compiled_segment_to_cuda_says_why_not() -> None:
    torch.manual_seed(0)
    compiled = hybrid_rt.compile_segment(Pyramid().eval(), X, engine=["tensorrt", "openvino"])
    assert compiled.running()["backend"] == "openvino"
    with pytest.raises((hybrid_rt.BackendError, RuntimeError, AssertionError)):
        compiled.to("cuda")


def test_auto_for_cuda_is_tensorrt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hybrid_rt.convert(
        Detector(Pyramid()).eval(), (X,), tmp_path / "auto.pt", segments=["backbone"], device="cuda", measure=False
    )
    (segment,) = hybrid_rt.inspect(tmp_path / "auto.pt")["segments"]
    assert [variant["backend"] for variant in segment["variants"]] == ["tensorrt", "torchscript"]


@pytest.fixture(scope="module")
def demo_bank(tmp_path_factory: pytest.TempPathFactory, demo_detector: nn.Module, demo_image: Tensor) -> Path:
    """The demo detector with an engine for GPUs before that for the CPU."""
    path = tmp_path_factory.mktemp("tensorrt_demo") / "digits.pt"
    hybrid_rt.convert(
        demo_detector, ([demo_image],), path, segments="backbone", engine=["tensorrt:fp16", "openvino"], measure=False
    )
    return path


@needs_none
def test_a_cpp_program_runs_the_bank_on_a_cpu(demo_bank: Path, demo_picture: Path) -> None:
    done = subprocess.run(
        [installed("hybrid-rt-detect", "test"), demo_bank, demo_picture, "--json"],
        env={**os.environ, "HYBRID_RT_LOG": "info"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["engines"] == {"backbone": "openvino"}
    assert len(found["detections"]) >= 5
    assert "tensorrt (fp16) can't run: it was compiled for a CUDA device, and there is none: " in done.stderr


@needs_none
def test_a_cpp_program_says_that_there_is_no_cuda_device(demo_bank: Path, demo_picture: Path) -> None:
    done = subprocess.run(
        [installed("hybrid-rt-detect", "test"), demo_bank, demo_picture, "--device", "cuda"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "hybrid_rt[bundle]: device cuda: expected a CUDA device, got none: NVIDIA's driver (" in done.stderr


# The run half's library


def plugin_with(folder: Path, **environment: str) -> dict[str, Any]:
    """What a process of its own sees of the backend."""
    program = (
        "import json, hybrid_rt\n"
        "(info,) = [i for i in hybrid_rt._native.backends() if i['name'] == 'tensorrt']\n"
        "print(json.dumps(info))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def library(folder: Path, name: str, code: str) -> str:
    source = folder / f"{name}.c"
    source.write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", folder / name], check=True)
    return str(folder / name)


TWO_GPUS = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "NVIDIA Test", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 1ull << 36; return 0; }
"""

NO_DRIVER = "int cuInit(unsigned flags) { return 100; }\n" + (
    'int cuGetErrorString(int error, const char** text) { *text = "no CUDA-capable device is detected"; return 0; }\n'
)


def tensorrt_of(number: int) -> str:
    return (
        f"int getInferLibVersion(void) {{ return {number}; }}\n"
        "void* createInferRuntime_INTERNAL(void* logger, int version) { return 0; }\n"
    )


def test_without_a_library_the_reason_names_both(tmp_path: Path) -> None:
    info = plugin_with(
        tmp_path,
        HYBRID_RT_TENSORRT_LIBRARY="/nonexistent/libnvinfer.so",
        HYBRID_RT_TENSORRT_RTX_LIBRARY="/nonexistent/libtensorrt_rtx.so",
    )
    assert not info["available"]
    assert "TensorRT's library can't be opened (/nonexistent/libnvinfer.so" in info["reason"]
    assert "TensorRT-RTX's library can't be opened (/nonexistent/libtensorrt_rtx.so" in info["reason"]


@pytest.mark.parametrize(
    ("number", "version"), [(80601, "8.6.1"), (8601, "8.6.1"), (90300, "9.3.0"), (120000, "12.0.0")]
)
def test_a_library_of_another_version_than_the_headers_is_refused_unasked(
    tmp_path: Path, number: int, version: str
) -> None:
    info = plugin_with(
        tmp_path,
        HYBRID_RT_TENSORRT_LIBRARY=library(tmp_path, "libnvinfer.so", tensorrt_of(number)),
        HYBRID_RT_TENSORRT_RTX_LIBRARY="/nonexistent/libtensorrt_rtx.so",
    )
    assert (
        f"tensorrt {version} is installed ({tmp_path}/libnvinfer.so), but this plug-in was built with the headers of"
        in (info["reason"])
    )


def test_a_library_that_fits_is_available_where_a_gpu_is(tmp_path: Path) -> None:
    environment = {
        "HYBRID_RT_TENSORRT_LIBRARY": library(tmp_path, "libnvinfer.so", tensorrt_of(109900)),
        "HYBRID_RT_TENSORRT_RTX_LIBRARY": "/nonexistent/libtensorrt_rtx.so",
    }
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS)
    info = plugin_with(tmp_path, HYBRID_RT_CUDA_DRIVER=gpus, **environment)
    assert info["available"], info["reason"]
    assert info["version"] == "tensorrt 10.99.0"
    assert info["devices"] == ["cuda"]
    none = library(tmp_path, "libnone.so", NO_DRIVER)
    info = plugin_with(tmp_path, HYBRID_RT_CUDA_DRIVER=none, **environment)
    assert not info["available"]
    assert info["reason"] == (
        "it runs on CUDA devices, and there is none: NVIDIA's driver does not start: no CUDA-capable device is "
        "detected. Install NVIDIA's driver on a machine with a GPU, or run on the cpu"
    )


def checked_with(bank: Path, device: str = "cuda", **environment: str) -> list[str]:
    """The refusals of the bank's variants in a process of its own."""
    program = (
        f"import hybrid_rt; [print(v.refusal or '-') for v in hybrid_rt.check({str(bank)!r}, {device!r})[0].variants]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-4:]


def test_the_gpu_that_is_here_is_compared_with_the_engines(bank: Path, tmp_path: Path) -> None:
    refusals = checked_with(bank, HYBRID_RT_CUDA_DRIVER=library(tmp_path, "libcuda.so", TWO_GPUS))
    assert refusals[0].startswith(
        "it was built for GPUs of compute capability 8.6,8.9, here is NVIDIA Test of capability 9.0"
    )
    assert refusals[2] == "runs on cpu, not on cuda"
    assert refusals[3] == "-"  # TorchScript runs there


def test_an_index_that_there_is_not_is_refused(bank: Path, tmp_path: Path) -> None:
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS)
    refusals = checked_with(bank, "cuda:2", HYBRID_RT_CUDA_DRIVER=gpus)
    assert refusals[0] == "there is no CUDA device 2"
    assert refusals[3] == "there is no CUDA device 2"
    program = f"import hybrid_rt; hybrid_rt.load({str(bank)!r}, device='cuda:2')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HYBRID_RT_CUDA_DRIVER": gpus},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hybrid_rt[bundle]: device cuda:2: expected an index below 2, got cuda:2." in done.stderr


@needs_none
def test_a_driver_that_torch_cannot_use_is_told(bank: Path, tmp_path: Path) -> None:
    """The driver counts devices, CUDA's runtime in torch does not start: as with a driver that is too old."""
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS)
    program = f"import hybrid_rt; hybrid_rt.load({str(bank)!r}, device='cuda')"
    environment = {**os.environ, "HYBRID_RT_CUDA_DRIVER": gpus}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hybrid_rt[bundle]: device cuda: expected a CUDA device that torch can use, got CUDA" in done.stderr


def test_an_engine_of_another_version_is_refused(bank: Path, tmp_path: Path) -> None:
    """The version is the library's own; it is not asked for anything else."""
    gpus = library(tmp_path, "libcuda.so", TWO_GPUS.replace("? 9 : 0", "? 8 : 6"))
    rtx = library(tmp_path, "libtensorrt_rtx.so", tensorrt_of(10500))
    refusals = checked_with(bank, HYBRID_RT_CUDA_DRIVER=gpus, HYBRID_RT_TENSORRT_RTX_LIBRARY=rtx)
    if "was built with the headers of" in refusals[0]:
        assert "tensorrt_rtx 1.5.0 is installed" in refusals[0]
    else:
        assert refusals[0].startswith("the engine needs tensorrt_rtx ==")
        assert ", here is 1.5.0; install one of that range" in refusals[0]


# On a GPU


def close(found: Any, expected: Any, allowed: float) -> None:
    for key, tensor in expected.items():
        error = (found[key].float().cpu() - tensor).abs().max() / tensor.abs().max()
        assert error < allowed, f"{key}: {error}"


@needs_gpu
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 5e-2), ("int8", 0.2)])
def test_on_a_gpu_results_are_the_modules(precision: str, allowed: float) -> None:
    torch.manual_seed(0)
    module = Pyramid().eval()
    compiled = hybrid_rt.compile_segment(
        module,
        X,
        engine="tensorrt",
        precision=precision,
        strict=True,
        shapes={"batch": (1, 4), "height": (32, 128), "width": (32, 128)},
        calibration_data=[(X,)] * 4 if precision == "int8" else (),
        options={"tensorrt": {"compute_capabilities": "current"}},
        verify=False,
    )
    for size in ((1, 64, 96), (2, 32, 128), (4, 128, 33), (1, 64, 96)):
        x = torch.rand(size[0], 3, *size[1:])
        close(compiled(x.cuda()), module(x), allowed)


@needs_gpu
def test_on_a_gpu_threads_and_streams_get_their_own_results() -> None:
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    module = Pyramid().eval()
    compiled = hybrid_rt.compile_segment(
        module, X, engine="tensorrt", strict=True, options={"tensorrt": {"compute_capabilities": "current"}}
    )
    inputs = [X * (1 + i) for i in range(8)]
    expected = [module(x) for x in inputs]

    def call(i: int) -> Any:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            x = inputs[i].cuda()
            results = [compiled(x) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
            return results

    with ThreadPoolExecutor(8) as pool:
        for results, right in zip(pool.map(call, range(8)), expected, strict=True):
            for result in results:
                close(result, right, 1e-4)


@needs_gpu
@pytest.mark.parametrize("mode", ["copy", "static"])
def test_on_a_gpu_cuda_graphs_give_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_TENSORRT_CUDA_GRAPHS", mode)
    torch.manual_seed(0)
    module = Pyramid().eval()
    compiled = hybrid_rt.compile_segment(
        module,
        X,
        engine="tensorrt",
        strict=True,
        shapes={"height": (32, 128), "width": (32, 128)},
        options={"tensorrt": {"compute_capabilities": "current"}},
    )
    x = X.cuda()
    for i in range(40):  # more shapes than graphs are kept
        close(compiled(x), module(X), 1e-4)
        other = torch.rand(1, 3, 32 + i, 64)
        close(compiled(other.cuda()), module(other), 1e-4)


@needs_gpu
def test_on_a_gpu_a_shape_between_the_profiles_lists_them() -> None:
    torch.manual_seed(0)
    compiled = hybrid_rt.compile_segment(
        Pyramid().eval(),
        X,
        engine="tensorrt",
        strict=True,
        shapes={"height": (32, 128), "width": (32, 128)},
        options={
            "tensorrt": {"compute_capabilities": "current", "profiles": [{"height": (32, 64)}, {"height": (96, 128)}]}
        },
    )
    with pytest.raises(RuntimeError, match=r"inside of one optimisation profile \(profile 0: 1x3x32..64x32..128; "):
        compiled(torch.rand(1, 3, 80, 64).cuda())


@needs_gpu
def test_on_a_gpu_too_little_memory_is_an_error_and_the_next_call_works() -> None:
    torch.manual_seed(0)
    module = Wide().eval()
    compiled = hybrid_rt.compile_segment(
        module,
        X,
        engine="tensorrt",
        strict=True,
        shapes={"batch": (1, 64), "height": (64, 1024), "width": (96, 1024)},
        options={"tensorrt": {"compute_capabilities": "current"}},
    )
    compiled(X.cuda())
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (1 << 30), dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match="MiB of scratch"):
        compiled(torch.rand(64, 3, 1024, 1024, device="cuda"))
    del held
    torch.cuda.empty_cache()
    found = compiled(X.cuda())
    assert (found.cpu() - module(X)).abs().max() < 1e-3


@needs_gpu
def test_on_a_gpu_a_stream_that_is_recorded_is_refused() -> None:
    torch.manual_seed(0)
    compiled = hybrid_rt.compile_segment(
        Pyramid().eval(), X, engine="tensorrt", strict=True, options={"tensorrt": {"compute_capabilities": "current"}}
    )
    x = X.cuda()
    compiled(x)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="expected one that is not being recorded"), torch.cuda.graph(graph):
        compiled(x)
