"""int8 on CPUs: layers that do not bear it stay in fp32, and nothing is silently wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Alone
from hybrid_rt.backends import registry
from hybrid_rt.backends.quantization.record import Quantization
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import Artifact
from hybrid_rt.conversion.assemble.engine_module import engine_module

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason))
    for name in ("openvino", "onnxruntime")
    for reason in [registry.backend(name).missing("int8") or registry.backend(name).availability().reason]
]


class Outlier(nn.Module):
    """Two branches; one channel of the second one is a thousand times larger in one convolution."""

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
    made.boxes[0].weight.data[0] *= 1000  # its range leaves the other channels a step or two
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
