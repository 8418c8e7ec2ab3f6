"""Adds variants to a saved bundle or removes them, without the detector's Python code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ...backends import registry
from ...backends.selection import Options, VariantRequest
from ...bundle import archive
from ...bundle.blob_table import Packed, pack, unpack
from ...bundle.manifest import Golden
from ...bundle.signing import Keys, signing_keys
from ...capture.program import Program
from ...common.atomic_files import check_writable
from ...common.errors import BackendError, OptionError
from ...common.progress import Steps
from ...common.specs import PRECISIONS, Artifact, variant_names
from ...common.tensor_tree import map_tensors
from ...torchscript import jit
from ...verification import golden
from ...verification.verify import Findings, Thresholds, Verification, compare_results, require, thresholds_of
from ..assemble.builds import EngineBuild, compile_program
from ..assemble.engine_module import make_engine, prepare
from ..assemble.hybrid import OnDevice
from ..assemble.variant_trials import require_same_outputs
from ..calibration import calibration_samples, warn_of_few
from ..engine_precision import build_in_precision, trial_lines, tried_variants
from ..options import EngineOptions
from ..report.data import PrecisionTrial
from .calibration import calibrated
from .measure import without_stale_contract
from .saved_engines import SavedEngine, opened_head, saved_engines


@dataclass
class VariantChangeReport:
    """Result of :func:`add_variant` or :func:`remove_variant`.

    Attributes:
        path: path of the bundle that was written.
        variants: variants per engine, as "backend:precision", best first; as "backend:precision@8.6+8.9" if another
            one has the same name without its requirements.
        verification: comparison of what was added; None if nothing was added, or if it was switched off.
        size_before: size of the file before, in bytes.
        file_size: size of the file now, in bytes.
        notes: comparisons that were not possible, the keys that have signed the file, those whose signatures were
            removed, and the removal of a latency contract.
        precisions: trials of precision="auto", by the engine's name; empty: the precision was named.
    """

    path: str
    variants: dict[str, list[str]]
    verification: Verification | None
    size_before: int
    file_size: int
    notes: list[str] = field(default_factory=list)
    precisions: dict[str, list[PrecisionTrial]] = field(default_factory=dict)

    def __str__(self) -> str:
        """For a terminal."""
        lines = [f"{self.path}: {self.file_size / 1e6:.1f} MB, was {self.size_before / 1e6:.1f}"]
        lines += [f"  {name}: {', '.join(variants)}" for name, variants in self.variants.items()]
        lines += trial_lines(self.precisions)
        if self.verification is not None and self.verification.tensors:
            worst = max(self.verification.tensors, key=lambda error: error.relative_error)
            lines.append(f"verified: greatest relative error {worst.relative_error:.2g} in output {worst.output}")
        for match in self.verification.pictures if self.verification is not None else []:
            lines.append(f"golden sample: {match.matched} of {match.expected} boxes matched")
        return "\n".join([*lines, *self.notes])


def add_variant(
    path: str | os.PathLike[str],
    engine: str | Sequence[str],
    output: str | os.PathLike[str] | None = None,
    *,
    precision: str | None = None,
    device: str = "cpu",
    options: Options | None = None,
    calibration_data: Iterable[tuple[Any, ...]] = (),
    segment: str | None = None,
    first: bool = False,
    verify: bool = True,
    thresholds: Thresholds | None = None,
    sign: Keys = (),
    progress: bool | None = None,
) -> VariantChangeReport:
    """Compiles further variants from the bundle's TorchScript variant in fp32, and writes them into the file.

    Args:
        path: path of the bundle.
        engine: name of a backend, or several; "openvino:bf16" sets the precision of one. The file may contain the same
            one for other GPUs or another version of the vendor's library.
        output: path of the `.pt` to write; None: ``path``.
        precision: precision of the names that set none; None: that of the first variant in the file. "auto": the
            fastest of each engine that is right on this machine, see :func:`hybrid_rt.convert`; it is timed alone.
            An engine whose fastest variant is in the file already stays as it is.
        device: "cpu" or "cuda", see :func:`hybrid_rt.convert`.
        options: options of the compilers, see :func:`hybrid_rt.convert`.
        calibration_data: tuples of the detector's arguments for "int8", see :func:`hybrid_rt.convert`. The file itself
            runs on them.
        segment: change only the engine that contains this segment; None: all engines.
        first: put the new variants before the others. Otherwise they are put after them, but before a TorchScript
            variant.
        verify: compare each new variant's outputs with the stored segment's, and the golden sample's boxes with the
            detector's, and save nothing that differs.
        thresholds: limits for equality; None: those of the precision.
        sign: private keys that sign the new file, see :func:`hybrid_rt.convert`. The old signatures are removed.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        The variants of the new file, and the comparison.

    Raises:
        OptionError: an argument can't be used, the file has the variant already, or it has no TorchScript variant in
            fp32.
        BackendError: an engine is not installed, or its compiler refuses.
        CaptureError: the engine's compiler can't take a segment.
        VerificationError: a variant's results differ; nothing was saved.
        BundleError: the file is not a bundle, was altered, or can't be written.

    Examples:
        >>> report = hybrid_rt.add_variant("detector.pt", "onnxruntime")
        >>> report.variants["backbone"]
        ['openvino:fp32', 'onnxruntime:fp32', 'torchscript:fp32']
    """
    samples = calibration_samples(None, calibration_data, "add-variant")
    change = _Change(path, output, segment, "add-variant", progress, sign)
    names = [engine] if isinstance(engine, str) else list(engine)
    added: dict[str, list[tuple[str, Artifact]]] = {}
    findings: list[Findings] = []
    for saved in change.chosen:
        in_precision = precision or saved.variants[0].precision
        named = EngineOptions(names, in_precision, device, options, False, samples, "add-variant")
        tried = tried_variants(named)
        if not named.is_auto_precision:
            _require_new(saved, tried)
        if saved is change.chosen[0]:
            warn_of_few(samples, "add-variant")
        with change.steps.step(f"read {saved.name}"):
            program = saved.program("add-variant")
            program = calibrated(program, saved, change.head, change.saved, samples, tried)
        build, engines, found = change.build(saved, program, named, verify, thresholds)
        findings.append(found)
        artifacts = build.artifacts
        if engines is not named:  # the precision was chosen: what the file has already is not added again
            there = [variant.label for variant in saved.variants]
            artifacts = [a for a in artifacts if f"{a.spec.backend}:{a.spec.precision}" not in there]
        if not artifacts:
            change.notes.append(
                f"engine '{saved.name}': {engines.variants[0].name} is the fastest, and in the file already"
            )
            continue
        old = change.artifacts[saved.name]
        at = 0 if first else len(old) - (old[-1].spec.backend == registry.fallback().name)
        change.artifacts[saved.name] = [*old[:at], *artifacts, *old[at:]]
        names_now = variant_names([artifact.spec for artifact in change.artifacts[saved.name]])
        added[saved.name] = list(zip(names_now[at : at + len(artifacts)], artifacts, strict=True))
    if not added:
        raise OptionError.make(
            "add-variant",
            "precision='auto'",
            expected="a variant that is faster than those in the file",
            got="; ".join(change.notes),
            remedy="Nothing was saved. Name a precision to add it anyway.",
        )
    change.apply()
    verification = None
    if verify:
        with change.steps.step("compare the golden sample"):
            boxes, notes = change.compare_golden(change.head, change.engines, added, thresholds)
        change.notes += notes
        first_precision = next(iter(added.values()))[0][1].spec.precision
        verification = Verification(first_precision).with_findings(*findings, *boxes)
        require(verification)
    return change.save(verification)


def remove_variant(
    path: str | os.PathLike[str],
    engine: str,
    output: str | os.PathLike[str] | None = None,
    *,
    segment: str | None = None,
    sign: Keys = (),
    progress: bool | None = None,
) -> VariantChangeReport:
    """Removes a variant from a bundle. The last variant of an engine can't be removed.

    Args:
        path: path of the bundle.
        engine: name of a backend, for all its precisions, or of variants: "openvino:bf16". If several have that name,
            "tensorrt:fp16@8.6+8.9" is the one for these compute capabilities, "tensorrt:fp16@tensorrt==10.14.1" the one
            for this version.
        output: path of the `.pt` to write; None: ``path``.
        segment: change only the engine that contains this segment; None: all engines.
        sign: private keys that sign the new file, see :func:`add_variant`.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        The variants of the new file.

    Raises:
        OptionError: the file does not have the variant, or has no other one.
        BundleError: the file is not a bundle, was altered, or can't be written.

    Examples:
        >>> hybrid_rt.remove_variant("detector.pt", "torchscript").variants["backbone"]
        ['openvino:fp32']
    """
    change = _Change(path, output, segment, "remove-variant", progress, sign)
    for saved in change.chosen:
        old = change.artifacts[saved.name]
        left = [artifact for artifact in old if not artifact.spec.is_named(engine)]
        there = ", ".join(variant_names([artifact.spec for artifact in old]))
        if len(left) == len(old):
            raise OptionError.make(
                "remove-variant", f"engine of '{saved.name}'", expected=f"one of {there}", got=f"'{engine}'"
            )
        if not left:
            raise OptionError.make(
                "remove-variant",
                f"engine of '{saved.name}'",
                expected="at least one other variant",
                got=f"only {there}",
                remedy="Add one first: hybrid-rt add-variant.",
            )
        change.artifacts[saved.name] = left
    change.apply()
    return change.save(None)


def _require_new(saved: SavedEngine, wanted: Sequence[VariantRequest]) -> None:
    """Checks before long work that the file has no variant of the same name for the same machines."""
    for variant in wanted:
        made_for = variant.backend.made_for()
        same = [
            there
            for there in saved.variants
            if there.label == variant.name and made_for.items() <= there.requirements.items()
        ]
        if same:
            machines = f" for {', '.join(f'{name} {text}' for name, text in made_for.items())}" if made_for else ""
            raise OptionError.make(
                "add-variant",
                f"engine of '{saved.name}'",
                expected=f"one that the file does not have yet ({', '.join(variant_names(saved.variants))})",
                got=f"'{variant.name}'{machines}",
                remedy="Remove it first: hybrid-rt remove-variant.",
            )


class _Change:
    """Reads a bundle, changes it in memory, and writes it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        output: str | os.PathLike[str] | None,
        segment: str | None,
        scope: str,
        progress: bool | None,
        sign: Keys,
    ) -> None:
        self.path, self.output = Path(path), Path(output if output is not None else path)
        check_writable(self.output)
        self.keys = signing_keys(sign)
        _native.verify_records(os.fsencode(path))
        self.manifest = archive.read_manifest(path)
        self.steps = Steps(progress)
        self.notes: list[str] = []
        self.precisions: dict[str, list[PrecisionTrial]] = {}
        self.head = opened_head(self.path, scope)
        self.saved = engines = saved_engines(self.head, self.manifest)
        self.chosen = [saved for saved in engines if segment is None or saved.stored.is_named(segment)]
        if not self.chosen:
            names = ", ".join(saved.name for saved in engines) or "the file's engines, of which there are none"
            raise OptionError.make(
                scope, "segment", expected=f"one of {names}", got=f"'{segment}'", code="segment-misnamed"
            )
        self.artifacts = {saved.name: _artifacts(saved) for saved in engines}
        self.packed: dict[str, Packed] = {}
        self.engines: dict[str, Any] = {}

    def apply(self) -> None:
        """Replaces the head's engines with those that have the changed variants."""
        for saved in self.chosen:
            self.packed[saved.name] = pack(self.artifacts[saved.name])
            self.engines[saved.name] = make_engine(saved.stored.segments, self.packed[saved.name])
            jit.replace_engine(self.head, self.engines[saved.name])

    def build(
        self,
        saved: SavedEngine,
        program: Program,
        engines: EngineOptions,
        verify: bool,
        thresholds: Thresholds | None,
    ) -> tuple[EngineBuild, EngineOptions, Findings]:
        """Compiles an engine in the named precision, or in the fastest one that passes the comparison.

        Returns:
            The engine, its options with the chosen precision, and the errors of its outputs.

        Raises:
            VerificationError: The outputs differ from the stored segment's.
            HybridRTError: The compiler refuses.
        """
        compared: dict[str, Verification] = {}

        def compile_in(tried: EngineOptions) -> EngineBuild:
            build = compile_program(program, tried, self.steps)
            if verify:
                with self.steps.step(f"verify {saved.name}"):
                    first = tried.variants[0].precision
                    compared[tried.precision] = require_same_outputs(build, first, thresholds, "add-variant")
            return build

        def failure_of(build: EngineBuild, tried: EngineOptions) -> str:
            if not verify:
                return ""
            head = opened_head(self.path, "add-variant")  # one that has run keeps its engines
            jit.replace_engine(head, build.engine)
            specs = [artifact.spec for artifact in build.artifacts]
            added = {saved.name: list(zip(variant_names(specs), build.artifacts, strict=True))}
            boxes, _ = self.compare_golden(head, {saved.name: build.engine}, added, thresholds)
            failures = [failure.text for found in boxes for failure in found.failures]
            return failures[0] if failures else ""

        build, engines, trials = build_in_precision(engines, program, compile_in, failure_of, self.steps)
        if trials:
            self.precisions[saved.name] = trials
        if not verify:
            return build, engines, Findings()
        outputs = compared[engines.precision]
        self.notes += [f"not compared: {reason}" for reason in outputs.not_run]
        return build, engines, Findings(tensors=outputs.tensors)

    def compare_golden(
        self,
        head: torch.jit.ScriptModule,
        engines: Mapping[str, Any],
        added: Mapping[str, Sequence[tuple[str, Artifact]]],
        thresholds: Thresholds | None,
    ) -> tuple[list[Findings], list[str]]:
        """Runs a head on the golden sample, once for each new variant of its engines.

        Args:
            head: the head with its engines.
            engines: the engines by name.
            added: the new variants by the engine's name, each with its own name in that engine. The first ones of all
                engines run together, then the second ones, and so on.
            thresholds: limits for equality; None: those of the lowest precision that runs.

        Returns:
            The comparisons, and the reasons why something could not be compared.
        """
        if self.manifest.golden is None or self.manifest.golden.absent:
            return [], ["not compared: boxes, as the file has no golden sample"]
        findings, notes = [], []
        sample = golden.read(self.path)
        for i in range(max(map(len, added.values()))):
            together = {name: variants[i] for name, variants in added.items() if i < len(variants)}
            label = ", ".join(dict.fromkeys(name for name, _ in together.values()))
            place = next(iter(together.values()))[1].spec.device
            try:
                for engine, (name, _) in together.items():
                    prepare(engines[engine], name, device=place, emulate_precision=True)
            except BackendError as error:
                notes.append(f"not compared: boxes with {label}: {error}")
                continue
            module = head if place == "cpu" else OnDevice(head, place)
            with torch.no_grad():
                found = module(*map_tensors(sample.inputs, Tensor.clone))
            lowest = max((artifact.spec.precision for _, artifact in together.values()), key=list(PRECISIONS).index)
            limits = thresholds or thresholds_of(lowest)
            findings.append(compare_results(sample.expected, found, limits, f"golden sample with {label}"))
        return findings, notes

    def save(self, verification: Verification | None) -> VariantChangeReport:
        """Writes the file, and keeps the golden sample and everything else in the manifest that still applies."""
        before = self.path.stat().st_size
        description = self.manifest.golden or Golden(absent="the file had none")
        record = None if description.absent else _native.read_record(os.fsencode(self.path), description.record)
        manifest = replace(self.manifest, golden=description)
        for saved in self.chosen:
            packed = self.packed[saved.name]
            manifest = manifest.with_engine(
                replace(saved.stored, variants=tuple(packed.variants), table=tuple(packed.entries))
            )
        manifest, stale = without_stale_contract(self.manifest, manifest)
        with self.steps.step("save"):
            written = archive.save(self.head, self.output, manifest, record, sign=self.keys, source=self.path)
        return VariantChangeReport(
            path=str(self.output),
            variants={
                name: variant_names([artifact.spec for artifact in kept]) for name, kept in self.artifacts.items()
            },
            verification=verification,
            size_before=before,
            file_size=self.output.stat().st_size,
            notes=[*self.notes, *stale, *written.notes],
            precisions=self.precisions,
        )


def _artifacts(saved: SavedEngine) -> list[Artifact]:
    """Converts the variants of a saved engine back to artifacts."""
    table = saved.engine.blobs()
    artifacts = []
    for variant in saved.variants:
        blobs = {blob.name: unpack(blob, table) for blob in variant.blobs}
        artifacts.append(Artifact(variant.spec, blobs, registry.weights_of(variant.backend, blobs)))
    return artifacts
