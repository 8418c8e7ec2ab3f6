"""Converts the head, the part of a detector outside of its engines, to frozen TorchScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...bundle.blob_table import pack
from ...capture.profile import Profile
from ...capture.program import Program, members_of
from ...capture.state import StateWatch
from ...capture.working_copy import working_copy
from ...common.errors import CaptureError
from ...common.specs import Artifact, ArtifactSpec
from ...common.structure import structure_of
from ...torchscript import head_operators, jit
from ...torchscript.ascii_names import opened, with_ascii_names
from ...torchscript.engine import Engine
from ...torchscript.exact_transform import exact_transform
from ...torchscript.known_heads import use_operators
from ...torchscript.local_state import make_state_local
from ...torchscript.scripted_part import ScriptedPart
from .builds import EngineBuild
from .engine_module import engine_modules, make_engine
from .head_export import exported_head
from .head_trace import recorded_head
from .hybrid import Hybrid
from .replica import replicas


def assemble(profile: Profile, builds: Sequence[EngineBuild], head: str, device: str) -> Hybrid:
    """Replaces the segments with the engines, and converts the rest to frozen TorchScript.

    Args:
        profile: the detector, which is not changed.
        builds: the engines.
        head: one of :data:`HEADS`.
        device: the kind of device that the engines are for.

    Raises:
        CaptureError: The head can't be scripted, exported or recorded; the text names the line.
    """
    profile.state.restore()  # a comparison may have come between
    if head == "export":
        return _frozen(exported_head(profile, builds), builds, device)
    if head == "trace":
        return _recorded(profile, builds, device)
    modules: dict[str, nn.Module] = {}
    for build in builds:
        modules |= engine_modules(build.program, build.engine)
    hybrid = _hybrid(profile.detector, modules)
    use_operators(hybrid)
    return _frozen(jit.script_detector(hybrid, profile.observation.types), builds, device)


def script_refusal(profile: Profile) -> str:
    """Returns why a detector's head can't be scripted, or an empty string if it can; needs no compiled engines."""
    modules: dict[str, nn.Module] = {}
    for group in profile.groups:
        program = Program("+".join(group), members_of(profile.observation, group), (), (), ())
        modules |= engine_modules(program, _empty_engine(group))
    try:
        hybrid = _hybrid(profile.detector, modules)
        use_operators(hybrid)
        jit.script_detector(hybrid, profile.observation.types)
    except CaptureError as error:
        return str(error)
    finally:
        profile.state.restore()
    return ""


def _recorded(profile: Profile, builds: Sequence[EngineBuild], device: str) -> Hybrid:
    modules: dict[str, nn.Module] = {}
    for build in builds:
        modules |= replicas(build.program, build.engine)
    hybrid = _hybrid(profile.detector, modules)
    before = StateWatch(hybrid)
    if _is_traceable(profile.observation.result) and all(map(_is_traceable, profile.example)):
        recorded = jit.trace_head(hybrid, profile.example)
    else:
        recorded = recorded_head(hybrid, profile.example)
    before.restore()  # buffers are the recording's too
    return _frozen(recorded, builds, device)


def _is_traceable(value: Any) -> bool:
    """Returns true if torch.jit.trace supports the type of a value, and TorchScript returns it unchanged."""
    try:
        structure_of(value, "value")
    except CaptureError:
        return False
    if type(value) is dict:
        return all(type(each) is Tensor for each in value.values())
    return _has_no_dict(value)


def _has_no_dict(value: Any) -> bool:
    return type(value) is Tensor or (type(value) in (list, tuple) and all(map(_has_no_dict, value)))


def _hybrid(detector: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Returns the detector with its engines; parts that are TorchScript but not segments are restored."""
    segments = {detector.get_submodule(name) for name in modules}
    parts = {
        name: module.scripted
        for name, module in detector.named_modules()
        if isinstance(module, ScriptedPart) and module not in segments
    }
    return working_copy(detector, {**exact_transform(detector), **parts, **modules})


def _frozen(head: torch.jit.ScriptModule, builds: Sequence[EngineBuild], device: str) -> Hybrid:
    """Freezes a head with its engines, and removes the outputs that this head does not read from the engines."""
    frozen = jit.freeze(with_ascii_names(head))
    _refuse_python(frozen)
    left_out = [build.name for build in builds if build.name not in jit.engines_of(frozen)]
    if left_out:
        raise CaptureError.make(
            "capture",
            "the detector's head",
            expected=f"it to run {', '.join(map(repr, left_out))}",
            got="a head that does not call the segment by its name, or does not use its result",
            remedy="Call it as self.NAME(...) in forward, or leave it out by naming other submodules in segments=.",
            code="segment-bypassed",
        )
    jit.connect(frozen, {build.name: build.program.segments for build in builds})
    operators = head_operators.rewrite(frozen)
    head_operators.check_foreign(operators, "the detector's head")
    make_state_local(frozen)
    unread = jit.unread_outputs(frozen, {build.name: len(build.program.outputs) for build in builds})
    sparing = [build.without_values(unread[build.name]) for build in builds]
    module = jit.roundtrip_through_archive(frozen, _empty_engine, opened)
    for build, before in zip(sparing, builds, strict=True):
        if build is not before:
            jit.replace_engine(module, build.engine)
    return Hybrid(module, sparing, operators, device)


def _refuse_python(frozen: torch.jit.ScriptModule) -> None:
    """Refuses a head that calls Python, such as a function with ``@torch.jit.ignore``. Only saving it would fail."""
    for node in jit.nodes_of(frozen.graph):
        if node.kind() == "prim::PythonOp":
            raise CaptureError.make(
                "capture",
                "the detector's head",
                expected="code that TorchScript runs without Python",
                got=f"a call of '{node.pyname()}':\n{node.sourceRange().strip()}\n",
                remedy="Change that line, or put it into a segment.",
                code="head-not-scriptable",
            )


def _empty_engine(segments: Sequence[str]) -> Engine:
    return make_engine(segments, pack([Artifact(ArtifactSpec("none", "fp32", "cpu", (), ()), {})]))
