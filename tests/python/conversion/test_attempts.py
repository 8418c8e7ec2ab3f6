"""Tests of fallbacks within a call, and of their entries in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import SIDE, SmallDetector, small_detector, small_image
from hybrid_rt import BackendError, CaptureError, OptionError
from hybrid_rt.backends import registry
from hybrid_rt.conversion.assemble import variant_trials
from hybrid_rt.conversion.assemble.given_up import fused_given_up
from hybrid_rt.conversion.report import report as report_module

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

RANGES = {"height": (32, 96), "width": (32, 96)}

QUICK: dict[str, Any] = {"engine": "torchscript", "measure": False, "progress": False}


def made(detector: nn.Module) -> Any:
    return detector.requires_grad_(False).eval()


class Sorted(nn.Module):
    """Has two adjacent segments, under a head that TorchScript does not compile."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
            self.second = nn.Conv2d(8, 4, 3)

    def between(self, features: Tensor) -> Tensor:
        return features

    def forward(self, images: Tensor) -> Any:
        return torch.amax(self.second(self.between(self.first(images))), **{"dim": (2, 3)})


@pytest.mark.parametrize("engine", ["torchscript", "openvino"])
def test_a_recorded_head_takes_segments_in_one_engine(engine: str, tmp_path: Path) -> None:
    detector, path = made(Sorted()), tmp_path / "x.pt"
    options = {**QUICK, "engine": engine, "fallback": False}
    result = hybrid_rt.convert(detector, (small_image(),), path, segments=["first", "second"], head="trace", **options)
    assert [engine.name for engine in result.report.engines] == ["first+second"]
    assert result.report.given_up == []
    for seed in (0, 1):
        image = small_image(seed=seed)
        torch.testing.assert_close(hybrid_rt.load(path)(image), detector(image), rtol=1e-4, atol=1e-5)


def test_three_segments_that_feed_each_other_crosswise(tmp_path: Path) -> None:
    class Three(Sorted):
        def __init__(self) -> None:
            super().__init__()
            self.third = nn.Bilinear(4, 4, 5)

        def forward(self, images: Tensor) -> Any:
            levels = [self.first[0](images).mean((2, 3))[:, :4].contiguous(), self.second(self.first(images))]
            return levels[0], levels[1], torch.amax(levels[1], **{"dim": (2, 3)})

    detector, path = made(Three()), tmp_path / "x.pt"
    hybrid_rt.convert(detector, (small_image(),), path, segments=["first", "second"], head="trace", **QUICK)
    for want, have in zip(detector(small_image(seed=1)), hybrid_rt.load(path)(small_image(seed=1)), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_a_recorded_head_that_changes_passed_tensors_splits_the_engines(tmp_path: Path) -> None:
    class Copies(Sorted):
        """Passes on a copy of the values."""

        def between(self, features: Tensor) -> Tensor:
            return features + 0.0 if torch.jit.is_tracing() else features

    detector, path = made(Copies()), tmp_path / "x.pt"
    report = hybrid_rt.convert(
        detector, (small_image(),), path, segments=["first", "second"], head="trace", **QUICK
    ).report
    assert [engine.name for engine in report.engines] == ["first", "second"]
    [given_up] = report.given_up
    assert given_up.what == "one engine for first+second"
    assert "got another tensor as input 0 of 'second'" in given_up.reason
    assert given_up.code == "segments-not-one"
    torch.testing.assert_close(hybrid_rt.load(path)(small_image()), detector(small_image()))


# Engines that refuse


def refuse(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Makes OpenVINO's compiler refuse the programs for which ``when`` holds."""
    kind = type(registry.backend("openvino"))
    compiled = kind.compile

    def compile_or_refuse(self: Any, program: Any, precision: str) -> Any:
        if when(program):
            raise BackendError.make("openvino", f"segment '{program.name}'", expected="what it knows", got="another")
        return compiled(self, program, precision)

    monkeypatch.setattr(kind, "compile", compile_or_refuse)


@pytest.mark.filterwarnings("ignore:.*Falling back to the next engine:RuntimeWarning")
def test_an_engine_that_refuses_a_segment_leaves_it_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    refuse(monkeypatch, lambda program: program.name == "second")
    detector, path = made(Sorted()), tmp_path / "x.pt"
    options = {**QUICK, "engine": "openvino", "segments": ["first", "second"], "fuse": False, "head": "trace"}
    report = hybrid_rt.convert(detector, (small_image(),), path, **options).report
    backends = {engine.name: [variant.backend for variant in engine.variants] for engine in report.engines}
    assert backends == {"first": ["openvino", "torchscript"], "second": ["torchscript"]}
    [given_up] = report.given_up
    assert (given_up.what, given_up.instead) == ("openvino:fp32 for second", "torchscript")
    assert "hybrid_rt[openvino]: segment 'second': expected what it knows, got another." in given_up.reason
    assert "of the detector's time is as fast as torchscript makes it" in given_up.cost
    schema = json.loads((Path(report_module.__file__).parent / "report.schema.json").read_text())
    jsonschema.validate(report.to_json(), schema)
    report.save(tmp_path / "report.html")
    assert "openvino:fp32 for second" in (tmp_path / "report.html").read_text().replace("<wbr>", "")


@pytest.mark.slow
def test_an_engine_that_refuses_fused_segments_may_take_single_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    refuse(monkeypatch, lambda program: len(program.members) > 1)
    options = {**QUICK, "engine": "openvino", "segments": ["first", "second"], "fallback": False, "head": "trace"}
    report = hybrid_rt.convert(made(Sorted()), (small_image(),), tmp_path / "x.pt", **options).report
    assert [engine.name for engine in report.engines] == ["first", "second"]
    [given_up] = report.given_up
    assert given_up.what == "one engine for first+second"


def fail_when_run(monkeypatch: pytest.MonkeyPatch, engine_name: str) -> None:
    """Makes the OpenVINO variant of an engine raise at other sizes than the example's."""
    run_on = variant_trials._run_on

    def run_or_fail(device: str, engine: Any, call: Any) -> list[Tensor]:
        chosen = json.loads(engine.choice())
        if chosen["engine"] == engine_name and chosen["backend"] == "openvino" and call.inputs[0].shape[2] != SIDE - 2:
            raise RuntimeError("the vendor's own text.")
        return run_on(device, engine, call)

    monkeypatch.setattr(variant_trials, "_run_on", run_or_fail)


@pytest.mark.filterwarnings("ignore:.*Falling back to the next engine:RuntimeWarning")
def test_an_engine_that_fails_at_run_time_is_replaced_by_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fail_when_run(monkeypatch, "second")
    options = {**QUICK, "engine": "openvino", "segments": ["first", "second"], "fuse": False, "shapes": RANGES}
    path = tmp_path / "x.pt"
    report = hybrid_rt.convert(made(Sorted()), (small_image(),), path, head="trace", **options).report
    backends = {engine.name: [variant.backend for variant in engine.variants] for engine in report.engines}
    assert backends == {"first": ["openvino", "torchscript"], "second": ["torchscript"]}
    [given_up] = report.given_up
    assert (given_up.what, given_up.instead, given_up.code) == (
        "openvino:fp32 for second",
        "torchscript",
        "engine-not-run",
    )
    assert "got the vendor's own text. Pass another engine=" in given_up.reason
    assert {engine["backend"] for engine in hybrid_rt.engines(hybrid_rt.load(path))} == {"openvino", "torchscript"}


def test_without_a_fallback_an_engine_that_fails_when_it_runs_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fail_when_run(monkeypatch, "second")
    options = {**QUICK, "engine": "openvino", "segments": ["second"], "fallback": False, "shapes": RANGES}
    with pytest.raises(BackendError, match=r"engine 'second': expected it to run at 1x8x\d+x\d+, as the segment does"):
        hybrid_rt.convert(made(Sorted()), (small_image(),), tmp_path / "x.pt", head="trace", **options)
    assert not (tmp_path / "x.pt").exists()


def test_without_a_fallback_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYBRID_RT_CACHE", str(tmp_path / "cache"))
    refuse(monkeypatch, lambda program: True)
    options = {**QUICK, "engine": "openvino", "segments": ["first"], "fallback": False, "head": "trace"}
    with pytest.raises(BackendError, match=r"segment 'first': expected what it knows, got another"):
        hybrid_rt.convert(made(Sorted()), (small_image(),), tmp_path / "x.pt", **options)
    assert not (tmp_path / "x.pt").exists()


# Clean-up


class Keeps(SmallDetector):
    """Changes its own state in each call, in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.runs, self.sizes, self.cached = 0, [0], torch.zeros(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.detect(self.backbone(images)["coarse"])
        if not torch.jit.is_scripting():
            self.seen += 1
            self.runs += 1
            self.sizes.append(images.shape[2])
            self.cached = self.cached + 1
        return found


def state_of(detector: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in detector.named_modules():
        for key, value in vars(module).items():
            kept = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
            state[f"{name}.{key}"] = repr(kept)
        state[f"{name}.class"] = type(module)
    for name, tensor in [*detector.named_parameters(), *detector.named_buffers()]:
        state[f"{name}.place"] = (tensor.data_ptr(), tensor.requires_grad, tensor._version)
    return state


@pytest.mark.parametrize("head", ["script", "trace"])
def test_the_detector_is_unchanged(head: str, tmp_path: Path) -> None:
    detector = Keeps().eval()
    hooked: list[Any] = []
    detector.classes.register_forward_hook(lambda *_: hooked.append(1))
    before = state_of(detector)
    try:
        hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", segments=["backbone"], head=head, **QUICK)
    except hybrid_rt.HybridRTError:
        assert not (tmp_path / "x.pt").exists()
    assert state_of(detector) == before


def test_the_detector_is_unchanged_after_an_error(tmp_path: Path) -> None:
    class Fails(Keeps):
        def detect(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise ValueError("no")

    detector = Fails().eval()
    before = state_of(detector)
    with pytest.raises(OptionError, match="got ValueError: no "):
        hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", segments=["backbone"], **QUICK)
    assert state_of(detector) == before
    assert list(tmp_path.iterdir()) == []


class Unscriptable(SmallDetector):
    """Has a part that is compiled before TorchScript reaches code that it refuses."""

    def forward(self, images: Tensor) -> Any:
        found = self.detect(self.backbone(images)["coarse"])
        return tuple(x for x in found) if type(self).mended else sorted(found, key=lambda x: x.dim(), **{})

    mended = False


def test_torchs_registry_is_unchanged_after_a_failed_attempt(tmp_path: Path) -> None:
    store = torch.jit._recursive.concrete_type_store
    classes = dict(torch.jit._state._script_classes)
    known = {kind: len(types) for kind, types in store.type_store.items()}
    texts = []
    for _ in range(2):
        with pytest.raises(CaptureError) as caught:
            hybrid_rt.convert(
                made(Unscriptable()),
                (small_image(),),
                tmp_path / "x.pt",
                segments=["backbone"],
                head="script",
                **QUICK,
            )
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "redefine" not in texts[1]
    assert torch.jit._recursive.concrete_type_store is store
    assert {kind: len(types) for kind, types in store.type_store.items()} == known
    assert torch.jit._state._script_classes == classes


def test_a_refused_detector_converts_once_it_is_fixed(tmp_path: Path) -> None:
    class Method(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.backbone(images)["coarse"])

        def detect(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.unknown(features)

    with pytest.raises(OptionError, match=r"got AttributeError: .*unknown"):
        hybrid_rt.convert(made(Method()), (small_image(),), tmp_path / "x.pt", segments=["backbone"], **QUICK)
    Method.detect = SmallDetector.detect  # type: ignore[method-assign]
    hybrid_rt.convert(made(Method()), (small_image(),), tmp_path / "x.pt", segments=["backbone"], **QUICK)


# Messages


class Raises(SmallDetector):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Any:
        found = self.backbone(images)
        if torch.jit.is_tracing():
            raise self.error
        return self.detect(found["coarse"])


def refused(detector: nn.Module, path: Path) -> str:
    with pytest.raises(CaptureError) as caught:
        hybrid_rt.convert(made(detector), (small_image(),), path, segments=["backbone"], head="trace", **QUICK)
    return str(caught.value)


def test_an_error_without_a_message_has_the_line(tmp_path: Path) -> None:
    text = refused(Raises(StopIteration()), tmp_path / "x.pt")
    assert "got StopIteration without a message, at " in text
    assert "test_attempts.py:" in text
    assert "raise self.error" in text


def test_printed_tensors_are_left_out(tmp_path: Path) -> None:
    text = refused(Raises(RuntimeError(f"can't hold\n{torch.rand(70, 6)}\nas a constant")), tmp_path / "x.pt")
    assert "got RuntimeError: can't hold" in text
    assert "as a constant" in text
    assert len(text) < 700


def test_long_messages_are_cut(tmp_path: Path) -> None:
    text = refused(Raises(RuntimeError("\n".join("x" * 5000 for _ in range(100)))), tmp_path / "x.pt")
    assert "... and 76 lines more" in text
    assert len(text) < 10000


def test_a_value_that_is_not_a_tensor_is_named_not_printed(tmp_path: Path) -> None:
    class Cache:
        def __repr__(self) -> str:
            return "Cache" * 1000

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor, cache: Any) -> Tensor:
            return self.layer(x)

    class Gives(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.backbone(images, Cache()))

    text = refused(Gives(Takes()), tmp_path / "x.pt")
    assert "input 'cache': expected tensors in lists, tuples and dicts with string or integer keys, got Cache." in text


def test_fp32_is_not_the_remedy_for_fp32(tmp_path: Path) -> None:
    class Drifts(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            boxes, scores, labels = self.detect(self.backbone(images)["coarse"])
            return (boxes, scores + 1, labels) if torch.jit.is_scripting() else (boxes, scores, labels)

    with pytest.raises(hybrid_rt.VerificationError) as caught:
        hybrid_rt.convert(
            made(Drifts()), (small_image(),), tmp_path / "x.pt", segments=["backbone"], head="script", **QUICK
        )
    assert "Nothing was saved. Exclude the segment, or loosen thresholds= if the difference is acceptable." in str(
        caught.value
    )


def test_a_small_detector_abandons_nothing(tmp_path: Path) -> None:
    report = hybrid_rt.convert(
        small_detector(), (small_image(),), tmp_path / "x.pt", segments=["backbone"], **QUICK
    ).report
    assert report.given_up == []
    assert "given up" not in str(report)


def test_a_size_that_the_detector_does_not_take_is_named(tmp_path: Path) -> None:
    class Fixed(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.backbone(images + torch.zeros(1, 3, 32, 32))["coarse"])

    shapes = [(32, 32), (48, 40)]
    with pytest.raises(
        CaptureError, match=r"shapes: expected a detector that accepts inputs of 1x3x48x40, .* got Runtime"
    ):
        hybrid_rt.convert(
            made(Fixed()), (small_image(),), tmp_path / "x.pt", segments=["backbone"], shapes=shapes, **QUICK
        )


def test_a_result_with_a_number_comes_back(tmp_path: Path) -> None:
    class Counts(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
            boxes, scores, labels = self.detect(self.backbone(images)["coarse"])
            return boxes, scores, labels, boxes.shape[0]

    detector = made(Counts())
    hybrid = hybrid_rt.convert(detector, (small_image(),), tmp_path / "x.pt", segments=["backbone"], **QUICK)
    assert hybrid.module(small_image())[3] == detector(small_image())[3] > 0


def test_abandoned_options_have_the_code_of_the_reason() -> None:
    assert fused_given_up(["a", "b"], "why [segments-not-one]").code == "segments-not-one"
    assert fused_given_up(["a", "b"], "why").code == ""
    one, many = (fused_given_up(["a", "b"], reason).summary for reason in ("why [x-y]", "why\nmore [x-y]"))
    assert one == many
    assert one.endswith("since why [x-y]")


class Branches(nn.Module):
    """Has a segment whose code branches on sizes, under a head that depends on values."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x[:, :, ::2] if x.shape[2] > 40 else x)

    def __init__(self) -> None:
        super().__init__()
        self.body = Branches.Body()

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        return found[found > 0]


def test_a_segment_that_is_right_at_some_sizes_gives_way_to_those_inside_it(tmp_path: Path) -> None:
    detector, path = made(Branches()), tmp_path / "x.pt"
    options = {**QUICK, "shapes": {"height": (16, 64), "width": (16, 64)}}
    report = hybrid_rt.convert(detector, (small_image(),), path, **options).report
    assert [engine.name for engine in report.engines] == ["body.first", "body.second"]
    [given_up] = report.given_up
    assert given_up.what == "the segment body"
    assert "torch.export does not help: " in given_up.reason
    hybrid = hybrid_rt.load(path)
    for height in (30, 60):
        image = torch.rand(1, 3, height, 32)
        torch.testing.assert_close(hybrid(image), detector(image), rtol=1e-4, atol=1e-5)
    with pytest.raises(CaptureError, match="segment 'body': expected a recording on"):
        hybrid_rt.convert(detector, (small_image(),), path, segments=["body"], **options)
