"""The head: what is left of a detector around its engines, as frozen TorchScript."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...bundle.blob_table import pack
from ...capture.profile import Profile
from ...common.errors import CaptureError
from ...common.specs import Artifact, ArtifactSpec
from ...common.submodules import with_submodules
from ...torchscript import jit
from ...torchscript.engine import Engine
from ...torchscript.exact_transform import exact_transform
from .builds import EngineBuild
from .engine_module import engine_modules, make_engine
from .head_export import exported_head
from .hybrid import Hybrid

_OTHERS = "Or take head='export' or head='trace'; head='auto', the default, tries them in this order."

HEADS = ("script", "export", "trace")
"""How the head is taken: compiled from its source, by torch.export, or recorded on the example."""


def assemble(profile: Profile, builds: Sequence[EngineBuild], head: str, device: str) -> Hybrid:
    """Puts the engines into their segments' places, and makes frozen TorchScript of what is left.

    Args:
        profile: the detector, which is not changed.
        builds: the engines.
        head: one of :data:`HEADS`.
        device: the kind of device that the engines are for.

    Raises:
        CaptureError: a head that can't be scripted, exported or recorded, with the line.
    """
    if head == "export":
        module, operators = _frozen(exported_head(profile, builds))
        return Hybrid(module, builds, operators, device)
    modules: dict[str, nn.Module] = {}
    for build in builds:
        modules |= engine_modules(build.program, build.engine)
    hybrid = with_submodules(profile.detector, {**exact_transform(profile.detector), **modules})
    if head == "trace":
        taken = jit.trace_head(hybrid, profile.example)
    else:
        try:
            taken = jit.script_detector(hybrid)
        except CaptureError as error:
            raise CaptureError(f"{error} {_OTHERS}") from error
    module, operators = _frozen(taken)
    return Hybrid(module, builds, operators, device)


def _frozen(head: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, list[str]]:
    frozen = jit.freeze(head)
    jit.connect(frozen)
    operators = jit.rewrite_head_operators(frozen)
    return jit.reopened(frozen, _hollow_engine), operators


def _hollow_engine(segments: Sequence[str]) -> Engine:
    return make_engine(segments, pack([Artifact(ArtifactSpec("none", "fp32", "cpu", (), ()), {})]))
