"""The command line: the same verbs as the Python interface."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from . import __version__, bundle, cli_cache, registry
from .convert import HEADS, convert
from .errors import HybridRTError, OptionError
from .specs import PRECISIONS, UNBOUNDED

EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 failed (the message is on stderr), 2 usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["detect"]:
        return _detect(given[1:])
    parser = _parser()
    options = parser.parse_args(given)
    try:
        return int(options.run(options))
    except HybridRTError as error:
        print(f"hybrid-rt: error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, OptionError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybrid-rt", description="Detectors as one .pt: compiled dense parts under a TorchScript head."
    )
    parser.add_argument("--version", action="version", version=f"hybrid-rt {__version__} (torch {torch.__version__})")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("convert", help="turn a detector into a .pt")
    verb.add_argument(
        "detector",
        help="PACKAGE.MODULE:CALLABLE that returns the detector, e.g. my.models:build; or "
        "torchvision:NAME for a detector of torchvision with its pretrained weights",
    )
    verb.add_argument(
        "example",
        type=Path,
        help="a picture with objects, or a folder of pictures: the first is the example, all are compared",
    )
    verb.add_argument("output", type=Path, help="the .pt to write")
    verb.add_argument("--segments", default="auto", help="comma-separated dotted names (default: auto, what pays)")
    verb.add_argument(
        "--no-fuse", action="store_true", help="an engine for each segment, also where data flows straight"
    )
    verb.add_argument(
        "--head",
        default="script",
        choices=HEADS,
        help="trace: record the head on the example, with its branches as they went there (default: script)",
    )
    verb.add_argument("--engine", default="auto", help="comma-separated backends, best first (default: auto)")
    verb.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default: fp32")
    verb.add_argument(
        "--sizes", help="picture sizes HEIGHTxWIDTH,... that it will be given (default: any that its transform takes)"
    )
    verb.add_argument("--no-fallback", action="store_true", help="no TorchScript variant")
    verb.add_argument("--no-verify", action="store_true", help="save whatever it finds")
    verb.set_defaults(run=_convert)

    verb = verbs.add_parser("inspect", help="what is in a .pt, without opening an engine")
    verb.add_argument("model", type=Path)
    verb.add_argument("--json", action="store_true", help="the whole manifest")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("check", help="is the file whole, and which variant of each segment would run here")
    verb.add_argument("model", type=Path)
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.add_argument("--backend", default="", help="only this one")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_check)

    verbs.add_parser("detect", help="find boxes in a picture (the C++ program; see hybrid-rt detect --help)")

    verb = verbs.add_parser("doctor", help="what is installed, which backends can run, and why not")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_doctor)

    cli_cache.add_verb(verbs)
    return parser


def _detector(text: str) -> torch.nn.Module:
    module, separator, name = text.partition(":")
    if not separator:
        raise OptionError.make(
            "cli", "detector", expected="PACKAGE.MODULE:CALLABLE or torchvision:NAME", got=f"'{text}'"
        )
    if module == "torchvision":
        import torchvision

        if name not in torchvision.models.list_models(module=torchvision.models.detection):
            known = ", ".join(torchvision.models.list_models(module=torchvision.models.detection))
            raise OptionError.make("cli", "detector", expected=f"one of {known}", got=f"'{name}'")
        try:
            detector: torch.nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
        except OSError as error:  # no network, or a damaged download
            raise OptionError.make(
                "cli",
                f"detector {name}",
                expected="to load torchvision's pretrained weights",
                got=str(error),
                remedy="Download them where there is a network, or name a PACKAGE.MODULE:CALLABLE of your own.",
            ) from error
        return detector.eval()
    sys.path.insert(0, os.getcwd())
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: an empty or relative name
        raise OptionError.make(
            "cli",
            "detector",
            expected="an importable PACKAGE.MODULE:CALLABLE",
            got=f"'{text}' ({error})",
            remedy="The current folder is on the import path.",
        ) from error
    built = build()
    if not isinstance(built, torch.nn.Module):
        raise OptionError.make("cli", "detector", expected=f"{text}() to return an nn.Module", got=type(built).__name__)
    return built.eval()


def read_picture(path: Path) -> torch.Tensor:
    """A picture as [3, H, W] float32 in 0..1, RGB.

    Raises:
        OptionError: it can't be read.
    """
    import numpy
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = numpy.array(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise OptionError.make("cli", f"picture {path}", expected="a picture file", got=str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _pictures(path: Path) -> list[torch.Tensor]:
    if not path.is_dir():
        return [read_picture(path)]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in {".png", ".jpg", ".jpeg"})
    if not files:
        raise OptionError.make("cli", f"folder {path}", expected="PNG or JPEG pictures", got="none")
    return [read_picture(file) for file in files]


def _sizes(text: str | None) -> list[tuple[int, int]] | None:
    if text is None:
        return None
    try:
        pairs = [size.lower().split("x") for size in text.split(",")]
        return [(int(height), int(width)) for height, width in pairs]
    except ValueError as error:
        raise OptionError.make("cli", "--sizes", expected="HEIGHTxWIDTH,...", got=f"'{text}'") from error


def _convert(options: argparse.Namespace) -> int:
    example, *others = _pictures(options.example)
    result = convert(
        _detector(options.detector),
        ([example],),
        options.output,
        segments=options.segments if options.segments == "auto" else options.segments.split(","),
        fuse=not options.no_fuse,
        head=options.head,
        engine=options.engine if options.engine == "auto" else options.engine.split(","),
        precision=options.precision,
        shapes=_sizes(options.sizes),
        fallback=not options.no_fallback,
        verify=not options.no_verify,
        verify_inputs=[([picture],) for picture in others],
        progress=True,
    )
    print(result.report)
    return 0


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}..{'' if high == UNBOUNDED else high}"


def _tensor(spec: dict[str, Any]) -> str:
    sizes = " x ".join(_range(low, high) for low, high in zip(spec["min"], spec["max"], strict=True))
    return f"{spec['name']}: {sizes} {spec['dtype']}"


def _inspect(options: argparse.Namespace) -> int:
    manifest = bundle.inspect(options.model)
    if options.json:
        print(json.dumps(manifest, indent=1))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{options.model}: {manifest['detector']['class']}, format {manifest['format_version']}", highlight=False
    )
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    console.print(f"made with {versions}", highlight=False)
    console.print(f"head operators: {', '.join(manifest['head']['operators'])}", highlight=False)
    verification = manifest["verification"]
    if verification is None:
        console.print("not verified", highlight=False)
    else:
        pictures = verification["pictures"]
        matched, expected = (sum(picture[key] for picture in pictures) for key in ("matched", "expected"))
        console.print(
            f"verified in {verification['precision']}: {matched} of {expected} boxes found again", highlight=False
        )
    table = Table()
    for heading in ("segment", "engine", "precision", "device", "MB", "inputs"):
        table.add_column(heading, justify="right" if heading == "MB" else "left")
    for segment in manifest["segments"]:
        for i, variant in enumerate(segment["variants"]):
            size = sum(blob["size"] for blob in variant["blobs"]) / 1e6
            inputs = "\n".join(_tensor(spec) for spec in variant["inputs"]) if i == 0 else ""
            name = segment["name"] if i == 0 else ""
            table.add_row(name, variant["backend"], variant["precision"], variant["device"], f"{size:.1f}", inputs)
    console.print(table)
    return 0


def _check(options: argparse.Namespace) -> int:
    checks = bundle.check(options.model, options.device, backend=options.backend)
    if options.json:
        print(json.dumps([asdict(segment) for segment in checks], indent=1))
    else:
        print(f"{options.model}: whole, every record matches its digest")
        for segment in checks:
            for variant in segment.variants:
                verdict = "runs" if variant.chosen else (variant.refusal or "could run, comes later in the file")
                print(f"  {segment.segment}: {variant.backend} ({variant.precision}): {verdict}")
    return 0 if all(segment.chosen for segment in checks) else EXIT_FAILED


def _detect(arguments: Sequence[str]) -> int:
    """Hands over to the C++ program, which lies beside this interpreter."""
    beside = Path(sys.executable).parent / "hybrid-rt-detect"
    program = str(beside) if beside.exists() else shutil.which("hybrid-rt-detect")
    if program is None:
        print(
            "hybrid-rt: error: hybrid_rt[cli]: detect: expected the program hybrid-rt-detect, got none. Install "
            "hybrid_rt with its C++ programs (HYBRID_RT_BUILD_APPS=ON, the default).",
            file=sys.stderr,
        )
        return EXIT_FAILED
    sys.stdout.flush()
    os.execv(program, [program, *arguments])


def _doctor(options: argparse.Namespace) -> int:
    found = registry.backends()
    facts = {
        "hybrid_rt": __version__,
        "torch": torch.__version__,
        "built for torch": registry.built_for_torch(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch uses {torch.get_num_threads()} threads and "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "cuda": f"{torch.cuda.device_count()} devices" if torch.cuda.is_available() else "no device",
        "hybrid-rt-detect": str(
            shutil.which("hybrid-rt-detect", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        ),
    }
    if options.json:
        print(
            json.dumps(
                {**facts, "backends": [{**asdict(info), "available": info.available} for info in found]}, indent=1
            )
        )
        return 0
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print("backends:")
    for info in found:
        where = f"{', '.join(info.devices)}; {', '.join(info.precisions)}"
        print(
            f"  {info.name} {info.version}: "
            + (f"available ({where})" if info.available else f"NOT available: {info.reason}")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
