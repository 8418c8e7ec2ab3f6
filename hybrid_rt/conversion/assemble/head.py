"""The head: what is left of a detector around its engines, as frozen TorchScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...bundle.blob_table import pack
from ...capture.probe_inputs import Sample
from ...capture.program import Program
from ...capture.segments import replace
from ...common.errors import CaptureError
from ...common.specs import Artifact, ArtifactSpec
from ...common.structure import map_tensors
from ...torchscript import jit
from ...torchscript.exact_transform import exact_transform
from ...verification.verify import THRESHOLDS, compare_modules
from .engine_module import engine_modules, make_engine

HEADS = ("script", "trace")
"""How the head is taken: compiled from its source, or recorded on the example."""


class _DetectionsOnly(nn.Module):
    """Unwraps torchvision's scripted pair (losses, detections) to what the detector returns in eager eval mode."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """images: [3, H, W] each, in 0..1; returns a dict of boxes, labels, scores, ... for each."""
        return self.detector(images)[1]  # type: ignore[no-any-return]


class OnDevice(nn.Module):
    """A hybrid that runs on a GPU, for arguments and results on the CPU."""

    def __init__(self, hybrid: torch.jit.ScriptModule, device: str) -> None:
        """``hybrid``: it stays where it is; a copy is moved."""
        super().__init__()
        self.device = torch.device(device)
        self.module = jit.moved(hybrid, device)

    def forward(self, *arguments: Any) -> Any:
        """As the hybrid."""
        found = self.module(*map_tensors(arguments, lambda tensor: tensor.to(self.device)))
        return map_tensors(found, Tensor.cpu)


def frozen_head(
    detector: nn.Module,
    example_inputs: tuple[Any, ...],
    samples: Sequence[Sample],
    programs: Sequence[Program],
    engines: Mapping[str, Any],
    head: str,
) -> tuple[torch.jit.ScriptModule, list[str]]:
    """Puts the engines into their segments' places, and makes frozen TorchScript of what is left.

    Args:
        detector: the detector; it is not changed.
        example_inputs: its arguments.
        samples: further ones; for head="script" they tell whether a head that does not script could be recorded.
        programs: the captured segments.
        engines: of each program, by its name.
        head: one of :data:`HEADS`.

    Returns:
        The hybrid, and the operators of ours that its head calls.

    Raises:
        CaptureError: a head that can't be scripted, with the line and what else could be done; or not recorded.
    """
    modules: dict[str, nn.Module] = {}
    for program in programs:
        modules |= engine_modules(program, engines[program.name])
    hybrid = replace(detector, {**exact_transform(detector), **modules})
    if head == "trace":
        return _frozen(jit.trace_head(hybrid, example_inputs))
    try:
        scripted = _scripted(hybrid)
    except CaptureError as error:
        offer = _offer_to_trace(detector, hybrid, example_inputs, samples)
        raise CaptureError(f"{error} {offer}") from error
    return _frozen(scripted)


def _frozen(head: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, list[str]]:
    frozen = jit.freeze(head)
    jit.connect(frozen)
    operators = jit.rewrite_head_operators(frozen)
    return jit.reopened(frozen, _hollow_engine), operators


def _hollow_engine(name: str) -> Any:
    return make_engine(name, pack([Artifact(ArtifactSpec("none", "fp32", "cpu", (), ()), {})]))


def _offer_to_trace(
    detector: nn.Module, hybrid: nn.Module, example_inputs: tuple[Any, ...], samples: Sequence[Sample]
) -> str:
    """What to know of head="trace" for a head that does not script: it was tried, not taken."""
    inputs = [example_inputs, *(sample.arguments for sample in samples)]
    try:
        traced, _ = _frozen(jit.trace_head(hybrid, example_inputs))
        compared = compare_modules(
            detector, traced, inputs, precision="fp32", thresholds=THRESHOLDS["fp32"], require_detections=False
        )
    except Exception as error:  # whatever the detector's own code raises when it is recorded
        return f"Recording it (head='trace') was tried and fails: {str(error).splitlines()[0]}"
    if not compared.passed:
        return f"Recording it (head='trace') was tried and is not right on other inputs: {compared.failures[0]}."
    return (
        f"Or record it, head='trace': that was tried, and finds the same on the example and {len(samples)} other "
        "inputs; branches and loops then stay as they went on the example."
    )


def _scripted(hybrid: nn.Module) -> torch.jit.ScriptModule:
    if hasattr(hybrid, "_has_warned"):
        # torchvision warns once that scripted detectors return a pair, which is unwrapped here.
        vars(hybrid)["_has_warned"] = True
    scripted = jit.script(hybrid)
    if jit.returns_losses_and_detections(scripted):
        scripted = jit.script(_DetectionsOnly(scripted).eval())
    return scripted
