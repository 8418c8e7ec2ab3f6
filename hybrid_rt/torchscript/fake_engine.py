"""Fake implementations of hybrid_rt's operators, which compute shapes and dtypes for torch.export and torch.compile."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..common.errors import InputError
from ..common.specs import UNBOUNDED, engine_name


@torch._library.register_fake_class("hybrid_rt::Engine")
class FakeEngine:
    """Replaces an Engine while a graph is recorded. It has the segments and the contract of the outputs."""

    def __init__(self, members: str, specs: str) -> None:
        """Creates the fake from the engine's fields. torch requires parameters with the names of ``__obj_flatten__``.

        Args:
            members: JSON array of the segments' dotted paths.
            specs: JSON array of artifact specs.
        """
        self.members = members
        self.specs = specs
        self.name = engine_name(json.loads(members))
        self.outputs = json.loads(specs)[0]["outputs"]

    @classmethod
    def __obj_unflatten__(cls, flat: Any) -> FakeEngine:
        """Creates the fake from the result of ``Engine.__obj_flatten__``."""
        return cls(**dict(flat))

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Returns empty tensors with the dtypes and shapes of the engine's outputs."""
        return _outputs(self, inputs)

    def segments(self) -> list[str]:
        """Returns the segments' dotted paths."""
        segments: list[str] = json.loads(self.members)
        return segments

    def _refuse(self, *_: Any) -> NoReturn:
        raise InputError.make(
            "engine",
            f"engine '{self.name}'",
            expected="only run() while torch.export or torch.compile records",
            got="another method",
            remedy="Prepare the engine outside of the traced code.",
        )

    fields = blobs = choice = prepare = _refuse


def _outputs(engine: FakeEngine, inputs: list[Tensor]) -> list[Tensor]:
    """Returns empty tensors of the specs' dtypes. Each dimension that the spec leaves free becomes a new symbol."""
    return [
        inputs[0].new_empty(
            [
                low if low == high else _new_size(engine, spec, low, high, inputs[0])
                for low, high in zip(spec["min"], spec["max"], strict=True)
            ],
            dtype=getattr(torch, spec["dtype"]),
        )
        for spec in engine.outputs
    ]


def _new_size(engine: FakeEngine, spec: dict[str, Any], low: int, high: int, example: Tensor) -> Any:
    if example.device.type == "meta" and not isinstance(example, FakeTensor):
        raise InputError.make(
            "engine",
            f"engine '{engine.name}', output '{spec['name']}'",
            expected="a fixed shape for meta tensors",
            got=f"sizes from {spec['min']} to {spec['max']}",
            remedy="Use torch.export or FakeTensorMode, which support symbolic sizes.",
        )
    return torch.library.get_ctx().new_dynamic_size(min=low, max=None if high == UNBOUNDED else high)


@torch.library.register_fake("hybrid_rt::run_engine")
def _run_engine(engine: Any, inputs: list[Tensor]) -> list[Tensor]:
    if isinstance(engine, torch.ScriptObject):  # with meta tensors
        return _outputs(FakeEngine.__obj_unflatten__(engine.__obj_flatten__()), inputs)
    return _outputs(engine.wrapped_obj, inputs)


@torch.library.register_fake("hybrid_rt::nms")
def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Returns indices of the kept boxes [K]; K depends on the values."""
    return dets.new_empty([torch.library.get_ctx().new_dynamic_size()], dtype=torch.int64)


@torch.library.register_fake("hybrid_rt::roi_align")
def _roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Returns the pooled values [number of rois, C, pooled_height, pooled_width]."""
    return input.new_empty([rois.shape[0], input.shape[1], pooled_height, pooled_width])


def _pooled(input: Tensor, rois: Tensor, channels: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
    sizes = [rois.shape[0], channels, height, width]
    return input.new_empty(sizes), input.new_empty(sizes, dtype=torch.int32)


@torch.library.register_fake("hybrid_rt::roi_pool")
def _roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Returns the largest values and the indices of their pixels, [number of rois, C, pooled_height, pooled_width]."""
    return _pooled(input, rois, input.shape[1], pooled_height, pooled_width)


@torch.library.register_fake("hybrid_rt::ps_roi_pool")
def _ps_roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int
) -> tuple[Tensor, Tensor]:
    """Returns the values and the channels that they come from; each bin has its own channels."""
    return _pooled(input, rois, input.shape[1] // (pooled_height * pooled_width), pooled_height, pooled_width)


@torch.library.register_fake("hybrid_rt::ps_roi_align")
def _ps_roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Returns the values and the channels that they come from, with the shapes of ps_roi_pool."""
    return _pooled(input, rois, input.shape[1] // (pooled_height * pooled_width), pooled_height, pooled_width)


@torch.library.register_fake("hybrid_rt::deform_conv2d")
def _deform_conv2d(input: Tensor, weight: Tensor, offset: Tensor, *_: Any) -> Tensor:
    """Returns [N, O, height, width], where the offsets have one entry per output pixel."""
    return input.new_empty([input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]])


def _chosen(example: Tensor, *trailing: int) -> Tensor:
    """Returns a tensor whose first size depends on the values."""
    return example.new_empty([torch.library.get_ctx().new_dynamic_size(), *trailing])


@torch.library.register_fake("hybrid_rt::batched_nms")
def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Returns indices of the kept boxes [K]."""
    return _chosen(idxs)


@torch.library.register_fake("hybrid_rt::ssd_detections")
def _ssd_detections(boxes: Tensor, scores: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes [K, 4], scores [K] and labels [K]."""
    found = _chosen(scores)
    return boxes.new_empty([found.shape[0], 4]), found, found.new_empty(found.shape, dtype=torch.int64)


@torch.library.register_fake("hybrid_rt::sigmoid_topk")
def _sigmoid_topk(logits: Tensor, score_thresh: float, topk_candidates: int) -> tuple[Tensor, Tensor]:
    """Returns scores [K] and their indices [K]."""
    scores = _chosen(logits)
    return scores, scores.new_empty(scores.shape, dtype=torch.int64)


@torch.library.register_fake("hybrid_rt::centered_sigmoid_topk")
def _centered_sigmoid_topk(logits: Tensor, centerness: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Returns scores [K] and their indices [K]."""
    return _sigmoid_topk(logits, 0.0, 0)


@torch.library.register_fake("hybrid_rt::class_probabilities")
def _class_probabilities(logits: Tensor) -> Tensor:
    """Returns probabilities of the shape of the logits."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("hybrid_rt::box_levels")
def _box_levels(boxes: Tensor, *_: Any) -> Tensor:
    """Returns one level per box, [K]."""
    return boxes.new_empty([boxes.shape[0]], dtype=torch.int64)


@torch.library.register_fake("hybrid_rt::multiscale_roi_align")
def _multiscale_roi_align(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: list[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> Tensor:
    """Returns the pooled values [number of rois, C, pooled_height, pooled_width]."""
    return rois.new_empty([rois.shape[0], features[0].shape[1], pooled_height, pooled_width])


@torch.library.register_fake("hybrid_rt::region_proposals")
def _region_proposals(objectness: list[Tensor], *_: Any) -> Tensor:
    """Returns boxes [K, 4]."""
    return _chosen(objectness[0], 4)


@torch.library.register_fake("hybrid_rt::box_detections")
def _box_detections(scores: Tensor, codes: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes [K, 4], scores [K] and labels [K]."""
    found = _chosen(scores)
    return codes.new_empty([found.shape[0], 4]), found, found.new_empty(found.shape, dtype=torch.int64)


@torch.library.register_fake("hybrid_rt::decoded_boxes")
def _decoded_boxes(codes: Tensor, boxes: Tensor, *_: Any) -> Tensor:
    """Returns one box per code, [K, 4]."""
    return boxes.new_empty(boxes.shape)


@torch.library.register_fake("hybrid_rt::default_boxes")
def _default_boxes(heights: list[int], widths: list[int], pairs: list[Tensor], *_: Any) -> Tensor:
    """Returns the boxes of all cells, [K, 4]."""
    cells = [height * width for height, width in zip(heights, widths, strict=True)]
    count = sum(each * pair.shape[0] for each, pair in zip(cells, pairs, strict=True))
    return pairs[0].new_empty([count, 4])


@torch.library.register_fake("hybrid_rt::normalized_batch")
def _normalized_batch(
    images: list[Tensor],
    mean: list[float],
    std: list[float],
    heights: list[int],
    widths: list[int],
    size_divisible: int,
) -> Tensor:
    """Returns the batch [N, C, height, width], large enough for the largest image."""
    height, width = (-(-max(sizes) // size_divisible) * size_divisible for sizes in (heights, widths))
    return images[0].new_empty([len(images), len(mean), height, width])
