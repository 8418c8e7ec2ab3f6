"""The verbs that take a bundle: ``inspect``, ``check``, ``swap``, ``add-variant``, ``remove-variant``, ``extract``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..backends.selection import DEVICES
from ..bundle import archive
from ..bundle.manifest import Engine, Manifest
from ..capture.segment_contract import stride_of
from ..common.class_names import summary_of
from ..common.errors import OptionError
from ..common.images import images_at
from ..common.specs import PRECISIONS, variant_names
from ..conversion.calibration import MOST_SAMPLES
from ..conversion.edit.swap import swap_backbone
from ..conversion.edit.variants import add_variant, remove_variant
from ..conversion.export.extract import extract
from ..conversion.options import AUTO_PRECISION
from ..verification.golden import describe
from ..verification.text import summary
from ..verification.verify import Verification
from .detectors import built

_NOTHING_RUNS = 1


def add_compiler_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verbs that compile: target device, and options of the compilers."""
    verb.add_argument(
        "--device",
        default="cpu",
        choices=DEVICES,
        help="device to compile for (default: cpu)",
    )
    verb.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="ENGINE.NAME=VALUE",
        help="option of a compiler, e.g. tensorrt.tf32=false; may be repeated",
    )
    verb.add_argument(
        "--calibration-data",
        "--calibrate",
        type=Path,
        metavar="DIRECTORY",
        help="directory of typical images for int8 calibration; some tens, at most 300 are used",
    )


def calibration_images(directory: Path | None) -> list[tuple[Any, ...]]:
    """Returns the images in the directory of ``--calibration-data``, each as the arguments of a detector.

    Raises:
        OptionError: There is no image, or one can't be read.
    """
    return [([image],) for image in images_at(directory, most=MOST_SAMPLES)] if directory else []


def add_sign_argument(verb: argparse.ArgumentParser) -> None:
    """Adds the argument ``--sign`` of the verbs that write a bundle."""
    verb.add_argument(
        "--sign",
        type=Path,
        action="append",
        default=[],
        metavar="KEY",
        help="sign the bundle with the Ed25519 private key in this PEM file; may be repeated",
    )


def compiler_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parses the values of ``--option``, JSON or plain text.

    Raises:
        OptionError: A value is not of the form ENGINE.NAME=VALUE, or is given twice.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        name, is_set, value = text.partition("=")
        engine, has_name, key = name.partition(".")
        if not (engine and has_name and key and is_set) or key in options.get(engine, {}):
            raise OptionError.make(
                "cli", "--option", expected="ENGINE.NAME=VALUE, each once, e.g. tensorrt.tf32=false", got=f"'{text}'"
            )
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        options.setdefault(engine, {})[key] = parsed
    return options


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("inspect", help="show the content of a .pt without opening an engine")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("--json", action="store_true", help="print the whole manifest as JSON")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("check", help="check a .pt's integrity, and which variant of each engine would run")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("--device", default="cpu", help="device to check for (default: cpu)")
    verb.add_argument("--backend", default="", help="use only these, best first, e.g. openvino:bf16,torchscript")
    verb.add_argument("--strict", action="store_true", help="require the first variant to run")
    verb.add_argument("--cpu", help="comma-separated CPU flags of another machine (/proc/cpuinfo)")
    verb.add_argument("--memory", type=float, help="free memory of another machine, in GB")
    verb.add_argument("--allow", help="comma-separated backends that may run (default: HYBRID_RT_ALLOW, or all)")
    verb.add_argument("--capability", help="compute capability of another machine's GPU, e.g. 8.6")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_check)

    _add_edit_verbs(verbs)

    verb = verbs.add_parser("extract", help="write the engines of a .pt as files for the vendors' own tools")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("directory", type=Path, help="directory to write to; created if missing")
    verb.add_argument("--segment", help="extract only this segment's engine")
    verb.add_argument("--backend", help="extract only this backend's variants")
    verb.set_defaults(run=_extract)


def _add_edit_verbs(verbs: Any) -> None:
    """Adds the verbs that change a bundle."""
    verb = verbs.add_parser("add-variant", help="compile a saved .pt's segments with another engine")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("--engine", required=True, help="comma-separated engines to add, e.g. aot_inductor,openvino:bf16")
    verb.add_argument("--output", type=Path, help="path of the .pt to write (default: the input)")
    verb.add_argument(
        "--precision",
        choices=(*PRECISIONS, AUTO_PRECISION),
        help="precision of the engine; auto: the fastest that is right on this machine (default: that of the first "
        "variant in the file)",
    )
    add_compiler_arguments(verb)
    verb.add_argument("--segment", help="change only the engine of this segment (default: all)")
    verb.add_argument(
        "--first", action="store_true", help="insert before the other variants (default: before TorchScript)"
    )
    add_sign_argument(verb)
    verb.add_argument("--no-verify", action="store_true", help="save without comparing the outputs")
    verb.set_defaults(run=_add_variant)

    verb = verbs.add_parser("remove-variant", help="remove an engine variant from a saved .pt")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("--engine", required=True, help="variant to remove, e.g. openvino or openvino:bf16")
    verb.add_argument("--output", type=Path, help="path of the .pt to write (default: the input)")
    verb.add_argument("--segment", help="change only the engine of this segment (default: all)")
    add_sign_argument(verb)
    verb.set_defaults(run=_remove_variant)

    verb = verbs.add_parser("swap", help="put another backbone under the head of a .pt")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument("backbone", help="PACKAGE.MODULE:CALLABLE that returns the new backbone, with its weights")
    verb.add_argument("output", type=Path, help="path of the .pt to write; may be the input")
    verb.add_argument("--segment", help="segment to replace (default: backbone, or the first one that runs)")
    verb.add_argument("--engine", help="comma-separated backends, best first (default: those in the file)")
    verb.add_argument(
        "--precision",
        choices=(*PRECISIONS, AUTO_PRECISION),
        help="precision of the engine; auto: the fastest that is right on this machine (default: that of the file)",
    )
    add_sign_argument(verb)
    add_compiler_arguments(verb)
    verb.add_argument("--no-verify", action="store_true", help="save without comparing the outputs")
    verb.set_defaults(run=_swap)


def _inspect(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(archive.inspect(options.model), indent=1))
        return 0
    manifest = archive.read_manifest(options.model)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for line in _facts(manifest, options.model):
        console.print(Text(line), soft_wrap=True)
    for engine in manifest.engines:
        console.print()
        for line in _about(engine):
            console.print(Text(line), soft_wrap=True)
        console.print(_variants(engine))
        console.print(_tensors(engine))
    return 0


def _facts(manifest: Manifest, path: Path) -> Iterator[str]:
    """Returns facts about the whole file. Omits fields that an older file lacks."""
    detector = manifest.detector.class_name if manifest.detector else "a detector of unknown class"
    yield f"{path}: {detector}, format {manifest.format_version}, {path.stat().st_size / 1e6:.1f} MB"
    yield f"made with {_listed(manifest.versions)}"
    yield f"head operators: {', '.join(manifest.head.operators if manifest.head else ()) or 'none'}"
    verification = manifest.verification
    yield from summary(None if verification is None else Verification.from_json(verification))
    yield f"golden sample: {describe(manifest.golden.to_json() if manifest.golden else None)}"
    if manifest.latency_contract is not None:
        yield from manifest.latency_contract.lines
    yield f"class names: {summary_of(manifest.class_names or ()) or 'none'}"


def _about(engine: Engine) -> Iterator[str]:
    yield f"engine {engine.name}"
    if len(engine.members) > 1:
        yield f"  one engine for {' and '.join(engine.segments)}"
    if engine.swapped is not None:
        yield f"  {engine.swapped.segment} was swapped: {engine.swapped.class_name}"


def _variants(engine: Engine) -> Table:
    table = Table()
    for heading in ("backend", "precision", "device", "MB", "MB added", "made with", "requires"):
        table.add_column(heading, justify="right" if heading.startswith("MB") else "left")
    for variant, added in zip(engine.variants, engine.added_sizes, strict=True):
        sizes = f"{variant.size / 1e6:.1f}", f"{added / 1e6:.1f}"
        cells = [variant.backend, variant.precision, variant.device, *sizes]
        cells += [_listed(variant.versions, "\n"), _listed(variant.requirements, "\n") or "-"]
        table.add_row(*map(Text, cells))
    return table


def _tensors(engine: Engine) -> Table:
    """Returns a table of inputs and outputs, which all variants share."""
    table = Table()
    for heading in ("", "name", "sizes", "type", "stride"):
        table.add_column(heading)
    inputs, outputs = engine.variants[0].inputs, engine.variants[0].outputs
    for spec in inputs:
        table.add_row("input", *map(Text, (spec.name, spec.sizes, spec.dtype, "")))
    for spec in outputs:
        stride = stride_of(inputs[0], spec) if inputs else ""
        table.add_row("output", *map(Text, (spec.name, spec.sizes, spec.dtype, stride)))
    return table


def _listed(values: Mapping[str, str], separator: str = ", ") -> str:
    return separator.join(f"{name} {value}" for name, value in values.items())


def _check(options: argparse.Namespace) -> int:
    checks = archive.check(
        options.model,
        options.device,
        backend=options.backend,
        strict=options.strict,
        cpu=None if options.cpu is None else options.cpu.split(","),
        memory=None if options.memory is None else int(options.memory * 1e9),
        capability=options.capability,
        allow=None if options.allow is None else options.allow.split(","),
    )
    if options.json:
        print(json.dumps([asdict(engine) for engine in checks], indent=1))
    else:
        print(f"{options.model}: intact, every record matches its digest")
        stored = archive.read_manifest(options.model).engines
        for engine, names in zip(checks, (variant_names(each.variants) for each in stored), strict=True):
            for variant, name in zip(engine.variants, names, strict=True):
                verdict = "runs" if variant.chosen else (variant.refusal or "could run, but comes later in the file")
                required = name.partition("@")[2]
                for_which = f", for {required}" if required else ""
                print(f"  {engine.engine}: {variant.backend} ({variant.precision}{for_which}): {verdict}")
    return 0 if all(engine.chosen for engine in checks) else _NOTHING_RUNS


def _compilation(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments that ``swap_backbone`` and ``add_variant`` share."""
    return {
        "segment": options.segment,
        "precision": options.precision,
        "device": options.device,
        "options": compiler_options(options.option),
        "calibration_data": calibration_images(options.calibration_data),
        "verify": not options.no_verify,
        "sign": options.sign,
        "progress": True,
    }


def _swap(options: argparse.Namespace) -> int:
    report = swap_backbone(
        options.model,
        built(options.backbone, "backbone"),
        options.output,
        engine=options.engine if options.engine in (None, "auto") else options.engine.split(","),
        **_compilation(options),
    )
    print(report)
    return 0


def _add_variant(options: argparse.Namespace) -> int:
    report = add_variant(
        options.model,
        options.engine.split(","),
        options.output,
        first=options.first,
        **_compilation(options),
    )
    print(report)
    return 0


def _remove_variant(options: argparse.Namespace) -> int:
    report = remove_variant(
        options.model, options.engine, options.output, segment=options.segment, sign=options.sign, progress=True
    )
    print(report)
    return 0


def _extract(options: argparse.Namespace) -> int:
    for file in extract(options.model, options.directory, segment=options.segment, backend=options.backend):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 0
