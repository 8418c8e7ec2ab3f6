"""A timm backbone with torchvision's FCOS, compiled for the sizes that the detector's own transform can produce.

python examples/convert/timm_backbone.py fcos.pt
"""

from __future__ import annotations

import sys
from collections import OrderedDict

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

import hybrid_rt


class TimmBackbone(nn.Module):
    """Maps [N, 3, H, W] to three pyramid levels, as torchvision's heads require."""

    def __init__(self, name: str, channels: int = 32) -> None:
        """Builds the backbone from its name in timm, and the pyramid on top of it."""
        super().__init__()
        self.body = timm.create_model(name, pretrained=False, features_only=True, out_indices=(2, 3, 4))
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the levels of the pyramid, finest first."""
        levels = self.body(images)
        return self.pyramid(OrderedDict((str(i), level) for i, level in enumerate(levels)))


def build() -> nn.Module:
    """Returns a model with random weights that finds enough boxes. Load yours from a checkpoint."""
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    detector = FCOS(
        TimmBackbone("mobilenetv3_small_050"), num_classes=5, min_size=128, max_size=224, anchor_generator=anchors
    )
    nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.1)
    nn.init.constant_(detector.head.classification_head.cls_logits.bias, 0.0)
    return detector.eval().requires_grad_(False)


def main(path: str) -> None:
    """Converts the model, and compares the loaded file with it at a size that the conversion did not use."""
    detector = build()
    result = hybrid_rt.convert(detector, ([torch.rand(3, 240, 320)],), path)
    print(result.report)

    other = torch.rand(3, 211, 163)
    (expected,), (found,) = detector([other]), hybrid_rt.load(path)([other])
    assert len(expected["boxes"]) == len(found["boxes"]) > 0


if __name__ == "__main__":
    main(sys.argv[1])
