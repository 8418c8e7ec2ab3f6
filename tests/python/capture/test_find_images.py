"""Tests of image detection: inputs that reach a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from helpers.small_detectors import Alone
from hybrid_rt import OptionError
from hybrid_rt.capture.find_images import check_images, find_images
from hybrid_rt.common.image_inputs import EACH, Place
from hybrid_rt.torchscript.jit import script

IMAGE = torch.rand(1, 3, 32, 48)


class Prepared(nn.Module):
    """Computes something from its arguments, then one convolution."""

    def __init__(self, prepare: Callable[..., Tensor], channels: int = 3) -> None:
        super().__init__()
        self.prepare = prepare
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, *arguments: Any) -> Tensor:
        return self.convolution(self.prepare(*arguments))


class Texts(nn.Module):
    """Weights the features of a second convolution by text embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 1)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        features = self.first(images)
        weights = torch.einsum("bchw,btc->bthw", features, nn.functional.normalize(texts, dim=2))
        return self.second(features * weights.max(dim=1, keepdim=True).values.sigmoid())


def heat(image: Tensor, points: Tensor) -> Tensor:
    rows, columns = torch.arange(32.0)[:, None], torch.arange(48.0)[None]
    distances = (points[:, :, 0, None, None] - rows) ** 2 + (points[:, :, 1, None, None] - columns) ** 2
    return torch.cat([image, torch.exp(-distances)], dim=1)


def focus(image: Tensor) -> Tensor:
    quarters = [image[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(quarters, dim=1)


def padded(images: list[Tensor]) -> Tensor:
    batch = images[0].new_zeros(len(images), 3, 64, 64)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]].copy_((image - 0.5) / 0.2)
    return batch


def layouts(detector: nn.Module, *example: Any) -> dict[Place, str]:
    return dict(find_images(detector.eval(), example).layouts)


@pytest.mark.parametrize(
    ("detector", "example", "layout"),
    [
        (Prepared(lambda x: x), IMAGE, "NCHW"),
        (Prepared(lambda x: x.flip(1)[:, [2, 0, 1]] / 255), IMAGE, "NCHW"),
        (Prepared(lambda x: x.permute(0, 3, 1, 2).float()), torch.zeros(1, 32, 48, 3, dtype=torch.uint8), "NHWC"),
        (Prepared(lambda x: x.permute(0, 3, 1, 2).contiguous() / 255, 5), torch.rand(2, 32, 48, 5), "NHWC"),
        (Prepared(lambda x: x.permute(2, 0, 1)[None]), torch.rand(32, 48, 3), "HWC"),
        (Prepared(lambda x: x[None]), torch.rand(3, 32, 48), "CHW"),
        (Prepared(lambda x: x[:, None], 1), torch.rand(4, 32, 48), "NHW"),
        (Prepared(lambda x: x[:, None].repeat(1, 3, 1, 1)), torch.rand(1, 32, 48), "NHW"),
        (Prepared(lambda x: x[None], 1), torch.rand(1, 32, 48), "CHW"),
        (Prepared(lambda x: x[None, None].expand(-1, 3, -1, -1)), torch.rand(32, 48), "HW"),
        (Prepared(lambda x: x.repeat(1, 3, 1, 1)), torch.rand(2, 1, 32, 48), "NCHW"),
        (Prepared(focus, 12), IMAGE, "NCHW"),
        (Prepared(lambda x: nn.functional.interpolate(x, (64, 64)), 4), torch.rand(1, 4, 32, 48), "NCHW"),
        (Prepared(lambda x: nn.functional.pad(x, [0, 8, 0, 8]), 7), torch.rand(1, 7, 32, 48), "NCHW"),
        (nn.Conv3d(3, 4, 3), torch.rand(1, 3, 5, 32, 48), "NCTHW"),
    ],
)
def test_an_image_is_found_in_its_layout(detector: nn.Module, example: Tensor, layout: str) -> None:
    assert layouts(detector, example) == {(0,): layout}


def test_an_image_is_found_that_a_part_in_torchscript_takes() -> None:
    assert layouts(nn.Sequential(script(nn.Conv2d(5, 4, 3))), torch.rand(1, 5, 32, 48)) == {(0,): "NCHW"}


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_a_list_of_images_of_any_channels_is_found_behind_the_transform(channels: int) -> None:
    transform = GeneralizedRCNNTransform(32, 64, [0.5] * channels, [0.2] * channels).eval()
    detector = Prepared(lambda images: transform(images)[0].tensors, channels)
    assert layouts(detector, [torch.rand(channels, 32, 40), torch.rand(channels, 40, 32)]) == {(0, EACH): "CHW"}


@pytest.mark.parametrize(
    ("prepare", "channels", "example", "found"),
    [
        (padded, 3, ([torch.rand(3, 20, 30)],), {(0, EACH): "CHW"}),
        (lambda pair: pair[0], 3, ((IMAGE, torch.rand(1, 4, 4)),), {(0, 0): "NCHW"}),
        (lambda d: d["image"], 3, ({"image": IMAGE, "texts": torch.rand(1, 4, 4)},), {(0, "image"): "NCHW"}),
        (lambda d: torch.stack([e["image"] for e in d]), 3, ([{"image": IMAGE[0], "height": 3}],),
         {(0, EACH, "image"): "CHW"}),
        (lambda x, depth: torch.cat([x, depth], 1), 4, (IMAGE, torch.rand(1, 1, 32, 48)),
         {(0,): "NCHW", (1,): "NCHW"}),
        (lambda texts, x: x * texts.mean(), 3, (torch.rand(1, 5, 16), IMAGE), {(1,): "NCHW"}),
        (lambda x, time: x + time[:, None, None, None].expand_as(x), 3, (IMAGE, torch.rand(1)), {(0,): "NCHW"}),
        (lambda x, c: torch.cat([x, c[:, :, None, None].expand(-1, -1, 32, 48)], 1), 19, (IMAGE, torch.rand(1, 16)),
         {(0,): "NCHW"}),
        (heat, 8, (IMAGE, torch.rand(1, 5, 2)), {(0,): "NCHW"}),
        (lambda x, table: x + table.mean((1, 2, 3), keepdim=True), 3, (IMAGE, torch.rand(1, 3, 9, 9)), {(0,): "NCHW"}),
    ],
)  # fmt: skip
def test_images_are_distinguished_from_other_tensors(
    prepare: Callable[..., Tensor], channels: int, example: tuple[Any, ...], found: dict[Place, str]
) -> None:
    assert layouts(Prepared(prepare, channels), *example) == found


@pytest.mark.parametrize("texts", [torch.rand(1, 5, 16), torch.rand(1, 32, 16), torch.rand(1, 48, 16)])
def test_texts_that_weigh_features_are_no_images(texts: Tensor) -> None:
    assert layouts(Texts(), IMAGE, texts) == {(0,): "NCHW"}


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (torch.rand(1, 3, 32, 48), {(0,): "NCHW"}),
        (torch.zeros(2, 32, 48, 4, dtype=torch.uint8), {(0,): "NHWC"}),
        (torch.rand(1, 9, 16), {}),
        (torch.rand(1, 8, 16, 16), {}),
        (torch.rand(1, 4, 4, 4), {}),
        (torch.zeros(1, 3, 32, 48, dtype=torch.int64), {}),
        ([torch.rand(3, 32, 48)], {(0, EACH): "CHW"}),
        ([torch.rand(9, 16)], {}),
    ],
)
def test_without_convolutions_only_usual_images_are_images(example: Any, found: dict[Place, str]) -> None:
    assert layouts(nn.Identity(), example) == found


def test_the_example_and_the_detector_stay_as_they_were() -> None:
    image = torch.rand(1, 3, 32, 48)
    before = image.clone()
    find_images(Prepared(lambda x: x.mul_(0.0)).eval(), (image, None)[:1])
    find_images(Alone(nn.Conv2d(5, 4, 1)).eval(), (torch.rand(1, 5, 8, 8),))
    assert torch.equal(image, before)


def test_a_mask_goes_with_the_images_size() -> None:
    mask = torch.ones(1, 32, 48, dtype=torch.bool)
    images = find_images(Prepared(lambda x, m: x * m[:, None]).eval(), (IMAGE, mask))
    assert dict(images.masks) == {(1,): "NHW"}
    assert images.counted == {(1,)}


def test_equal_sizes_by_chance_are_not_a_mask() -> None:
    square = torch.rand(1, 3, 16, 16)
    images = find_images(Texts().eval(), (square, torch.rand(1, 16, 16)))
    assert (dict(images.layouts), dict(images.masks)) == ({(0,): "NCHW"}, {})


def test_counts_per_image_are_tried_out() -> None:
    paired = Prepared(lambda x, t: x * t[:, :1, None, None])
    assert find_images(paired.eval(), (torch.rand(2, 3, 8, 8), torch.rand(2, 4))).counted == {(1,)}
    shared = Prepared(lambda x, t: x * (t @ torch.ones(2, 1)).mean())
    assert not find_images(shared.eval(), (torch.rand(3, 3, 8, 8), torch.rand(3, 2).t()[:, :2])).counted
    fixed = Prepared(lambda x, t: x * (torch.ones(1, 2) @ t).mean())
    assert not find_images(fixed.eval(), (torch.rand(2, 3, 8, 8), torch.rand(2, 4))).counted


def test_lists_are_counted_together() -> None:
    scaled = Prepared(lambda images, scales: torch.stack([i * s for i, s in zip(images, scales, strict=True)]))
    images = find_images(scaled.eval(), ([torch.rand(3, 8, 8)], [torch.ones(1)]))
    assert images.counted == {(1,)}
    assert [len(value) for value in images.one_more(([torch.rand(3, 8, 8)], [torch.ones(1)]))] == [2, 2]


class Named(nn.Module):
    def forward(self, images: Tensor, more: dict[str, Any]) -> Tensor:
        return images.permute(0, 3, 1, 2) * more["scale"].mean()


NAMED = (torch.rand(1, 8, 9, 5), {"scale": torch.rand(1, 3, 8, 8), "depths": [torch.rand(8, 9)]})


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([], {}),
        (["images"], {(0,): "NCHW"}),
        ({"images": "NHWC"}, {(0,): "NHWC"}),
        ({0: "NHWC", (1, "depths"): "HW"}, {(0,): "NHWC", (1, "depths", EACH): "HW"}),
        ([("more", "scale")], {(1, "scale"): "NCHW"}),
        ([("more", "depths", 0)], {(1, "depths", 0): "HW"}),
    ],
)
def test_images_can_be_named(told: Any, found: dict[Place, str]) -> None:
    assert dict(find_images(Named(), NAMED, told).layouts) == found


def test_an_unspecified_layout_is_detected() -> None:
    assert dict(find_images(Prepared(lambda x: x.permute(0, 3, 1, 2), 5), (torch.rand(1, 8, 9, 5),), [0]).layouts) == {
        (0,): "NHWC"
    }


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("images", r"images: expected a list of inputs, or a dict of inputs and their layouts, got 'images'"),
        ([2], r"images, 2: expected a position from 0 to 1, or a name, got 2"),
        ([True], r"images, True: expected a position"),
        (["image"], r"images, 'image': expected one of the arguments images, more, got 'image'"),
        ([("more", "depth")], r"expected one of 'scale', 'depths', got 'depth'"),
        ([("images", 0)], r"expected one of nothing, it is no container, got 0"),
        ({"images": "NHW"}, r"expected a layout of 4 letters out of N, C, T, D, H, W, H and W among them"),
        ({"images": "NHCC"}, r"expected a layout of 4 letters"),
        ({"images": None}, r"expected a layout of 4 letters"),
        ({"images": "NXHW"}, r"expected a layout of 4 letters"),
    ],
)
def test_ranges_that_exclude_the_example_are_refused(told: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text) as refusal:
        check_images(Named(), NAMED, told)
    assert "images=['pixels']" in str(refusal.value)


def test_an_image_that_is_not_a_tensor_is_refused() -> None:
    with pytest.raises(OptionError, match=r"images, 0: expected a tensor there; the tensors are none, got none"):
        check_images(Named(), (3, {}), [0])
