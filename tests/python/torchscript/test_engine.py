"""Tests of the operator hybrid_rt::run_engine in torch.export and torch.compile."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hybrid_rt.backends import registry
from hybrid_rt.capture.program import capture_alone
from hybrid_rt.common.specs import UNBOUNDED
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module

STATIC = None
DYNAMIC = [(1, 4), (3, 3), (8, 64), (8, UNBOUNDED)]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        features = self.convolution(images)
        return {"all": (features, features.argmax(1))}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone: nn.Module = Backbone()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, best = self.backbone(images)["all"]
        return features.relu().mean((2, 3)), best + 1


def images(batch: int = 1, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@functools.cache
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


def hybrid(ranges: list[tuple[int, int]] | None) -> Detector:
    """Returns the detector with an engine in place of the backbone."""
    program = capture_alone(detector(), "backbone", [(images(),)], ranges)
    made = Detector()
    made.backbone = engine_module(program, [registry.backend("torchscript").compile(program, "fp32")])
    return made.eval()


def engine_of(module: Detector) -> Any:
    assert isinstance(module.backbone, EngineModule)
    return module.backbone.engine


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def op_values(exported: torch.export.ExportedProgram) -> list[Tensor]:
    """Returns the graph's metadata of the outputs of the only operator."""
    (node,) = (node for node in exported.graph.nodes if node.target is torch.ops.hybrid_rt.run_engine.default)
    return node.meta["val"]


def test_the_schema_is_what_files_and_cpp_hosts_call() -> None:
    assert str(torch.ops.hybrid_rt.run_engine.default._schema) == (
        "hybrid_rt::run_engine(__torch__.torch.classes.hybrid_rt.Engine engine, Tensor[] inputs) -> Tensor[]"
    )


def test_export_knows_static_shapes_and_dtypes() -> None:
    exported = torch.export.export(hybrid(STATIC), (images(),))
    features, best = op_values(exported)
    assert features.shape == (1, 4, 16, 24)
    assert features.dtype == torch.float32
    assert best.shape == (1, 16, 24)
    assert best.dtype == torch.int64
    assert_same(exported.module()(images()), detector()(images()))


def test_export_leaves_free_what_the_spec_leaves_free() -> None:
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(hybrid(DYNAMIC), (images(2),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    features, best = op_values(exported)
    assert [isinstance(size, torch.SymInt) for size in features.shape] == [True, False, True, True]
    assert features.shape[1] == 4
    assert best.dim() == 3
    for size in ((2, 16, 24), (4, 40, 9)):
        assert_same(exported.module()(images(*size)), detector()(images(*size)))


def test_export_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        torch.export.export(hybrid(STATIC), (images(),))
    assert not [record.getMessage() for record in caplog.records if "hybrid_rt" in record.getMessage()]


@pytest.mark.parametrize("ranges", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_compile_takes_the_whole_graph(ranges: list[tuple[int, int]] | None) -> None:
    torch._dynamo.reset()
    targets: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(hybrid(ranges), fullgraph=True, backend=keep)
    assert_same(compiled(images()), detector()(images()))
    assert targets.count(torch.ops.hybrid_rt.run_engine) + targets.count(torch.ops.hybrid_rt.run_engine.default) == 1
    if ranges is not STATIC:
        assert_same(compiled(images(3, 32, 40)), detector()(images(3, 32, 40)))


def test_compile_with_the_eager_backend() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(hybrid(STATIC), fullgraph=True, backend="eager")
    assert_same(compiled(images()), detector()(images()))


def test_compile_through_aot_autograd() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(hybrid(STATIC), fullgraph=True, backend="aot_eager")
    assert_same(compiled(images()), detector()(images()))


def test_the_run_method_is_seen_too() -> None:
    torch._dynamo.reset()
    engine = engine_of(hybrid(STATIC))
    compiled = torch.compile(lambda x: engine.run([x])[0] + 1, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()), engine.run([images()])[0] + 1)


def test_meta_tensors_give_meta_tensors_without_running() -> None:
    engine = engine_of(hybrid(STATIC))
    features, best = torch.ops.hybrid_rt.run_engine(engine, [images().to("meta")])
    assert (features.device.type, best.device.type) == ("meta", "meta")
    assert (features.shape, best.shape) == ((1, 4, 16, 24), (1, 16, 24))
    assert best.dtype == torch.int64
    assert '"backend":""' in engine.choice()  # nothing was loaded


def test_meta_tensors_need_static_shapes() -> None:
    with pytest.raises(RuntimeError, match=r"hybrid_rt\[engine\]: engine 'backbone', output 'all.0': expected a fixed"):
        torch.ops.hybrid_rt.run_engine(engine_of(hybrid(DYNAMIC)), [images().to("meta")])


@pytest.mark.parametrize("sizes", [(5, 4), (0, 4)], ids=["boxes", "no boxes"])
def test_head_operators_have_shapes(sizes: tuple[int, int]) -> None:
    features = torch.empty(2, 3, 8, 8, device="meta")
    rois = torch.empty(sizes[0], 5, device="meta")
    pooled = torch.ops.hybrid_rt.roi_align(features, rois, 1.0, 7, 6, 2, False)
    assert (pooled.shape, pooled.dtype, pooled.device.type) == ((sizes[0], 3, 7, 6), torch.float32, "meta")


def test_export_of_a_head_with_its_operators() -> None:
    class Head(nn.Module):
        def forward(self, features: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            kept = torch.ops.hybrid_rt.nms(boxes, scores, 0.5)
            rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)[kept]
            return kept, torch.ops.hybrid_rt.roi_align(features, rois, 1.0, 2, 2, 2, False)

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1], [2.0, 2.0, 6.0, 7.0]])
    inputs = (images(), boxes, torch.tensor([0.5, 0.9, 0.7]))
    exported = torch.export.export(Head(), inputs)
    kept, pooled = exported.module()(*inputs)
    assert kept.tolist() == [1, 2]
    assert_same((kept, pooled), Head()(*inputs))


def test_fake_tensors_give_fresh_sizes() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()) as mode:
        boxes, scores = mode.from_tensor(torch.rand(7, 4)), mode.from_tensor(torch.rand(7))
        kept = torch.ops.hybrid_rt.nms(boxes, scores, 0.5)
    assert kept.dtype == torch.int64
    assert isinstance(kept.shape[0], torch.SymInt)
