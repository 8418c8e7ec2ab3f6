"""Tests of head="export": detectors that cannot be scripted equal eager mode at other sizes after a load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torchvision.ops import batched_nms, roi_align

import hybrid_rt
from helpers.small_detectors import Backbone, SmallDetector, small_image
from helpers.unscriptable_detectors import DetrLike, Found, NamedDetr, RtDetrLike, seeded
from hybrid_rt import CaptureError
from hybrid_rt.verification.golden import verify_golden

RANGES = {"height": (32, 96), "width": (32, 96)}
OTHER_SIZES = ((64, 64), (40, 88), (96, 33), (61, 47))

Convert = Callable[..., Any]


@pytest.fixture
def converted(tmp_path: Path) -> Convert:
    """Returns a function that converts with torch.export and loads the file."""

    def convert(detector: nn.Module, *example: Any, **options: Any) -> Any:
        detector.requires_grad_(False).eval()
        path = tmp_path / "exported.pt"
        given = {"segments": "backbone", "engine": "torchscript", "head": "export", "measure": False, "shapes": RANGES}
        hybrid_rt.convert(detector, example, path, **{**given, **options})
        assert verify_golden(path).passed
        return hybrid_rt.load(path)

    return convert


def leaves(value: Any) -> list[Any]:
    if isinstance(value, Found):
        value = vars(value)
    return _pytree.tree_leaves(value)


def assert_same(detector: nn.Module, hybrid: Any, *arguments: Any) -> None:
    with torch.no_grad():
        expected, found = leaves(detector(*arguments)), leaves(hybrid(*arguments))
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Tensor):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        else:
            assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DetrLike, RtDetrLike, NamedDetr])
def test_a_transformer_is_equal_at_other_sizes(kind: type[nn.Module], converted: Convert) -> None:
    detector = seeded(kind)
    hybrid = converted(detector, small_image(64, 48))
    assert [engine["engine"] for engine in hybrid_rt.engines(hybrid)] == ["backbone"]
    for size in OTHER_SIZES:
        assert_same(detector, hybrid, small_image(*size, seed=size[1]))


@pytest.mark.slow
def test_several_engines_one_of_them_of_two_segments(converted: Convert) -> None:
    detector = seeded(DetrLike)
    segments = ["backbone.first", "backbone.second", "boxes"]
    hybrid = converted(detector, small_image(64, 48), segments=segments, shapes=[(64, 48), (96, 40), (33, 72)])
    names = [engine["engine"] for engine in hybrid_rt.engines(hybrid)]
    assert names == ["backbone.first+backbone.second", "boxes"]
    assert_same(detector, hybrid, small_image(96, 40, seed=2))


@pytest.mark.slow
def test_batches_are_free_where_the_engine_s_are(converted: Convert) -> None:
    detector = seeded(RtDetrLike)
    hybrid = converted(detector, small_image(64, 48), shapes={**RANGES, "batch": (1, 4)})
    for batch in (1, 3):
        assert_same(detector, hybrid, torch.cat([small_image(48, 80, seed=i) for i in range(batch)]))


# Sizes


class WholeCells(SmallDetector):
    """Takes images with an even number of rows."""

    def forward(self, images: Tensor, **options: Any) -> Any:
        features = self.backbone(images)["coarse"]
        batch, channels, height, width = features.shape
        return features.view(batch, channels, height // 2, 2, width)


@pytest.mark.slow
def test_sizes_that_the_code_does_not_take_are_refused_with_the_ones_that_it_takes(converted: Convert) -> None:
    detector = WholeCells()
    hybrid = converted(detector, small_image(64, 48))
    assert_same(detector, hybrid, small_image(48, 33))
    with pytest.raises(Exception, match="hybrid_rt") as caught:
        hybrid(small_image(36, 48))
    told = str(caught.value).strip().splitlines()[-1]
    assert "hybrid_rt[head]: images: expected " in told
    assert " x 3 x " in told
    assert ", where " in told
    assert "images.shape[2]" in told
    assert told.endswith("got [1, 3, 36, 48].")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (torch.rand(1, 4, 64, 48), "got [1, 4, 64, 48]."),
        (torch.rand(3, 64, 48), "got [3, 64, 48]."),
        (torch.rand(1, 3, 64, 48, dtype=torch.float64), "images: expected dtype float32, got another one."),
    ],
)
def test_channels_rank_and_dtype_are_those_of_the_example(converted: Convert, argument: Tensor, text: str) -> None:
    class Plain(SmallDetector):
        def forward(self, images: Tensor, **options: Any) -> Any:
            return super().forward(images)

    hybrid = converted(Plain(), small_image(64, 48))
    with pytest.raises(Exception, match="hybrid_rt") as caught:
        hybrid(argument)
    assert str(caught.value).strip().endswith(text)


def test_memory_in_another_order_than_the_example_s(converted: Convert) -> None:
    detector = WholeCells()
    hybrid = converted(detector, small_image(64, 48))
    assert_same(detector, hybrid, small_image(64, 48).contiguous(memory_format=torch.channels_last))
    assert_same(detector, hybrid, torch.rand(1, 3, 48, 64).transpose(2, 3))


# Arguments


class Arguments(SmallDetector):
    """Takes an image [N, H, W, 3] in bytes, points that are not an image, and options."""

    def forward(
        self, images: Tensor, points: dict[str, Tensor], scale: int = 1, mask: Tensor | None = None, *more: Any
    ) -> Any:
        boxes, scores, _ = super().forward(images.permute(0, 3, 1, 2).float() / 255)
        near = (boxes[:, None, :2] * scale - points["places"]).norm(dim=2).amin(1)
        return near, scores if mask is None else scores * mask.float().mean(), *(extra + 1 for extra in more)


@pytest.mark.slow
def test_arguments_of_any_kind(converted: Convert) -> None:
    detector = Arguments()

    def arguments(points: int, *more: Any) -> tuple[Any, ...]:
        images = (small_image(64, 64).permute(0, 2, 3, 1) * 255).to(torch.uint8)
        return images, {"places": torch.rand(points, 2)}, *more

    hybrid = converted(detector, *arguments(5, 3, None, torch.rand(2, 2)), shapes=None)
    for points in (5, 1, 9):
        assert_same(detector, hybrid, *arguments(points, 3, None, torch.rand(points, 2)))
    for given, text in (
        (arguments(5, 4, None, torch.rand(2, 2)), "hybrid_rt[head]: scale: expected 3, as in the example, got 4."),
        (arguments(5, 3, torch.ones(2), torch.rand(2, 2)), "mask: expected None, as in the example, got a value."),
    ):
        with pytest.raises(Exception, match="hybrid_rt") as caught:
            hybrid(*given)
        assert text in str(caught.value)


class Listed(SmallDetector):
    def forward(self, images: list[Tensor], **options: Any) -> Any:
        found = [self.detect(self.backbone(image[None])["coarse"]) for image in images]
        return [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in found]


@pytest.mark.slow
def test_a_list_of_images_of_their_own_sizes(converted: Convert) -> None:
    detector = Listed()
    hybrid = converted(detector, [small_image()[0], small_image(48, 40)[0]])
    for sizes in (((64, 64), (33, 47)), ((40, 80), (40, 80))):
        assert_same(detector, hybrid, [small_image(*size)[0] for size in sizes])
    with pytest.raises(Exception, match=r"images: expected 2 entries, got 1\."):
        hybrid([small_image()[0]])


# Code


class Selects(SmallDetector):
    """Returns a number of boxes that depends on values."""

    def forward(self, images: Tensor, **options: Any) -> Any:
        features = self.backbone(images)["coarse"]
        boxes, scores, labels = self.detect(features)
        kept = batched_nms(boxes, scores, labels, 0.2)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        best = scores.topk(torch.sym_min(7, scores.shape[0])).indices
        pooled = roi_align(features, [boxes[best]], (2, 2), 0.25)
        return boxes[:5], scores[scores > 0.5], torch.nonzero(labels == 1), pooled, boxes.shape[0]


@pytest.mark.slow
def test_sizes_that_values_decide_on(converted: Convert) -> None:
    detector = Selects()
    hybrid = converted(detector, small_image(64, 64), shapes={"height": (2, 96), "width": (2, 96)})
    for size in ((64, 64), (33, 80), (8, 8), (4, 4)):  # the last size has one cell, fewer than 5 and 7
        assert_same(detector, hybrid, small_image(*size, seed=size[0]))


class InPlace(SmallDetector):
    """Writes into its own tensors, under no_grad and a disabled autocast."""

    def forward(self, images: Tensor, **options: Any) -> Any:
        features = self.backbone(images)["coarse"].clone()
        features[:, 2:4] *= 2
        features[..., 0].zero_()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            features.clamp_(max=3)
            features[features > 1] = 0.5
        features += torch.tensor([0.25, 1e-3]).sum() * torch.tensor(float("inf")).isinf()
        return super().detect(features)


@pytest.mark.slow
def test_operators_that_write(converted: Convert) -> None:
    detector = InPlace()
    hybrid = converted(detector, small_image(64, 64))
    assert_same(detector, hybrid, small_image(48, 80))
    again = small_image(48, 80)
    assert_same(detector, hybrid, again)
    assert torch.equal(again, small_image(48, 80))


class Counts(SmallDetector):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, images: Tensor, **options: Any) -> Any:
        self.seen[1:].copy_(images.mean().expand(2))
        return super().forward(images)


@pytest.mark.slow
def test_a_head_that_writes_into_a_buffer_is_refused_with_its_name(converted: Convert) -> None:
    with pytest.raises(
        CaptureError, match=r"a head without state between calls, got a write into its buffer 'seen' at test_"
    ):
        converted(Counts(), small_image())


@torch.library.custom_op("hybrid_rt_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_of_the_users_own_is_refused_with_its_name_and_line(converted: Convert) -> None:
    class Custom(SmallDetector):
        def forward(self, images: Tensor, **options: Any) -> Any:
            return twice(self.backbone(images)["coarse"])

    with pytest.raises(CaptureError, match=r"got hybrid_rt_tests::twice at test_head_export\.py:\d+\."):
        converted(Custom(), small_image())


class Asks(Backbone):
    """Is a backbone from which the head reads a stride."""

    stride = 4

    @property
    def strides(self) -> dict[str, int]:
        return {"coarse": self.stride}

    def scaled(self, value: Tensor) -> Tensor:
        return value * self.stride


def test_a_head_that_asks_its_segment(converted: Convert) -> None:
    class Asking(SmallDetector):
        def forward(self, images: Tensor, **options: Any) -> Any:
            features = self.backbone(images=images)["coarse"]
            return self.backbone.scaled(features) + self.backbone.strides["coarse"], isinstance(self.backbone, Asks)

    detector = Asking(Asks())
    assert_same(detector, converted(detector, small_image()), small_image(48, 80))


# Results


@pytest.mark.slow
def test_classes_of_results(converted: Convert, tmp_path: Path) -> None:
    image = small_image(64, 48)
    found = converted(seeded(DetrLike), image)(image)
    assert list(found) == ["boxes", "logits", "masks"]
    assert found["masks"] is None
    found = converted(seeded(RtDetrLike), image)(image)
    assert (found["size"], found["kind"]) == (48, "rt")
    pair, auxiliary, nothing, share = converted(seeded(NamedDetr), image)(image)
    assert pair.cells == 64 * 48 // 16
    assert (auxiliary, nothing, share) == ([], None, 0.5)


class Registered:
    """Is a result type that is registered with pytree."""

    def __init__(self, boxes: Tensor, count: int) -> None:
        self.boxes = boxes
        self.count = count


def _flat(value: Registered) -> tuple[list[Any], None]:
    return [value.boxes, value.count], None


_pytree.register_pytree_node(
    Registered,
    _flat,
    lambda children, _: Registered(*children),
    flatten_with_keys_fn=lambda value: (
        [(_pytree.GetAttrKey("boxes"), value.boxes), (_pytree.GetAttrKey("count"), value.count)],
        None,
    ),
    serialized_type_name="hybrid_rt_tests.Registered",
)


@pytest.mark.slow
def test_a_class_that_is_registered_with_pytree_is_a_dict(converted: Convert) -> None:
    class Returns(SmallDetector):
        def forward(self, images: Tensor, **options: Any) -> Any:
            boxes, _, _ = super().forward(images)
            return Registered(boxes, boxes.shape[0])

    detector = Returns()
    hybrid = converted(detector, small_image())
    image = small_image(48, 80)
    found = hybrid(image)
    expected = detector(image)
    assert found["count"] == expected.count
    torch.testing.assert_close(found["boxes"], expected.boxes, rtol=1e-5, atol=1e-5)
