"""Equivalents of torchvision's methods that call operators of hybrid_rt. TorchScript compiles them.

Each returns the same results in the same order as torchvision's method. Other steps call torchvision's own functions,
so that they round in the same way.
"""

# ruff: noqa: B905  (TorchScript's zip has no strict=)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops
from torchvision.ops import poolers


def _is_plain(tensor: Tensor) -> bool:
    """Returns true for tensors that the operators of whole steps support. TorchScript compiles this function too."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _boxes_in_image(coder: BoxCoder, codes: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns decoded boxes [K, 4] that are clipped to an image of (height, width). TorchScript compiles it too."""
    if not _is_plain(codes) or not _is_plain(boxes):
        clipped: Tensor = box_ops.clip_boxes_to_image(coder.decode_single(codes, boxes), size)
        return clipped
    weights = coder.weights
    found: Tensor = torch.ops.hybrid_rt.decoded_boxes(
        codes,
        boxes,
        [size[0], size[1]],
        [float(weights[0]), float(weights[1]), float(weights[2]), float(weights[3])],
        float(coder.bbox_xform_clip),
    )
    return found


class SSDMethods:
    """Methods that replace those of ``SSD``."""

    box_coder: Any
    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int

    def postprocess_detections(
        self, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Replaces ``postprocess_detections``: processes all classes of an image in one pass."""
        all_scores: Tensor = torch.ops.hybrid_rt.class_probabilities(head_outputs["cls_logits"])
        found: list[dict[str, Tensor]] = []
        for codes, scores, anchors, shape in zip(
            head_outputs["bbox_regression"], all_scores, image_anchors, image_shapes
        ):
            boxes = _boxes_in_image(self.box_coder, codes, anchors, shape)
            kept_boxes, kept_scores, labels = torch.ops.hybrid_rt.ssd_detections(
                boxes,
                scores,
                float(self.score_thresh),
                int(self.topk_candidates),
                float(self.nms_thresh),
                int(self.detections_per_img),
            )
            found.append({"boxes": kept_boxes, "scores": kept_scores, "labels": labels})
        return found


class DenseMethods:
    """Methods that replace those of ``RetinaNet`` and ``FCOS``; the two differ in ``candidates`` and ``decoded``."""

    box_coder: Any
    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int
    candidates: Callable[[dict[str, list[Tensor]], int, int], tuple[Tensor, Tensor]]
    decoded: Callable[[Tensor, Tensor, tuple[int, int]], Tensor]

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Replaces ``postprocess_detections``: selects candidates directly from the logits."""
        logits, codes = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        found: list[dict[str, Tensor]] = []
        for image, shape in enumerate(image_shapes):
            boxes: list[Tensor] = []
            scores: list[Tensor] = []
            labels: list[Tensor] = []
            for level, level_anchors in enumerate(anchors[image]):
                classes = logits[level].shape[-1]
                best, indices = self.candidates(head_outputs, level, image)
                rows = torch.div(indices, classes, rounding_mode="floor")
                boxes.append(self.decoded(codes[level][image][rows], level_anchors[rows], shape))
                scores.append(best)
                labels.append(indices % classes)
            all_boxes, all_scores, all_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
            keep = torch.ops.hybrid_rt.batched_nms(all_boxes, all_scores, all_labels, float(self.nms_thresh))
            keep = keep[: int(self.detections_per_img)]
            found.append({"boxes": all_boxes[keep], "scores": all_scores[keep], "labels": all_labels[keep]})
        return found


class RetinaNetMethods(DenseMethods):
    """Methods that ``DenseMethods`` calls in a ``RetinaNet``."""

    def candidates(self, head_outputs: dict[str, list[Tensor]], level: int, image: int) -> tuple[Tensor, Tensor]:
        """Returns the best scores of an image on a level, and their indices among all logits there."""
        found: tuple[Tensor, Tensor] = torch.ops.hybrid_rt.sigmoid_topk(
            head_outputs["cls_logits"][level][image], float(self.score_thresh), int(self.topk_candidates)
        )
        return found

    def decoded(self, codes: Tensor, anchors: Tensor, shape: tuple[int, int]) -> Tensor:
        """Returns the boxes of anchors in an image of (height, width)."""
        return _boxes_in_image(self.box_coder, codes, anchors, shape)


class FCOSMethods(DenseMethods):
    """Methods that ``DenseMethods`` calls in an ``FCOS``."""

    def candidates(self, head_outputs: dict[str, list[Tensor]], level: int, image: int) -> tuple[Tensor, Tensor]:
        """Returns the best scores of an image on a level, weighted by centerness, and their indices."""
        logits, centerness = head_outputs["cls_logits"][level][image], head_outputs["bbox_ctrness"][level][image]
        found: tuple[Tensor, Tensor] = torch.ops.hybrid_rt.centered_sigmoid_topk(
            logits, centerness, float(self.score_thresh), int(self.topk_candidates)
        )
        return found

    def decoded(self, codes: Tensor, anchors: Tensor, shape: tuple[int, int]) -> Tensor:
        """Returns the boxes of anchors in an image of (height, width)."""
        boxes: Tensor = box_ops.clip_boxes_to_image(self.box_coder.decode(codes, anchors), shape)
        return boxes


class RoIHeadsMethods:
    """Methods that replace those of ``RoIHeads``."""

    box_coder: Any
    score_thresh: float
    nms_thresh: float
    detections_per_img: int

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Replaces ``postprocess_detections``: decodes only boxes whose score passes the threshold."""
        rows, classes = class_logits.shape[0], class_logits.shape[1]
        counts = [boxes.shape[0] for boxes in proposals]
        probabilities: Tensor = torch.ops.hybrid_rt.class_probabilities(class_logits)
        all_scores = torch.split(probabilities, counts)
        all_codes = torch.split(box_regression.reshape(rows, classes * 4), counts)
        found_boxes: list[Tensor] = []
        found_scores: list[Tensor] = []
        found_labels: list[Tensor] = []
        for scores, codes, image_proposals, shape in zip(all_scores, all_codes, proposals, image_shapes):
            if _is_plain(scores) and _is_plain(codes) and _is_plain(image_proposals):
                weights = self.box_coder.weights
                boxes, best, label = torch.ops.hybrid_rt.box_detections(
                    scores,
                    codes,
                    image_proposals,
                    [shape[0], shape[1]],
                    float(self.score_thresh),
                    float(self.nms_thresh),
                    int(self.detections_per_img),
                    [float(weights[0]), float(weights[1]), float(weights[2]), float(weights[3])],
                    float(self.box_coder.bbox_xform_clip),
                )
            else:
                passing = torch.nonzero(scores[:, 1:] > self.score_thresh)
                row, label = passing[:, 0], passing[:, 1] + 1
                best = scores[row, label]
                chosen = codes.reshape(-1, classes, 4)[row, label]
                boxes = self.box_coder.decode_single(chosen, image_proposals[row])
                boxes = box_ops.clip_boxes_to_image(boxes, shape)
                large = box_ops.remove_small_boxes(boxes, min_size=1e-2)
                boxes, best, label = boxes[large], best[large], label[large]
                keep = torch.ops.hybrid_rt.batched_nms(boxes, best, label, float(self.nms_thresh))
                keep = keep[: int(self.detections_per_img)]
                boxes, best, label = boxes[keep], best[keep], label[keep]
            found_boxes.append(boxes)
            found_scores.append(best)
            found_labels.append(label)
        return found_boxes, found_scores, found_labels


class RPNMethods:
    """Methods that replace those of ``RegionProposalNetwork``."""

    head: Any
    anchor_generator: Any
    box_coder: Any
    pre_nms_top_n: Callable[[], int]
    post_nms_top_n: Callable[[], int]
    min_size: float
    score_thresh: float
    nms_thresh: float
    proposals: Callable[[ImageList, list[Tensor], list[Tensor], list[Tensor]], list[Tensor]]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: Optional[list[dict[str, Tensor]]] = None,  # noqa: UP045  (TorchScript reads it)
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Replaces ``forward`` in eval mode: decodes only the best proposals of each level."""
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        losses: dict[str, Tensor] = {}
        return self.proposals(images, maps, objectness, deltas), losses

    def composed_proposals(
        self, images: ImageList, maps: list[Tensor], objectness: list[Tensor], deltas: list[Tensor]
    ) -> list[Tensor]:
        """Returns the proposals of each image, computed with torch's operators."""
        anchors = self.anchor_generator(images, maps)
        found: list[Tensor] = []
        for image, shape in enumerate(images.image_sizes):
            logits: list[Tensor] = []
            codes: list[Tensor] = []
            places: list[Tensor] = []
            first = 0
            for level_objectness, level_deltas in zip(objectness, deltas):
                count, height, width = level_objectness[image].shape
                # Anchors are numbered pixel by pixel, as in torchvision, because ties are broken by this order.
                flat = level_objectness[image].permute(1, 2, 0).reshape(-1)
                best, indices = flat.topk(min(int(self.pre_nms_top_n()), flat.shape[0]))
                pixel = torch.div(indices, count, rounding_mode="floor")
                by_anchor = level_deltas[image].reshape(count, 4, height * width)
                logits.append(best)
                codes.append(by_anchor[indices % count, :, pixel])
                places.append(indices + first)
                first += flat.shape[0]
            levels = torch.cat([torch.full_like(place, level) for level, place in enumerate(places)])
            boxes = self.box_coder.decode_single(torch.cat(codes), anchors[image][torch.cat(places)])
            boxes = box_ops.clip_boxes_to_image(boxes, shape)
            scores = torch.sigmoid(torch.cat(logits))
            large = box_ops.remove_small_boxes(boxes, self.min_size)
            boxes, scores, levels = boxes[large], scores[large], levels[large]
            passing = torch.where(scores >= self.score_thresh)[0]
            boxes, scores, levels = boxes[passing], scores[passing], levels[passing]
            keep = torch.ops.hybrid_rt.batched_nms(boxes, scores, levels, float(self.nms_thresh))
            found.append(boxes[keep[: int(self.post_nms_top_n())]])
        return found


class GridRPNMethods(RPNMethods):
    """Methods that ``RPNMethods`` calls if the anchors are those of an ``AnchorGenerator``."""

    def proposals(
        self, images: ImageList, maps: list[Tensor], objectness: list[Tensor], deltas: list[Tensor]
    ) -> list[Tensor]:
        """Returns the proposals of each image, computed in one operator if it supports the network's outputs."""
        is_known = len(maps) == len(objectness)
        for level_map, logits, codes in zip(maps, objectness, deltas):
            is_known = is_known and _is_plain(level_map) and _is_plain(logits) and _is_plain(codes)
            is_known = is_known and level_map.shape[-2:] == logits.shape[-2:]
        if not is_known:
            return self.composed_proposals(images, maps, objectness, deltas)
        cells = [cell.to(dtype=maps[0].dtype, device=maps[0].device) for cell in self.anchor_generator.cell_anchors]
        weights = self.box_coder.weights
        found: list[Tensor] = []
        for image, shape in enumerate(images.image_sizes):
            proposals: Tensor = torch.ops.hybrid_rt.region_proposals(
                objectness,
                deltas,
                cells,
                image,
                images.tensors.shape[-2:],
                [shape[0], shape[1]],
                int(self.pre_nms_top_n()),
                int(self.post_nms_top_n()),
                float(self.min_size),
                float(self.score_thresh),
                float(self.nms_thresh),
                [float(weights[0]), float(weights[1]), float(weights[2]), float(weights[3])],
                float(self.box_coder.bbox_xform_clip),
            )
            found.append(proposals)
        return found


class PoolerMethods:
    """Methods that replace those of ``MultiScaleRoIAlign``."""

    featmap_names: list[str]
    output_size: tuple[int, int]
    sampling_ratio: int
    scales: list[float] | None
    map_levels: Any
    canonical_scale: int
    canonical_level: int
    levels: Callable[[poolers.LevelMapper, list[Tensor], Tensor], Tensor]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Replaces ``forward``: pools each box from its level directly into the result."""
        maps = poolers._filter_input(x, self.featmap_names)
        if self.scales is None or self.map_levels is None:
            self.scales, self.map_levels = poolers._setup_scales(
                maps, image_shapes, self.canonical_scale, self.canonical_level
            )
        scales, mapper = self.scales, self.map_levels
        if scales is None or mapper is None:
            raise ValueError("scales and mapper should not be None")
        rois = poolers._convert_to_roi_format(boxes)
        if len(maps) == 1:
            levels = torch.zeros([rois.shape[0]], dtype=torch.int64, device=rois.device)
        else:
            levels = self.levels(mapper, boxes, rois)
        pooled: Tensor = torch.ops.hybrid_rt.multiscale_roi_align(
            maps, rois, levels, scales, self.output_size[0], self.output_size[1], self.sampling_ratio
        )
        return pooled

    def mapped_levels(self, mapper: poolers.LevelMapper, boxes: list[Tensor], rois: Tensor) -> Tensor:
        """Returns the level of each box, computed by the pooler's own mapper."""
        levels: Tensor = mapper(boxes)
        return levels


class LevelledPoolerMethods(PoolerMethods):
    """Methods that ``PoolerMethods`` calls if the levels are those of a ``LevelMapper``."""

    def levels(self, mapper: poolers.LevelMapper, boxes: list[Tensor], rois: Tensor) -> Tensor:
        """Returns the level of each box, computed in one operator."""
        levels: Tensor = torch.ops.hybrid_rt.box_levels(
            rois[:, 1:], mapper.k_min, mapper.k_max, mapper.s0, mapper.lvl0, mapper.eps
        )
        return levels


class DefaultBoxMethods:
    """Methods that replace those of ``DefaultBoxGenerator``."""

    steps: list[int] | None
    clip: bool
    _wh_pairs: list[Tensor]
    composed_forward: Callable[[ImageList, list[Tensor]], list[Tensor]]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Replaces ``forward``: computes the anchors of an image in one operator, on the CPU as torchvision does.

        The pairs may be on another device, because ``load(device="cuda")`` moves them.
        """
        if feature_maps[0].dtype != torch.float32:
            return self.composed_forward(image_list, feature_maps)
        heights = [feature_map.shape[-2] for feature_map in feature_maps]
        widths = [feature_map.shape[-1] for feature_map in feature_maps]
        steps: list[int] = []
        if self.steps is not None:
            steps = self.steps
        pairs = [pair.cpu() for pair in self._wh_pairs]
        found: list[Tensor] = []
        for _ in image_list.image_sizes:
            boxes: Tensor = torch.ops.hybrid_rt.default_boxes(
                heights, widths, pairs, image_list.tensors.shape[-2:], steps, self.clip
            )
            found.append(boxes.to(feature_maps[0].device))
        return found


class TransformMethods:
    """Methods that replace those of ``GeneralizedRCNNTransform``."""

    image_mean: list[float]
    image_std: list[float]

    def normalize(self, image: Tensor) -> Tensor:
        """Replaces ``normalize``: allocates one new image, not two."""
        if not image.is_floating_point():
            raise TypeError(
                f"Expected input images to be of floating type (in range [0, 1]), but found type {image.dtype} instead"
            )
        mean = torch.as_tensor(self.image_mean, dtype=image.dtype, device=image.device)
        std = torch.as_tensor(self.image_std, dtype=image.dtype, device=image.device)
        return (image - mean[:, None, None]).div_(std[:, None, None])

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Replaces ``batch_images``: fills only the margins, and returns a single image without margins uncopied."""
        channels, height, width = 0, 0, 0
        for image in images:
            channels = max(channels, image.shape[0])
            height, width = max(height, image.shape[1]), max(width, image.shape[2])
        stride = float(size_divisible)
        height = int(math.ceil(float(height) / stride) * stride)
        width = int(math.ceil(float(width) / stride) * stride)
        first = images[0]
        if len(images) == 1 and first.shape[1] == height and first.shape[2] == width:
            return first.unsqueeze(0).contiguous()
        batch = first.new_empty([len(images), channels, height, width])
        for place, image in zip(batch, images):
            place[image.shape[0] :].zero_()
            place[:, image.shape[1] :].zero_()
            place[:, :, image.shape[2] :].zero_()
            place[: image.shape[0], : image.shape[1], : image.shape[2]].copy_(image)
        return batch


class BatchMethods:
    """Methods that replace those of ``GeneralizedRCNNTransform`` for images without targets."""

    image_mean: list[float]
    image_std: list[float]
    size_divisible: int
    resized: Callable[[int, int], tuple[int, int]]
    composed_forward: Callable[..., tuple[ImageList, Any]]

    def forward(
        self,
        images: list[Tensor],
        targets: Optional[list[dict[str, Tensor]]] = None,  # noqa: UP045  (TorchScript reads it)
    ) -> tuple[ImageList, Optional[list[dict[str, Tensor]]]]:  # noqa: UP045
        """Replaces ``forward``: normalises, resizes and pads in one operator."""
        is_known = targets is None and len(images) > 0
        heights: list[int] = []
        widths: list[int] = []
        sizes: list[tuple[int, int]] = []
        for image in images:
            is_known = is_known and image.dim() == 3 and _is_plain(image) and image.numel() > 0
            is_known = is_known and image.shape[0] == len(self.image_mean)
            if is_known:
                height, width = self.resized(image.shape[1], image.shape[2])
                is_known = height > 0 and width > 0
                heights.append(height)
                widths.append(width)
                sizes.append((height, width))
        if not is_known:
            return self.composed_forward(images, targets)
        batch: Tensor = torch.ops.hybrid_rt.normalized_batch(
            images, self.image_mean, self.image_std, heights, widths, self.size_divisible
        )
        return ImageList(batch, sizes), targets


class ExactSize:
    """Computes the size to which ``ExactTransform`` resizes an image."""

    min_size: tuple[int, ...]
    max_size: int

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns the new height and width in pixels."""
        size = float(self.min_size[-1])
        scale = min(size / float(min(height, width)), float(self.max_size) / float(max(height, width)))
        return math.floor(float(height) * scale), math.floor(float(width) * scale)


class FixedSize:
    """Returns the size to which ``GeneralizedRCNNTransform`` resizes each image if ``fixed_size`` is set."""

    fixed_size: tuple[int, int] | None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns the new height and width in pixels."""
        size = self.fixed_size
        if size is None:
            return height, width  # never happens: the class is used only with a fixed size
        return size[1], size[0]
