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
from ...verification.verify import THRESHOLDS, compare_modules
from .builds import EngineBuild
from .engine_module import engine_modules, make_engine
from .head_export import exported_head
from .hybrid import Hybrid

HEADS = ("script", "export", "trace")
"""How the head is taken: compiled from its source, by torch.export, or recorded on the example."""


def assemble(profile: Profile, builds: Sequence[EngineBuild], head: str, device: str) -> Hybrid:
    """Puts the engines into their segments' places, and makes frozen TorchScript of what is left.

    Args:
        profile: the detector, which is not changed. Its samples tell for head="script" whether a head that does not
            script could be recorded.
        builds: the engines.
        head: one of :data:`HEADS`.
        device: the kind of device that the engines are for.

    Raises:
        CaptureError: a head that can't be scripted, with the line and what else could be done; or not recorded.
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
            raise CaptureError(f"{error} {_offer_to_trace(profile, hybrid)}") from error
    module, operators = _frozen(taken)
    return Hybrid(module, builds, operators, device)


def _frozen(head: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, list[str]]:
    frozen = jit.freeze(head)
    jit.connect(frozen)
    operators = jit.rewrite_head_operators(frozen)
    return jit.reopened(frozen, _hollow_engine), operators


def _hollow_engine(segments: Sequence[str]) -> Engine:
    return make_engine(segments, pack([Artifact(ArtifactSpec("none", "fp32", "cpu", (), ()), {})]))


def _offer_to_trace(profile: Profile, hybrid: nn.Module) -> str:
    """Tries head="trace" for a head that does not script; returns what came of it."""
    inputs = [profile.example, *(sample.arguments for sample in profile.samples)]
    try:
        traced, _ = _frozen(jit.trace_head(hybrid, profile.example))
        compared = compare_modules(
            profile.detector, traced, inputs, precision="fp32", thresholds=THRESHOLDS["fp32"], require_detections=False
        )
    except Exception as error:  # whatever the detector's own code raises when it is recorded
        return f"Recording it (head='trace') was tried and fails: {str(error).splitlines()[0]}"
    if not compared.passed:
        return f"Recording it (head='trace') was tried and is not right on other inputs: {compared.failures[0]}."
    return (
        f"Or record it, head='trace': that was tried, and finds the same on the example and {len(profile.samples)} "
        "other inputs; branches and loops then stay as they went on the example."
    )
