"""Removes layout changes of a dense head's outputs: OpenVINO's kernels keep the channels of a pixel together.

torchvision's RetinaNet, FCOS and SSD turn a convolution's result, [N, A * K, H, W], into [N, H * W * A, K] by a view as
[N, A, K, H, W], a permutation to [N, H, W, A, K] and a reshape. OpenVINO computes the convolution pixel by pixel,
writes it channel by channel for the view, and then pixel by pixel again. A permutation to [N, H, W, A * K] describes
the same memory without these copies.
"""

from __future__ import annotations

from typing import Any

_ORDER = [0, 3, 4, 1, 2]
_PASSED = {"Convert", "Unsqueeze", "Squeeze"}
"""Operations between a size and the list of sizes that contains it. They do not change its value."""


def keep_pixels_together(model: Any) -> int:
    """Rewrites view, permute and reshape as permute and reshape, where the two are provably equal.

    Args:
        model: An OpenVINO model. It is modified.

    Returns:
        The number of rewritten places.
    """
    from openvino import opset13 as opset

    count = 0
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Transpose" or _numbers(op.input_value(1)) != _ORDER:
            continue
        view = op.input_value(0).get_node()
        readers = [reader for reader in op.output(0).get_target_inputs()]
        if not _splits_channels(view) or not all(_is_flattening(reader) for reader in readers):
            continue
        pixels = opset.transpose(view.input_value(0), opset.constant([0, 2, 3, 1], dtype="int64"))
        pixels.set_friendly_name(op.get_friendly_name())
        for reader in readers:
            reader.replace_source_output(pixels.output(0))
        count += 1
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _splits_channels(view: Any) -> bool:
    """Returns true for a reshape of [N, C, H, W] to [N, A, K, H, W]."""
    if view.get_type_name() != "Reshape" or view.get_output_partial_shape(0).rank.get_length() != 5:
        return False
    source = view.input_value(0)
    given = source.get_partial_shape()
    if given.rank.is_dynamic or given.rank.get_length() != 4:
        return False
    sizes = _target(view)
    return (
        sizes is not None
        and len(sizes) == 5
        and _is_size_of(sizes[0], source, 0, bool(view.get_attributes()["special_zero"]))
        and _is_size_of(sizes[3], source, 2, False)
        and _is_size_of(sizes[4], source, 3, False)
    )


def _is_flattening(reader: Any) -> bool:
    """Returns true for a reshape that copies at most the first size of its input.

    Any reshape keeps the order of the numbers. Only a size that it copies by position could differ after the rewrite.
    """
    node = reader.get_node()
    if node.get_type_name() != "Reshape" or reader.get_index() != 0:
        return False
    if not node.get_attributes()["special_zero"]:
        return True
    sizes = _target(node)
    return sizes is not None and all(size != 0 for size in sizes[1:])


def _target(reshape: Any) -> list[Any] | None:
    """Returns the target sizes of a reshape: numbers, or pairs of a value and its axis; None if they are unknown."""
    target = reshape.input_value(1)
    numbers = _numbers(target)
    if numbers is not None:
        return list(numbers)
    node = target.get_node()
    if node.get_type_name() != "Concat":
        return None
    found: list[Any] = []
    for i in range(node.get_input_size()):
        part = node.input_value(i)
        length = part.get_partial_shape()
        if length.is_dynamic or len(length) != 1:
            return None
        sizes = _sizes(part)
        found += sizes if len(sizes) == length[0].get_length() else [None] * length[0].get_length()
    return found


def _sizes(value: Any) -> list[Any]:
    """Returns the numbers of a list, or pairs of a value and the axis whose size each one is; empty if unknown."""
    numbers = _numbers(value)
    if numbers is not None:
        return list(numbers)
    node = value.get_node()
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Gather" and node.input_value(0).get_node().get_type_name() == "ShapeOf":
        axes = _numbers(node.input_value(1))
        shape = node.input_value(0).get_node()
        return [(shape.input_value(0), axis) for axis in axes or []]
    return []


def _is_size_of(size: Any, source: Any, axis: int, copies_zero: bool) -> bool:
    if isinstance(size, tuple):
        own, own_axis = size
        return _named(own) == _named(source) and own_axis in (axis, axis - 4)
    known = source.get_partial_shape()[axis]
    if not isinstance(size, int):
        return False
    return (copies_zero and size == 0) or bool(known.is_static and known.get_length() == size > 0)


def _named(value: Any) -> tuple[str, int]:
    return value.get_node().get_friendly_name(), value.get_index()


def _numbers(value: Any) -> list[int] | None:
    node = value.get_node()
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return [int(number) for number in node.get_data().reshape(-1)]
