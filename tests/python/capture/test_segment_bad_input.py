"""Tests of unusual segments: each works or is refused, and nothing is silently lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybrid_rt
from helpers.small_detectors import Backbone, SmallDetector, small_detector, small_image
from hybrid_rt import BackendError, CaptureError, HybridRTError

AVAILABLE = {
    info.name: pytest.param(info.name, marks=() if info.available else pytest.mark.skip(reason=info.reason))
    for info in hybrid_rt.backends()
}
ENGINES = [AVAILABLE[name] for name in ("openvino", "torchscript", "onnxruntime")]
# The other engines take seconds to compile. They take part where the segment is the small detector's own backbone,
# which is compiled once per run (conftest's cache), or where nothing is compiled.
ALL_ENGINES = list(AVAILABLE.values())


def seeded(detector: type[nn.Module], *arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return detector(*arguments).requires_grad_(False).eval()


def converted(detector: nn.Module, path: Path, engine: str, image: Tensor | None = None) -> Any:
    example = (small_image() if image is None else image,)
    hybrid_rt.convert(detector, example, path, segments=["backbone"], engine=engine, fallback=False)
    return hybrid_rt.load(path)


def assert_finds_the_same(detector: nn.Module, hybrid: Any, tolerance: float = 1e-4) -> None:
    for seed in (0, 1):
        expected, found = detector(small_image(seed=seed)), hybrid(small_image(seed=seed))
        for want, have in zip(expected, found, strict=True):
            assert want.dtype == have.dtype
            assert want.numel() > 5
            torch.testing.assert_close(have, want, rtol=tolerance, atol=tolerance)


# Hooks


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", ["backbone", "backbone.first", "backbone.second.0"])
def test_a_hook_that_changes_outputs_in_a_segment_is_kept(place: str, engine: str, tmp_path: Path) -> None:
    detector, plain = small_detector(), small_detector()

    def double(_: nn.Module, __: Any, output: Any) -> Any:
        return {name: 2 * level for name, level in output.items()} if isinstance(output, dict) else 2 * output

    detector.get_submodule(place).register_forward_hook(double)
    assert not torch.equal(detector(small_image())[1], plain(small_image())[1])
    assert_finds_the_same(detector, converted(detector, tmp_path / "hooked.pt", engine))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", ["backbone", "backbone.second"])
def test_a_hook_that_changes_inputs_in_a_segment_is_kept(place: str, engine: str, tmp_path: Path) -> None:
    detector, plain = small_detector(), small_detector()
    detector.get_submodule(place).register_forward_pre_hook(lambda _, inputs: (3 * inputs[0],))
    assert not torch.equal(detector(small_image())[1], plain(small_image())[1])
    assert_finds_the_same(detector, converted(detector, tmp_path / "hooked.pt", engine))


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_a_hook_that_only_watches_a_segment_does_not_disturb(engine: str, tmp_path: Path) -> None:
    detector = small_detector()
    seen: list[tuple[int, ...]] = []
    detector.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    detector.backbone.register_forward_hook(lambda _, __, output: seen.append(tuple(output["coarse"].shape)))
    assert_finds_the_same(detector, converted(detector, tmp_path / "watched.pt", engine))
    assert (1, 3, 32, 32) in seen
    assert (1, 8, 8, 8) in seen


def test_a_hook_in_the_head_is_kept_if_torchscript_compiles_it(tmp_path: Path) -> None:
    detector, plain = small_detector(), small_detector()

    def negate(self, input: tuple[Tensor], output: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return -output

    # TorchScript reads the types, not their names.
    negate.__annotations__ = {"input": tuple[Tensor], "output": Tensor, "return": Tensor}
    detector.classes.register_forward_hook(negate)
    assert not torch.equal(detector(small_image())[1], plain(small_image())[1])
    assert_finds_the_same(detector, converted(detector, tmp_path / "hooked.pt", "torchscript"))


@pytest.mark.parametrize("place", ["classes", ""])
def test_another_hook_in_the_head_is_refused(place: str, tmp_path: Path) -> None:
    detector = small_detector()
    detector.get_submodule(place).register_forward_hook(lambda _, __, output: output)
    with pytest.raises(CaptureError, match=r"the detector.s head: expected code that torch\.jit\.script compiles, got"):
        hybrid_rt.convert(
            detector,
            (small_image(),),
            tmp_path / "hooked.pt",
            segments=["backbone"],
            engine="torchscript",
            head="script",
        )
    assert list(tmp_path.iterdir()) == []


# Weights


class SharesModule(SmallDetector):
    """Has a head that calls a part of the backbone again."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.backbone.second

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.backbone(images)
        return self.detect(levels["coarse"] + 2 * self.again(levels["fine"]))


class SharesWeight(SharesModule):
    """Shares only the weight."""

    def __init__(self) -> None:
        super().__init__()
        shared = self.backbone.second[0].weight
        self.again = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.again.weight = shared


@pytest.mark.parametrize("engine", ALL_ENGINES)
@pytest.mark.parametrize("kind", [SharesModule, SharesWeight])
def test_weights_shared_by_a_segment_and_the_head(kind: type[nn.Module], engine: str, tmp_path: Path) -> None:
    detector = seeded(kind)
    weights = {name: value.clone() for name, value in detector.state_dict().items()}
    assert_finds_the_same(detector, converted(detector, tmp_path / "shared.pt", engine))
    assert all(torch.equal(value, weights[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_weights_that_require_gradients(engine: str, tmp_path: Path) -> None:
    detector = small_detector().requires_grad_(True)
    with torch.enable_grad():
        hybrid = converted(detector, tmp_path / "trainable.pt", engine)
        assert not any(tensor.requires_grad for tensor in hybrid(small_image()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in detector.parameters())
    assert_finds_the_same(detector, hybrid)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("images_too", [False, True])
def test_a_backbone_in_channels_last(images_too: bool, engine: str, tmp_path: Path) -> None:
    detector = small_detector()
    detector.backbone.to(memory_format=torch.channels_last)
    image = small_image()
    if images_too:
        image = image.to(memory_format=torch.channels_last)
    hybrid = converted(detector, tmp_path / "channels_last.pt", engine, image)
    assert_finds_the_same(detector, hybrid)  # with contiguous images
    last = small_image(seed=2).to(memory_format=torch.channels_last)
    for want, have in zip(detector(last), hybrid(last), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


class Scores(SmallDetector):
    """Returns the scores of all cells in the precision of the weights, because NMS has no half precision on CPUs."""

    def forward(self, images: Tensor) -> list[Tensor]:
        images = images.to(self.classes.weight.dtype)
        return [self.classes(self.backbone(images)["coarse"])]


def refused(detector: nn.Module, path: Path, engine: str) -> bool:
    """Returns true if the engine refuses the detector before anything is saved.

    ONNX Runtime has convolutions only in float32 and float16, and OpenVINO computes float64 in 32 bits.
    """
    is_wide = engine == "openvino" and detector.classes.weight.dtype == torch.float64
    if engine != "onnxruntime" and not is_wide:
        return False
    text = "expected numbers that fit into 32 bits" if is_wide else r"got none of 1:\n  onnxruntime \(fp32\): .*Conv"
    with pytest.raises(BackendError, match=text):
        converted(detector, path, engine)
    assert not path.exists()
    return True


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype: torch.dtype, engine: str, tmp_path: Path) -> None:
    detector = seeded(Scores).to(dtype)
    if dtype != torch.float16 and refused(detector, tmp_path / "precision.pt", engine):
        return
    hybrid = converted(detector, tmp_path / "precision.pt", engine)
    assert hybrid(small_image())[0].dtype == dtype
    assert_finds_the_same(detector, hybrid, 8 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps))


class RoundsInside(Backbone):
    """Takes and returns float32, and computes in bfloat16."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().forward(images.to(self.first[0].weight.dtype))
        return {name: level.float() for name, level in levels.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_backbone_that_casts_to_bfloat16_and_back(engine: str, tmp_path: Path) -> None:
    detector = seeded(Scores, RoundsInside())
    detector.backbone.bfloat16()
    if refused(detector, tmp_path / "cast.pt", engine):
        return
    assert_finds_the_same(detector, converted(detector, tmp_path / "cast.pt", engine), 8 * 2**-8)


class Describes(Backbone):
    """Has a method that the head calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = 4
        self.strides = [2, 4]
        self.names = ("fine", "coarse")
        self.register_buffer("offset", torch.tensor([5.0, 6.0, 7.0, 8.0]))
        self.scale = nn.Parameter(torch.tensor([3.0]))


class Asks(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.detect(self.backbone(images)[self.backbone.names[1]])
        boxes = boxes * self.backbone.stride / self.backbone.strides[0] + self.backbone.offset * self.backbone.scale
        return boxes, scores, labels


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_that_reads_attributes_of_a_segment(engine: str, tmp_path: Path) -> None:
    detector = seeded(Asks, Describes())
    assert_finds_the_same(detector, converted(detector, tmp_path / "asks.pt", engine))


# Calls


class CallsTwice(SmallDetector):
    """Calls its backbone twice, the second time at half the size."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        small = self.backbone(images[:, :, ::2, ::2])["coarse"]
        return self.detect(self.backbone(images)["coarse"] + nn.functional.interpolate(small, scale_factor=2.0))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_segment_that_is_called_twice_at_other_sizes(engine: str, tmp_path: Path) -> None:
    detector = seeded(CallsTwice)
    assert_finds_the_same(detector, converted(detector, tmp_path / "twice.pt", engine))


class ChangesFeatures(SmallDetector):
    """Writes into the segment's result, and then calls the segment again."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.backbone(images)["coarse"]
        first.mul_(2)
        return self.detect(first - self.backbone(images)["coarse"])


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_a_head_that_writes_into_a_segments_outputs(engine: str, tmp_path: Path) -> None:
    detector = seeded(ChangesFeatures)
    assert_finds_the_same(detector, converted(detector, tmp_path / "writes.pt", engine))


class Doubles(Backbone):
    """Modifies its input image."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images.mul_(2))


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_a_segment_that_changes_its_input_is_refused(engine: str, tmp_path: Path) -> None:
    with pytest.raises(HybridRTError):
        converted(seeded(SmallDetector, Doubles()), tmp_path / "doubles.pt", engine)
    assert list(tmp_path.iterdir()) == []


# Arguments


class Scaled(Backbone):
    def forward(self, images: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(images if scale is None else images * scale)


class PassesNone(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images, None)["coarse"])


class PassesByKeyword(SmallDetector):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(scale=images.mean(dim=1, keepdim=True), images=images)["coarse"])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_argument_that_is_none_may_be_passed_as_none(engine: str, tmp_path: Path) -> None:
    detector = seeded(PassesNone, Scaled())
    assert_finds_the_same(detector, converted(detector, tmp_path / "none.pt", engine))


class SometimesScales(SmallDetector):
    """Scales depending on the size, which TorchScript keeps as a branch."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if images.shape[0] > 1:
            levels = self.backbone(images, images.mean(dim=1, keepdim=True))
        else:
            levels = self.backbone(images, None)
        return self.detect(levels["coarse"])


def test_a_tensor_where_the_example_had_none_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    detector = seeded(SometimesScales, Scaled())
    hybrid = converted(detector, tmp_path / "none.pt", "torchscript")
    assert_finds_the_same(detector, hybrid)
    with pytest.raises(Exception, match="segment 'backbone', scale: expected None, as in the example, got a tensor"):
        hybrid(small_image().expand(2, -1, -1, -1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_an_optional_argument_may_be_left_out_or_passed_by_keyword(engine: str, tmp_path: Path) -> None:
    for kind in (SmallDetector, PassesByKeyword):
        detector = seeded(kind, Scaled())
        assert_finds_the_same(detector, converted(detector, tmp_path / "optional.pt", engine))
