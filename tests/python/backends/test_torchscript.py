"""Tests of the TorchScript backend beyond the contract of all backends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from backends.test_contract import STRUCTURES, images, program_of
from helpers.small_detectors import small_image
from hybrid_rt import BackendError, OptionError
from hybrid_rt.backends import registry
from hybrid_rt.backends.selection import choose_variants
from hybrid_rt.capture.program import Program
from hybrid_rt.common.specs import Artifact
from hybrid_rt.conversion.assemble.engine_module import EngineModule, engine_module

TORCHSCRIPT = registry.backend("torchscript")
BF16 = 2**-8
"""The relative distance between neighbouring numbers in bf16."""

FLAGS = set(" ".join(re.findall(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)).split())
IS_EMULATED = not FLAGS & {"avx512_bf16", "amx_bf16"}


def artifact_of(program: Program) -> Artifact:
    return TORCHSCRIPT.compile(program, "bf16")


def engine_of(program: Program, *, emulated: bool = True) -> EngineModule:
    module = engine_module(program, [artifact_of(program)])
    module.engine.prepare("", torch.device("cpu"), 0, emulated)
    return module


def description(module: EngineModule) -> str:
    found: str = json.loads(module.engine.choice())["description"]
    return found


def assert_near(got: Any, expected: Any) -> None:
    """Checks for equal containers, dtypes and shapes, and floats within a few roundings."""
    if isinstance(expected, Tensor):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        if expected.is_floating_point():
            assert (got - expected).abs().max() <= 4 * BF16 * expected.abs().max()
        return
    assert type(got) is type(expected)
    assert len(got) == len(expected)
    for key in expected if isinstance(expected, dict) else range(len(expected)):
        assert_near(got[key], expected[key])


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize(("segment", "arguments"), STRUCTURES, ids=lambda value: getattr(value, "__name__", None))
def test_bf16_is_near_fp32_in_every_structure_at_sizes_never_seen(
    segment: type[nn.Module], arguments: Callable[[int, int, int], tuple[Any, ...]], emulated: bool
) -> None:
    torch.manual_seed(0)
    module = segment().eval()
    engine = engine_of(program_of(module, arguments(1, 16, 24), arguments(2, 24, 32)), emulated=emulated)
    for sizes in ((1, 16, 24), (2, 24, 32), (3, 40, 8)):
        assert_near(engine(*arguments(*sizes)), module(*arguments(*sizes)))


def test_the_actual_precision_is_reported_and_bf16_is_used_only_if_requested_or_fast() -> None:
    torch.manual_seed(0)
    program = program_of(nn.Conv2d(3, 8, 3).eval(), (images(),))
    emulated, usual = engine_of(program), engine_of(program, emulated=False)
    x = images()
    (rounded,) = emulated.engine.run([x])
    assert torch.equal(rounded, rounded.bfloat16().float())
    (result,) = usual.engine.run([x])
    assert torch.equal(result, result.bfloat16().float()) == (not IS_EMULATED)
    assert ", bf16 (emulated), " in description(emulated) or not IS_EMULATED
    assert (", fp32 (this CPU has no bf16 instructions), " in description(usual)) == IS_EMULATED


def test_bf16_has_half_the_bytes() -> None:
    program = program_of(nn.Conv2d(3, 512, 9).eval(), (images(),))
    assert artifact_of(program).size < 0.6 * TORCHSCRIPT.compile(program, "fp32").size
    constants = [node for node in program.traced().member_0.graph.nodes() if node.kind() == "prim::Constant"]
    weights = [node.output().toIValue() for node in constants if isinstance(node.output().toIValue(), Tensor)]
    assert torch.float32 in {weight.dtype for weight in weights}  # the weights for other engines are unchanged


class Counts(nn.Module):
    """Takes integers and images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.register_buffer("offset", torch.tensor([2**40 + 1]))

    def forward(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(images)
        return features + places.float().mean(), places + self.offset, features > 0


def test_whole_numbers_are_not_rounded() -> None:
    torch.manual_seed(0)
    module = Counts().eval()
    places = torch.tensor([257, 2**40 + 3])
    engine = engine_of(program_of(module, (images(), torch.tensor([1, 2]))))
    features, moved, above = engine(images(), places)
    assert torch.equal(moved, places + 2**40 + 1)
    assert above.dtype == torch.bool
    assert_near(features, module(images(), places)[0])


@pytest.mark.parametrize("emulated", [True, False])
def test_a_batch_norm_keeps_its_numbers(emulated: bool) -> None:
    """257 lies between the neighbours 256 and 258 in bf16."""
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(257)
    module = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(3, 4, 1)).eval()
    module[2].weight.fill_(1)
    module[2].bias.zero_()
    engine = engine_of(program_of(module, (images() + 258,)), emulated=emulated)
    assert_near(engine(torch.full((1, 3, 16, 24), 258.0)), torch.full((1, 4, 16, 24), 3.0))


def test_a_batch_norm_behind_a_convolution_is_folded_in_fp32() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_var.uniform_(1e-4, 1e-3)
    norm.running_mean.normal_(0, 0.03)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), norm).eval()
    engine = engine_of(program_of(module, (images(),)))
    assert_near(engine(images()), module(images()))


class MakesTensors(nn.Module):
    """Creates constants and empty tensors, with and without a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + torch.zeros(x.shape[-1]) + x.new_ones(x.shape) + torch.full((x.shape[-1],), 0.5))
        rows = torch.arange(x.shape[-2], dtype=torch.float32)[:, None] / 16
        columns = torch.linspace(0, 1, x.shape[-1])
        whole = torch.arange(x.shape[-1])
        return self.second(x.float() + rows + columns + 0.5 * (whole > 4) + torch.tensor(0.25))


@pytest.mark.parametrize("emulated", [True, False])
def test_tensors_made_inside_a_segment_are_cast(emulated: bool) -> None:
    torch.manual_seed(0)
    module = MakesTensors().eval()
    engine = engine_of(program_of(module, (images(),), (images(1, 32, 48),)), emulated=emulated)
    assert_near(engine(images(1, 24, 40)), module(images(1, 24, 40)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("emulated", [True, False])
def test_a_segment_of_another_dtype_keeps_it_outside(dtype: torch.dtype, emulated: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval().to(dtype)
    engine = engine_of(program_of(module, (images().to(dtype),)), emulated=emulated)
    assert_near(engine(images().to(dtype)), module(images().to(dtype)))


class Inverts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(x @ x.mT + torch.eye(x.shape[-2]))


def test_an_operation_without_bf16_is_an_error_when_converting() -> None:
    program = program_of(Inverts().eval(), (images(),))
    with pytest.raises(
        BackendError,
        match=r"segment 'backbone': expected operations that torch has in bf16, got .*BFloat16",
    ):
        artifact_of(program)


# The choice, and the variant bank


@pytest.mark.parametrize(
    ("engine", "fallback", "expected"),
    [
        ("torchscript", True, ["torchscript:fp32"]),
        ("torchscript:bf16", False, ["torchscript:bf16"]),
        ("torchscript:bf16", True, ["torchscript:bf16", "torchscript:fp32"]),
        (["openvino", "torchscript"], True, ["openvino:bf16", "torchscript:fp32"]),
        (["torchscript:fp32", "torchscript:bf16"], True, ["torchscript:fp32", "torchscript:bf16"]),
    ],
)
def test_torchscript_is_in_bf16_only_by_that_name(engine: str | list[str], fallback: bool, expected: list[str]) -> None:
    assert [wanted.name for wanted in choose_variants(engine, "bf16", fallback)] == expected


def test_the_fastest_in_bf16_takes_torchscript_in_bf16_into_account() -> None:
    names = [wanted.name for wanted in choose_variants("fastest", "bf16", fallback=True)]
    assert "torchscript:bf16" in names
    assert names[-1] == "torchscript:fp32"


class Wide(nn.Module):
    """Has weights large enough to be shared."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).mean(dim=(2, 3))


def wide() -> Wide:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Wide().requires_grad_(False).eval()


def converted(path: Path, engine: str | list[str], **options: Any) -> list[str]:
    """Converts a detector and returns the bundle's variants."""
    hybrid_rt.convert(wide(), (small_image(),), path, segments="backbone", engine=engine, measure=False, **options)
    return variants_of(path)


def variants_of(path: Path) -> list[str]:
    return [f"{v['backend']}:{v['precision']}" for v in hybrid_rt.inspect(path)["engines"][0]["variants"]]


def stored_and_needed(path: Path) -> tuple[int, int]:
    """Returns the number of bytes that the engine occupies in the file, and the total of its variants."""
    (segment,) = hybrid_rt.inspect(path)["engines"]
    needed = sum(blob["size"] for variant in segment["variants"] for blob in variant["blobs"])
    return sum(entry["size"] for entry in segment["table"]), needed


def test_in_one_file_with_openvino_in_fp32_nothing_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    assert converted(path, ["openvino", "torchscript:bf16"], fallback=False) == ["openvino:fp32", "torchscript:bf16"]
    stored, needed = stored_and_needed(path)
    assert stored >= 0.98 * needed
    expected = wide()(small_image())
    for backend, precision in (("openvino", "fp32"), ("torchscript", "bf16")):
        module = hybrid_rt.load(path, backend=backend, emulate_precision=True)
        (choice,) = hybrid_rt.engines(module)
        assert (choice["backend"], choice["precision"]) == (backend, precision)
        assert_near(module(small_image()), expected)
    # The weights in the file are rounded, so that no other variant is made from them.
    with pytest.raises(
        OptionError,
        match=r"expected a TorchScript variant in fp32 in the file, .* got only openvino:fp32, torchscript:bf16\. .*",
    ):
        hybrid_rt.add_variant(path, "onnxruntime", tmp_path / "y.pt")


def test_it_is_added_to_a_file_from_the_fp32_one_and_others_are_never_made_from_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    assert converted(path, "torchscript") == ["torchscript:fp32"]
    report = hybrid_rt.add_variant(path, "torchscript:bf16", first=True)
    assert report.variants == {"backbone": ["torchscript:bf16", "torchscript:fp32"]}
    assert report.verification is not None
    assert max(error.relative_error for error in report.verification.tensors) > 1e-4  # really bf16
    report = hybrid_rt.add_variant(path, "openvino", precision="fp32")
    assert report.variants == {"backbone": ["torchscript:bf16", "openvino:fp32", "torchscript:fp32"]}
    assert report.verification is not None
    assert max(error.relative_error for error in report.verification.tensors) < 1e-4
    stored, needed = stored_and_needed(path)
    assert stored < 0.9 * needed  # OpenVINO's weights are those of the variant in fp32
    hybrid_rt.remove_variant(path, "torchscript:fp32")
    with pytest.raises(OptionError, match=r"got only torchscript:bf16, openvino:fp32"):
        hybrid_rt.add_variant(path, "openvino:bf16")


def test_a_swap_keeps_the_variant_and_adds_none(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    converted(path, "torchscript:bf16", fallback=False)
    hybrid_rt.swap_backbone(path, wide().backbone, path)
    assert variants_of(path) == ["torchscript:bf16"]
