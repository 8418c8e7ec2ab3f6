"""Tests of convert()'s refusals: each is an error of this package and leaves no file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import (
    Backbone,
    ListDetector,
    SmallDetector,
    small_detector,
    small_image,
    small_list_detector,
)
from hybrid_rt import THRESHOLDS, BundleError, CaptureError, HybridRTError, OptionError, VerificationError
from hybrid_rt.common.specs import PRECISIONS

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Returns a function that expects convert() to fail, checks that only the old file exists, and returns its text."""

    def convert(
        error: type[HybridRTError], detector: Any, inputs: Any = None, output: Path | None = None, **options: Any
    ) -> str:
        path = tmp_path / "detector.pt"
        path.write_bytes(b"an old file")
        inputs = (small_image(),) if inputs is None else inputs
        with pytest.raises(error) as caught:
            hybrid_rt.convert(
                detector, inputs, output or path, **{"engine": "torchscript", "segments": "backbone", **options}
            )
        assert path.read_bytes() == b"an old file"
        assert list(tmp_path.iterdir()) == [path]
        assert error in type(caught.value).__mro__[:2]  # or a subclass of it
        return str(caught.value)

    return convert


# The detector


def test_a_detector_in_training_mode(refused: Refused) -> None:
    assert refused(OptionError, small_detector().train()) == (
        "hybrid_rt[convert]: detector: expected eval mode, got training mode in SmallDetector, backbone, "
        "backbone.first. Call detector.eval() first. [detector-not-ready]"
    )


def test_a_detector_with_an_engine_in_it(refused: Refused) -> None:
    detector = small_detector()
    detector.backbone = hybrid_rt.compile_segment(detector.backbone, (small_image(),), engine="torchscript")
    assert refused(OptionError, detector) == (
        "hybrid_rt[convert]: detector: expected modules of torch's operators, got a compiled engine as backbone. "
        "Restore the module that was passed to compile_segment; convert() compiles it. [detector-not-ready]"
    )


def test_a_submodule_in_training_mode(refused: Refused) -> None:
    detector = small_detector()
    detector.backbone.second = nn.Sequential(detector.backbone.second, nn.BatchNorm2d(8), nn.Dropout())
    assert "got training mode in backbone.second.1, backbone.second.2." in refused(OptionError, detector)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_an_already_scripted_detector(refused: Refused) -> None:
    text = refused(OptionError, torch.jit.script(small_detector()))
    assert "detector: expected an nn.Module in Python code, got RecursiveScriptModule." in text
    assert "Pass the detector before scripting." in text


@pytest.mark.parametrize("detector", [None, "detector.pt", lambda images: images, {"weight": torch.zeros(1)}])
def test_values_that_are_not_modules(refused: Refused, detector: Any) -> None:
    text = refused(OptionError, detector)
    assert f"detector: expected an nn.Module in Python code, got {type(detector).__name__}." in text


def test_weights_on_another_device(refused: Refused) -> None:
    text = refused(OptionError, small_detector().to("meta"))
    assert "detector: expected all weights on the cpu, got weights on meta. On 'meta' they have no values" in text
    detector = small_detector()
    detector.register_buffer("mean", torch.zeros(3, device="meta"))
    assert "got weights on meta." in refused(OptionError, detector)


# The other arguments


@pytest.mark.parametrize("inputs", [[small_image()], small_image(), {"images"}])
def test_example_inputs_that_are_not_a_tuple(refused: Refused, inputs: Any) -> None:
    assert refused(OptionError, small_detector(), inputs) == (
        "hybrid_rt[convert]: example_inputs: expected the tuple of the detector's positional arguments, or a dict "
        f"of its arguments by name, got {type(inputs).__name__}. For torchvision's detectors: ([image],). "
        "[example-not-arguments]"
    )


def test_an_unknown_precision(refused: Refused) -> None:
    text = refused(OptionError, small_detector(), precision="fp8")
    assert text == "hybrid_rt[convert]: precision: expected one of fp32, bf16, fp16, int8, auto, got 'fp8'."


def test_a_precision_that_the_engine_lacks(refused: Refused) -> None:
    assert refused(OptionError, small_detector(), engine="openvino", precision="fp16") == (
        "hybrid_rt[convert]: precision for openvino: expected one of fp32, bf16, int8, got 'fp16'. "
        "Use one of these, or another engine. [precision-not-in-engine]"
    )


def test_each_precision_has_thresholds() -> None:
    assert set(THRESHOLDS) == set(PRECISIONS)


def test_an_unknown_engine_shows_the_known_ones(refused: Refused) -> None:
    text = refused(OptionError, small_detector(), engine="opnvino")
    assert "hybrid_rt[registry]: engine: expected one of " in text
    assert "openvino, " in text
    assert "torchscript, " in text
    assert "or 'auto', got 'opnvino'." in text
    assert "`hybrid-rt doctor` lists what is installed." in text


def test_no_engine(refused: Refused) -> None:
    text = refused(OptionError, small_detector(), engine=[])
    assert text == "hybrid_rt[convert]: engine: expected 'auto' or at least one backend, got an empty list."


def test_an_engine_twice(refused: Refused) -> None:
    text = refused(OptionError, small_detector(), engine=["torchscript", "torchscript"])
    assert "engine: expected each backend at most once per precision, got torchscript, torchscript." in text


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        ([], "expected 'auto' or at least one name, got an empty list"),
        (["bakbone"], "expected a submodule of SmallDetector, got 'bakbone'. Similar names: backbone"),
        (["backbone", "backbone.first"], "expected each submodule once, got 'backbone.first' inside 'backbone'."),
        (["backbone", "backbone"], "expected each submodule once, got 'backbone' twice."),
    ],
)
def test_segments(refused: Refused, segments: list[str], text: str) -> None:
    assert text in refused(OptionError, small_detector(), segments=segments)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ((32, 32), "expected image sizes [(height, width), ...] in pixels, at least one, or ranges by name"),
        ([(32, 32, 3)], "expected image sizes [(height, width), ...]"),
        ({"depth": (16, 64)}, "expected ranges for batch, height, width, got 'depth'"),
        ({"height": (64, 16)}, "shapes, height: expected (min, max) with 1 <= min <= max, got (64, 16)"),
        ({"height": (64, 128)}, "shapes, height: expected a range that includes the example's 32, got 64..128"),
        ([(64, 64), (96, 96)], "shapes, height: expected a range that includes the example's 32, got 64..96"),
    ],
)
def test_shapes(refused: Refused, shapes: Any, text: str) -> None:
    assert text in refused(OptionError, small_detector(), shapes=shapes)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (".", "a directory of that name"),
        ("missing/x.pt", "no directory "),
        ("detector.pt/x.pt", "no directory "),
        ("/proc/x.pt", "No such file or directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    refused: Refused, tmp_path: Path, place: str, reason: str
) -> None:
    class Untouched(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise AssertionError("it ran")

    text = refused(BundleError, Untouched().eval(), output=tmp_path / place)
    assert f"hybrid_rt[bundle]: {tmp_path / place}: expected to write the file, got {reason}" in text


# Capturing


def test_a_segment_that_is_never_called(refused: Refused) -> None:
    detector = small_detector()
    detector.auxiliary = nn.Conv2d(8, 8, 1).eval()
    assert refused(CaptureError, detector, segments=["auxiliary"]) == (
        "hybrid_rt[capture]: segment 'auxiliary': expected the detector to call it, got no call on the example "
        "inputs. Name a submodule whose forward runs in eval mode. [segment-not-called]"
    )


class Returns(Backbone):
    def __init__(self, extra: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, images: Tensor) -> dict[str, Any]:
        return {**super().forward(images), "extra": self.extra(images)}


TENSORS_ONLY = "output['extra']: expected tensors in lists, tuples and dicts with string or integer keys"


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (
            lambda _: 7,
            f"{TENSORS_ONLY}, got int 7.",
        ),
        (
            lambda _: None,
            f"{TENSORS_ONLY}, got NoneType",
        ),
        (
            lambda _: [],
            f"{TENSORS_ONLY}, got list [].",
        ),
        (
            lambda x: [x],
            "output: expected a dict with entries of one type, as TorchScript requires, got List[Tensor], Tensor.",
        ),
    ],
)
def test_a_segment_that_returns_other_things_than_tensors(
    refused: Refused, extra: Callable[[Tensor], Any], text: str
) -> None:
    detector = small_detector(Returns(extra))
    assert f"hybrid_rt[capture]: segment 'backbone', {text}" in refused(CaptureError, detector)


class TakesAnOption(Backbone):
    def forward(self, images: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return super().forward(images * scale)


class PassesAnOption(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.backbone(images, 2.0)
        return super().forward(images)


def test_a_segment_that_takes_other_numbers_in_another_call(refused: Refused) -> None:
    detector = PassesAnOption(TakesAnOption()).eval()
    text = refused(CaptureError, detector)
    assert "segment 'backbone': expected the same operations in every call, on its inputs alone, got numbers" in text
    assert "got numbers among its inputs that vary from call to call." in text


class TakesRows(Backbone):
    def forward(self, images: Tensor, rows: slice) -> dict[str, Tensor]:
        return super().forward(images[rows])


class PassesRows(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images, slice(1))["coarse"])


def test_a_segment_that_takes_other_things_than_tensors(refused: Refused) -> None:
    text = refused(CaptureError, PassesRows(TakesRows()).eval())
    assert "segment 'backbone', input 'rows': expected tensors in lists, tuples and dicts" in text
    assert "got slice." in text


class ChangesItsOutputs(Backbone):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().forward(images)
        return levels if images.shape[2] > 32 else {"coarse": levels["coarse"]}


def test_a_segment_whose_structure_depends_on_the_size(refused: Refused) -> None:
    detector = small_detector(ChangesItsOutputs())
    text = refused(CaptureError, detector, (small_image(64, 64),), shapes={"height": (32, 64), "width": (32, 64)})
    assert "segment 'backbone': expected the same structure of inputs and outputs in every call" in text


class NotTraceable(Backbone):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise ValueError("no tracing, please")
        return super().forward(images)


def test_a_segment_that_cannot_be_traced(refused: Refused) -> None:
    text = refused(CaptureError, small_detector(NotTraceable()))
    assert "segment 'backbone': expected a module that torch.jit.trace records, got ValueError: no tracing" in text
    assert "name a smaller submodule in segments=." in text


class UnscriptableHead(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = super().forward(images)
        order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
        return boxes[order], scores[order], labels[order]


def test_a_head_that_does_not_script_names_the_line(refused: Refused) -> None:
    text = refused(CaptureError, UnscriptableHead().eval(), head="script")
    assert text.startswith("hybrid_rt[capture]: the detector's head: expected code that torch.jit.script compiles, got")
    assert "Change the line that it names" in text
    assert f'File "{__file__}", line ' in text
    assert "<--- HERE" in text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_head_whose_recording_keeps_the_example_s_order_is_refused(refused: Refused, seed: int) -> None:
    """Its number of boxes is recorded too. Rounding affects some of them, which must not excuse the others."""
    torch.manual_seed(seed)
    text = refused(CaptureError, UnscriptableHead().eval())
    assert re.search(r"\n  trace: it (finds something else|fails on inputs of other sizes or values): ", text)


class LambdaHead(SmallDetector):
    """Has a head that TorchScript cannot script, but which tracing captures completely."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)["coarse"]
        act = lambda x: x.flatten(2).sigmoid()  # noqa: E731
        return act(self.classes(features)).max(dim=1)


@pytest.mark.parametrize("head", ["export", "trace"])
def test_an_unscriptable_head_is_converted_in_another_mode(tmp_path: Path, head: str) -> None:
    detector = LambdaHead().requires_grad_(False).eval()
    path = tmp_path / "recorded.pt"
    hybrid_rt.convert(detector, (small_image(),), path, segments="backbone", engine="torchscript", head=head)
    other = small_image(seed=3)
    for got, expected in zip(hybrid_rt.load(path)(other), detector(other), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_head_that_cannot_be_recorded_says_why(refused: Refused) -> None:
    class Opaque(LambdaHead):
        def forward(self, images: Tensor) -> tuple[Tensor, object]:
            return super().forward(images)[0], object()

    text = refused(CaptureError, Opaque().eval(), head="trace")
    assert "the detector's head, its result[1]: expected tensors, numbers, strings and None in lists" in text


def test_an_unknown_way_to_take_the_head_is_refused(refused: Refused) -> None:
    text = refused(OptionError, small_detector(), head="onnx")
    assert "head: expected one of auto, script, export, trace, got 'onnx'" in text


# Verification


class Branches(Backbone):
    """Branches on values, of which tracing keeps one branch. NumPy hides the branch from torch."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().forward(images)
        if images.numpy().mean() > 0.75:
            return {name: -level for name, level in levels.items()}
        return levels


def bright(image: Tensor) -> Tensor:
    return 0.9 + 0.1 * image


def test_a_hybrid_with_other_boxes_is_not_saved(refused: Refused) -> None:
    detector = ListDetector(small_detector(Branches())).eval()
    image = small_image()[0]
    text = refused(
        VerificationError,
        detector,
        ([image],),
        segments=["detector.backbone"],
        verify_inputs=[([image, bright(image)],)],
    )
    assert text.startswith("hybrid_rt[verify]: the hybrid in fp32: expected the detector's results, got \n  input 1, ")
    assert "input 1, image 1: " in text
    assert "boxes matched among " in text
    assert "image 0" not in text
    assert "Nothing was saved." in text


def test_a_hybrid_with_other_outputs_is_not_saved(refused: Refused) -> None:
    text = refused(VerificationError, small_detector(Branches()), verify_inputs=[(bright(small_image()),)])
    assert "input 1, output 'output." in text
    assert "Nothing was saved." in text


class DependsOnTheSize(Backbone):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        scale = float(images.shape[3])  # a constant in a trace
        return {name: level * scale for name, level in super().forward(images).items()}


def test_a_segment_that_is_wrong_at_a_second_size_is_not_saved(refused: Refused) -> None:
    """There is no verify_inputs, because further sizes within the shapes are always tried."""
    detector = small_detector(DependsOnTheSize())
    text = refused(CaptureError, detector, (small_image(64, 64),), shapes={"height": (32, 64), "width": (32, 64)})
    assert "segment 'backbone': expected a recording on " in text
    assert "another result, output 0: relative error " in text


def test_a_refusal_names_the_worst_segment_output_and_image(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = ListDetector(small_detector(DependsOnTheSize())).eval()
    shapes = {"height": (16, 64), "width": (16, 64)}
    # Skip the check at further sizes, which would find the segment wrong before there is an engine.
    monkeypatch.setattr("hybrid_rt.capture.profile.right_at_sizes", lambda program, effort: program)
    text = refused(
        VerificationError,
        detector,
        ([small_image(64, 64)[0]],),
        segments=["detector.backbone"],
        shapes=shapes,
        verify_inputs=[([small_image(48, 48)[0]],), ([small_image(64, 64)[0], small_image(16, 16)[0]],)],
    )
    first, second = [line.strip() for line in text.splitlines()[1:3]]
    assert re.match(r"worst: engine 'detector.backbone' on torchscript at 1x3x\d+x\d+, output '", first)
    assert re.match(r"worst: input \d, image \d: \d+ of \d+ boxes matched among .*; the \w+'s box of label ", second)


def test_a_detector_that_finds_nothing_is_refused_with_advice(refused: Refused, tmp_path: Path) -> None:
    detector = small_list_detector()
    detector.least_score = 2.0
    inputs, segments = ([small_image()[0]],), ["detector.backbone"]
    text = refused(VerificationError, detector, inputs, segments=segments)
    assert "the detector found no box in any image, so nothing was compared: " in text
    assert "pass images with objects, or verify=False" in text
    path = tmp_path / "unverified.pt"
    hybrid_rt.convert(detector, inputs, path, segments=segments, engine="torchscript", verify=False)
    assert hybrid_rt.inspect(path)["verification"] is None


def test_tight_thresholds_refuse_what_the_usual_ones_allow(refused: Refused) -> None:
    exact = hybrid_rt.Thresholds(iou=1.0, score=0.0, recall=1.0, relative_error=0.0)
    text = refused(VerificationError, small_detector(), engine="openvino", thresholds=exact)
    assert "relative error " in text
    assert "(allowed 0)" in text


class Fails(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise ZeroDivisionError("of the detector's own")


def test_the_detectors_own_error_is_named_and_leaves_no_hook(tmp_path: Path) -> None:
    detector = Fails().eval()
    with pytest.raises(OptionError, match=r"ZeroDivisionError: of the detector's own.*detector-fails") as caught:
        hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", engine="torchscript")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(detector.backbone._forward_hooks) == 0
    assert list(tmp_path.iterdir()) == []
