"""Tests of ONNX Runtime beyond the contract of all backends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.ssd import SSDHead

import hybrid_rt
from backends.test_contract import (
    DictOfLevels,
    NestedInput,
    TwoInputs,
    assert_equal_structure,
    dynamic_program,
    images,
    program_of,
)
from helpers.bundle_surgery import run_python
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BackendError
from hybrid_rt.backends import registry
from hybrid_rt.capture.program import Program
from hybrid_rt.common.specs import Artifact, blob_from_bytes
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module

onnx = pytest.importorskip("onnx", reason="pip install onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")


def artifact_of(program: Program) -> Artifact:
    return registry.backend("onnxruntime").compile(program, "fp32")


def engine_of(program: Program) -> EngineModule:
    return engine_module(program, [artifact_of(program)])


# the artifact


def test_the_model_names_its_inputs_and_outputs_and_frees_what_varies() -> None:
    program = program_of(DictOfLevels().eval(), (images(1, 16, 24),), (images(2, 16, 32),))
    graph = onnx.load_model_from_string(program.onnx()).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["output_0", "pool"]
    dimensions = graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value or dimension.dim_param for dimension in dimensions] == [
        "images_0", 3, 16, "images_3",
    ]  # fmt: skip
    onnx.checker.check_model(onnx.load_model_from_string(program.onnx()), full_check=True)


def test_the_artifact_has_inputs_that_the_segment_does_not_look_at() -> None:
    program = program_of(NestedInput().eval(), ({"fine": (images(),) * 2, "coarse": (images(),) * 2},))
    names = ["levels_fine_0", "levels_fine_1", "levels_coarse_0", "levels_coarse_1"]
    assert [value.name for value in onnx.load_model_from_string(program.onnx()).graph.input] == [names[0], names[3]]
    model = onnx.load_model_from_string(artifact_of(program).blobs["model"].numpy().tobytes())
    assert [value.name for value in model.graph.input] == names


def test_weights_lie_apart_from_the_model_and_aligned() -> None:
    torch.manual_seed(0)
    segment = nn.Sequential(nn.Conv2d(3, 30, 3), nn.Conv2d(30, 31, 3), nn.Conv2d(31, 20, 3)).eval()
    artifact = artifact_of(program_of(segment, (images(),)))
    assert artifact.spec.requirements == {"version": ">=1.18"}
    assert artifact.blobs["model"].numel() < 5000
    model = onnx.load_model_from_string(artifact.blobs["model"].numpy().tobytes())
    apart = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == "weights"
            offset = int(place["offset"])
            assert offset % 64 == 0
            values = artifact.blobs["weights"][offset : offset + int(place["length"])].clone().view(torch.float32)
            apart.append(values.reshape(*tensor.dims))
    expected = [segment[i].weight for i in range(3)]
    assert_equal_structure(sorted(apart, key=Tensor.numel), sorted((w.detach() for w in expected), key=Tensor.numel))


def test_compiling_again_makes_the_same_bytes() -> None:
    assert artifact_of(dynamic_program()).digests == artifact_of(dynamic_program()).digests


class Unknown(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sigmoid().erfinv()


def test_an_operation_that_onnx_lacks_is_named() -> None:
    with pytest.raises(
        BackendError, match=r"hybrid_rt\[onnx\]: segment 'backbone': expected operations .*aten::erfinv"
    ):
        artifact_of(program_of(Unknown().eval(), (images(),)))


def test_the_vendors_own_session_opens_what_is_extracted(tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    hybrid_rt.convert(small_detector(wide()), (small_image(),), path, segments="backbone", engine="onnxruntime")
    model, weights = hybrid_rt.extract(path, tmp_path / "out", backend="onnxruntime")
    assert model == tmp_path / "out" / "backbone-onnxruntime-fp32" / "model.onnx"
    assert weights.stat().st_size > 1024
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    found = [torch.from_numpy(array) for array in session.run(None, {value.name: small_image().numpy()})]
    expected = small_detector(wide()).backbone(small_image())
    torch.testing.assert_close(found, list(expected.values()), rtol=1e-4, atol=1e-5)


class Wide(nn.Module):
    """Computes the small detector's levels, from weights large enough to be stored separately."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.second = nn.Conv2d(64, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.first(images).relu()
        return {"fine": fine, "coarse": self.second(fine)}


def wide() -> nn.Module:
    torch.manual_seed(0)
    return Wide().eval().requires_grad_(False)


# the parts of torchvision's detectors


def levels(batch: int, side: int) -> list[Tensor]:
    return [torch.rand(batch, 16, size, size + 1) for size in (side, side // 2)]


def pooled(count: int, side: int) -> Tensor:
    return torch.rand(count, 16, side, side)


class BoxHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = TwoMLPHead(16 * 7 * 7, 32)
        self.predictor = FastRCNNPredictor(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor(self.head(x))


PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Any]]] = {
    "fpn": (
        lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None),
        lambda batch, side: torch.rand(batch, 3, 8 * side, 9 * side),
    ),
    "rpn": (lambda: RPNHead(16, 3), levels),
    "box": (BoxHead, lambda batch, side: pooled(batch, 7)),
    "mask": (
        lambda: nn.Sequential(MaskRCNNHeads(16, (8, 8), 1), MaskRCNNPredictor(8, 8, 3)),
        lambda batch, side: pooled(batch, 14),
    ),
    "keypoint": (
        lambda: nn.Sequential(KeypointRCNNHeads(16, (8, 8)), KeypointRCNNPredictor(8, 5)),
        lambda batch, side: pooled(batch, 14),
    ),
    "retinanet": (lambda: RetinaNetHead(16, 2, 3), levels),
    "fcos": (lambda: FCOSHead(32, 2, 3), lambda batch, side: [x.repeat(1, 2, 1, 1) for x in levels(batch, side)]),
    "ssd": (lambda: SSDHead([16, 16], [4, 6], 3), levels),
}


COUNTED = {"box", "mask", "keypoint"}
"""Heads whose first dimension counts objects and may be 0."""


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_torchvisions_parts_give_the_same_at_sizes_never_seen(part: str) -> None:
    torch.manual_seed(0)
    make, arguments = PARTS[part]
    module = make().eval()
    engine = engine_of(program_of(module, (arguments(1, 8),), (arguments(2, 12),)))
    for batch, side in ((1, 8), (3, 10), (2, 12), (0, 8), (3, 10)):
        if batch == 0 and part not in COUNTED:
            continue
        x = arguments(batch, side)
        assert_equal_structure(engine(x), dict(module(x)) if part == "fpn" else module(x))


# the engine


def test_it_reports_version_precision_provider_and_threads() -> None:
    engine = engine_of(dynamic_program())
    engine.engine.prepare("", torch.device("cpu"), 2, False)
    description = f"onnxruntime {onnxruntime.__version__}, fp32, CPU, 2 threads"
    assert json.loads(engine.engine.choice())["description"] == description


def test_a_run_that_fails_says_why_in_the_error_and_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    module = TwoInputs().eval()
    engine = engine_of(program_of(module, *((images(1, h, w), torch.ones(1, 1, h, w)) for h, w in ((8, 8), (9, 9)))))
    text = r"hybrid_rt\[onnxruntime\]: run: expected success of ONNX Runtime .*Add"
    with pytest.raises(RuntimeError, match=text):
        engine(images(1, 8, 8), torch.ones(1, 1, 8, 7))
    assert "hybrid_rt error: onnxruntime: Non-zero status code returned" in capfd.readouterr().err
    x = (images(1, 8, 8), torch.ones(1, 1, 8, 8))
    assert_equal_structure(engine(*x), module(*x))


def test_bytes_that_are_not_a_model_are_refused_with_the_vendors_message() -> None:
    artifact = artifact_of(dynamic_program())
    broken = Artifact(artifact.spec, {**artifact.blobs, "model": blob_from_bytes(b"no model")})
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[onnxruntime\]: artifact: expected success of ONNX Runtime"):
        engine_module(dynamic_program(), [broken])(images())


def test_a_model_of_other_outputs_is_refused() -> None:
    two = artifact_of(program_of(DictOfLevels().eval(), (images(),)))
    one = artifact_of(program_of(nn.Conv2d(3, 4, 1).eval(), (images(),)))
    with pytest.raises(RuntimeError, match=r"artifact: expected 2 outputs, got 1. Convert the detector again"):
        engine_module(program_of(DictOfLevels().eval(), (images(),)), [Artifact(two.spec, one.blobs)])(images())


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("meta", "runs on cpu, not on meta"),
        ("cuda:0", "runs on cpu, not on cuda:0; with HYBRID_RT_ONNXRUNTIME_PROVIDERS=CUDA it would"),
    ],
)
def test_other_devices_are_refused(device: str, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        engine_of(dynamic_program()).engine.prepare("", torch.device(device), 1, False)


# execution providers and the library


@pytest.mark.parametrize("named", ["", "CPU", "CPUExecutionProvider, ", "cpu"])
def test_the_cpus_provider_may_be_named(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_RT_ONNXRUNTIME_PROVIDERS", named)
    engine = engine_of(dynamic_program())
    x = images()
    assert_equal_structure(engine(x), dynamic_program().members[0].module(x))
    assert "fp32, CPU, " in engine.engine.choice()


@pytest.mark.parametrize("named", ["TensorRT,CUDA", "Abacus", "AbacusExecutionProvider"])
def test_a_provider_that_the_library_lacks_is_refused(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if named == "TensorRT,CUDA" and "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has it")
    monkeypatch.setenv("HYBRID_RT_ONNXRUNTIME_PROVIDERS", named)
    first = "TensorRT" if "," in named else "Abacus"
    with pytest.raises(
        RuntimeError,
        match=rf"HYBRID_RT_ONNXRUNTIME_PROVIDERS asks for '{first}', which ONNX Runtime .* was not built with "
        r"\(it has .*CPU\)\. Install a build that has it",
    ):
        engine_of(dynamic_program())(images())


@pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(), reason="this build has the CPU's alone"
)
def test_engines_of_other_providers_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = artifact_of(dynamic_program())
    first = engine_module(dynamic_program(), [artifact])
    first(images())
    monkeypatch.setenv("HYBRID_RT_ONNXRUNTIME_PROVIDERS", "AZURE")
    second = engine_module(dynamic_program(), [artifact])
    second(images())
    assert "fp32, CPU, " in first.engine.choice()
    assert "AZURE" in second.engine.choice()


TELL = """
import hybrid_rt
print({info.name: info.reason for info in hybrid_rt.backends()}["onnxruntime"])
"""

OLD_LIBRARY = """
static void *get_api(unsigned version) { return 0; }
static const char *version(void) { return "1.17.3"; }
static struct { void *(*get_api)(unsigned); const char *(*version)(void); } base = {get_api, version};
void *OrtGetApiBase(void) { return &base; }
"""


def reason_with(library: Path) -> str:
    done = run_python(TELL, HYBRID_RT_ONNXRUNTIME_LIBRARY=str(library))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def built(code: str, library: Path) -> Path:
    source = library.with_suffix(".c")
    source.write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


@pytest.mark.slow
def test_without_its_library_the_reason_says_what_to_install() -> None:
    reason = reason_with(Path("/nonexistent/libonnxruntime.so"))
    assert reason.startswith("ONNX Runtime's library can't be opened (/nonexistent/libonnxruntime.so: ")
    assert reason.endswith("Install it: pip install onnxruntime.")


@pytest.mark.slow
def test_another_library_of_that_name_is_refused(tmp_path: Path) -> None:
    library = built("int nothing;", tmp_path / "libonnxruntime.so")
    assert reason_with(library) == (
        f"{library} is not ONNX Runtime's library: it has no OrtGetApiBase. Install it: pip install onnxruntime."
    )


@pytest.mark.slow
def test_a_library_that_is_too_old_is_refused_before_anything_in_it_is_called(tmp_path: Path) -> None:
    library = built(OLD_LIBRARY, tmp_path / "libonnxruntime.so")
    assert reason_with(library) == (
        f"ONNX Runtime 1.17.3 is installed ({library}), but 1.18 or newer is needed. "
        "Upgrade it: pip install -U onnxruntime."
    )


@pytest.mark.slow
def test_it_writes_no_identity_into_the_users_home(tmp_path: Path) -> None:
    """ONNX Runtime writes one when it creates its environment, before telemetry can be disabled."""
    done = run_python(
        "import hybrid_rt; print([info.available for info in hybrid_rt.backends() if info.name == 'onnxruntime'])",
        HOME=str(tmp_path),
        XDG_CACHE_HOME="",
    )
    assert done.stdout.strip() == "[True]", done.stderr
    written = [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name or "Microsoft" in path.name]
    assert written == []
