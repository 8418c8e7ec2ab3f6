"""Operators that stand for what torch.export shall not look into while it records a detector.

Segments: the TorchScript class of an engine can't tell the exporter how its outputs' sizes follow from its inputs', so
the head behind it could not compute with them. The stand-in runs the segment itself on tensors without values, which
keeps the sizes linked.

torchvision's nms and batched_nms: the first is recorded as if it kept two boxes or more, the second branches on the
number of boxes. hybrid_rt's own takes the place of the first; TorchScript compiles the second as it is.
"""

from __future__ import annotations

import collections
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, nms

from ..common.errors import CaptureError
from ..common.structure import Flattened, Structure, structure_of
from ..common.tensor_tree import tensors_in
from .program import Member

SEGMENT = "hybrid_rt_export::segment"
BATCHED_NMS = "hybrid_rt_export::batched_nms"

_library: Any = torch.library.Library("hybrid_rt_export", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("segment(Tensor[] inputs, str name) -> Tensor[]")
_library.define("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor")

_active: dict[str, Flattened] = {}
"""The segments of the detector that is being exported, by their dotted paths."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _segment(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Runs the segment; returns fresh tensors, as an operator has to."""
    return [output.clone() for output in _active[name](*inputs)]


_library.impl("segment", _segment, "CompositeExplicitAutograd")


@torch.library.register_fake(SEGMENT, lib=_library)  # type: ignore[untyped-decorator]
def _segment_sizes(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Runs the segment on tensors that have sizes only."""
    return [output.new_empty(output.shape) for output in _active[name](*inputs)]


@torch.library.register_fake(BATCHED_NMS, lib=_library)  # type: ignore[untyped-decorator]
def _batched_nms_sizes(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the kept boxes: as many as the data says."""
    return boxes.new_empty([torch.library.get_ctx().new_dynamic_size()], dtype=torch.int64)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.ops.hybrid_rt.nms(boxes, scores, iou_threshold)  # type: ignore[no-any-return]


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return torch.ops.hybrid_rt_export.batched_nms(boxes, scores, idxs, iou_threshold)  # type: ignore[no-any-return]


@contextmanager
def _as_operators() -> Iterator[None]:
    """Within it torchvision's functions call operators, also in modules that imported them by their names."""
    replaced = {nms: _nms, batched_nms: _batched_nms}
    codes = {function: function.__code__ for function in replaced}
    try:
        for function, other in replaced.items():
            function.__code__ = other.__code__
        yield
    finally:
        for function, code in codes.items():
            function.__code__ = code


@contextmanager
def stand_ins(detector: nn.Module, members: Sequence[Member]) -> Iterator[nn.Module]:
    """Yields a copy of a detector that calls the stand-in for each segment; weights are shared.

    All that the code of the copy assigns to attributes stays there: the detector is as before. A segment keeps its
    class, attributes and methods, for a head that asks for them.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*detector.parameters(), *detector.buffers())}
    copied = copy.deepcopy(detector, memo)
    try:
        for member in members:
            _replace_forward(copied.get_submodule(member.name), member)
        with _as_operators():
            yield copied
    finally:
        for member in members:
            _active.pop(member.name, None)


def _replace_forward(module: nn.Module, member: Member) -> None:
    signature = inspect.signature(module.forward)
    itself = copy.copy(module)
    for name in _HOOKS:  # forward() below is called with them, and the engine has what they do
        setattr(module, name, collections.OrderedDict())
    _active[member.name] = Flattened(itself, member.inputs, member.output)

    def forward(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords).arguments
        inputs = list(_flat_inputs(member.name, given, member.inputs))
        outputs = torch.ops.hybrid_rt_export.segment(inputs, member.name)
        return member.output.unflatten(iter(outputs))

    module.forward = forward


def _flat_inputs(segment: str, given: Mapping[str, Any], inputs: Mapping[str, Structure]) -> Iterator[Tensor]:
    """Yields the tensors of a call.

    Raises:
        CaptureError: the call passes others than the one that was recorded.
    """
    others = [name for name, value in given.items() if name not in inputs and next(tensors_in(value), None) is not None]
    for name, structure in inputs.items():
        if name not in given or structure_of(given[name], f"segment '{segment}', input '{name}'") != structure:
            others.append(name)
    if others:
        raise CaptureError.make(
            "capture",
            f"segment '{segment}'",
            expected=f"the arguments of the first call in every call: {', '.join(inputs)}",
            got=f"another {', '.join(others)}",
            remedy="Name a smaller submodule in segments=.",
            code="calls-differ",
        )
    for name, structure in inputs.items():
        yield from structure.flatten(given[name])
