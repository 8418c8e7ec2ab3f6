"""Tests of compiling a module to an engine for eager Python, with the module's inputs and outputs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

import hybrid_rt
from helpers.small_detectors import Backbone, Changed, replaced_backbone, small_detector, small_image
from hybrid_rt import BackendError, CaptureError, OptionError, Thresholds, VerificationError
from hybrid_rt.backends import registry
from hybrid_rt.backends.base import Backend
from hybrid_rt.backends.cache import store
from hybrid_rt.capture.program import Program, capture_alone
from hybrid_rt.common.specs import Artifact
from hybrid_rt.torchscript import jit

SHAPES = {"batch": (1, 3), "height": (32, 128), "width": (32, 128)}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, fine: Tensor, others: list[Tensor]) -> list[Tensor]:
        return [self.layer(fine), *[self.layer(other) + 1 for other in others]]


def new(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).eval()


def with_backbone(backbone: nn.Module) -> nn.Module:
    detector = small_detector()
    detector.backbone = backbone
    return detector


# In place of the module


@pytest.mark.parametrize("engine", ["openvino", "torchscript"])
def test_a_detector_with_it_gives_the_same_boxes(engine: str) -> None:
    detector = small_detector()
    compiled = hybrid_rt.compile_segment(detector.backbone, small_image(), engine=engine, shapes=SHAPES)
    assert compiled.running()["backend"] == engine
    for size in ((32, 32), (96, 64), (128, 128)):
        for got, expected in zip(
            with_backbone(compiled)(small_image(*size)), detector(small_image(*size)), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_module_is_left_as_it_was() -> None:
    backbone = small_detector().backbone
    before = copy.deepcopy(backbone.state_dict())
    hybrid_rt.compile_segment(backbone, small_image(), engine="torchscript")
    assert backbone.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert type(backbone) is Backbone


def test_a_batch_of_another_size() -> None:
    backbone = small_detector().backbone
    compiled = hybrid_rt.compile_segment(backbone, small_image(), shapes=SHAPES)
    images = torch.rand(3, 3, 64, 32)
    torch.testing.assert_close(compiled(images), backbone(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure",
    [
        lambda tensor: tensor,
        lambda tensor: [tensor, tensor * 2],
        lambda tensor: (tensor, [tensor, tensor + 1]),
        lambda tensor: {"a": {"b": tensor, "c": -tensor}},
    ],
)
def test_it_returns_the_structure_of_the_module(structure: Callable[[Tensor], object]) -> None:
    module = new(Changed(structure))
    compiled = hybrid_rt.compile_segment(module, small_image())
    torch.testing.assert_close(compiled(small_image()), module(small_image()), rtol=1e-4, atol=1e-5)


def test_several_inputs_keep_their_proportion() -> None:
    module = new(TwoInputs())
    example = (torch.rand(1, 3, 64, 64), [torch.rand(1, 3, 32, 32), torch.rand(1, 3, 16, 16)])
    compiled = hybrid_rt.compile_segment(module, example, shapes={"height": (32, 128), "width": (32, 128)})
    larger = (torch.rand(1, 3, 96, 128), [torch.rand(1, 3, 48, 64), torch.rand(1, 3, 24, 32)])
    torch.testing.assert_close(compiled(*larger), module(*larger), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(fine=larger[0], others=larger[1]), module(*larger), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_input_that_is_not_an_image() -> None:
    module = new(nn.Linear(8, 4))
    compiled = hybrid_rt.compile_segment(module, torch.rand(5, 8))
    values = torch.rand(5, 8)
    torch.testing.assert_close(compiled(values), module(values), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_torchvision_accepts_it_as_a_backbone(demo_detector: FasterRCNN, demo_image: Tensor) -> None:
    ranges = {"batch": (1, 2), "height": (32, 416), "width": (32, 416)}
    compiled = hybrid_rt.compile_segment(demo_detector.backbone, torch.rand(1, 3, 256, 256), shapes=ranges)
    assert compiled.out_channels == demo_detector.backbone.out_channels
    FasterRCNN(compiled, num_classes=3)  # which reads out_channels
    expected = demo_detector([demo_image])[0]
    with replaced_backbone(demo_detector, compiled):
        got = demo_detector([demo_image])[0]
    assert got["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(got["boxes"], expected["boxes"], rtol=1e-3, atol=0.1)


def test_a_detector_with_it_can_be_scripted_and_copied() -> None:
    detector = with_backbone(hybrid_rt.compile_segment(small_detector().backbone, small_image(), shapes=SHAPES))
    expected = detector(small_image(64, 96))
    for other in (jit.script(detector), copy.deepcopy(detector)):
        torch.testing.assert_close(other(small_image(64, 96)), expected)


def test_it_says_what_runs() -> None:
    compiled = hybrid_rt.compile_segment(small_detector().backbone, small_image())
    assert repr(compiled).startswith("CompiledSegment(Backbone on openvino ")
    assert [variant["backend"] for variant in compiled.running()["variants"]] == ["openvino", "torchscript"]


# sizes


def test_without_shapes_the_size_is_the_example_s() -> None:
    compiled = hybrid_rt.compile_segment(small_detector().backbone, small_image())
    compiled(small_image())
    with pytest.raises(RuntimeError, match=r"'Backbone', input 'images', dimension 2: expected 1x3x32x32 float32, "):
        compiled(small_image(64, 32))


@pytest.mark.slow
def test_sizes_outside_the_ranges() -> None:
    compiled = hybrid_rt.compile_segment(small_detector().backbone, small_image(), shapes=[(32, 32), (64, 96)])
    compiled(small_image(64, 96))
    with pytest.raises(RuntimeError, match=r"expected 1x3x32..64x32..96 float32, got 1x3x96x96"):
        compiled(small_image(96, 96))


def test_shapes_that_do_not_fit() -> None:
    backbone = small_detector().backbone
    with pytest.raises(
        OptionError, match=r"shapes, height: expected a range that includes the example's 32, got 64..96"
    ):
        hybrid_rt.compile_segment(backbone, small_image(), shapes={"height": (64, 96)})
    with pytest.raises(OptionError, match=r"shapes: expected ranges for batch, height, width, got 'depth'"):
        hybrid_rt.compile_segment(backbone, small_image(), shapes={"depth": (1, 2)})
    with pytest.raises(
        OptionError, match=r"shapes: expected a first input \[N, C, H, W\].*, got one with 2 dimensions"
    ):
        hybrid_rt.compile_segment(new(nn.Linear(8, 4)), torch.rand(5, 8), shapes={"batch": (1, 9)})


# .to()


def test_to_where_it_is_changes_nothing() -> None:
    detector = with_backbone(hybrid_rt.compile_segment(small_detector().backbone, small_image()))
    expected = detector(small_image())
    torch.testing.assert_close(detector.to("cpu").float().train().eval().cpu()(small_image()), expected)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, lambda module: module.to(torch.bfloat16)])
def test_to_another_type_is_an_error(convert: Callable[[nn.Module], nn.Module]) -> None:
    compiled = hybrid_rt.compile_segment(small_detector().backbone, small_image(), engine="torchscript")
    with pytest.raises(
        OptionError,
        match=r"\[compile_segment\]: engine 'Backbone': expected no change of its dtype, .* got a conversion to",
    ):
        convert(with_backbone(compiled))


def test_to_a_device_where_nothing_runs_is_an_error() -> None:
    compiled = hybrid_rt.compile_segment(small_detector().backbone, small_image())
    with pytest.raises(BackendError, match=r"(?s)got none of 2:.*openvino \(fp32\): runs on cpu, not on meta"):
        compiled.to("meta")
    compiled(small_image())  # as before


# engines


def test_strict_packs_the_first_engine_alone() -> None:
    compiled = hybrid_rt.compile_segment(
        small_detector().backbone, small_image(), engine=["torchscript", "openvino"], strict=True
    )
    assert [variant["backend"] for variant in compiled.running()["variants"]] == ["torchscript"]


def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes OpenVINO's compiler refuse every model."""

    def compile_nothing(self: object, program: object, precision: str) -> None:
        raise BackendError.make("openvino", "segment", expected="an operation that it knows", got="another")

    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "0")
    monkeypatch.setattr(type(registry.backend("openvino")), "compile", compile_nothing)


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.mark.parametrize("problem", [refusing, missing])
def test_an_engine_that_cannot_compile_is_a_warning(
    problem: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem(monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"\[openvino\].* Falling back to the next engine"):
        compiled = hybrid_rt.compile_segment(small_detector().backbone, small_image())
    assert compiled.running()["backend"] == "torchscript"


@pytest.mark.parametrize("problem", [refusing, missing])
@pytest.mark.parametrize("options", [{"strict": True}, {"fallback": False}])
def test_an_engine_that_cannot_compile_is_an_error_on_request(
    problem: Callable[[pytest.MonkeyPatch], None], options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem(monkeypatch)
    with pytest.raises(BackendError, match=r"hybrid_rt\[openvino\]"):
        hybrid_rt.compile_segment(small_detector().backbone, small_image(), **options)


@pytest.mark.slow
def test_options_of_an_engine_that_is_left_when_another_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    given = {"level": 3}
    compiled: list[Backend] = []
    of_openvino = type(registry.backend("openvino"))
    compile_it = of_openvino.compile

    def note(self: Backend, program: Program, precision: str) -> Artifact:
        compiled.append(self)
        return compile_it(self, program, precision)

    monkeypatch.setenv("HYBRID_RT_CACHE_SIZE", "0")
    monkeypatch.setattr(of_openvino, "checked", lambda _, options: options)
    monkeypatch.setattr(of_openvino, "compile", note)
    with pytest.warns(RuntimeWarning, match="onnxruntime"):
        hybrid_rt.compile_segment(
            small_detector().backbone,
            small_image(),
            engine=["openvino:bf16", "onnxruntime"],
            options={"openvino": given},
        )
    assert [backend.given for backend in compiled] == [given]


def test_an_engine_with_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    other = capture_alone(small_detector(), "backbone", [(small_image(),)])
    artifact = registry.backend("torchscript").compile(other, "fp32")
    monkeypatch.setattr(store, "get_or_compile", lambda *_: (artifact, False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        backbone = new(Backbone())
    with pytest.raises(
        VerificationError, match=r"(?s)'Backbone' in fp32: expected the outputs of the module, got .*'fi"
    ):
        hybrid_rt.compile_segment(backbone, small_image(), engine="torchscript")
    hybrid_rt.compile_segment(backbone, small_image(), engine="torchscript", verify=False)
    loose = Thresholds(iou=0, score=1, recall=0, relative_error=100)
    hybrid_rt.compile_segment(backbone, small_image(), engine="torchscript", thresholds=loose)


# bad input


def test_bad_arguments() -> None:
    backbone = small_detector().backbone
    with pytest.raises(OptionError, match=r"module: expected eval mode, got training mode in Backbone"):
        hybrid_rt.compile_segment(Backbone(), small_image())
    with pytest.raises(OptionError, match=r"module: expected an nn.Module in Python code, got function"):
        hybrid_rt.compile_segment(lambda x: x, small_image())
    with pytest.raises(
        OptionError, match=r"example: expected the positional arguments of Backbone.forward, got different ones"
    ):
        hybrid_rt.compile_segment(backbone, (small_image(), small_image()))
    with pytest.raises(CaptureError, match=r"segment 'Backbone', input 'images': expected tensors in lists.* got str"):
        hybrid_rt.compile_segment(backbone, "an image")
    with pytest.raises(OptionError, match=r"\[compile_segment\]: precision: expected one of fp32"):
        hybrid_rt.compile_segment(backbone, small_image(), precision="fp8")
    with pytest.raises(OptionError, match=r"engine: expected one of .*, got 'nosuch'"):
        hybrid_rt.compile_segment(backbone, small_image(), engine="nosuch")
    with pytest.raises(OptionError, match=r"\[compile_segment\]: engine: expected 'auto' or at least one backend"):
        hybrid_rt.compile_segment(backbone, small_image(), engine=[])


def test_a_module_that_returns_no_tensor() -> None:
    with pytest.raises(CaptureError, match=r"expected tensors in lists, tuples and dicts"):
        hybrid_rt.compile_segment(new(Changed(lambda tensor: tensor.shape[0])), small_image())


def test_unrepeatable_operations_are_refused() -> None:
    random = new(Changed(lambda tensor: tensor + torch.rand_like(tensor)))
    with pytest.raises(CaptureError, match=r"\[compile_segment\]: module Changed: expected the same .*random"):
        hybrid_rt.compile_segment(random, small_image())
