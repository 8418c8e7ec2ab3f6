"""Tests of the sizes at which a stored segment is checked before it is compiled again."""

from __future__ import annotations

import pytest

from hybrid_rt.capture.derived_shapes import second_shapes, small_shapes
from hybrid_rt.common.specs import UNBOUNDED

FREE = [(1, UNBOUNDED), (3, 3), (32, 1344), (32, 1344)]
FREE_FEATURES = [(1, UNBOUNDED), (256, 256), (1, UNBOUNDED), (1, UNBOUNDED)]


@pytest.mark.parametrize(
    ("shape", "ranges", "small"),
    [
        ((1, 3, 800, 1088), FREE, (1, 3, 192, 256)),
        ((2, 3, 320, 320), FREE, (2, 3, 160, 160)),
        ((1, 3, 256, 352), FREE, (1, 3, 256, 352)),  # not 128, where a pyramid's last level would be one cell
        ((1, 3, 800, 1088), [*FREE[:2], (300, 1344), (300, 1344)], (1, 3, 384, 544)),
        ((1, 3, 800, 800), [(1, 4), (3, 3), (800, 800), (800, 800)], (1, 3, 800, 800)),
        ((1000, 1024), [(1, UNBOUNDED), (1024, 1024)], (1000, 1024)),
    ],
)
def test_images_are_halved_within_their_ranges(
    shape: tuple[int, ...], ranges: list[tuple[int, int]], small: tuple[int, ...]
) -> None:
    assert small_shapes([shape], [ranges]) == [small]
    assert second_shapes([small], [ranges]) is not None


def test_features_beside_images_keep_their_proportion() -> None:
    shapes = [(1, 3, 768, 1024), (1, 256, 192, 256)]
    assert small_shapes(shapes, [FREE, FREE_FEATURES]) == [(1, 3, 192, 256), (1, 256, 48, 64)]


def test_sizes_stay_where_halves_have_no_proportion_or_no_second_size() -> None:
    shapes = [(1, 3, 768, 1024), (1, 256, 191, 255)]
    assert small_shapes(shapes, [FREE, FREE_FEATURES]) == shapes
    # 192 pixels give 48 rows of features; half of them, 96, would give too few.
    shapes, least = [(1, 3, 768, 1024), (1, 256, 192, 256)], [*FREE_FEATURES[:2], (40, 400), (40, 400)]
    assert small_shapes(shapes, [FREE, least]) == [(1, 3, 384, 512), (1, 256, 96, 128)]
