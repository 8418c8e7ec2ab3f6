"""The modules that stand in the segments' places: they take and return what the segments did, and run the engine."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

from ...bundle.blob_table import Packed, pack
from ...capture.program import Member, Program
from ...common.errors import BackendError
from ...common.specs import Artifact
from ...torchscript import jit
from ...torchscript.engine import Engine
from ...torchscript.generated_module import generated_class


class EngineModule(nn.Module):
    """Base of the generated modules: holds the TorchScript class ``hybrid_rt.Engine``."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: see :func:`make_engine`."""
        super().__init__()
        self.engine = engine


_TEMPLATE = '''\
class Generated(EngineModule):
    """{docstring}"""

    def forward(self, {parameters}) -> {returned}:
        {checks}
        inputs = [{inputs}]
        outputs = {call}
        return {result}
'''

_RUN = "torch.ops.hybrid_rt.run_engine(self.engine, inputs)"

# Which engine's outputs these are is put in by torchscript.connect: the modules can't know of each other.
_HANDED_ON = (
    "torch.ops.hybrid_rt.handed_on(torch.jit.annotate(List[Tensor], []), inputs, {segment!r}, {sources}, "
    "{first}, {count})"
)


def make_engine(segments: Sequence[str], packed: Packed) -> Engine:
    """Makes the TorchScript class ``hybrid_rt.Engine`` with these variants, best first; it is not prepared.

    Args:
        segments: the dotted paths of the submodules that it stands for.
        packed: the variants and their bytes.
    """
    fields = {
        "segments": json.dumps(list(segments)),
        "variants": json.dumps([asdict(variant) for variant in packed.variants]),
        "table": json.dumps([asdict(entry) for entry in packed.entries]),
    }
    engine: Engine = torch.classes.hybrid_rt.Engine(fields, packed.table)
    return engine


def prepare(
    engine: Engine, backend: str = "", *, device: torch.device | str = "cpu", emulate_precision: bool = False
) -> None:
    """Chooses a variant and loads it; see :func:`hybrid_rt.load` for the arguments.

    Raises:
        BackendError: none can run there; the text has each one's reason.
    """
    try:
        engine.prepare(backend, torch.device(device), 0, emulate_precision)
    except RuntimeError as error:  # what TorchScript makes of the C++ one
        raise BackendError(str(error)) from error


def run_flat(engine: Engine, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Runs an engine on flat tensors, outside of any module."""
    outputs: list[torch.Tensor] = torch.ops.hybrid_rt.run_engine(engine, list(inputs))
    return outputs


def _length_check(segment: str, expression: str, length: int) -> str:
    text = f"hybrid_rt[engine]: segment '{segment}', {expression}: expected {length} entries, got "
    return f"assert len({expression}) == {length}, {text!r} + str(len({expression})) + '.'"


def engine_modules(program: Program, engine: Engine) -> dict[str, EngineModule]:
    """A scriptable module for each segment of the program, with any nest of lists, tuples and dicts of tensors.

    The first one runs the engine; a later one takes its outputs from among those, once the two are connected in the
    head's graph (:func:`hybrid_rt.torchscript.jit.connect`).
    """
    return {member.name: _module(program, member, engine, EngineModule) for member in program.members}


_Module = TypeVar("_Module", bound=EngineModule)


def engine_module(program: Program, artifacts: list[Artifact]) -> EngineModule:
    """Returns the module of a program of one segment, with a new engine of these variants."""
    return single_module(program, make_engine(program.segments, pack(artifacts)), EngineModule)


def single_module(program: Program, engine: Engine, base: type[_Module]) -> _Module:
    """Returns the module of a program of one segment, a subclass of ``base``."""
    return _module(program, program.members[0], engine, base)


def _none_check(segment: str, name: str) -> str:
    text = f"hybrid_rt[engine]: segment '{segment}', {name}: expected None, as in the example, got a tensor."
    return f"assert {name} is None, {text!r}"


def _module(program: Program, member: Member, engine: Engine, base: type[_Module]) -> _Module:
    left_out = _left_out(member)
    checks = [_none_check(member.name, name) for name in left_out]
    checks += [
        _length_check(member.name, expression, length)
        for key, structure in member.inputs.items()
        for expression, length in structure.lengths(key)
    ]
    call = _RUN
    if member.sources:
        call = _HANDED_ON.format(
            segment=program.name, sources=list(member.sources), first=member.first, count=member.output.count
        )
    source = _TEMPLATE.format(
        docstring=f"Runs the engine of the segment {member.name!r}.",
        parameters=", ".join(
            [f"{key}: {structure.annotation}" for key, structure in member.inputs.items()]
            + [f"{name}: Optional[Tensor] = None" for name in left_out]
        ),
        returned=member.output.annotation,
        checks="\n        ".join(checks) or "pass",
        inputs=", ".join(part for key, structure in member.inputs.items() for part in structure.take_apart(key)),
        call=call,
        result=member.output.put_together(f"outputs[{i}]" for i in itertools.count()),
    )
    generated = generated_class(source, "Generated", {"EngineModule": base})
    for name, method in _methods(member.module):
        setattr(generated, name, jit.unused(method))
    module: _Module = generated(engine)
    for name, value in vars(member.module).items():
        if _is_plain(value) and not name.startswith("_"):
            setattr(module, name, value)
    for name, tensor in (*member.module.named_parameters(recurse=False), *member.module.named_buffers(recurse=False)):
        module.register_buffer(name, tensor.detach())  # freezing drops what the head does not read
    return module.eval()


def _is_plain(value: Any) -> bool:
    """A number, a text, or a list or tuple of some of one type, which TorchScript can hold as an attribute."""
    if isinstance(value, (list, tuple)):
        return len({type(entry) for entry in value}) == 1 and isinstance(value[0], (bool, int, float, str))
    return isinstance(value, (bool, int, float, str))


def _left_out(member: Member) -> list[str]:
    """The parameters after the inputs that were None, as by default: a head may pass None itself."""
    names: list[str] = []
    for parameter in reversed(list(inspect.signature(member.module.forward).parameters.values())):
        if parameter.name in member.inputs:
            break
        names = [parameter.name, *names] if parameter.default is None else []
    return names


def _methods(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """What the segment has beside forward: code that does not run in eval mode may call it, such as compute_loss."""
    for owner in type(module).__mro__:
        if owner is nn.Module:
            return
        for name, value in vars(owner).items():
            if isinstance(value, FunctionType) and name != "forward" and not name.startswith("_"):
                yield name, value
