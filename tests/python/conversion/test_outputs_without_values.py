"""Tests that outputs of which the head reads only the sizes are not written, and that nothing else changes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Backbone, OneConvolution, small_image
from hybrid_rt.backends import registry
from hybrid_rt.backends.openvino import sizes_only
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.common.executables import program as find_program
from hybrid_rt.common.specs import TensorSpec, blob_from_bytes
from hybrid_rt.conversion.assemble.builds import BuiltVariant, EngineBuild
from hybrid_rt.conversion.assemble.engine_module import prepare, run_flat

pytest.importorskip("openvino")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

SIZES = [(32, 32), (44, 36), (64, 40)]


class Dense(nn.Module):
    """Returns scores for each pixel of each level."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([self.layer(level).flatten(2) for level in levels], 2)


class Anchored(nn.Module):
    """Is a dense detector that computes scores from the levels, and anchors only from their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.dense = Dense()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        levels = list(self.backbone(images).values())
        scores = self.dense(levels)
        anchors: list[Tensor] = []
        for level in levels:
            height, width = level.shape[-2:]
            stride = images.shape[2] / height
            rows = torch.arange(height, dtype=level.dtype, device=level.device) * stride
            columns = torch.arange(width, dtype=level.dtype, device=level.device) * stride
            anchors.append(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), 2).flatten(0, 1))
        return torch.cat(anchors), scores


class AlsoReads(Anchored):
    """Reads the values of its coarse level, and only the sizes of the fine one."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        levels = list(self.backbone(images).values())
        return levels[1].amax((2, 3)) * levels[0].shape[2], self.dense(levels)


def seeded(make: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().requires_grad_(False).eval()


@dataclass
class Converted:
    """A detector, its bundle, and the result of the conversion."""

    detector: nn.Module
    path: Path
    result: hybrid_rt.ConversionResult


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    path = tmp_path_factory.mktemp("unread") / "anchored.pt"
    detector = seeded(Anchored)
    options: dict[str, Any] = {"engine": "openvino", "measure": False, "progress": False}
    result = hybrid_rt.convert(
        detector,
        (small_image(),),
        path,
        segments=["backbone", "dense"],
        shapes={"height": (32, 64), "width": (32, 64)},
        **options,
    )
    return Converted(detector, path, result)


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def stored_blobs(path: Path) -> list[set[str]]:
    (engine,) = hybrid_rt.inspect(path)["engines"]
    return [{blob["name"] for blob in variant["blobs"]} for variant in engine["variants"]]


def test_the_profile_shows_the_layers_of_the_model_that_returns_sizes(converted: Converted) -> None:
    found = hybrid_rt.profile(converted.path, (small_image(),), repeat=1)
    (engine,) = found.engines
    assert engine.layers, engine.reason
    assert not [layer for layer in engine.layers if layer.kind.startswith("Output")][
        len(stored_blobs(converted.path)) :
    ]


def test_the_levels_are_not_written_and_the_results_are_the_detectors(converted: Converted) -> None:
    assert [engine.name for engine in converted.result.report.engines] == ["backbone+dense"]
    openvino, fallback = stored_blobs(converted.path)
    assert {sizes_only.MODEL_FOR_HEAD, sizes_only.POSITIONS} <= openvino
    assert not fallback & {sizes_only.MODEL_FOR_HEAD, sizes_only.POSITIONS}
    module = hybrid_rt.load(converted.path)
    for size in SIZES:
        for _ in range(2):  # the second call at a size writes into tensors of known sizes
            for found, expected in zip(module(image(*size)), converted.detector(image(*size)), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_output_without_values_has_its_sizes_and_no_number(converted: Converted) -> None:
    module = hybrid_rt.load(converted.path)
    (node,) = (node for node in module.graph.nodes() if node.kind() == "hybrid_rt::run_engine")
    engine = next(node.inputs()).toIValue()
    for height, width in SIZES:
        for _ in range(2):
            outputs = torch.ops.hybrid_rt.run_engine(engine, [image(height, width)])
            levels = [output for output in outputs if output.dim() == 4]
            assert [tuple(level.shape) for level in levels] == [
                (1, 8, height // 2, width // 2),
                (1, 8, height // 4, width // 4),
            ]
            assert all(level.isnan().all() and level.untyped_storage().nbytes() <= 8 for level in levels)
            assert not any(output.isnan().any() for output in outputs if output.dim() == 3)


def test_a_program_with_its_own_head_gets_every_value(converted: Converted) -> None:
    engine = hybrid_rt.open_engine(converted.path, "backbone")
    expected = converted.detector.backbone(image(44, 36))
    found = engine(image(44, 36))
    for level in expected.values():
        assert any(level.shape == output.shape and torch.allclose(level, output, atol=1e-5) for output in found)


def test_a_program_in_cpp_gives_the_boxes_of_the_detector(converted: Converted) -> None:
    command = [find_program("hybrid-rt-detect", "test"), converted.path, "--verify", "--backend", "openvino"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_level_that_the_head_reads_keeps_its_values(tmp_path: Path) -> None:
    path = tmp_path / "reads.pt"
    detector = seeded(AlsoReads)
    segments = ["backbone", "dense"]
    hybrid_rt.convert(
        detector, (small_image(),), path, segments=segments, engine="openvino", measure=False, progress=False
    )
    module = hybrid_rt.load(path)
    for found, expected in zip(module(small_image()), detector(small_image()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (node,) = (node for node in module.graph.nodes() if node.kind() == "hybrid_rt::run_engine")
    outputs = torch.ops.hybrid_rt.run_engine(next(node.inputs()).toIValue(), [small_image()])
    assert sorted(output.shape[2] for output in outputs if output.dim() == 4 and output.isnan().all()) == [16]


@pytest.mark.parametrize("positions", [b"7", b"-1", b"0 x", b"1"])
def test_positions_of_no_output_are_refused(positions: bytes) -> None:
    program = capture_alone(seeded(OneConvolution), "backbone", [(small_image(),)])
    backend = registry.backend("openvino")
    artifact = backend.without_values(backend.compile(program, "fp32"), frozenset({0}))
    assert backend.outputs_without_values(artifact) == {0}
    altered = replace(artifact, blobs={**artifact.blobs, sizes_only.POSITIONS: blob_from_bytes(positions)})
    engine = EngineBuild(program, (BuiltVariant(altered),)).engine
    with pytest.raises(hybrid_rt.BackendError, match=r"blob 'head_sizes_only': expected positions of its 1 outputs"):
        prepare(engine)


def test_a_model_that_returns_other_sizes_is_refused() -> None:
    program = capture_alone(seeded(OneConvolution), "backbone", [(small_image(),)])
    backend = registry.backend("openvino")
    artifact = backend.compile(program, "fp32")
    added = {sizes_only.MODEL_FOR_HEAD: artifact.blobs["xml"], sizes_only.POSITIONS: blob_from_bytes(b"0")}
    engine = EngineBuild(program, (BuiltVariant(replace(artifact, blobs={**artifact.blobs, **added})),)).engine
    prepare(engine)
    with pytest.raises(RuntimeError, match=r"artifact, output 0: expected Int in 16 bytes, got another dtype"):
        run_flat(engine, (small_image(),))


def test_scalars_and_other_ranks_stay_as_they_are() -> None:
    xml = (
        b'<net><layers><layer id="0" type="Parameter"/>'
        b'<layer id="1" type="Result"><input><port id="0"/></input></layer>'
        b'<layer id="2" type="Result"><input><port id="0"><dim>-1</dim></port></input></layer></layers>'
        b'<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>'
        b'<edge from-layer="0" from-port="0" to-layer="2" to-port="0"/></edges></net>'
    )
    scalar = TensorSpec("a", "float32", (), (), ())
    matrix = TensorSpec("b", "float32", (1, 1), (1, 1), (1, 1))
    assert sizes_only.return_sizes(xml, {0, 1}, (scalar, matrix)) == (xml, [])
    row = TensorSpec("b", "float32", (1,), (1,), (1,))
    assert sizes_only.return_sizes(xml, {0, 1}, (scalar, row))[1] == [1]
