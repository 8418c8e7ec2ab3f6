"""torchvision's detectors with random weights that behave numerically like trained ones.

Plain random weights are not a useful test: activations grow or vanish from block to block, rounding is amplified a
thousandfold, and the score threshold keeps nothing or everything. Here each layer is scaled on photographs so that
activations stay of order one, and the classes' bias is set so that each image gives about ten detections. The boxes are
meaningless, but the arithmetic is realistic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.digits_data import photograph

NAMES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "flower")

# Residual branches add up. With a gain of 0.2, sixteen blocks don't amplify rounding.
_RESIDUAL_GAIN = 0.2

_CONTRAST = 0.25  # standard deviation of an image's values, in a range of 1

_CALIBRATION_SIZES = ((224, 288), (224, 224), (256, 224), (224, 320), (224, 256))
_DETECTIONS = 20  # minimum in every tuning image

_LIVELY_STEP = 9  # classes 1, 10, 19, ... are detected often, the others rarely
_SIGMOID_DETECTORS = (detection.RetinaNet, detection.FCOS)  # without a background class

# Mean and standard deviation of the last layers' outputs, by the end of their names. Box deltas are small, and logits
# are spread widely enough that scores differ by far more than rounding.
_OUTPUTS: dict[str, tuple[float, float]] = {
    "rpn.head.cls_logits": (0.0, 2.0),
    "rpn.head.bbox_pred": (0.0, 0.1),
    "box_predictor.cls_score": (0.0, 2.5),
    "box_predictor.bbox_pred": (0.0, 0.5),
    "mask_predictor.mask_fcn_logits": (0.0, 2.0),
    "classification_head.cls_logits": (0.0, 2.0),
    "regression_head.bbox_reg": (0.0, 0.1),
    "regression_head.bbox_ctrness": (0.0, 1.0),
}
# FCOS predicts the distances from a point to the four sides, in units of the level's stride.
_FCOS_OUTPUTS = _OUTPUTS | {"regression_head.bbox_reg": (4.0, 0.5)}
_SSD_CLASSES = (0.0, 3.0)
_SSD_BOXES = (0.0, 0.5)
# A squeeze-and-excitation gate sees the whole image. A wide one would let activations differ between images by far more
# than in a trained detector.
_GATE = (0.0, 0.2)


def photographs(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Crops images of given sizes from real photographs.

    Args:
        sizes: (height, width) in px of each image.

    Returns:
        One float32 tensor [3, height, width] in 0..1 per size, from alternating photographs. Each is the largest
        central crop of that aspect ratio, resized, with normalised contrast: random weights can't compensate for a dim
        image, unlike trained ones.
    """
    result = []
    for index, (height, width) in enumerate(sizes):
        image = Image.fromarray(photograph(_PHOTOGRAPHS[index % len(_PHOTOGRAPHS)]))
        scale = min(image.width / width, image.height / height)
        crop_width, crop_height = width * scale, height * scale
        left, top = max(0.0, (image.width - crop_width) / 2), max(0.0, (image.height - crop_height) / 2)
        resized = image.resize(
            (width, height),
            Image.Resampling.BILINEAR,
            box=(left, top, min(left + crop_width, image.width), min(top + crop_height, image.height)),
        )
        array = np.asarray(resized, dtype=np.float32)
        array = (array - array.mean()) * (_CONTRAST / array.std()) + 0.5
        array = array.clip(0.0, 1.0)
        result.append(torch.from_numpy(array).permute(2, 0, 1).contiguous())
    return result


def build(name: str, seed: int = 0, min_size: int | None = None, proposals: int | None = None) -> nn.Module:
    """Builds one of torchvision's detectors with well-behaved random weights.

    Args:
        name: One of ``NAMES``.
        seed: Seed of the weights. The global random state is not changed.
        min_size: Shorter side in px to which the detector resizes its images; None keeps torchvision's 800 (320 for the
            one with 320 in its name). The longer side is limited to 5/3 of it, as in torchvision. The SSDs always use
            300 x 300 or 320 x 320 and ignore it.
        proposals: Number of regions per image for an R-CNN's heads; None keeps torchvision's 1,000 (150 for the one
            with 320 in its name). Other detectors ignore it. The heads of the v2 versions cost 0.1 GMAC per region,
            more than the backbone at small sizes.

    Returns:
        The detector in eval mode on the CPU, float32, without gradients: about 10 to 100 detections per photograph.

    Raises:
        ValueError: The name is not one of ``NAMES``.
    """
    if name not in NAMES:
        raise ValueError(f"detector: expected one of {', '.join(NAMES)}, got {name!r}")
    options = {}
    if min_size is not None and not name.startswith("ssd"):
        options = {"min_size": min_size, "max_size": min_size * 1333 // 800}
    if proposals is not None and "rcnn" in name:
        options["rpn_post_nms_top_n_test"] = proposals
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return steady(getattr(detection, name)(weights=None, weights_backbone=None, **options))


def steady(detector: nn.Module) -> nn.Module:
    """Makes a detector with random weights behave numerically like a trained one.

    Args:
        detector: A Faster, Mask or Keypoint R-CNN, RetinaNet, FCOS or SSD of torchvision, with any backbone whose
            convolutions have a batch norm or a bias. It is modified.

    Returns:
        The same detector, as :func:`build` returns it.
    """
    detector.requires_grad_(False).eval()
    _damp_residual_branches(detector)
    with torch.inference_mode():
        _calibrate(detector)
        _quieten_most_classes(detector)
        with _CountTuner(detector):
            detector(_tuning_images(detector))
    return detector


def _tuning_images(detector: nn.Module) -> list[Tensor]:
    """Returns the images on which the number of detections is tuned.

    Small images, which the detectors enlarge, have less detail and so give fewer detections.
    """
    if isinstance(detector, detection.ssd.SSD):
        return photographs([(240, 320), (320, 240), (300, 400), (200, 300), (300, 200)])
    # At 800 px an image takes seconds, so only the three with the fewest detections are used. They have one size,
    # because FCOS and RetinaNet also detect in the padding of a batch.
    astronaut, coffee, _, rocket, _ = photographs([(320, 240)] * len(_PHOTOGRAPHS))
    return [astronaut, coffee, rocket]


def _damp_residual_branches(detector: nn.Module) -> None:
    """Sets the last batch norm's gain of each residual branch."""
    for module in detector.modules():
        last: nn.Module | None = None
        if isinstance(module, Bottleneck):
            last = module.bn3
        elif isinstance(module, BasicBlock):
            last = module.bn2
        elif isinstance(module, InvertedResidual) and module.use_res_connect:
            last = module.block[-1][1]
        if last is not None:
            nn.init.constant_(last.weight, _RESIDUAL_GAIN)


def _calibrate(detector: nn.Module) -> None:
    """Runs a few small images through the detector and scales each layer to order one.

    Batch norms adopt the statistics of this batch. Every other convolution or linear layer is shifted and scaled so
    that its output has the desired mean and standard deviation. A head that runs on several levels of a pyramid is
    scaled on the first one, which has the most pixels.
    """
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    for name, module in detector.named_modules():
        scalable = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        if scalable and module.bias is not None:  # layers without a bias are followed by a batch norm
            _scale_at_first_call(module, *_wanted_output(detector, name))
    transform = detector.transform
    full_size = transform.min_size, transform.fixed_size
    transform.min_size = (min(224, *transform.min_size),)
    hooks = []
    if hasattr(detector, "rpn"):  # a tenth of the proposals is enough for the heads' statistics
        hooks.append(detector.rpn.register_forward_hook(_keep_few_proposals))
    with _CountTuner(detector):  # otherwise the mask head would process hundreds of boxes
        detector(photographs(_CALIBRATION_SIZES))
    for hook in hooks:
        hook.remove()
    transform.min_size, transform.fixed_size = full_size
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _keep_few_proposals(
    module: nn.Module, inputs: tuple[Any, ...], output: tuple[list[Tensor], dict[str, Tensor]]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Keeps the best 100 proposals of each image. A forward hook for an RPN."""
    proposals, losses = output
    return [boxes[:100] for boxes in proposals], losses


def _wanted_output(detector: nn.Module, name: str) -> tuple[float, float]:
    """Returns the desired mean and standard deviation of a layer's output."""
    if name.endswith(".fc2"):
        return _GATE
    if isinstance(detector, detection.ssd.SSD):
        if name.startswith("head.classification_head"):
            return _SSD_CLASSES
        if name.startswith("head.regression_head"):
            return _SSD_BOXES
    outputs = _FCOS_OUTPUTS if isinstance(detector, detection.FCOS) else _OUTPUTS
    return next((value for end, value in outputs.items() if name.endswith(end)), (0.0, 1.0))


def _scale_at_first_call(module: nn.Module, mean: float, deviation: float) -> None:
    """Rescales a layer's weights in its first run, as in LSUV (arXiv:1511.06422)."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        handle.remove()
        channels = output.ndim - 1 if isinstance(module, nn.Linear) else 1
        axes = [axis for axis in range(output.ndim) if axis != channels]
        centre = output.mean(dim=axes, keepdim=True)
        factor = deviation / (output - centre).std().clamp_min(1e-6)
        module.weight.mul_(factor)
        module.bias.copy_((module.bias - centre.flatten()) * factor + mean)
        return (output - centre) * factor + mean

    handle = module.register_forward_hook(hook)


class _CountTuner:
    """Context in which a forward call sets the bias of the classes by the number of detections.

    It intervenes where the detector turns logits into detections, when all expensive work is done, and lowers or raises
    the logits until about ``_DETECTIONS`` per image remain.
    """

    def __init__(self, detector: nn.Module) -> None:
        self._detector = detector
        self._owner = getattr(detector, "roi_heads", detector)
        self._postprocess: Callable[..., Any] = self._owner.postprocess_detections

    def __enter__(self) -> None:
        self._owner.postprocess_detections = self._tune

    def __exit__(self, *exception: object) -> None:
        del self._owner.postprocess_detections  # makes the class's method visible again

    def _tune(self, logits: Any, *others: Any) -> Any:
        """Replaces the detector's ``postprocess_detections``."""
        shift = -30.0
        for step in (3.0, 0.75, 0.15):
            while self._fewest(self._shifted(logits, shift + step), others) < _DETECTIONS:
                shift += step
                if shift > 30.0:
                    raise RuntimeError("detector: expected detections, got too few at any bias")
        shift += step
        self._shift_bias(shift)
        return self._postprocess(self._shifted(logits, shift), *others)

    def _fewest(self, logits: Any, others: tuple[Any, ...]) -> int:
        result = self._postprocess(logits, *others)
        if isinstance(result, tuple):  # RoIHeads: lists of boxes, scores, labels
            return min(len(boxes) for boxes in result[0])
        return min(len(detections["boxes"]) for detections in result)

    def _shifted(self, logits: Any, shift: float) -> Any:
        """Adds a shift to all classes, or subtracts it from the background if a softmax follows."""
        if isinstance(logits, Tensor):
            return _less_background(logits, shift)
        classes = logits["cls_logits"]
        if isinstance(classes, Tensor):
            return logits | {"cls_logits": _less_background(classes, shift)}
        return logits | {"cls_logits": [level + shift for level in classes]}

    def _shift_bias(self, shift: float) -> None:
        """Adds the shift to the weights."""
        for layer in _class_layers(self._detector):
            biases = layer.bias.view(-1, _class_count(self._detector))
            if isinstance(self._detector, _SIGMOID_DETECTORS):
                biases += shift
            else:
                biases[:, 0] -= shift


def _class_layers(detector: nn.Module) -> list[nn.Module]:
    """Returns the layers whose outputs are the classes' logits, [anchors * classes, ...]."""
    if hasattr(detector, "roi_heads"):
        return [detector.roi_heads.box_predictor.cls_score]
    head = detector.head.classification_head
    if isinstance(detector, detection.ssd.SSD):
        # SSDLite's predictors have a depthwise convolution before the relevant one.
        return [layer if isinstance(layer, nn.Conv2d) else layer[-1] for layer in head.module_list]
    return [head.cls_logits]


def _class_count(detector: nn.Module) -> int:
    """Returns the number of classes in the class layers, including a background if there is one."""
    if hasattr(detector, "roi_heads"):
        return detector.roi_heads.box_predictor.cls_score.out_features
    head = detector.head.classification_head
    return head.num_columns if isinstance(detector, detection.ssd.SSD) else head.num_classes


def _quieten_most_classes(detector: nn.Module) -> None:
    """Makes most classes rare, so that the number of detections depends less on the image.

    With 90 equal classes, the far tail of many candidates passes the threshold, and its size varies tenfold between
    images. With about ten classes, NMS bounds it.
    """
    count = _class_count(detector)
    rare = torch.arange(count) % _LIVELY_STEP != 1
    rare[0] = False  # the background, if there is one
    for layer in _class_layers(detector):
        layer.weight.view(-1, count, *layer.weight.shape[1:])[:, rare] *= 0.3


def _less_background(logits: Tensor, shift: float) -> Tensor:
    """Subtracts ``shift`` from the logit of class 0 in a tensor [..., classes]."""
    result = logits.clone()
    result[..., 0] -= shift
    return result
