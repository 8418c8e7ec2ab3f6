"""Tests of detectors with inputs of any number, kind and layout, converted with ranges and compared at other sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import hybrid_rt
from helpers.small_detectors import SmallDetector
from hybrid_rt import CaptureError, OptionError

RANGES = {"height": (32, 96), "width": (32, 96)}
QUICK: dict[str, Any] = {"segments": ["backbone"], "engine": "torchscript", "measure": False}


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


class Bytes(SmallDetector):
    """Takes a batch of bytes [N, H, W, 3]."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images.permute(0, 3, 1, 2).to(torch.float32) / 255)["coarse"])


class Listed(SmallDetector):
    """Takes a list of bytes [H, W, 3]."""

    def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.stack([image.permute(2, 0, 1) for image in images]).to(torch.float32) / 255
        return self.detect(self.backbone(batch)["coarse"])


class Grey(SmallDetector):
    """Takes grey images [N, H, W]."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(images[:, None].repeat(1, 3, 1, 1))["coarse"])


class Worded(SmallDetector):
    """Takes text embeddings [N, T, 8] that weight the features."""

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(images)["coarse"]
        weights = torch.einsum("bchw,btc->bthw", features, texts).amax(dim=1, keepdim=True)
        return self.detect(features * weights.sigmoid())


class Masked(SmallDetector):
    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(images)["coarse"]
        kept = nn.functional.interpolate(mask[:, None].to(torch.float32), size=[features.size(2), features.size(3)])
        return self.detect(features * kept)


class Timed(SmallDetector):
    """Takes a time per image, and an optional argument."""

    def forward(
        self, images: Tensor, times: Tensor, further: Tensor | None = None, offset: float = 0.5
    ) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(images)["coarse"] * times[:, None, None, None]
        if further is not None:
            features = features + further.mean()
        return self.detect(features + offset)


class Keyed(SmallDetector):
    def forward(self, sample: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(sample["bild"])["coarse"] * sample["texts"].mean())


class Paired(SmallDetector):
    """Takes a frame and a smaller template, as a tracker does."""

    def forward(self, frame: Tensor, template: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kernel = self.backbone(template)["coarse"].mean((2, 3), keepdim=True)
        return self.detect(self.backbone(frame)["coarse"] * kernel)


def random_images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width)


CASES: dict[str, tuple[type[SmallDetector], Callable[[int, int, int, int], tuple[Any, ...]]]] = {
    "bytes": (Bytes, lambda n, h, w, _: (pixels(n, h, w, 3),)),
    "list of bytes": (Listed, lambda n, h, w, _: ([pixels(h, w, 3) for _ in range(n)],)),
    "grey": (Grey, lambda n, h, w, _: (torch.rand(n, h, w),)),
    "texts": (Worded, lambda n, h, w, t: (random_images(n, h, w), torch.randn(n, t, 8))),
    "mask": (Masked, lambda n, h, w, _: (random_images(n, h, w), torch.rand(n, h, w) > 0.3)),
    "times": (Timed, lambda n, h, w, _: (random_images(n, h, w), torch.rand(n))),
    "optional": (Timed, lambda n, h, w, t: (random_images(n, h, w), torch.rand(n), torch.rand(t))),
    "dict": (Keyed, lambda n, h, w, t: ({"bild": random_images(n, h, w), "texts": torch.rand(1, t, 16)},)),
    "pair": (Paired, lambda n, h, w, _: (random_images(n, h, w), random_images(n, h // 2, w // 2))),
}


def made(kind: type[SmallDetector]) -> SmallDetector:
    torch.manual_seed(0)
    return kind().eval()


def assert_same(found: Any, expected: Any) -> None:
    assert expected[0].numel()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)


@pytest.mark.parametrize("head", ["script", pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_inputs_of_each_kind_at_other_sizes(name: str, head: str, tmp_path: Path) -> None:
    kind, arguments = CASES[name]
    detector, path = made(kind), tmp_path / "a.pt"
    hybrid_rt.convert(detector, arguments(1, 64, 64, 5), path, head=head, shapes={**RANGES, "batch": (1, 2)}, **QUICK)
    hybrid = hybrid_rt.load(path, warm_up=[(48, 80)])  # sizes of the images only, in proportion to the first one
    for count, height, width, texts in ((1, 64, 64, 5), (1, 48, 80, 9), (2, 80, 44, 3)):
        count = 1 if name == "list of bytes" and head == "trace" else count  # a trace has a fixed number of entries
        given = arguments(count, height, width, texts)
        assert_same(hybrid(*given), detector(*given))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bytes", "texts", "mask", "dict"])
def test_inputs_of_each_kind_in_an_exported_head(name: str, tmp_path: Path) -> None:
    kind, arguments = CASES[name]
    detector, path = made(kind), tmp_path / "a.pt"
    hybrid_rt.convert(detector, arguments(1, 64, 64, 5), path, head="export", shapes=RANGES, **QUICK)
    given = arguments(1, 48, 80, 9)
    assert_same(hybrid_rt.load(path)(*given), detector(*given))


class Sized(SmallDetector):
    """Takes lists of dicts with values of several types, as detectron2's models do."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = torch.stack([entry["image"] for entry in batched_inputs])
        boxes, scores, _ = self.detect(self.backbone(images)["coarse"])
        return [{"boxes": boxes * (entry["height"] / 32), "scores": scores} for entry in batched_inputs]


@pytest.mark.parametrize("head", ["export", "trace"])
def test_dicts_of_several_types(head: str, tmp_path: Path) -> None:
    detector, path = made(Sized), tmp_path / "a.pt"
    example = [{"image": random_images(1, 64, 64)[0], "height": 64, "name": "a", "mask": None, "scale": 0.5}]
    hybrid_rt.convert(detector, (example,), path, head=head, **QUICK)
    hybrid = hybrid_rt.load(path, warm_up=[(64, 64)])
    other = [{**example[0], "image": random_images(1, 64, 64)[0]}]
    (found,), (expected,) = hybrid(other), detector(other)
    assert_same((found["boxes"], found["scores"]), (expected["boxes"], expected["scores"]))
    (recorded,) = hybrid_rt.inspect(path)["images"]
    assert recorded["place"] == [0, None, "image"]
    with pytest.raises(torch.jit.Error, match=r"\['height'\]: expected 64, as in the example, got 32"):
        hybrid([{**example[0], "height": 32}])
    with pytest.raises(torch.jit.Error, match=r"\['height'\]: expected int, as in the example, got another type"):
        hybrid([{**example[0], "height": 64.0}])


def test_arguments_by_name(tmp_path: Path) -> None:
    detector, path = made(Timed), tmp_path / "a.pt"
    example = {"images": random_images(1, 64, 64), "times": torch.ones(1), "offset": 0.25}
    further = {"times": torch.ones(1), "images": random_images(1, 64, 64), "further": torch.ones(3)}
    hybrid_rt.convert(detector, example, path, verify_inputs=[further], **QUICK)
    hybrid = hybrid_rt.load(path)
    assert_same(hybrid(**example), detector(**example))
    assert_same(hybrid(**further), detector(**further))


def test_tensors_declared_as_other_inputs_keep_their_size(tmp_path: Path) -> None:
    detector, example = made(SmallDetector), (random_images(1, 64, 64),)
    hybrid_rt.convert(detector, example, tmp_path / "a.pt", images=[], shapes={"height": (64, 64)}, **QUICK)
    with pytest.raises(OptionError, match=r"images, 'image': expected one of the arguments images"):
        hybrid_rt.convert(detector, example, tmp_path / "a.pt", images=["image"], **QUICK)


class Transformed(SmallDetector):
    """Uses torchvision's transform for images with any number of channels."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(64, 96, [0.5] * channels, [0.25] * channels)
        self.mixed = nn.Conv2d(channels, 3, 1)

    def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        batch, _ = self.transform(images)
        return self.detect(self.backbone(self.mixed(batch.tensors))["coarse"])


@pytest.mark.parametrize("segment", ["backbone", "mixed"])
def test_sizes_of_images_of_four_channels_go_through_the_transform(segment: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector, path = Transformed(4).eval(), tmp_path / "a.pt"
    has_sample = segment == "backbone"
    options = {**QUICK, "segments": [segment], "golden": has_sample}
    hybrid_rt.convert(detector, ([torch.rand(4, 64, 80)],), path, shapes=[(64, 80), (90, 64)], **options)
    hybrid = hybrid_rt.load(path, warm_up=[(64, 80)])  # without a sample, black images with four channels are used
    other = [torch.rand(4, 90, 64)]
    assert_same(hybrid(other), detector(other))
    (recorded,) = hybrid_rt.inspect(path)["images"]
    assert recorded == {"place": [0, None], "layout": "CHW", "shape": [4, 64, 80], "dtype": "float32"}


# Names


class GreekParameter(SmallDetector):
    def forward(self, x_θ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(self.backbone(x_θ)["coarse"])


class Größe(SmallDetector):
    """Has non-ASCII names: a class, an attribute, a variable, a method, and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.größe = 2.0
        self.σχήμα = nn.ModuleDict({"klasse ü": nn.ReLU(), "class": nn.ReLU()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        λ = self.backbone(images)["coarse"] * self.größe
        for module in self.σχήμα.values():
            λ = module(λ)
        boxes, scores, labels = self.über(λ)
        return {"class": boxes, "größe": scores, "naïve ключ": labels}

    def über(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.detect(features)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["script", "export", "trace"])
def test_names_beyond_ascii(head: str, tmp_path: Path) -> None:
    path, image = tmp_path / "a.pt", random_images(1, 64, 64)
    for kind in (GreekParameter, Größe):
        detector = made(kind)
        hybrid_rt.convert(detector, (image,), path, head=head, **QUICK)
        expected, found = detector(image), hybrid_rt.load(path)(image)
        if isinstance(expected, dict):
            assert list(found) == list(expected) == ["class", "größe", "naïve ключ"]
            expected, found = tuple(expected.values()), tuple(found.values())
        assert_same(found, expected)


def test_a_parameter_is_known_by_its_name_in_ascii(tmp_path: Path) -> None:
    detector, image = made(GreekParameter), random_images(1, 64, 64)
    hybrid_rt.convert(detector, (image,), tmp_path / "a.pt", **QUICK)
    assert_same(hybrid_rt.load(tmp_path / "a.pt")(x__u03b8=image), detector(image))


def test_fields_beyond_ascii_are_refused_by_name(tmp_path: Path) -> None:
    from helpers.greek_fields import GreekFields

    with pytest.raises(CaptureError, match=r"expected ASCII names of .*, got boxes_β\. Rename them"):
        hybrid_rt.convert(
            made(GreekFields), (random_images(1, 64, 64),), tmp_path / "a.pt", head="script", verify=False, **QUICK
        )
