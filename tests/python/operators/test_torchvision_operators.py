"""Tests of roi_pool, ps_roi_pool, ps_roi_align and deform_conv2d against torchvision's, on the CPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import hybrid_rt  # noqa: F401  registers the operators
from hybrid_rt.torchscript.head_operators import HEAD_OPERATORS

OURS, THEIRS = torch.ops.hybrid_rt, torch.ops.torchvision
DTYPES = [torch.float32, torch.float64, torch.float16]
NAN, INF = float("nan"), float("inf")
POOLINGS = ["roi_pool", "ps_roi_pool", "ps_roi_align"]


def schema_arguments(operator: Any) -> list[tuple[str, str]]:
    return [(a.name, str(a.type).replace("SymInt", "int")) for a in operator.default._schema.arguments]


@pytest.mark.parametrize("name", [name.partition("::")[2] for name in HEAD_OPERATORS])
def test_schema_is_torchvisions_with_plain_ints(name: str) -> None:
    ours, theirs = getattr(OURS, name), getattr(THEIRS, name)
    assert schema_arguments(ours) == schema_arguments(theirs)
    assert [str(each.type) for each in ours.default._schema.returns] == [
        str(each.type) for each in theirs.default._schema.returns
    ]
    assert len(HEAD_OPERATORS[f"torchvision::{name}"][0].split()) == len(ours.default._schema.arguments)


def pooled(namespace: Any, name: str, *arguments: Any) -> tuple[Tensor, Tensor]:
    *others, sampling_ratio = arguments
    return getattr(namespace, name)(*others, *([sampling_ratio] if name == "ps_roi_align" else []))


def assert_same(name: str, *arguments: Any) -> Tensor:
    found, expected = pooled(OURS, name, *arguments), pooled(THEIRS, name, *arguments)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return found[0]


def boxes(count: int, generator: torch.Generator, dtype: torch.dtype, images: int = 2) -> Tensor:
    """Returns boxes inside and outside of an image of 24 pixels: of any size, some empty, some inverted."""
    index = torch.randint(images, (count, 1), generator=generator).double()
    corners = torch.rand(count, 2, generator=generator) * 34 - 5
    sides = (
        torch.rand(count, 2, generator=generator)
        * torch.tensor([40.0, 3.0, 0.0, -6.0])[torch.randint(4, (count, 1), generator=generator)]
    )
    return torch.cat([index, corners, corners + sides], dim=1).to(dtype)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(8))
def test_poolings_are_torchvisions_bit_for_bit(name: str, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = [(1, 1), (2, 3), (7, 7), (3, 2)][seed % 4]
    features = torch.randn(2, 2 * rows * columns, 24, 19 + seed, generator=generator).to(dtype)
    if seed % 2:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = boxes(40, generator, dtype)
    for scale, ratio in ((1.0, 2), (0.25, 0), (1 / 3, -1), (1.7, 1)):
        result = assert_same(name, features, rois, scale, rows, columns, ratio)
        assert result.isfinite().any()


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_of_values_that_are_not_finite(name: str) -> None:
    features = torch.randn(1, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    features[0, 1, 3, 3], features[0, 2, 4, 4], features[0, 3] = NAN, INF, -INF
    rois = torch.tensor([[0.0, 1.0, 1.0, 7.0, 7.0], [0.0, 0.0, 0.0, 4.0, 4.0]])
    assert_same(name, features, rois, 1.0, 2, 2, 2)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize(
    "arguments", [(torch.ones(2, 4, 5, 5), torch.ones(0, 5)), (torch.ones(2, 0, 5, 5), torch.ones(2, 5))]
)
def test_poolings_of_nothing(name: str, arguments: tuple[Tensor, Tensor]) -> None:
    assert assert_same(name, *arguments, 1.0, 2, 2, 2).numel() == 0


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
def test_boxes_that_are_not_finite_read_nothing_outside(name: str, value: float) -> None:
    features = torch.ones(1, 4, 9, 9)
    for column in (1, 2, 3, 4):
        rois = torch.tensor([[0.0, 1.0, 1.0, 7.0, 7.0], [0.0, 1.0, 1.0, 7.0, 7.0]])
        rois[0, column] = value
        values, _ = pooled(OURS, name, features, rois, 1.0, 2, 2, 2)
        assert torch.equal(values[1], torch.ones_like(values[1]))
        assert ((values[0] == 0) | (values[0] == 1) | values[0].isnan()).all()


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize(
    ("features", "rois", "text"),
    [
        (torch.ones(4, 5, 5), torch.ones(1, 5), "expected input of shape [N, C, H, W]"),
        (torch.ones(1, 4, 5, 5), torch.ones(1, 4), "expected rois of shape [K, 5]"),
        (torch.ones(1, 4, 5, 5), torch.ones(1, 5), "expected rois[:, 0] to index a batch of 1, got 1 in row 0"),
        (torch.ones(1, 4, 5, 5).bfloat16(), torch.ones(1, 5).bfloat16(), "expected input of dtype Float, Double or"),
        (torch.ones(1, 4, 5, 5), torch.ones(1, 5).double(), "expected rois of the dtype of input, Float"),
        (torch.ones(1, 4, 0, 5), torch.zeros(1, 5), "expected input with pixels"),
    ],
)
def test_poolings_say_what_they_refuse(name: str, features: Tensor, rois: Tensor, text: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"hybrid_rt[operators]: {name}: {text}")):
        pooled(OURS, name, features, rois, 1.0, 2, 2, 2)


@pytest.mark.parametrize("name", ["ps_roi_pool", "ps_roi_align"])
def test_channels_that_are_not_a_multiple_of_the_bins_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="expected channels that are a multiple of 2 x 3 bins"):
        pooled(OURS, name, torch.ones(1, 4, 5, 5), torch.zeros(1, 5), 1.0, 2, 3, 2)


def deformable(seed: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Returns arguments of a deformable convolution. Sizes, strides, groups and the mask depend on the seed."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def one_of(*values: int) -> int:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    groups, offset_groups = one_of(1, 2, 4), one_of(1, 2, 4)
    kernel = one_of(1, 2, 3), one_of(1, 3)
    stride, padding, dilation = (one_of(1, 2), one_of(1, 3)), (one_of(0, 1, 3), one_of(0, 2)), (one_of(1, 2), 1)
    images, height, width = one_of(1, 2, 5), 9 + seed % 5, 11
    size = [
        (extent + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, extent in enumerate((height, width))
    ]
    taps = offset_groups * kernel[0] * kernel[1]
    use_mask = bool(one_of(0, 1))
    mask = noise(images, taps, *size) if use_mask else noise(images, 1)
    return (
        noise(images, 8, height, width), noise(12, 8 // groups, *kernel), noise(images, 2 * taps, *size) * one_of(1, 4),
        mask, noise(12), *stride, *padding, *dilation, groups, offset_groups, use_mask,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(20))
def test_deformable_convolutions_are_torchvisions(seed: int, dtype: torch.dtype) -> None:
    arguments = deformable(seed, dtype)
    found, expected = OURS.deform_conv2d(*arguments), THEIRS.deform_conv2d(*arguments)
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    limit = {torch.float16: 2e-2, torch.float32: 2e-6, torch.float64: 1e-14}[dtype]
    assert float((found - expected).abs().max()) <= limit * float(expected.abs().max())


def test_offsets_on_whole_pixels_and_at_the_border_are_exact() -> None:
    """With a weight of one and no bias the result is a pixel, or 0 outside of the image."""
    image = torch.arange(1.0, 26.0).reshape(1, 1, 5, 5)
    for dy, dx in [(0, 0), (1, 2), (-1, 0), (-5, 0), (4, 4), (0, -0.5), (4.5, 0), (-0.75, 4.25), (NAN, 0), (INF, -INF)]:
        offset = torch.tensor([dy, dx], dtype=torch.float32).reshape(1, 2, 1, 1).expand(1, 2, 5, 5)
        arguments = (
            image,
            torch.ones(1, 1, 1, 1),
            offset,
            torch.ones(1, 1),
            torch.zeros(1),
            1,
            1,
            0,
            0,
            1,
            1,
            1,
            1,
            False,
        )
        found = OURS.deform_conv2d(*arguments)
        if abs(dy) + abs(dx) < INF:
            assert torch.equal(found, THEIRS.deform_conv2d(*arguments)), (dy, dx)
        else:  # undefined in torchvision
            assert torch.equal(found, torch.zeros_like(found))


def test_a_deformable_convolution_of_no_image_is_empty() -> None:
    arguments = list(deformable(0, torch.float32))
    for i in (0, 2, 3):
        arguments[i] = arguments[i][:0]
    assert OURS.deform_conv2d(*arguments).shape[:2] == (0, 12)


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, torch.ones(8, 9, 11), "expected input, weight and offset of four dimensions"),
        (0, torch.ones(1, 8, 9, 11).int(), "expected input of dtype Float, Double or Half"),
        (1, torch.ones(12, 8, 3, 3).double(), "expected tensors of the dtype and device of input"),
        (1, torch.ones(12, 7, 3, 3), "expected channels that fit 1 groups and 1 groups of offsets"),
        (2, torch.ones(1, 18, 8, 11), "expected offset of shape [1, 18, 9, 11]"),
        (3, torch.ones(1, 8, 9, 11), "expected mask of shape [1, 9, 9, 11]"),
        (4, torch.ones(3), "expected bias of shape [12]"),
        (5, 0, "expected strides, dilations and groups of 1 or more, got 0"),
        (7, -1, "expected a padding of 0 or more"),
        (9, 9, "expected an output with pixels"),
        (12, 3, "expected channels that fit 1 groups and 3 groups of offsets"),
    ],
)
def test_deformable_convolutions_say_what_they_refuse(place: int, value: Any, text: str) -> None:
    arguments: list[Any] = [
        torch.ones(1, 8, 9, 11), torch.ones(12, 8, 3, 3), torch.ones(1, 18, 9, 11), torch.ones(1, 9, 9, 11),
        torch.ones(12), 1, 1, 1, 1, 1, 1, 1, 1, True,
    ]  # fmt: skip
    OURS.deform_conv2d(*arguments)
    arguments[place] = value
    with pytest.raises(RuntimeError, match=re.escape(f"hybrid_rt[operators]: deform_conv2d: {text}")):
        OURS.deform_conv2d(*arguments)


def test_export_sees_through_the_operators() -> None:
    class Calls(torch.nn.Module):
        def forward(self, features: Tensor, rois: Tensor) -> tuple[Tensor, ...]:
            offset = features.new_zeros(features.shape[0], 2, features.shape[2], features.shape[3])
            first = OURS.deform_conv2d(
                features, features.new_ones(8, 8, 1, 1), offset, offset, features.new_zeros(8), 1, 1, 0, 0, 1, 1, 1, 1,
                False,
            )  # fmt: skip
            return (
                OURS.roi_pool(first, rois, 1.0, 2, 2)[0], OURS.ps_roi_pool(first, rois, 1.0, 2, 2)[1],
                OURS.ps_roi_align(first, rois, 1.0, 2, 2, 0)[0],
            )  # fmt: skip

    sizes = {"features": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}, "rois": {0: torch.export.Dim.AUTO}}
    rois = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]).repeat(3, 1)
    exported = torch.export.export(Calls(), (torch.rand(1, 8, 9, 11), rois), dynamic_shapes=sizes).module()
    other = (torch.rand(1, 8, 12, 7), rois[:2])
    for found, expected in zip(exported(*other), Calls()(*other), strict=True):
        assert torch.equal(found, expected)
