"""A small Faster R-CNN that detects handwritten digits, with trained weights.

It has every part of torchvision's Faster R-CNN (ResNet, FPN, RPN, RoIAlign, NMS), but fewer channels: real detections
and a real mAP, in tens of milliseconds on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import MultiScaleRoIAlign

from models.digits_data import CLASS_NAMES, Sample, coco_annotations

__all__ = ["CLASS_NAMES", "WEIGHTS", "build", "evaluate", "load", "to_tensor"]

WEIGHTS = Path(__file__).parent / "weights" / "digits_fasterrcnn.pt"

_STAGE_CHANNELS = (32, 64, 96, 128)
_FPN_CHANNELS = 64
_BOX_HEAD_CHANNELS = 160

Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]


class _NarrowResNet(ResNet):
    """torchvision's ResNet-18 with fewer channels per stage."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.inplanes = _STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.layer1 = self._make_layer(BasicBlock, _STAGE_CHANNELS[0], 2)
        self.layer2 = self._make_layer(BasicBlock, _STAGE_CHANNELS[1], 2, stride=2)
        self.layer3 = self._make_layer(BasicBlock, _STAGE_CHANNELS[2], 2, stride=2)
        self.layer4 = self._make_layer(BasicBlock, _STAGE_CHANNELS[3], 2, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build() -> FasterRCNN:
    """Builds the detector with untrained weights.

    Returns:
        A Faster R-CNN with 11 classes (0 is background), in training mode. It resizes images to a shorter side of 256
        px, or to a longer side of 416 px if that is smaller.
    """
    backbone = BackboneWithFPN(
        _NarrowResNet(),
        return_layers={f"layer{stage + 1}": str(stage) for stage in range(4)},
        in_channels_list=list(_STAGE_CHANNELS),
        out_channels=_FPN_CHANNELS,
        norm_layer=nn.BatchNorm2d,
    )
    # One size per FPN level (stride 4, 8, 16, 32, 64). Digits are at most as wide as high.
    anchors = AnchorGenerator(sizes=((16,), (28,), (48,), (72,), (100,)), aspect_ratios=((1.0, 1.7),) * 5)
    # torchvision's default puts a box of 224 px on stride 16; a digit of 64 px belongs on stride 8.
    roi_align = MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        output_size=7,
        sampling_ratio=2,
        canonical_scale=64,
        canonical_level=3,
    )
    return FasterRCNN(
        backbone,
        min_size=256,
        max_size=416,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=128,
        box_roi_pool=roi_align,
        box_head=TwoMLPHead(_FPN_CHANNELS * 7 * 7, _BOX_HEAD_CHANNELS),
        box_predictor=FastRCNNPredictor(_BOX_HEAD_CHANNELS, len(CLASS_NAMES)),
        box_batch_size_per_image=48,
        box_positive_fraction=0.33,
        box_nms_thresh=0.4,
        box_detections_per_img=50,
    )


def load(weights: str | Path = WEIGHTS) -> FasterRCNN:
    """Loads the trained detector.

    Args:
        weights: A state dict that ``tools/train/demo_detector.py`` wrote.

    Returns:
        The detector in eval mode on the CPU, float32, without gradients. Its attribute ``class_names`` has a name for
        each label, which hybrid_rt.convert() reads.

    Raises:
        FileNotFoundError: The file of weights does not exist.
    """
    detector = build()
    detector.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    detector.class_names = CLASS_NAMES
    return detector.requires_grad_(False).eval()


def to_tensor(image: np.ndarray) -> Tensor:
    """Turns a uint8 image [height, width, 3] into float32 [3, height, width] in 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div(255.0)


def evaluate(detect: Detect, samples: Sequence[Sample]) -> dict[str, float]:
    """Measures a detector with COCO's mean average precision.

    Args:
        detect: called with a list of one float32 image [3, height, width] in 0..1; returns a list
            of one dictionary with "boxes" [n, 4] in pixels, "scores" [n] and "labels" [n].
        samples: the images and their true boxes.

    Returns:
        "mAP" (mean over IoU 0.50:0.95) and "mAP50" (IoU 0.50), each in 0..1.
    """
    from hybrid_rt.verification import coco  # here, so that the detector can be used without hybrid_rt

    results = []
    for image_id, sample in enumerate(samples, start=1):
        with torch.inference_mode():
            detections = detect([to_tensor(sample.image)])[0]
        results += coco.coco_results(image_id, detections)
    accuracy = coco.mean_average_precision(coco_annotations(list(samples)), results)
    return {"mAP": accuracy.mAP, "mAP50": accuracy.mAP50}
