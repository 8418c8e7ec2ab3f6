"""Replaces the backbone of a saved bundle, without the detector's Python code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import _native
from ...backends.selection import Options
from ...bundle import archive
from ...bundle.blob_table import Packed
from ...bundle.manifest import Golden, Manifest, Swapped
from ...bundle.signing import Keys, signing_keys
from ...capture.program import FlatCall, Member, Program
from ...capture.segment_contract import Contract, examples_for, features_of
from ...common.atomic_files import check_writable
from ...common.errors import OptionError
from ...common.progress import Steps
from ...common.specs import variant_names
from ...common.version import __version__
from ...torchscript import jit
from ...verification.verify import Thresholds, Verification
from ..assemble.builds import EngineBuild, compile_program
from ..assemble.module_checks import check_module, check_repeatable
from ..assemble.variant_trials import require_same_outputs
from ..calibration import calibration_samples, warn_of_few
from ..engine_precision import build_in_precision, trial_lines, tried_variants
from ..options import EngineOptions
from ..report.data import PrecisionTrial
from .calibration import calibrated
from .saved_engines import SavedEngine, captured, opened_head, saved_engines, stored_member


@dataclass
class SwapReport:
    """Result of :func:`swap_backbone`.

    Attributes:
        path: path of the new bundle.
        segment: dotted path of the segment that was replaced.
        engine: name of the engine that contains it, e.g. "backbone+rpn.head".
        module: class of the new backbone.
        variants: the variants, as "backend in precision", best first.
        verification: comparison of the features; None if it was switched off.
        file_size: size of the new file, in bytes.
        seconds: duration of each step.
        notes: the keys that have signed the file, those whose signatures were removed, and the removal of a latency
            contract.
        precisions: trials of precision="auto"; empty: the precision was named.
    """

    path: str
    segment: str
    engine: str
    module: str
    variants: list[str]
    verification: Verification | None
    file_size: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    precisions: list[PrecisionTrial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """For a terminal."""
        lines = [
            f"{self.module} as {self.segment} -> {self.path} ({self.file_size / 1e6:.1f} MB)",
            f"engine {self.engine}: {', '.join(self.variants)}",
            *trial_lines({self.engine: self.precisions}),
        ]
        if self.verification is None:
            return "\n".join([*lines, "not verified", *self.notes])
        worst = max(self.verification.tensors, key=lambda error: error.relative_error, default=None)
        if worst is not None:  # else all variants are for another machine
            lines.append(f"verified: greatest relative error {worst.relative_error:.2g} in output {worst.output}")
        return "\n".join([*lines, *(f"not compared: {reason}" for reason in self.verification.not_run), *self.notes])


def swap_backbone(
    path: str | os.PathLike[str],
    new_backbone: nn.Module,
    output: str | os.PathLike[str],
    *,
    segment: str | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
    engine: str | Sequence[str] | None = None,
    precision: str | None = None,
    device: str = "cpu",
    options: Options | None = None,
    calibration_data: Iterable[tuple[Any, ...]] = (),
    verify: bool = True,
    thresholds: Thresholds | None = None,
    sign: Keys = (),
    progress: bool | None = None,
) -> SwapReport:
    """Replaces the backbone of a bundle, after checking that the new one fits the head.

    The size ranges stay those of the file. The new file has no golden sample, because the detections will differ.

    Args:
        path: path of the bundle.
        new_backbone: the new backbone, in eval mode, on the CPU. Its inputs and outputs have the saved backbone's
            names, channels, strides and dtypes.
        output: path of the `.pt` to write; may be ``path``.
        segment: dotted path of the segment to replace; None: "backbone", or the first one that runs if there is none
            of that name.
        example: the new backbone's positional arguments, or its one tensor [N, C, H, W] within the file's ranges.
            None: noise.
        engine: name of a backend, a list of names, best first, or "auto". None: the file's.
        precision: precision of the engines, see :func:`hybrid_rt.convert`; None: the file's. "auto" times the engine
            alone and judges its outputs.
        device: "cpu" or "cuda", see :func:`hybrid_rt.convert`.
        options: options of the compilers, see :func:`hybrid_rt.convert`.
        calibration_data: tuples of the detector's arguments for "int8", see :func:`hybrid_rt.convert`. The file itself
            runs on them.
        verify: compare each variant's features with the new backbone's, and save nothing that differs.
        thresholds: limits for equality, of which only ``relative_error`` is used; None: those of the precision.
        sign: private keys that sign the new file, see :func:`hybrid_rt.convert`. The old signatures are removed.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        What was replaced, and the comparison.

    Raises:
        OptionError: an argument can't be used, or the backbone does not fit; the text lists every mismatch.
        CaptureError: the backbone can't be captured.
        BackendError: an engine is not installed, or its compiler refuses.
        VerificationError: an engine's features differ from the new backbone's; nothing was saved.
        BundleError: the file is not a bundle, was altered, or can't be written.

    Examples:
        >>> report = hybrid_rt.swap_backbone("detector.pt", new_backbone, "swapped.pt")
        >>> report.segment, report.verification.passed
        ('backbone', True)
    """
    check_module(new_backbone, "swap", "new_backbone")
    check_writable(Path(output))
    signing_keys(sign)
    _native.verify_records(os.fsencode(path))
    manifest = archive.read_manifest(path)
    samples = calibration_samples(None, calibration_data, "swap")
    steps = Steps(progress)
    with steps.step(f"read {Path(path).name}"):
        head = opened_head(Path(path), "swap")
        saved = _find(head, manifest, segment)
        engines = _engines(saved, engine, precision, device, options, samples)
        stored = saved.scripts("swap") if len(saved.members) > 1 else []
    with steps.step("compare the new backbone with what the head expects"):
        program = _program(saved, stored, new_backbone, example)
    warn_of_few(samples, "swap")
    with steps.step("calibrate"):
        program = calibrated(program, saved, head, saved_engines(head, manifest), samples, tried_variants(engines))
    verified: dict[str, Verification] = {}

    def compile_in(tried: EngineOptions) -> EngineBuild:
        build = compile_program(program, tried, steps)
        if verify:
            with steps.step("verify"):
                verified[tried.precision] = require_same_outputs(build, tried.variants[0].precision, thresholds, "swap")
        return build

    build, engines, trials = build_in_precision(engines, program, compile_in, lambda *_: "", steps)
    verification = verified.get(engines.precision)
    with steps.step("save"):
        jit.replace_engine(head, build.engine)
        described = _manifest(manifest, saved, build.packed, new_backbone, verification)
        change = archive.save(head, output, described, sign=sign, source=path)
    return SwapReport(
        path=str(output),
        segment=saved.members[0].name,
        engine=program.name,
        module=_class_of(new_backbone),
        variants=[f"{artifact.spec.backend} in {artifact.spec.precision}" for artifact in build.artifacts],
        verification=verification,
        file_size=Path(output).stat().st_size,
        seconds=steps.seconds,
        precisions=trials,
        notes=[*_stale_notes(manifest), *change.notes],
    )


def _stale_notes(manifest: Manifest) -> list[str]:
    if manifest.latency_contract is None:
        return []
    return ["the latency contract was left out: it is of the old backbone. Measure it again: `hybrid-rt measure FILE`."]


def _find(head: torch.jit.ScriptModule, manifest: Manifest, segment: str | None) -> SavedEngine:
    """Returns the engine whose first segment is the given one."""
    known = {member.name: saved for saved in saved_engines(head, manifest) for member in saved.members}
    wanted = segment or ("backbone" if "backbone" in known else next(iter(known), ""))
    if wanted not in known:
        names = ", ".join(known) or "the file's segments, of which there are none"
        raise OptionError.make(
            "swap", "segment", expected=f"one of {names}", got=f"'{wanted}'", code="segment-misnamed"
        )
    saved = known[wanted]
    if saved.members[0].name != wanted:
        raise OptionError.make(
            "swap",
            "segment",
            expected=f"'{saved.members[0].name}', which is the first of the engine '{saved.name}'",
            got=f"'{wanted}'",
            remedy="Convert the detector with fuse=False to swap only this one.",
            code="segment-misnamed",
        )
    return saved


def _engines(
    saved: SavedEngine,
    engine: str | Sequence[str] | None,
    precision: str | None,
    device: str,
    options: Options | None,
    samples: Sequence[tuple[Any, ...]],
) -> EngineOptions:
    """Returns the engines of the new file; an argument that is None keeps the old file's choice."""
    in_file = [(variant.backend, variant.precision) for variant in saved.variants]
    if engine is None:
        if len(set(in_file)) < len(in_file):
            raise OptionError.make(
                "swap",
                "engine",
                expected="unambiguous names of engines, because the file has several of one name",
                got=f"none: {', '.join(variant_names(saved.variants))}",
                remedy="Name them in engine=, with options= for one kind of GPU, and add the others with add_variant.",
            )
        own = precision is None
        engine = list(dict.fromkeys(f"{backend}:{kept}" if own else backend for backend, kept in in_file))
    fallback = captured() in in_file
    engines = EngineOptions(engine, precision or in_file[0][1], device, options, fallback, samples, "swap")
    tried_variants(engines)
    return engines


def _program(
    saved: SavedEngine,
    stored: Sequence[tuple[torch.jit.ScriptModule, tuple[int, ...]]],
    module: nn.Module,
    example: Tensor | tuple[Any, ...] | None,
) -> Program:
    """Returns the program of the new segment, followed by the engine's other segments.

    Raises:
        OptionError: The new segment does not fit.
    """
    name, count = saved.members[0].name, saved.members[0].count
    prefix = f"{name}." if stored else ""
    own = (replace(spec, name=spec.name.removeprefix(prefix)) for spec in saved.outputs[:count])
    contract = Contract(name, saved.inputs, tuple(own))
    given = examples_for(contract) if example is None else example if isinstance(example, tuple) else (example,)
    features, mismatches = features_of(module, given, contract)
    if mismatches or features is None:
        raise OptionError.make(
            "swap",
            f"segment '{name}', the new {type(module).__name__}",
            expected="the inputs and outputs that the saved head requires",
            got="".join(f"\n  {text}" for text in mismatches) + "\n",
            remedy="`hybrid-rt inspect FILE` shows the inputs and outputs. Wrap the backbone in a module that "
            "adapts them, for example with a 1x1 convolution for the channels.",
            code="backbone-misfits",
        )
    check_repeatable(module, given, "swap")
    members = [Member(name, module, features.inputs, features.output, (), 0)]
    for entry, (other, sources) in zip(saved.members[1:], stored[1:], strict=True):
        members.append(stored_member(entry, other, sources, [f"input_{i}" for i in range(len(sources))]))
    program = Program(saved.name, tuple(members), saved.inputs, saved.outputs, ())
    calls = [FlatCall(tensors, program.run(tensors)) for tensors, _ in features.calls]
    calls.sort(key=lambda call: sum(tensor.numel() for tensor in call.inputs))
    return replace(program, calls=tuple(calls))


def _manifest(
    manifest: Manifest,
    saved: SavedEngine,
    packed: Packed,
    module: nn.Module,
    verification: Verification | None,
) -> Manifest:
    """Builds the new bundle's manifest; the old one's statements about detections no longer apply."""
    swapped = replace(
        packed.engine(saved.members, Swapped(saved.members[0].name, _class_of(module))),
        conditions=saved.stored.conditions,  # the head goes on asking for them
    )
    return Manifest(
        engines=manifest.with_engine(swapped).engines,
        versions={"hybrid_rt": __version__, "torch": torch.__version__},
        detector=manifest.detector,
        class_names=manifest.class_names,
        images=manifest.images,
        head=manifest.head,
        verification=verification.to_json() if verification else None,
        golden=Golden(absent="the backbone was swapped, so that other boxes are found"),
    )


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
