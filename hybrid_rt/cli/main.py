"""The command line: the same verbs as the Python interface."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .. import _native
from ..backends import registry
from ..backends.selection import FASTEST
from ..common.errors import HybridRTError, OptionError
from ..common.executables import find_program, program
from ..common.images import pictures_at
from ..common.json_values import finite
from ..common.specs import PRECISIONS
from ..common.version import __version__
from ..conversion.assemble.head import HEADS
from ..conversion.convert import convert
from ..verification.coco import CocoDataset
from ..verification.golden import GoldenCheck, verify_golden
from . import bench, bundle, cache, package, triton
from .detectors import detector_named

EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 done, 1 failed (the message is on stderr), 2 usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] in (["detect"], ["serve"]):
            return _hand_over(*given)
        options = _parser().parse_args(given)
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
    verb.add_argument(
        "--engine",
        default="auto",
        help="comma-separated backends, best first, e.g. openvino:bf16,torchscript; fastest: all, as measured here "
        "(default: auto)",
    )
    verb.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default: fp32")
    bundle.add_compiler_arguments(verb)
    verb.add_argument("--calibrate", type=Path, metavar="FOLDER", help="pictures that int8 is calibrated on")
    verb.add_argument(
        "--sizes", help="picture sizes HEIGHTxWIDTH,... that it will be given (default: any that its transform takes)"
    )
    verb.add_argument("--no-fallback", action="store_true", help="no TorchScript variant")
    verb.add_argument("--no-verify", action="store_true", help="save whatever it finds")
    verb.add_argument(
        "--coco", type=Path, metavar="JSON", help="annotated pictures: report the mAP of both, and be the gate"
    )
    verb.add_argument("--pictures", type=Path, help="the folder of the pictures of --coco (default: the JSON's own)")
    verb.add_argument("--coco-limit", type=int, metavar="N", help="only the first N of them")
    verb.add_argument(
        "--max-map-drop",
        type=float,
        default=0.005,
        help="save nothing if the mAP (0..1) drops by more (default: 0.005)",
    )
    verb.add_argument("--no-golden", action="store_true", help="no golden sample in the file")
    verb.add_argument("--no-measure", action="store_true", help="do not time detector and hybrid")
    verb.add_argument("--report", type=Path, metavar="FILE", help="write the report too: FILE.html or FILE.json")
    verb.set_defaults(run=_convert)

    verb = verbs.add_parser("verify", help="does a .pt find here what its detector found: re-runs its golden sample")
    verb.add_argument("model", type=Path)
    verb.add_argument("--backend", default="", help="only this one")
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_verify)

    verbs.add_parser("detect", help="find boxes in a picture (the C++ program; see hybrid-rt detect --help)")

    verbs.add_parser("serve", help="answer requests over HTTP (the C++ program; see hybrid-rt serve --help)")

    verb = verbs.add_parser("doctor", help="what is installed, which backends can run, and why not")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_doctor)

    bundle.add_verbs(verbs)
    bench.add_verb(verbs)
    cache.add_verb(verbs)
    triton.add_verb(verbs)
    package.add_verb(verbs)
    return parser


def _sizes(text: str | None) -> list[tuple[int, int]] | None:
    if text is None:
        return None
    try:
        pairs = [size.lower().split("x") for size in text.split(",")]
        return [(int(height), int(width)) for height, width in pairs]
    except ValueError as error:
        raise OptionError.make("cli", "--sizes", expected="HEIGHTxWIDTH,...", got=f"'{text}'") from error


def _convert(options: argparse.Namespace) -> int:
    example, *others = pictures_at(options.example)
    result = convert(
        detector_named(options.detector),
        ([example],),
        options.output,
        segments=options.segments if options.segments == "auto" else options.segments.split(","),
        fuse=not options.no_fuse,
        head=options.head,
        engine=options.engine if options.engine in ("auto", FASTEST) else options.engine.split(","),
        precision=options.precision,
        device=options.device,
        options=bundle.compiler_options(options.option),
        calibration_data=[([picture],) for picture in pictures_at(options.calibrate)] if options.calibrate else (),
        shapes=_sizes(options.sizes),
        fallback=not options.no_fallback,
        verify=not options.no_verify,
        verify_inputs=[([picture],) for picture in others],
        dataset=_dataset(options),
        max_map_drop=options.max_map_drop,
        golden=not options.no_golden,
        measure=not options.no_measure,
        report=options.report,
        progress=True,
    )
    print(result.report)
    return 0


def _dataset(options: argparse.Namespace) -> CocoDataset | None:
    if options.coco is None:
        if options.pictures is not None or options.coco_limit is not None:
            raise OptionError.make("cli", "--pictures, --coco-limit", expected="--coco with them", got="none")
        return None
    return CocoDataset(options.coco, options.pictures or options.coco.parent, options.coco_limit)


def _verify(options: argparse.Namespace) -> int:
    check = verify_golden(options.model, backend=options.backend, device=options.device)
    if options.json:
        print(json.dumps(finite(check.to_json()), indent=1))
    else:
        print(_verdict(options.model, check))
    return 0 if check.passed else EXIT_FAILED


def _verdict(model: Path, check: GoldenCheck) -> str:
    lines = [f"{model}: " + ("finds what its detector found" if check.passed else "DIFFERS from its detector")]
    lines += [f"  {engine['segment']}: {engine['description']}" for engine in check.engines]
    for match in check.verification.pictures:
        text = (
            f"  {match.where}: {match.matched} of {match.expected} boxes found again among {match.found}, worst IoU "
            f"{match.min_iou:.4f}, box drift {match.max_box_drift:.2f} pixels, "
            f"score drift {match.max_score_difference:.2g}"
        )
        if match.min_mask_iou is not None:
            text += f", mask IoU {match.min_mask_iou:.4f}"
        if match.max_keypoint_distance is not None:
            text += f", keypoint drift {match.max_keypoint_distance:.2f} pixels"
        lines.append(text)
    worst = max(check.verification.tensors, key=lambda error: error.relative_error, default=None)
    if worst is not None:
        lines.append(f"  {len(check.verification.tensors)} outputs, worst relative error {worst.relative_error:.2g}")
    lines += [f"  FAILED: {text}" for text in check.verification.failures]
    if not check.compared:
        lines.append("  (not compared when it was converted: verify=False)")
    return "\n".join(lines)


def _hand_over(verb: str, *arguments: str) -> int:
    """Becomes the C++ program of that verb."""
    path = program(f"hybrid-rt-{verb}", verb)
    sys.stdout.flush()
    os.execv(path, [path, *arguments])


def _cuda_devices() -> str:
    devices, reason = _native.cuda_devices()
    named = [
        f"{i}: {device['name']}, compute capability {device['capability']}, {device['memory'] / 1e9:.0f} GB"
        for i, device in enumerate(devices)
    ]
    return "; ".join(named) or f"no device: {reason}"


def _doctor(options: argparse.Namespace) -> int:
    found = registry.backends()
    facts = {
        "hybrid_rt": __version__,
        "torch": torch.__version__,
        "built for torch": registry.built_for_torch(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch uses {torch.get_num_threads()} threads and "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "cuda": _cuda_devices(),
        "hybrid-rt-detect": str(find_program("hybrid-rt-detect")),
        "hybrid-rt-serve": str(find_program("hybrid-rt-serve")),
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
