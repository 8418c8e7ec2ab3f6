"""Replaces methods of torchvision's detectors by equivalent ones that call fewer, faster operators.

A method is replaced only if its source, and the source of each function that the replacement makes redundant, is the
one that the replacement was written for. A method that a subclass, an instance or a patch has overridden stays.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection import anchor_utils, fcos, retinanet, roi_heads, rpn, ssd, transform
from torchvision.ops import boxes as box_ops
from torchvision.ops import poolers

from . import known_methods
from .exact_transform import ExactTransform

_SOURCES = {
    "SSD.postprocess_detections": ("409b5b3ebe2ee1ca68828e6237d851f8628275335797cf6390ee616f22429fe5",),
    "RetinaNet.postprocess_detections": ("bd2011ca80577a7448b180c5ed4e0491a148cd6dd56a8322c61f023504c79126",),
    "FCOS.postprocess_detections": ("df73be793e7872a1daa6fa0c507e71dee1fc73147cbf856d95ac41bc5cfac7ab",),
    "RoIHeads.postprocess_detections": ("409a8903cf77773de5adde9a40f99cbd616713e0337a6fb701c5cdf57c81cfe1",),
    "_topk_min": ("028100d5a4a69c6379d04e0ae8b1f0cb0101cceccc3ec384aa8ef53773aa444f",),
    "BoxCoder.decode_single": ("0c85c9ca2e5fdaaa85440d4a075fae961d95efdb9686df6d22cadc2948df95fb",),
    "clip_boxes_to_image": ("3220929cb119fe5c50944ab656d6acf3cfd09da0d9b0f0a42abc175ca9496437",),
    "remove_small_boxes": ("9016b08d28e8a512e3a86c08d84b0847bcbc4d7fc249473b1c43b092ea146a35",),
    "BoxCoder.decode": ("ee2bfa66688440a5d0edb2c4e5ecab7789483ca8d9fc232e5515ac47efaed917",),
    "batched_nms": ("e352ad12157c5928be5b936a9f169e8f6729e25822d6bbc35449b85044a11d32",),
    "_batched_nms_coordinate_trick": ("ef6c47948b31ff0e61c7d5ec7c54a2c59a53cab1b6fe40d61fa765e2b7b4d257",),
    "_batched_nms_vanilla": ("19f0f90b8c3bcff06a942b14c83f9739b3efa295aa79df3e4f794a0ff4af16d1",),
    "nms": (
        "1a61ab7ae10b312fa499ecc47a2ea82a896161590ae5ee64bebfaf604814cab7",
        "b968af856f565c02a739fda6254103742fbb666f0e07df9df83f13fb43cdcc61",
    ),
    "RegionProposalNetwork.forward": ("a488356276865a8397f8712d7a845863cdfce9202d03d9a7128afed295c75b6a",),
    "RegionProposalNetwork.filter_proposals": ("5d32f34967d080807b60603aeb93ece14d8432d6caafbae5b14b734b627da6c1",),
    "RegionProposalNetwork._get_top_n_idx": ("1673a9d350fa63da01ec3b53ead16ef103448a27e3eb8bffc222e6dc32c99909",),
    "concat_box_prediction_layers": ("09b8821faa79077edc63e522ed1f9e371918b1ca3defe9ae58989ddae95b6b2b",),
    "permute_and_flatten": ("926b6b2f5cd287c9cabf0d828531c736be0a807ce084f3fc87ec0e60f0ecb017",),
    "MultiScaleRoIAlign.forward": ("f3fdaf12c0f97bdd1841372461811b3c5e08c1ff1e921f7351a8dd7e05b26d48",),
    "LevelMapper.__init__": ("15d67d4c90eb791d84123e5d73313a049857dc6888a84b2c85751e4608324716",),
    "LevelMapper.__call__": ("2e08d1097f5a6bac47a0fc7adb415b45b1c068b5830c1465fcaff0b39f0d6877",),
    "box_area": ("4b5d903c834c7961111b2489d638d52e0b551a751c1847680db30a5bc9fb1a02",),
    "_upcast": ("ae38986c238bfb6e18a30a002dfdff07e1fd784403f2d2a851e2638eae594df4",),
    "_multiscale_roi_align": ("0cbeb40a0a96cb5e497b39586f2e3b49c1b864c312562c1f69d613243aff426c",),
    "roi_align": (
        "2b3b55e966e868d0969aaa0102191e5ff6a2ed19a3edc532c56d1eec8f52c851",
        "4e1b45134096e0efec2acd897426c65cfe67b93e3cda5a31ee3b37b7d89fb724",
    ),
    "GeneralizedRCNNTransform.normalize": ("f72ef4e4feaa22885ead08e158683127c0d6cf1111121d1a6828cc98dc22c97d",),
    "GeneralizedRCNNTransform.batch_images": ("0cd698d707c836470ed984958af9a390dcc378126811d6d33aded6c54c008261",),
    "GeneralizedRCNNTransform.max_by_axis": ("3d3bf0f1507a40212427770739828fec105e71d0f1a3a14a39ebce9db08f9b4a",),
    "AnchorGenerator.set_cell_anchors": ("2e34579b8d8a72f2f7c232f3c1f9f643f475e215c169ee29bfd0c12cd3b7e76f",),
    "AnchorGenerator.grid_anchors": ("e4f19ff0e4e704dc1da254420d18014cca0652b81bcd4b0123801711ec98bd97",),
    "AnchorGenerator.forward": ("002d29c1eed3b8fe2670dd183fa7b725d4adf48f4128b8c8cd90cfb1573f5088",),
    "DefaultBoxGenerator.forward": ("3ef2ea5c84d3f901ca0e4846d37b9370eeefe8ad882f5f9255e3571e7c887ed3",),
    "DefaultBoxGenerator._grid_default_boxes": ("05dfa57c44651c08b836e1d24564f4c43e3a55fa8960cef02d231b7e2fd1724d",),
    "GeneralizedRCNNTransform.forward": ("b72b1914d9b3f527cd8aeb9e213e9f870d637f2cd068ed0358a9364bf16ac7f3",),
    "GeneralizedRCNNTransform.resize": ("766a26a27a496e6a7aebbbdb94feaccfd70f0af3ab14df21c6b3e3840f02901f",),
    "_resize_image_and_masks": ("3ad3d0887a9b60c015060cf461d20fdef17b24be82439b77c9aa7854ffa148e2",),
}
"""SHA-256 of the sources that the replacements were written for, without indentation: torchvision 0.26 to 0.29.2."""


@dataclass(frozen=True)
class _Known:
    """A method of torchvision and its replacement."""

    owner: type[nn.Module]
    name: str
    replacement: Callable[..., Any]
    numbers: Sequence[str]
    """Attributes that must be numbers, because the operators take nothing else."""
    relies_on: Sequence[Callable[[], Any]]
    """Functions whose work the replacement does itself. They are looked up for each module, because they may be
    patched."""
    coder: type | None = None
    """Required class of ``box_coder``, if the replacement uses it in another way than the method."""
    methods: Sequence[str] = ()
    """Further methods of the owner that the replacement makes redundant."""
    suits: Callable[[Any], bool] = lambda _: True
    """Further condition on the module."""
    helpers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Further methods that the replacement calls, by name."""


def _batched_nms() -> Sequence[Callable[[], Any]]:
    return (
        lambda: box_ops.batched_nms,
        lambda: box_ops._batched_nms_coordinate_trick,
        lambda: box_ops._batched_nms_vanilla,
        lambda: box_ops.nms,
    )


def _decoding() -> Sequence[Callable[[], Any]]:
    return (lambda: detection_utils.BoxCoder.decode_single, lambda: box_ops.clip_boxes_to_image)


def _detections() -> Sequence[Callable[[], Any]]:
    return (
        *_batched_nms(),
        *_decoding(),
        lambda: detection_utils.BoxCoder.decode,
        lambda: box_ops.remove_small_boxes,
    )


def _proposals() -> Sequence[Callable[[], Any]]:
    return (
        *_detections(),
        lambda: detection_utils._topk_min,
        lambda: rpn.concat_box_prediction_layers,
        lambda: rpn.permute_and_flatten,
    )


def _renamed(function: Any, name: str) -> FunctionType:
    """Returns a copy of a method with another name, which TorchScript compiles it under."""
    renamed = FunctionType(function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    renamed.__annotations__ = dict(function.__annotations__)
    return renamed


def _is_untouched(module: Any, owner: type[nn.Module]) -> bool:
    """Returns true if a module is an instance of exactly this class and has no overridden methods."""
    return type(module) is owner and not any(callable(value) for value in vars(module).values())


def _has_known_options(module: Any) -> bool:
    """Returns true for a transform whose options the operator supports."""
    return (
        all(type(number) is float for number in (*module.image_mean, *module.image_std))
        and type(module.image_mean) is type(module.image_std) is list
        and len(module.image_mean) == len(module.image_std)
        and type(module.size_divisible) is int
        and module.size_divisible > 0
    )


def _is_of_fixed_size(module: Any) -> bool:
    return (
        type(module).resize is transform.GeneralizedRCNNTransform.resize
        and "resize" not in vars(module)
        and module.fixed_size is not None
        and [type(size) for size in module.fixed_size] == [int, int]
        and type(module.fixed_size) is tuple
        and _has_known_options(module)
    )


def _is_exact(module: Any) -> bool:
    return (
        type(module).resize is ExactTransform.resize
        and "resize" not in vars(module)
        and module.fixed_size is None
        and _has_known_options(module)
    )


def _has_plain_anchors(module: Any) -> bool:
    """Returns true for an SSD's generator whose own step is known and whose numbers the operator supports."""
    pairs = module._wh_pairs
    return (
        type(module.clip) is bool
        and all(type(step) is int and step > 0 for step in module.steps or ())
        and type(pairs) is list
        and all(pair.dtype == torch.float32 and pair.device.type == "cpu" and pair.dim() == 2 for pair in pairs)
    )


def _pools_to_a_size(module: Any) -> bool:
    return [type(size) for size in module.output_size] == [int, int]


_THRESHOLDS = ("score_thresh", "nms_thresh", "detections_per_img")

_KNOWN = (
    _Known(
        ssd.SSD,
        "postprocess_detections",
        known_methods.SSDMethods.postprocess_detections,
        (*_THRESHOLDS, "topk_candidates"),
        (*_batched_nms(), *_decoding(), lambda: detection_utils._topk_min),
        detection_utils.BoxCoder,
    ),
    *(
        _Known(
            owner,
            "postprocess_detections",
            known_methods.DenseMethods.postprocess_detections,
            (*_THRESHOLDS, "topk_candidates"),
            (*_batched_nms(), *decoding, lambda: detection_utils._topk_min),
            coder,
            helpers={"candidates": methods.candidates, "decoded": methods.decoded},
        )
        for owner, methods, decoding, coder in (
            (retinanet.RetinaNet, known_methods.RetinaNetMethods, _decoding(), detection_utils.BoxCoder),
            (fcos.FCOS, known_methods.FCOSMethods, (), None),
        )
    ),
    _Known(
        roi_heads.RoIHeads,
        "postprocess_detections",
        known_methods.RoIHeadsMethods.postprocess_detections,
        _THRESHOLDS,
        _detections(),
        detection_utils.BoxCoder,
    ),
    _Known(
        rpn.RegionProposalNetwork,
        "forward",
        known_methods.RPNMethods.forward,
        ("min_size", "score_thresh", "nms_thresh"),
        _proposals(),
        detection_utils.BoxCoder,
        ("filter_proposals", "_get_top_n_idx"),
        helpers={"proposals": _renamed(known_methods.RPNMethods.composed_proposals, "proposals")},
    ),
    _Known(
        rpn.RegionProposalNetwork,
        "forward",
        known_methods.RPNMethods.forward,
        ("min_size", "score_thresh", "nms_thresh"),
        (
            *_proposals(),
            lambda: anchor_utils.AnchorGenerator.set_cell_anchors,
            lambda: anchor_utils.AnchorGenerator.grid_anchors,
            lambda: anchor_utils.AnchorGenerator.forward,
        ),
        detection_utils.BoxCoder,
        ("filter_proposals", "_get_top_n_idx"),
        suits=lambda module: _is_untouched(module.anchor_generator, anchor_utils.AnchorGenerator),
        helpers={
            "proposals": known_methods.GridRPNMethods.proposals,
            "composed_proposals": known_methods.RPNMethods.composed_proposals,
        },
    ),
    _Known(
        poolers.MultiScaleRoIAlign,
        "forward",
        known_methods.PoolerMethods.forward,
        ("sampling_ratio",),
        (lambda: poolers._multiscale_roi_align, lambda: poolers.roi_align),
        suits=_pools_to_a_size,
        helpers={"levels": _renamed(known_methods.PoolerMethods.mapped_levels, "levels")},
    ),
    _Known(
        poolers.MultiScaleRoIAlign,
        "forward",
        known_methods.PoolerMethods.forward,
        ("sampling_ratio",),
        (
            lambda: poolers._multiscale_roi_align,
            lambda: poolers.roi_align,
            lambda: poolers.LevelMapper.__init__,
            lambda: poolers.LevelMapper.__call__,
            lambda: poolers.box_area,
            lambda: box_ops._upcast,
        ),
        suits=lambda module: _pools_to_a_size(module) and type(module.map_levels) in (type(None), poolers.LevelMapper),
        helpers={"levels": known_methods.LevelledPoolerMethods.levels},
    ),
    _Known(
        anchor_utils.DefaultBoxGenerator,
        "forward",
        known_methods.DefaultBoxMethods.forward,
        (),
        (),
        methods=("_grid_default_boxes",),
        suits=_has_plain_anchors,
        helpers={"composed_forward": _renamed(anchor_utils.DefaultBoxGenerator.forward, "composed_forward")},
    ),
    _Known(transform.GeneralizedRCNNTransform, "normalize", known_methods.TransformMethods.normalize, (), ()),
    _Known(
        transform.GeneralizedRCNNTransform,
        "batch_images",
        known_methods.TransformMethods.batch_images,
        (),
        (),
        methods=("max_by_axis",),
    ),
    *(
        _Known(
            transform.GeneralizedRCNNTransform,
            "forward",
            known_methods.BatchMethods.forward,
            (),
            (lambda: transform._resize_image_and_masks, lambda: transform.GeneralizedRCNNTransform.resize),
            methods=("normalize", "batch_images", "max_by_axis"),
            suits=suits,
            helpers={
                "resized": resized,
                "composed_forward": _renamed(transform.GeneralizedRCNNTransform.forward, "composed_forward"),
            },
        )
        for suits, resized in (
            (_is_exact, known_methods.ExactSize.resized),
            (_is_of_fixed_size, known_methods.FixedSize.resized),
        )
    ),
)


def use_operators(hybrid: nn.Module) -> None:
    """Replaces the known methods in a detector by methods that call operators of hybrid_rt.

    Args:
        hybrid: A working copy of the detector. The classes of its modules are replaced.
    """
    for module in hybrid.modules():
        methods: dict[str, Any] = {}
        for known in _KNOWN:  # if two match, the later one replaces more
            if _is_known(module, known):
                methods |= {known.name: known.replacement, **known.helpers}
        if methods:
            owner = type(module)
            annotations = dict(getattr(module, "__annotations__", {}))  # TorchScript does not look at the base class
            namespace = {**methods, "__module__": owner.__module__, "__annotations__": annotations}
            module.__class__ = type(owner.__name__, (owner,), namespace)


def _is_known(module: nn.Module, known: _Known) -> bool:
    names = (known.name, *known.methods)
    if not isinstance(module, known.owner) or any(name in vars(module) for name in names):
        return False
    methods = [getattr(known.owner, name) for name in names]
    return (
        all(getattr(type(module), name) is method for name, method in zip(names, methods, strict=True))
        and all(type(getattr(module, name)) in (int, float) for name in known.numbers)
        and (known.coder is None or type(module.box_coder) is known.coder)
        and known.suits(module)
        and all(map(_is_known_source, (*methods, *(each() for each in known.relies_on))))
    )


def _is_known_source(function: Any) -> bool:
    """Returns true if a function's source is in the table. Wrappers other than torch's own do not qualify."""
    if not isinstance(function, FunctionType):
        return False
    if hasattr(function, "__wrapped__") and not str(function.__globals__.get("__name__")).startswith("torch.jit"):
        return False
    return source_digest(function) in _SOURCES.get(function.__qualname__, ())


def source_digest(function: Any) -> str:
    """Returns the SHA-256 of a function's source, without its indentation; empty if there is no source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(textwrap.dedent(source).strip().encode()).hexdigest()
