"""Creates the modules that replace the segments while a head is recorded in Python.

A head in Python code may use anything that its segments have: methods, properties, parameters, submodules, the class.
Each stand-in is therefore a copy of the segment, of a subclass of its class, whose forward runs the engine and returns
the outputs in the segment's own containers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...capture.observe import arguments_of, structures_of
from ...capture.program import Member, Program
from ...common.errors import FusionError
from ...common.tensor_tree import map_tensors
from ...torchscript.engine import Engine
from .engine_module import compiled_check

_ENGINE = "hybrid_rt_engine"
"""Attribute that holds the engine, because torch.jit.trace records a TorchScript object only as an attribute."""

_STAND_IN = "hybrid_rt_stand_in"


class _Link:
    """The outputs of a program's engine in its last run, for the members after the first one."""

    def __init__(self) -> None:
        self.outputs: Sequence[Tensor] = ()


class _StandIn:
    """Computes the outputs of one member with its program's engine."""

    def __init__(self, program: Program, member: Member, link: _Link) -> None:
        self._program = program
        self._member = member
        self._link = link
        self._check = compiled_check(program, member)

    def __call__(self, replica: Replica, positional: tuple[Any, ...], keyword: dict[str, Any]) -> Any:
        member = self._member
        named = arguments_of(member.module, positional, keyword)
        structures = structures_of(named, member.name)
        if structures != member.inputs:
            raise member.misfit(
                name for name in {**structures, **member.inputs} if structures.get(name) != member.inputs.get(name)
            )
        tensors = [tensor for key, structure in structures.items() for tensor in structure.flatten(named[key])]
        if self._check is not None:
            tensors = self._check(tensors)
        if member.sources:
            self._check_handed_on(tensors)
        else:
            self._link.outputs = torch.ops.hybrid_rt.run_engine(vars(replica)[_ENGINE], tensors)
        own = iter(self._link.outputs[member.first : member.first + member.output.count])
        return map_tensors(member.returned, lambda _: next(own))

    def _check_handed_on(self, tensors: Sequence[Tensor]) -> None:
        """Makes the check of the operator ``handed_on`` now, because the recorded graph is fixed afterwards."""
        outputs = self._link.outputs
        for i, (tensor, source) in enumerate(zip(tensors, self._member.sources, strict=True)):
            if source >= len(outputs) or outputs[source] is not tensor:
                error = FusionError.make(
                    "capture",
                    f"segments '{self._program.name}'",
                    expected="the outputs of each to be passed on unchanged to the next",
                    got=f"another tensor as input {i} of '{self._member.name}'",
                    remedy="Convert with fuse=False to build one engine per segment.",
                    code="segments-not-one",
                )
                error.segments = self._program.segments
                raise error


class Replica:
    """Mixin that precedes a segment's class and replaces its forward."""

    def forward(self, *positional: Any, **keyword: Any) -> Any:
        """Runs the engine, with the arguments and results of the segment."""
        return vars(self)[_STAND_IN](self, positional, keyword)


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def replicas(program: Program, engine: Engine) -> dict[str, nn.Module]:
    """Returns a stand-in for each segment of the program, by the segment's name.

    The first one that is called runs the engine; the others return their part of its outputs.
    """
    link = _Link()
    return {member.name: _replica(program, member, engine, link) for member in program.members}


def _replica(program: Program, member: Member, engine: Engine, link: _Link) -> nn.Module:
    segment = member.module
    owner = type(segment)
    kind = type(owner.__name__, (Replica, owner), {"__module__": owner.__module__})
    replica: nn.Module = object.__new__(kind)
    vars(replica).update(vars(segment))
    vars(replica).pop("forward", None)
    vars(replica).update({name: OrderedDict() for name in _HOOKS})  # the engine does what they did
    vars(replica)[_STAND_IN] = _StandIn(program, member, link)
    if not member.sources:
        vars(replica)[_ENGINE] = engine
    return replica
