"""Replaces torchvision's transform, so that TorchScript computes the same pixels as eager mode."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class ExactTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Computes the scale of an image in double precision, as eager mode does.

    torchvision's scripted `_resize_image_and_masks` computes it in float32: 256 / 241 * 241 then floors to 255, the
    image is resized to one pixel less, and other boxes are found than in eager mode.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resizes an image [3, H, W] so that its short side is min_size and its long side at most max_size."""
        height, width = image.shape[-2:]
        size = float(self.min_size[-1])
        scale = min(size / float(min(height, width)), float(self.max_size) / float(max(height, width)))
        resized = nn.functional.interpolate(
            image[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True, align_corners=False
        )[0]
        return resized, target


def exact_transform(detector: nn.Module) -> dict[str, nn.Module]:
    """Returns replacements for torchvision's transforms in a detector, by name, but for those of a fixed size."""
    return {
        name: _exact(transform)
        for name, transform in detector.named_modules()
        if type(transform) is GeneralizedRCNNTransform and transform.fixed_size is None
    }


def _exact(transform: nn.Module) -> nn.Module:
    exact: Any = copy.copy(transform)
    exact.__class__ = ExactTransform
    return exact  # type: ignore[no-any-return]
