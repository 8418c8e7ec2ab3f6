"""Detectors for first_try.py, each with random weights: nothing is downloaded.

Weights are scaled so that activations stay of order one and scores differ by more than rounding. The boxes are
meaningless, but the arithmetic is realistic.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from models import community_networks, torchvision_detectors

ROOT = Path(__file__).resolve().parents[2]

Size = tuple[int, int]


@dataclass(frozen=True)
class DetectorCase:
    """A detector that is converted with defaults.

    Attributes:
        build: Returns the detector in eval mode, without gradients.
        example: (height, width) of the example's images.
        others: Sizes that the conversion does not see.
        shapes: ``shapes=`` of the second conversion, for a detector without a transform that limits its sizes; None if
            there is no second conversion.
        takes_list: True if it takes a list of images, not a batch.
        channels: Number of channels of an image.
        package: Package that it needs; empty if it needs none besides the project's own.
    """

    build: Callable[[], nn.Module]
    example: Size = (128, 160)
    others: tuple[Size, ...] = ((96, 160), (160, 128), (224, 192))
    shapes: dict[str, Size] | None = None
    takes_list: bool = False
    channels: int = 3
    package: str = ""

    def arguments(self, size: Size, seed: int = 0) -> tuple[Any, ...]:
        """Returns the positional arguments for one image of a size. Each seed gives another image."""
        photographs = torchvision_detectors.photographs([size] * (seed + 1))
        image = photographs[-1][: self.channels]
        return ([image],) if self.takes_list else (image[None],)


ANY = {"height": (64, 256), "width": (64, 256)}
"""Sizes for a detector without a transform."""

ODD = ((97, 161), (160, 128), (211, 173))
"""Sizes that are not multiples of any stride."""

FIXED = ((128, 128),) * 3
"""For detectors that take only one size."""


def lively(detector: nn.Module, *arguments: Any) -> nn.Module:
    """Scales each layer so that its outputs have the standard deviation 1, and calibrates batch norms.

    As in LSUV (arXiv:1511.06422): with random weights, activations vanish or grow from layer to layer, and then only
    rounding decides which query is the best.
    """
    detector.requires_grad_(False).eval()

    def scale(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        handles.pop(module).remove()
        factor = 1 / output.std().clamp_min(1e-6)
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor)
        return output * factor

    layers: list[nn.Module] = [
        module for module in detector.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    handles = {layer: layer.register_forward_hook(scale) for layer in layers}
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        detector(*arguments)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    for handle in handles.values():  # layers that did not run
        handle.remove()
    return detector


def _batch(height: int, width: int) -> Tensor:
    return torch.cat([image[None] for image in torchvision_detectors.photographs([(height, width)] * 4)])


def _named(name: str) -> Callable[[], nn.Module]:
    """Returns a function that builds one of torchvision's detectors."""
    return lambda: torchvision_detectors.build(name, min_size=160, proposals=50)


def _example(name: str) -> Callable[[], nn.Module]:
    """Returns the detector of a script in examples/convert."""

    def build() -> nn.Module:
        module = _script(name)
        detector: nn.Module = module.build()
        return detector

    return build


def _script(name: str) -> ModuleType:
    path = ROOT / "examples" / "convert" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # TorchScript looks up names in the module
    spec.loader.exec_module(module)
    return module


# transformers


def _detr() -> nn.Module:
    transformers = importlib.import_module("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=30,
    )
    return lively(transformers.DetrForObjectDetection(config), _batch(128, 160))


_STAGES = ["stage2", "stage3", "stage4"]

_SMALL_RT_DETR = {
    "feat_strides": [8, 16, 32],
    "encoder_hidden_dim": 64,
    "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "d_model": 64,
    "num_queries": 30,
    "decoder_in_channels": [64, 64, 64],
    "decoder_ffn_dim": 128,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "anchor_image_size": None,
    "eval_size": None,
}
"""Sizes of a small RT-DETR, and of D-FINE, which extends it."""


def _rt_detr() -> nn.Module:
    transformers = importlib.import_module("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic", out_features=_STAGES
    )
    config = transformers.RTDetrConfig(backbone_config=backbone, encoder_in_channels=[32, 64, 128], **_SMALL_RT_DETR)
    return lively(transformers.RTDetrForObjectDetection(config), _batch(128, 160))


def _d_fine() -> nn.Module:
    transformers = importlib.import_module("transformers")
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 32, 64, 96],
        stage_mid_channels=[16, 16, 32, 32],
        stage_out_channels=[32, 64, 96, 128],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[2, 2, 2, 2],
        hidden_sizes=[32, 64, 96, 128],
        out_features=_STAGES,
    )
    config = transformers.DFineConfig(backbone_config=backbone, encoder_in_channels=[64, 96, 128], **_SMALL_RT_DETR)
    return lively(transformers.DFineForObjectDetection(config), _batch(128, 160))


def _yolos() -> nn.Module:
    transformers = importlib.import_module("transformers")
    config = transformers.YolosConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=[128, 160],
        num_detection_tokens=20,
    )
    return lively(transformers.YolosForObjectDetection(config), _batch(128, 160))


# Other packages


def _effdet() -> nn.Module:
    effdet = importlib.import_module("effdet")
    detector = effdet.create_model(
        "tf_efficientdet_lite0",
        bench_task="predict",
        pretrained=False,
        pretrained_backbone=False,
        num_classes=5,
        image_size=(128, 128),
    )
    return lively(detector, _batch(128, 128))


def _rf_detr() -> nn.Module:
    config = importlib.import_module("rfdetr.config")
    built = importlib.import_module("rfdetr.models.lwdetr").build_model_from_config(
        config.RFDETRNanoConfig(
            pretrain_weights=None,
            num_classes=10,
            resolution=192,
            positional_encoding_size=12,
            num_queries=50,
            device="cpu",
            num_select=50,
        )
    )
    built.requires_grad_(False).eval()
    return built


def _smp(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package = importlib.import_module("segmentation_models_pytorch")
        model = getattr(package, kind)("resnet18", encoder_weights=None, classes=4)
        return lively(model, _batch(128, 160))

    return build


def _segmentation(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
        return lively(model, _batch(128, 160))

    return build


# timm's backbones under torchvision's heads


class TimmLevels(nn.Module):
    """timm's feature levels, [N, C, H, W] each, in an OrderedDict, either unchanged or through a feature pyramid."""

    def __init__(self, name: str, channels: int = 32, *, pyramid: bool = True, **options: Any) -> None:
        """Builds the layers."""
        super().__init__()
        timm = importlib.import_module("timm")
        self.body = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3), **options)
        self.channels_last = self.body.feature_info.channels()[-1] if "swin" in name else 0
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), channels) if pyramid else None
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Runs the network."""
        levels = {str(i): level for i, level in enumerate(self.body(images))}
        if self.channels_last:
            levels = {name: level.permute(0, 3, 1, 2) for name, level in levels.items()}
        return levels if self.pyramid is None else self.pyramid(levels)


_LEVELS = ["0", "1", "2"]


def _anchors(shapes: int = 3) -> AnchorGenerator:
    return AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0)[:shapes],) * 3)


def _retinanet(backbone: nn.Module) -> nn.Module:
    return detection.RetinaNet(backbone, 11, min_size=160, max_size=256, anchor_generator=_anchors())


def _fcos(backbone: nn.Module) -> nn.Module:
    return detection.FCOS(backbone, 11, min_size=160, max_size=256, anchor_generator=_anchors(1))


def _faster_rcnn(backbone: nn.Module) -> nn.Module:
    return detection.FasterRCNN(
        backbone,
        11,
        min_size=160,
        max_size=256,
        rpn_anchor_generator=_anchors(),
        box_roi_pool=MultiScaleRoIAlign(_LEVELS, 7, 2),
        rpn_post_nms_top_n_test=50,
    )


def _ssd(backbone: nn.Module) -> nn.Module:
    boxes = DefaultBoxGenerator([[2]] * 3, scales=[0.1, 0.3, 0.5, 0.8])
    return detection.ssd.SSD(backbone, boxes, (192, 192), 11, backbone.out_channels)


def _under(head: Callable[[nn.Module], nn.Module], name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        backbone = TimmLevels(name, **options)
        if head is _ssd:
            backbone.out_channels = backbone.body.feature_info.channels()
        return torchvision_detectors.steady(head(backbone))

    return build


# The list


def _all() -> Iterator[tuple[str, DetectorCase]]:
    for name in torchvision_detectors.NAMES:
        yield name, DetectorCase(_named(name), (160, 208), ((150, 200), (208, 160), (171, 231)), takes_list=True)
    transformer: dict[str, Any] = {"shapes": ANY, "package": "transformers"}
    yield "DETR (transformers)", DetectorCase(_detr, others=ODD, **transformer)
    yield "RT-DETR (transformers)", DetectorCase(_rt_detr, **transformer)
    yield "D-FINE (transformers)", DetectorCase(_d_fine, **transformer)
    yield "YOLOS (transformers)", DetectorCase(_yolos, **transformer)
    yield "EfficientDet (effdet)", DetectorCase(_effdet, (128, 128), FIXED, package="effdet")
    yield (
        "RF-DETR nano (rfdetr)",
        DetectorCase(_rf_detr, (192, 192), ((128, 192), (192, 128), (256, 256)), shapes=ANY, package="rfdetr"),
    )
    yield (
        "CRNN (own)",
        DetectorCase(
            _example("crnn"),
            (32, 100),
            ((32, 217), (32, 64), (32, 331)),
            {"height": (32, 32), "width": (32, 512)},
            channels=1,
        ),
    )
    yield (
        "CRAFT-like (own)",
        DetectorCase(lambda: community_networks.seeded(community_networks.Craft), others=ODD, shapes=ANY),
    )
    yield "YOLO with cached grids (own)", DetectorCase(_example("yolo"), shapes=ANY)
    yield "DETR-like (own)", DetectorCase(_example("detr"), others=ODD, shapes=ANY)
    yield (
        "DeepLabV3 MobileNetV3 (torchvision)",
        DetectorCase(_segmentation("deeplabv3_mobilenet_v3_large"), others=ODD, shapes=ANY),
    )
    yield "FCN R50 (torchvision)", DetectorCase(_segmentation("fcn_resnet50"), others=ODD, shapes=ANY)
    yield (
        "LR-ASPP MobileNetV3 (torchvision)",
        DetectorCase(_segmentation("lraspp_mobilenet_v3_large"), others=ODD, shapes=ANY),
    )
    yield "U-Net (own)", DetectorCase(_example("segmentation"), others=ODD, shapes=ANY)
    smp: dict[str, Any] = {"shapes": ANY, "package": "segmentation_models_pytorch"}
    yield "U-Net R18 (segmentation_models_pytorch)", DetectorCase(_smp("Unet"), **smp)
    yield "FPN R18 (segmentation_models_pytorch)", DetectorCase(_smp("FPN"), **smp)
    timm: dict[str, Any] = {
        "takes_list": True,
        "package": "timm",
        "others": ((150, 200), (208, 160), (171, 231)),
        "example": (160, 208),
    }
    yield "ConvNeXt (timm) + RetinaNet", DetectorCase(_under(_retinanet, "convnext_atto"), **timm)
    yield "EfficientNet (timm) + FCOS", DetectorCase(_under(_fcos, "efficientnet_lite0"), **timm)
    yield "MobileNetV4 (timm) + Faster R-CNN", DetectorCase(_under(_faster_rcnn, "mobilenetv4_conv_small"), **timm)
    swin = _under(_faster_rcnn, "swin_tiny_patch4_window7_224", img_size=None, strict_img_size=False)
    yield "Swin-T (timm) + Faster R-CNN", DetectorCase(swin, **timm)
    yield "RegNet (timm) + SSD", DetectorCase(_under(_ssd, "regnetx_002", pyramid=False), **timm)


DETECTORS: dict[str, DetectorCase] = dict(_all())
