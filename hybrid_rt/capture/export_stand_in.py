"""Operators that replace segments and torchvision's nms while torch.export records a detector.

Segments: an engine's TorchScript class can't derive the sizes of its outputs from those of its inputs, so the exporter
could not compute with them in the head. The replacement runs the segment itself on tensors without values, which
preserves the relation between the sizes.

torchvision's nms and batched_nms: torch.export would record the first as if it always kept at least two boxes, and the
second branches on the number of boxes. The first is replaced by hybrid_rt's nms; TorchScript compiles the second as it
is. The decoding and pooling of boxes branch on their number too, and the batch of images on their sizes; they get
equivalents that do not.

torch.linspace: its operator takes a fixed number of steps; a free one is computed from torch.arange.
"""

from __future__ import annotations

import collections
import copy
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, nms, poolers

from ..common.errors import CaptureError, SegmentError
from ..common.structure import Flattened, Structure, structure_of
from ..common.tensor_tree import map_tensors
from .observe import arguments_of
from .program import Member

SEGMENT = "hybrid_rt_export::segment"
BATCHED_NMS = "hybrid_rt_export::batched_nms"
MULTISCALE_ROI_ALIGN = "hybrid_rt_export::multiscale_roi_align"
"""hybrid_rt's operator, with scales that may be computed from sizes."""

_library: Any = torch.library.Library("hybrid_rt_export", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("segment(Tensor[] inputs, str name) -> Tensor[]")
_library.define(
    "multiscale_roi_align(Tensor[] features, Tensor rois, Tensor levels, Scalar[] scales, int pooled_height, "
    "int pooled_width, int sampling_ratio) -> Tensor"
)
_library.define("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor")

_active: dict[str, Flattened] = {}
"""The segments of the detector that is being exported, by their dotted paths."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_MODULE_STATE = ("_parameters", "_buffers", "_modules")

_CONTAINERS = (dict, list, tuple, set)


def _segment(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Runs the segment; returns fresh tensors, as an operator has to."""
    return [output.clone() for output in _active[name](*inputs)]


_library.impl("segment", _segment, "CompositeExplicitAutograd")


_own_batched_nms = types.FunctionType(batched_nms.__code__, batched_nms.__globals__)
"""A copy of torchvision's function, which stays usable while the original is replaced."""

_library.impl("batched_nms", _own_batched_nms, "CompositeExplicitAutograd")


def _multiscale_roi_align(
    features: list[Tensor], rois: Tensor, levels: Tensor, scales: list[float], height: int, width: int, ratio: int
) -> Tensor:
    pooled: Tensor = torch.ops.hybrid_rt.multiscale_roi_align(
        features, rois, levels, [*map(float, scales)], height, width, ratio
    )
    return pooled


_library.impl("multiscale_roi_align", _multiscale_roi_align, "CompositeExplicitAutograd")


@torch.library.register_fake(MULTISCALE_ROI_ALIGN, lib=_library)  # type: ignore[untyped-decorator]
def _pooled_sizes(
    features: list[Tensor], rois: Tensor, levels: Tensor, scales: list[Any], height: int, width: int, ratio: int
) -> Tensor:
    """Returns the pooled values [number of rois, C, height, width]."""
    return rois.new_empty([rois.shape[0], features[0].shape[1], height, width])


@torch.library.register_fake(SEGMENT, lib=_library)  # type: ignore[untyped-decorator]
def _segment_sizes(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Runs the segment on tensors without values, and returns tensors of its outputs' sizes."""
    return [output.new_empty(output.shape) for output in _active[name](*inputs)]


@torch.library.register_fake(BATCHED_NMS, lib=_library)  # type: ignore[untyped-decorator]
def _batched_nms_sizes(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Returns the indices of the kept boxes; their number depends on the data."""
    return boxes.new_empty([torch.library.get_ctx().new_dynamic_size()], dtype=torch.int64)


def _decode(self: BoxCoder, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Decodes boxes without the original's branch on their number, which reshapes nothing if there is none."""
    decoded = self.decode_single(rel_codes, torch.cat(boxes))
    return decoded.reshape(decoded.shape[0], decoded.shape[1] // 4, 4)  # type: ignore[no-any-return]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.ops.hybrid_rt.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return torch.ops.hybrid_rt_export.batched_nms(boxes, scores, idxs, iou_threshold)  # type: ignore[no-any-return]


def _pooled(
    x_filtered: list[Tensor], boxes: list[Tensor], output_size: Any, sampling_ratio: int, scales: Any, mapper: Any
) -> Tensor:
    """Pools all boxes in one operator. The original writes to the rows of a level, whose number depends on values."""
    rois = poolers._convert_to_roi_format(boxes)
    if len(x_filtered) == 1:
        return poolers.roi_align(x_filtered[0], rois, output_size, scales[0], sampling_ratio)  # type: ignore[no-any-return]
    return torch.ops.hybrid_rt_export.multiscale_roi_align(  # type: ignore[no-any-return]
        x_filtered, rois, mapper(boxes), scales, output_size[0], output_size[1], sampling_ratio
    )


_largest: Any = torch.sym_max


def _batched(self: GeneralizedRCNNTransform, images: list[Tensor], size_divisible: int = 32) -> Tensor:
    """Pads images to one size. The original writes into parts of a batch, whose strides depend on the padding."""
    height, width = (
        -(-functools.reduce(_largest, [image.shape[d] for image in images]) // size_divisible) * size_divisible
        for d in (1, 2)
    )
    padded = []
    for image in images:
        wide = torch.cat([image, image.new_zeros([image.shape[0], image.shape[1], width - image.shape[2]])], 2)
        padded.append(torch.cat([wide, wide.new_zeros([image.shape[0], height - image.shape[1], width])], 1))
    return torch.stack(padded)


_fixed_linspace = torch.linspace


def _linspace(start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """Computes torch.linspace for a free number of steps, from both ends as torch does."""
    if not isinstance(steps, torch.SymInt):
        return _fixed_linspace(start, end, steps, **options)
    dtype = options.pop("dtype", None) or torch.get_default_dtype()
    last = _largest(steps - 1, 1)
    step = (end - start) / last
    places = torch.arange(steps, dtype=dtype, **options)
    return torch.where(places < steps // 2, start + places * step, end - (last - places) * step)


@contextmanager
def _as_operators() -> Iterator[None]:
    """Replaces torchvision's functions with operators, also in modules that imported them by name."""
    replaced = {nms: _nms, batched_nms: _batched_nms}
    codes = {function: function.__code__ for function in replaced}
    methods: list[tuple[Any, str, Any]] = [
        (BoxCoder, "decode", _decode),
        (poolers, "_multiscale_roi_align", _pooled),
        (torch, "linspace", _linspace),
        (GeneralizedRCNNTransform, "batch_images", _batched),
    ]
    before = [getattr(owner, name) for owner, name, _ in methods]
    try:
        for function, other in replaced.items():
            function.__code__ = other.__code__
        for owner, name, method in methods:
            setattr(owner, name, method)
        yield
    finally:
        for (owner, name, _), method in zip(methods, before, strict=True):
            setattr(owner, name, method)
        for function, code in codes.items():
            function.__code__ = code


@contextmanager
def stand_ins(detector: nn.Module, members: Sequence[Member]) -> Iterator[nn.Module]:
    """Yields a copy of a detector that calls an operator for each segment; weights are shared.

    Assignments to attributes of the copy do not affect the detector. A segment keeps its class, attributes and methods,
    because the head may use them.

    Raises:
        SegmentError: At the end of the block, if the arguments of a segment differ from those on the example.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*detector.parameters(), *detector.buffers())}
    copied = _deep_copy(detector, memo)
    for module in copied.modules():
        for hooks in (getattr(module, name) for name in _HOOKS):
            hooks.update((key, _knowing_copies(hook, memo)) for key, hook in hooks.items())
    try:
        misfits: dict[str, SegmentError] = {}
        for member in members:
            _replace_forward(copied.get_submodule(member.name), member, misfits)
        with _as_operators():
            yield copied
        for error in misfits.values():
            raise error
    finally:
        for member in members:
            _active.pop(member.name, None)


def _deep_copy(detector: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Returns a copy that shares the objects in ``memo``, and attributes that can't be copied, such as locks and files.

    Adds the copies to ``memo``.
    """
    trial = dict(memo)
    try:
        copied = copy.deepcopy(detector, trial)
        memo.update(trial)
        return copied
    except Exception:  # the class of an attribute may raise anything
        for module in detector.modules():
            for name, value in vars(module).items():
                if name not in _MODULE_STATE:
                    _share(value, memo)
    return copy.deepcopy(detector, memo)


def _share(value: Any, memo: dict[int, Any]) -> None:
    """Adds to ``memo`` the parts of a value that can't be copied."""
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # as above
        parts = [*(value.values() if isinstance(value, dict) else value)] if isinstance(value, _CONTAINERS) else []
        if not parts:
            memo[id(value)] = value
        for part in parts:
            _share(part, memo)


def _knowing_copies(hook: Any, memo: Mapping[int, Any]) -> Any:
    """Returns a hook that refers to the copied modules, because deepcopy() does not copy functions and their state."""
    if not isinstance(hook, types.FunctionType) or not hook.__closure__:
        return hook
    cells = tuple(types.CellType(memo.get(id(cell.cell_contents), cell.cell_contents)) for cell in hook.__closure__)
    copied = types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, cells)
    copied.__kwdefaults__ = hook.__kwdefaults__
    return copied


def _replace_forward(module: nn.Module, member: Member, misfits: dict[str, SegmentError]) -> None:
    itself = copy.copy(module)
    for name in _HOOKS:  # forward() below is called with them, and the engine has what they do
        setattr(module, name, collections.OrderedDict())
    _active[member.name] = Flattened(itself, member.inputs, member.output)

    def forward(*arguments: Any, **keywords: Any) -> Any:
        try:
            inputs = _flat_inputs(member, itself, arguments, keywords)
        except SegmentError as error:
            misfits[member.name] = error
            return itself(*arguments, **keywords)  # to find the others
        outputs = iter(torch.ops.hybrid_rt_export.segment(inputs, member.name))
        return map_tensors(member.returned, lambda _: next(outputs))

    module.forward = forward


def _flat_inputs(
    member: Member, itself: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]
) -> list[Tensor]:
    """Returns the tensors of a call.

    Raises:
        SegmentError: The structure of the arguments differs from that of the recorded call.
    """
    named = arguments_of(itself, positional, keyword)
    others = [name for name in (*named, *member.inputs) if not _is_as_recorded(name, named, member.inputs)]
    if others:
        raise member.misfit(dict.fromkeys(others))
    return [tensor for name, structure in member.inputs.items() for tensor in structure.flatten(named[name])]


def _is_as_recorded(name: str, named: Mapping[str, Any], inputs: Mapping[str, Structure]) -> bool:
    if name not in named or name not in inputs:
        return False
    try:
        return structure_of(named[name], name, constants=True) == inputs[name]
    except CaptureError:  # a size that is free
        return False
