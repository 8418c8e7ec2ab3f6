"""Converts the head by torch.export: generates TorchScript source from the exported graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.ops import batched_nms

from ...capture.export_conditions import infix, is_plain
from ...capture.export_head import ExportedHead, export_head
from ...capture.export_stand_in import BATCHED_NMS, MULTISCALE_ROI_ALIGN, SEGMENT
from ...capture.flat_detector import SUBJECT
from ...capture.profile import Profile
from ...capture.program import Member, Program
from ...common.errors import CaptureError, split_code
from ...common.specs import UNBOUNDED, TensorSpec
from ...torchscript import jit
from ...torchscript.exported_code import Call, ExportedCode
from ...torchscript.generated_module import generated_class
from .argument_checks import argument_checks
from .builds import EngineBuild
from .engine_module import checked_source

_TEMPLATE = '''\
class Head(nn.Module):
    """A detector as torch.export recorded it, for the sizes that the exported program allows."""

    def forward(self, {parameters}) -> {returned}:
        {body}
        return {result}
'''


def _checked(engine: int, member: int) -> str:
    """Returns the name of the function that checks the sizes of a segment's inputs."""
    return f"checked_{engine}_{member}"


_LONGEST = 600
"""Maximum number of characters that an error quotes from TorchScript's compiler."""


def exported_head(profile: Profile, builds: Sequence[EngineBuild]) -> torch.jit.ScriptModule:
    """Exports a detector with its engines, and scripts the exported program.

    Each call refuses sizes that the program does not support, with a message that names the supported ones.

    Raises:
        CaptureError: The detector can't be exported; the text names the line.
    """
    members = [member for build in builds for member in build.program.members]
    head = profile.cut or export_head(profile.detector, profile.example, members)
    calls: dict[str, Callable[[str], str]] = {
        repr(member.name): functools.partial(_engine_call, i, build.program, member)
        for i, build in enumerate(builds)
        for member in build.program.members
    }
    stand_ins: dict[str, Call] = {
        SEGMENT: lambda arguments: calls[arguments[1]](arguments[0]),
        BATCHED_NMS: lambda arguments: f"batched_nms({', '.join(arguments)})",
        MULTISCALE_ROI_ALIGN: lambda arguments: f"torch.ops.hybrid_rt.multiscale_roi_align({', '.join(arguments)})",
    }
    checked, parameters = argument_checks(head.arguments)
    tensors = [f"input_{i}_" for i in range(len(parameters))]
    code = ExportedCode(head.program, tensors, stand_ins)
    taken = map("{} = {}.contiguous()".format, tensors, parameters)
    lines = [*checked, *_checks(head, parameters), *taken, *code.lines]
    source = _TEMPLATE.format(
        parameters=", ".join(f"{name}: {tree.annotation}" for name, tree in head.arguments.items()),
        returned=head.result.annotation,
        body="\n        ".join(lines),
        result=head.result.put_together(iter(code.results)),
    )
    checks = [
        checked_source(build.program, member, _checked(i, k))
        for i, build in enumerate(builds)
        for k, member in enumerate(build.program.members)
        if build.program.conditions(member)
    ]
    source = "\n\n".join([*head.result.definitions().values(), *checks, source])
    names = {"nn": nn, "math": math, "Any": Any, "NamedTuple": NamedTuple, "batched_nms": batched_nms}
    module = generated_class(source, "Head", names)()
    for name, tensor in code.constants.items():
        module.register_buffer(name, tensor)
    for i, build in enumerate(builds):
        setattr(module, f"engine_{i}", build.engine)
    try:
        return jit.script(module.eval())
    except CaptureError as error:
        message = " ".join(
            split_code(str(error))[0].partition("got ")[2].partition("<--- HERE")[0].replace("~", " ").split()
        )
        raise CaptureError.make(
            "capture",
            SUBJECT,
            expected="a graph of torch.export whose operators TorchScript has",
            got=message[:_LONGEST],
            remedy="Put the module that calls the operator into a segment, or use head='trace'.",
            code="head-not-exportable",
        ) from error


def _engine_call(index: int, program: Program, member: Member, inputs: str) -> str:
    """Returns the call that replaces a segment, see ``engine_module``."""
    if program.conditions(member):
        inputs = f"{_checked(index, program.members.index(member))}({inputs})"
    if not member.sources:
        return f"torch.ops.hybrid_rt.run_engine(self.engine_{index}, {inputs})"
    return (
        f"torch.ops.hybrid_rt.handed_on(torch.jit.annotate(List[Tensor], []), {inputs}, "
        f"{program.name!r}, {list(member.sources)}, {member.first}, {member.output.count})"
    )


def _checks(head: ExportedHead, tensors: Sequence[str]) -> Iterator[str]:
    """Yields statements that refuse tensors whose dtype or size the program does not support."""
    for tensor, spec in zip(tensors, head.specs, strict=True):
        text = f"hybrid_rt[head]: {spec.name}: expected dtype {spec.dtype}, got another one."
        yield f"assert {tensor}.dtype == torch.{spec.dtype}, {text!r}"
    got = " + ' and ' + ".join(f"str({tensor}.size())" for tensor in tensors)
    expected = " and ".join(spec.sizes for spec in head.specs)
    conditions = [text for text, words in head.conditions if not is_plain(words, head.specs)]
    if conditions:
        expected += ", where " + " and ".join(dict.fromkeys(conditions))
    if head.fixed:
        expected += f" as in the example, because torch.export takes no other sizes ({head.fixed.partition('. ')[0]})"
    names = ", ".join(spec.name for spec in head.specs)
    message = f"hybrid_rt[head]: {names}: expected {expected}, got "
    allowed = [
        condition for tensor, spec in zip(tensors, head.specs, strict=True) for condition in _sizes(tensor, spec)
    ]
    allowed += [infix(words, tensors) for _, words in head.conditions]
    yield f"assert {' and '.join(allowed)}, {message!r} + {got} + '.'"


def _sizes(tensor: str, spec: TensorSpec) -> Iterator[str]:
    yield f"{tensor}.dim() == {len(spec.min)}"
    for d, (low, high) in enumerate(zip(spec.min, spec.max, strict=True)):
        if low == high:
            yield f"{tensor}.size({d}) == {low}"
            continue
        if low > 0:
            yield f"{tensor}.size({d}) >= {low}"
        if high != UNBOUNDED:
            yield f"{tensor}.size({d}) <= {high}"
