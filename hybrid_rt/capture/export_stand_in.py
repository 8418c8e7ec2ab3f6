"""An operator that stands for a segment while torch.export records the detector around it.

The TorchScript class of an engine can't tell the exporter how its outputs' sizes follow from its inputs', so the head
behind it could not compute with them. The stand-in runs the segment itself on tensors without values: sizes stay linked.
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

from ..common.errors import CaptureError
from ..common.structure import Flattened, Structure
from .program import Member

NAMESPACE = "hybrid_rt_export"
"""The stand-in is ``hybrid_rt_export::segment(Tensor[] inputs, str name) -> Tensor[]``."""

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define("segment(Tensor[] inputs, str name) -> Tensor[]")

_active: dict[str, Flattened] = {}
"""The segments of the detector that is being exported, by their dotted paths."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@torch.library.register_fake(f"{NAMESPACE}::segment", lib=_library)
def _segment(inputs: list[Tensor], name: str) -> list[Tensor]:
    """Runs the segment on tensors that have sizes only; returns fresh ones, as an operator has to."""
    return [output.new_empty(output.shape) for output in _active[name](*inputs)]


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
    passed = [name for name, value in given.items() if value is not None]
    if set(passed) != set(inputs):
        raise CaptureError.make(
            "capture",
            f"segment '{segment}'",
            expected=f"the arguments of the first call in every call: {', '.join(inputs)}",
            got=", ".join(passed),
            remedy="Name a smaller submodule in segments=.",
        )
    for name, structure in inputs.items():
        yield from structure.flatten(given[name])
