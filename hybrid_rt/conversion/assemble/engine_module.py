"""Generates the modules that replace the segments: they have the same inputs and outputs, and run the engine."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor, nn

from ...bundle.blob_table import Packed, pack
from ...capture.export_conditions import infix
from ...capture.program import Member, Program
from ...common.errors import BackendError
from ...common.specs import Artifact
from ...common.structure import Structure
from ...torchscript import jit
from ...torchscript.engine import Engine
from ...torchscript.generated_module import generated_class
from .answers import answer_for


class EngineModule(nn.Module):
    """Base of the generated modules: holds the TorchScript class ``hybrid_rt.Engine``."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: see :func:`make_engine`."""
        super().__init__()
        self.hybrid_rt_engine = engine  # a segment may have an attribute "engine", which the head reads

    @property
    def engine(self) -> Engine:
        """Returns the engine that the module runs."""
        engine: Engine = self.hybrid_rt_engine
        return engine

    __jit_unused_properties__ = ("engine",)


_TEMPLATE = '''\
class Generated(EngineModule):
    """{docstring}"""

    def forward(self, {parameters}) -> {returned}:
        {checks}
        inputs = [{inputs}]
        {conditions}
        outputs = {call}
        return {result}
'''

_RUN = "torch.ops.hybrid_rt.run_engine(self.hybrid_rt_engine, inputs)"

# torchscript.connect replaces the empty list with the engine's outputs, because the modules can't refer to each other.
_HANDED_ON = (
    "torch.ops.hybrid_rt.handed_on(torch.jit.annotate(List[Tensor], []), inputs, {segment!r}, {sources}, "
    "{first}, {count})"
)


def make_engine(segments: Sequence[str], packed: Packed) -> Engine:
    """Creates an object of the TorchScript class ``hybrid_rt.Engine``; no variant is chosen before :func:`prepare`.

    Args:
        segments: the dotted paths of the submodules that it replaces.
        packed: the variants, best first, and their bytes.
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
        BackendError: No variant can run there; the text lists the reason for each.
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
    """Returns a scriptable module for each segment of the program, by the segment's name.

    Inputs and outputs may be any nest of lists, tuples and dicts of tensors. The first module runs the engine. The
    others return their part of its outputs, once :func:`hybrid_rt.torchscript.jit.connect` has connected them in the
    head's graph.
    """
    return {member.name: _module(program, member, engine, EngineModule) for member in program.members}


_Module = TypeVar("_Module", bound=EngineModule)


def engine_module(program: Program, artifacts: list[Artifact]) -> EngineModule:
    """Returns the module of a program of one segment, with a new engine of these variants."""
    return single_module(program, make_engine(program.segments, pack(artifacts)), EngineModule)


def single_module(program: Program, engine: Engine, base: type[_Module]) -> _Module:
    """Returns the module of a program of one segment, a subclass of ``base``."""
    return _module(program, program.members[0], engine, base)


def _constant_check(segment: str, expression: str, value: Any, other: str = "another value") -> str:
    text = f"hybrid_rt[engine]: segment '{segment}', {expression}: expected {value!r}, as in the example, got {other}."
    if value is None:
        return f"assert {expression} is None, {text!r}"
    return f"assert {expression} == {value!r}, {text!r}"


def _given_check(segment: str, name: str) -> str:
    text = f"hybrid_rt[engine]: segment '{segment}', {name}: expected a value, as in the example, got None."
    return f"assert {name} is not None, {text!r}"


@dataclass
class _Parameters:
    """The parameters of a generated forward, as source, and the checks of their values."""

    written: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    types: dict[str, Any] = field(default_factory=dict)

    def add_input(self, member: Member, name: str, structure: Structure) -> None:
        """Adds a parameter that the example passed; after one with a default it needs a default too."""
        if any("=" in parameter for parameter in self.written):
            self.written.append(f"{name}: Optional[{structure.annotation}] = None")
            self.checks.append(_given_check(member.name, name))
        else:
            self.written.append(f"{name}: {structure.annotation}")
        self.checks += [
            _length_check(member.name, expression, length) for expression, length in structure.lengths(name)
        ]
        self.checks += [
            _constant_check(member.name, expression, value) for expression, value in structure.constants(name)
        ]

    def add_default(self, member: Member, name: str, default: Any, annotation: Any) -> None:
        """Adds a parameter that kept its default; a head may pass that value only."""
        kind = "Optional[Tensor]" if default is None else type(default).__name__
        if default is None and Tensor not in get_args(annotation) and jit.is_type(annotation):
            kind = f"type_of_{name}"
            self.types[kind] = annotation
        self.written.append(f"{name}: {kind} = {default!r}")
        other = "a tensor" if kind == "Optional[Tensor]" else "another value"
        self.checks.append(_constant_check(member.name, name, default, other))


def _parameters(member: Member) -> _Parameters:
    found = _Parameters()
    forward = member.module.forward
    annotations = _annotations(forward)
    for name, parameter in inspect.signature(forward).parameters.items():
        if name in member.inputs:
            found.add_input(member, name, member.inputs[name])
        elif isinstance(parameter.default, (bool, int, float, str, type(None))):
            found.add_default(member, name, parameter.default, annotations.get(name))
    return found


def condition_checks(program: Program, member: Member, inputs: str) -> list[str]:
    """Returns statements that refuse sizes for which a segment was not captured.

    Args:
        program: the engine's program.
        member: the segment.
        inputs: name of the variable that holds the list of its flat tensors.
    """
    tensors = [f"{inputs}[{i}]" for i in range(len(member.sources) or len(program.inputs))]
    got = " + ' and ' + ".join(f"str({tensor}.size())" for tensor in tensors)
    checks = []
    for readable, words in program.conditions(member):
        text = f"hybrid_rt[engine]: segment '{member.name}': expected sizes for which {readable}, got "
        checks.append(f"assert {infix(words, tensors)}, {text!r} + {got} + '.'")
    return checks


_CHECKED = """\
def {name}(inputs: List[Tensor]) -> List[Tensor]:
    {conditions}
    return inputs
"""


def checked_source(program: Program, member: Member, name: str) -> str:
    """Returns the source of a function that checks the sizes of a segment's flat tensors and returns the tensors."""
    return _CHECKED.format(name=name, conditions="\n    ".join(condition_checks(program, member, "inputs")))


def compiled_check(program: Program, member: Member) -> Callable[[list[Tensor]], list[Tensor]] | None:
    """Returns :func:`checked_source` compiled, so that a trace keeps the checks; None if there are no conditions."""
    if not program.conditions(member):
        return None
    check: Callable[[list[Tensor]], list[Tensor]] = jit.script_function(
        generated_class(checked_source(program, member, "checked"), "checked", {})
    )
    return check


def _annotations(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # names in annotations may be known to type checkers only
        return {}


def _module(program: Program, member: Member, engine: Engine, base: type[_Module]) -> _Module:
    parameters = _parameters(member)
    call = _RUN
    if member.sources:
        call = _HANDED_ON.format(
            segment=program.name, sources=list(member.sources), first=member.first, count=member.output.count
        )
    source = _TEMPLATE.format(
        docstring=f"Runs the engine of the segment {member.name!r}.",
        parameters=", ".join(parameters.written),
        returned=member.output.annotation,
        checks="\n        ".join(parameters.checks) or "pass",
        inputs=", ".join(part for key, structure in member.inputs.items() for part in structure.take_apart(key)),
        conditions="\n        ".join(condition_checks(program, member, "inputs")) or "pass",
        call=call,
        result=member.output.put_together(f"outputs[{i}]" for i in itertools.count()),
    )
    generated = generated_class(source, "Generated", {"EngineModule": base, **parameters.types})
    module: _Module = generated(engine)
    answer_for(module, member.module)
    return module.eval()
