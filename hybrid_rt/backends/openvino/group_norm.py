"""Computes group normalisation in the layout of the convolutions around it.

OpenVINO's kernel for group normalisation needs the pixels of a channel together, but its convolutions keep the channels
of a pixel together. So each map is reordered before and after it. Means per channel, which any layout allows, give the
means per group, and the map is then scaled channel by channel.
"""

from __future__ import annotations

from typing import Any

_PIXELS = [2, 3]
"""Axes of the height and the width."""


def normalise_by_channels(model: Any) -> int:
    """Rewrites group normalisations of feature maps [N, C, H, W] with a known number of channels.

    Args:
        model: An OpenVINO model. It is modified.

    Returns:
        The number of rewritten places.
    """
    count = 0
    for op in model.get_ordered_ops():
        if op.get_type_name() == "GroupNormalization" and _is_feature_map(op.input_value(0)):
            normalised = _by_channels(op)
            normalised.set_friendly_name(op.get_friendly_name())
            op.output(0).replace(normalised.output(0))
            count += 1
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _is_feature_map(value: Any) -> bool:
    shape = value.get_partial_shape()
    is_map = not shape.rank.is_dynamic and shape.rank.get_length() == 4 and shape[1].is_static
    return is_map and value.get_element_type().get_type_name() == "f32"


def _by_channels(op: Any) -> Any:
    """Returns the operators that compute what a group normalisation does.

    The variance is that of the differences from the mean, as in the vendor's kernel. The difference of two means of
    squares would lose digits where the mean is large.
    """
    from openvino import opset13 as opset

    maps, scale, shift = (op.input_value(i) for i in range(3))
    channels, groups = maps.get_partial_shape()[1].get_length(), op.get_attributes()["num_groups"]

    def integers(values: list[int]) -> Any:
        return opset.constant(values, dtype="int64")

    def mean_of_groups(values: Any) -> Any:
        """Returns the mean of [N, C, 1, 1] over each group, repeated for its channels."""
        grouped = opset.reshape(values, integers([0, groups, channels // groups, 1]), True)
        group_of_channel = [channel * groups // channels for channel in range(channels)]
        return opset.gather(opset.reduce_mean(grouped, integers([2]), True), integers(group_of_channel), integers([1]))

    def per_channel(values: Any) -> Any:
        return opset.reshape(values, integers([1, channels, 1, 1]), False)

    centred = opset.subtract(maps, mean_of_groups(opset.reduce_mean(maps, integers(_PIXELS), True)))
    sizes = opset.gather(opset.shape_of(maps), integers(_PIXELS), integers([0]))
    number = opset.convert(opset.reduce_prod(sizes, integers([0]), True), "f32")
    length = opset.reduce_l2(centred, integers(_PIXELS), True)
    variance = mean_of_groups(opset.divide(opset.multiply(length, length), number))
    epsilon = opset.constant(op.get_attributes()["epsilon"], dtype="float32")
    factor = opset.divide(per_channel(scale), opset.sqrt(opset.add(variance, epsilon)))
    return opset.add(opset.multiply(centred, factor), per_channel(shift))
