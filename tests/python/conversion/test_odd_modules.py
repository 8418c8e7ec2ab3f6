"""Tests that detectors as training scripts leave them, and unusual segments, convert without changes."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import hybrid_rt
from helpers.small_detectors import Backbone, SmallDetector, small_detector, small_image
from models.community_networks import ModelOutput

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore:.*weight_norm:FutureWarning"
)

HEADS = ("script", "trace")


def converted(detector: nn.Module, path: Path, **options: Any) -> Any:
    """Converts a detector and loads the hybrid."""
    given = {"engine": "torchscript", "segments": ["backbone"], "measure": False, "progress": False, **options}
    hybrid_rt.convert(detector, given.pop("example", (small_image(),)), path, **given)
    return hybrid_rt.load(path)


def assert_same(detector: nn.Module, hybrid: Any, *inputs: Any) -> None:
    """Compares the results on other values than the example's, and checks that an engine ran."""
    inputs = inputs or (small_image(seed=7),)
    assert hybrid_rt.engines(hybrid)
    with torch.no_grad():
        expected, found = detector(*inputs), hybrid(*inputs)
    assert expected[0].numel() > 0
    for want, have in zip(expected, found, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


class TakesLevels(SmallDetector):
    """Adds a value to the levels before the head reads them."""

    def added(self, images: Tensor) -> float:
        return 0.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images)["coarse"] + self.added(images))


def made(detector: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return detector().requires_grad_(False).eval()


# Decorated methods


class DecoratedMethods(SmallDetector):
    """Has helpers under torch's decorators, as detectors have for anchors and for the decoding of boxes."""

    @torch.no_grad()
    def shifted(self, features: Tensor) -> Tensor:
        return features + torch.arange(features.shape[3]) / 100

    @torch.inference_mode()
    def found(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores, _ = self.found(self.shifted(self.backbone(images)["coarse"]))
        return boxes, scores


class Inheriting(DecoratedMethods):
    def shifted(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("kind", [DecoratedMethods, Inheriting])
@pytest.mark.parametrize("head", HEADS)
def test_methods_under_torchs_decorators(kind: type[nn.Module], head: str, tmp_path: Path) -> None:
    detector = made(kind)
    assert_same(detector, converted(detector, tmp_path / "x.pt", head=head))
    assert type(detector) is kind


# Layers that are put in after eval()


def test_layers_that_never_read_the_training_flag_may_have_it_set(tmp_path: Path) -> None:
    detector = made(SmallDetector)
    detector.backbone.second[0] = made(lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1)).train()
    assert_same(detector, converted(detector, tmp_path / "x.pt"))
    assert detector.backbone.second[0].training


class Quantised(SmallDetector):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
        return self.last(boxes.reshape(-1, 4)), scores


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization", "ignore:.*quantized tensor creation:UserWarning")
def test_dynamically_quantised_layers(tmp_path: Path) -> None:
    detector = torch.ao.quantization.quantize_dynamic(made(Quantised), {nn.Linear}, dtype=torch.qint8)
    assert detector.last.training
    assert_same(detector, converted(detector, tmp_path / "x.pt"))


# Hooks


class ReadsFeatures(SmallDetector):
    """Has a head that reads inner features kept by a hook, in the module or in a dict that the hook holds."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.features: Any = {}
        features, layer = self.features, self.backbone.first

        def into_attribute(_: nn.Module, __: Any, made: Tensor) -> None:
            self.features["first"] = made

        def into_dict(_: nn.Module, __: Any, made: Tensor) -> None:
            features["first"] = made

        layer.register_forward_hook({"attribute": into_attribute, "dict": into_dict, "method": self.keep}[where])

    def keep(self, _: nn.Module, __: Any, made: Tensor) -> None:
        self.features = {"first": made}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images)["coarse"] + self.features["first"].mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "segments"), [("attribute", "auto"), ("dict", "auto"), ("method", ["backbone.first.0"])]
)
def test_features_that_a_hook_keeps(where: str, segments: Any, tmp_path: Path) -> None:
    detector = made(lambda: ReadsFeatures(where))
    hybrid = converted(detector, tmp_path / "a.pt", segments=segments)
    assert detector.features == {}
    assert_same(detector, hybrid)


@pytest.mark.parametrize("name", ["backbone", "backbone.first"])
def test_a_segment_whose_features_a_hook_keeps_is_refused_by_name(name: str, tmp_path: Path) -> None:
    detector = made(lambda: ReadsFeatures("dict"))
    with pytest.raises(hybrid_rt.CaptureError, match=rf"'{name}'.*used outside of it.*\[not-repeatable\]"):
        converted(detector, tmp_path / "a.pt", segments=[name])


# Wrappers


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "torch.compile": lambda module: torch.compile(module, backend="eager"),  # type: ignore[dict-item, return-value]
    "compile()": lambda module: module.compile(backend="eager") or module,
    "two of them": lambda module: AveragedModel(nn.DataParallel(module)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_detector(wrapper: str, tmp_path: Path) -> None:
    wrapped = WRAPPERS[wrapper](small_detector()).eval()
    assert_same(small_detector(), converted(wrapped, tmp_path / "x.pt"))


@pytest.mark.parametrize("wrapper", ["DataParallel", "torch.compile"])
@pytest.mark.parametrize("head", HEADS)
def test_a_wrapped_backbone(wrapper: str, head: str, tmp_path: Path) -> None:
    detector = small_detector()
    detector.backbone = WRAPPERS[wrapper](detector.backbone).eval()
    assert_same(small_detector(), converted(detector, tmp_path / "x.pt", head=head))


# Computed weights


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "parametrization": lambda module: register_parametrization(module, "weight", Unit()),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda module: prune.l1_unstructured(module, "weight", amount=0.3),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("where", ["backbone.second.0", "classes"])
def test_weights_that_are_computed(kind: str, where: str, tmp_path: Path) -> None:
    detector = small_detector()
    COMPUTED[kind](detector.get_submodule(where))
    detector.requires_grad_(False).eval()
    assert_same(detector, converted(detector, tmp_path / "x.pt"))


# Replaced forward methods


class WithThreshold(SmallDetector):
    def forward(self, images: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.detect(self.backbone(images)["coarse"])
        kept = scores > threshold
        return boxes[kept], scores[kept], labels[kept]

    def export_forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
        return boxes, scores


def bound(detector: Any) -> None:
    detector.forward = types.MethodType(WithThreshold.export_forward, detector)


def other_method(detector: Any) -> None:
    detector.forward = detector.export_forward


def partial(detector: Any) -> None:
    detector.forward = functools.partial(detector.forward, threshold=0.5)


def closure(detector: Any) -> None:
    original = detector.forward
    detector.forward = lambda images: original(images, threshold=0.5)


def of_the_backbone(detector: Any) -> None:
    backbone = detector.backbone
    backbone.forward = types.MethodType(lambda self, x: {"coarse": self.second(self.first(x).clamp(max=0.3))}, backbone)


CHANGES = [(change, head) for change in (bound, other_method, of_the_backbone) for head in HEADS]


@pytest.mark.parametrize(("change", "head"), [*CHANGES, (partial, "trace"), (closure, "trace")])
def test_a_replaced_forward(change: Callable[[Any], None], head: str, tmp_path: Path) -> None:
    detector = made(WithThreshold)
    change(detector)
    hybrid = converted(detector, tmp_path / "x.pt", head=head)
    assert_same(detector, hybrid, small_image())  # equal values, because a traced threshold keeps as many boxes
    assert [engine["segments"] for engine in hybrid_rt.engines(hybrid)] == [["backbone"]]


def test_one_of_two_modules_of_a_class_has_another_forward(tmp_path: Path) -> None:
    class Two(SmallDetector):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.thrice = Scales(), Scales()

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.thrice(self.twice(self.backbone(images)["coarse"])))

    detector = made(Two)
    detector.thrice.forward = detector.thrice.thrice
    assert_same(detector, converted(detector, tmp_path / "x.pt"))


class Scales(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0

    def thrice(self, x: Tensor) -> Tensor:
        return x * -3.0


@pytest.mark.parametrize("decorator", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("head", HEADS)
def test_decorated_forwards(decorator: Any, head: str, tmp_path: Path) -> None:
    class Decorated(SmallDetector):
        @decorator()
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.backbone(images)["coarse"])

    class DecoratedBackbone(Backbone):
        @decorator()
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return super().forward(images)

    detector = made(lambda: Decorated(DecoratedBackbone()))
    assert_same(detector, converted(detector, tmp_path / "x.pt", head=head))


def test_conversion_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        detector = small_detector()
        example = (small_image(),)
        hybrid = converted(detector, tmp_path / "x.pt", example=example)
    assert_same(small_detector(), hybrid)


# Functions and parts that are not Python code on torch operators


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x * torch.sigmoid(x)


class ClampFunction(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, low: float) -> Tensor:
        return x.clamp(min=low)

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        context.low = inputs[1]


swish = SwishFunction.apply

FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "apply": lambda x: SwishFunction.apply(x),
    "its alias": lambda x: swish(x),
    "setup_context": lambda x: ClampFunction.apply(x, 0.1),
    "checkpoint": lambda x: checkpoint(torch.relu, x, use_reentrant=True),
}


class Activated(Backbone):
    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().forward(images)
        return {"coarse": FUNCTIONS[self.function](levels["coarse"] - 0.2)}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("engine", ["torchscript", "openvino"])
def test_autograd_functions(function: str, engine: str, tmp_path: Path) -> None:
    detector = made(lambda: SmallDetector(Activated(function)))
    assert_same(detector, converted(detector, tmp_path / "x.pt", engine=engine, fallback=False))
    assert type(swish) is type(SwishFunction.apply)
    assert swish.__self__ is SwishFunction


class Normalise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / 0.25


class WithPreprocessing(SmallDetector):
    def __init__(self) -> None:
        super().__init__()
        self.preprocess: nn.Module = Normalise()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(self.preprocess(images))["coarse"])


@pytest.mark.parametrize("head", HEADS)
def test_a_part_that_is_torchscript_already(head: str, tmp_path: Path) -> None:
    detector = made(WithPreprocessing)
    expected = made(WithPreprocessing)
    detector.preprocess = torch.jit.script(detector.preprocess)
    assert_same(expected, converted(detector, tmp_path / "head.pt", head=head))
    detector.backbone = torch.jit.trace(detector.backbone, small_image(), strict=False)
    assert_same(expected, converted(detector, tmp_path / "segment.pt", head=head))
    assert isinstance(detector.backbone, torch.jit.ScriptModule)


@pytest.mark.parametrize("head", HEADS)
def test_a_sparse_buffer(head: str, tmp_path: Path) -> None:
    class Smoothed(SmallDetector):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mix", torch.eye(8).mul(1.5).to_sparse())

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            features = self.backbone(images)["coarse"]
            return self.detect(torch.mm(self.mix, features[0].flatten(1)).reshape(features.shape))

    detector = made(Smoothed)
    assert_same(detector, converted(detector, tmp_path / "x.pt", head=head))


# Attributes of the backbone that a head reads


class Asked(Backbone):
    """Has everything that a head may read."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self._divisor = 3
        self.offset = torch.tensor([0.25])
        self.levels = {"coarse": 4}
        self.engine, self.inputs = "diesel", 3

    @property
    def divisor(self) -> int:
        return self._divisor

    def strides(self) -> list[int]:
        return [self.divisor, self._divisor + 1]

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(mode)

    def loss(self, x: Tensor) -> Tensor:
        return super().forward(x)["coarse"].sum()


class Asks(TakesLevels):
    def added(self, images: Tensor) -> float:
        known = (
            self.backbone.divisor + self.backbone.strides()[1] * self.backbone.scale + self.backbone.levels["coarse"]
        )
        if self.training:
            known += float(self.backbone.loss(images))
        return known + float(self.backbone.offset) + self.backbone.inputs + (self.backbone.engine == "diesel")


@pytest.mark.parametrize("head", HEADS)
def test_a_head_may_ask_its_backbone(head: str, tmp_path: Path) -> None:
    detector = made(lambda: Asks(Asked()))
    assert_same(detector, converted(detector, tmp_path / "x.pt", head=head))


class AsksInPython(TakesLevels):
    """Reads it in Python code only, so that the head is traced."""

    def added(self, images: Tensor) -> float:
        assert isinstance(self.backbone, Backbone)
        dtype = next(self.backbone.parameters()).dtype
        return float(self.backbone.first[0].weight.to(dtype)[0, 0, 0, 0])


def test_a_recorded_head_may_ask_for_parameters_submodules_and_the_class(tmp_path: Path) -> None:
    detector = made(AsksInPython)
    assert_same(detector, converted(detector, tmp_path / "x.pt", head="trace"))


def test_a_backbone_that_returns_a_class_of_its_own(tmp_path: Path) -> None:
    class Returns(Backbone):
        def forward(self, images: Tensor) -> Any:
            return ModelOutput(super().forward(images))

    class Takes(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.backbone(images).coarse)

    detector = made(lambda: Takes(Returns()))
    assert_same(detector, converted(detector, tmp_path / "x.pt", head="trace"))


# Arguments of segments


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        offset: Tensor | None = None,
        scale: float = 1.0,
        dense: bool = True,
    ) -> Tensor:
        x = x if mask is None else x * mask
        x = x if offset is None else x + offset
        return self.layer(x) * scale if dense else x


class ByKeyword(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images, None, offset=images * 0.5))


class WithNumbers(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images, None, images * 0.5, 3.0, dense=True))


@pytest.mark.parametrize("kind", [ByKeyword, WithNumbers])
@pytest.mark.parametrize("head", HEADS)
def test_arguments_by_keyword_and_numbers(kind: Any, head: str, tmp_path: Path) -> None:
    detector = made(lambda: kind(Encoder()))
    assert_same(detector, converted(detector, tmp_path / "x.pt", head=head))


def test_another_number_than_the_examples_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    class Varies(SmallDetector):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.detect(self.backbone(images, scale=2.0 if images.shape[0] > 1 else 3.0))

    detector = made(lambda: Varies(Encoder()))
    hybrid = converted(detector, tmp_path / "x.pt")
    assert_same(detector, hybrid)
    with pytest.raises(
        Exception, match=r"segment 'backbone', scale: expected 3\.0, as in the example, got another value"
    ):
        hybrid(small_image().expand(2, -1, -1, -1))


class Targets(SmallDetector):
    """Takes targets without an annotation, as training code often does."""

    def forward(self, images, targets=None):
        levels = self.backbone(images)
        if self.training and targets is not None:
            levels = self.backbone(images + targets)
        if targets is not None:
            levels["coarse"] = levels["coarse"] + targets
        return self.detect(levels["coarse"])


@pytest.mark.parametrize("head", HEADS)
def test_a_default_of_none_without_an_annotation(head: str, tmp_path: Path) -> None:
    detector = made(Targets)
    hybrid = converted(detector, tmp_path / "x.pt", head=head)
    assert_same(detector, hybrid)
    if head == "script":
        assert_same(detector, hybrid, small_image(seed=3), torch.ones(1))
