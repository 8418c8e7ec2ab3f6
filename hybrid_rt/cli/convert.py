"""``hybrid-rt convert``: converts a detector to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..backends.selection import FASTEST
from ..capture.state import STATES
from ..common.errors import OptionError
from ..common.images import images_at
from ..common.specs import PRECISIONS
from ..conversion.options import AUTO_HEAD, AUTO_PRECISION, HEADS
from ..verification.coco import CocoDataset
from .bundle import add_compiler_arguments, add_sign_argument, calibration_images, compiler_options
from .detectors import class_names_for, detector_named
from .timing import sizes_of


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("convert", help="convert a detector into a .pt")
    verb.add_argument(
        "detector",
        help="PACKAGE.MODULE:CALLABLE that returns the detector, e.g. my.models:build; or "
        "torchvision:NAME for one of torchvision's detectors with pretrained weights",
    )
    verb.add_argument(
        "example",
        type=Path,
        help="an image with objects, or a directory of images: the first one is the example, all are compared",
    )
    verb.add_argument("output", type=Path, help="path of the .pt to write")
    _add_compilation(verb)
    _add_verification(verb)
    _add_output(verb)
    verb.set_defaults(run=_convert)


def _add_compilation(verb: argparse.ArgumentParser) -> None:
    """Adds the choice of segments and of their compilers."""
    verb.add_argument(
        "--segments",
        default="auto",
        help="comma-separated dotted names of submodules to compile; graph: the dense part of the exported graph "
        "(default: auto)",
    )
    verb.add_argument(
        "--no-fuse", action="store_true", help="build one engine per segment, even if segments feed each other directly"
    )
    verb.add_argument(
        "--head",
        default=AUTO_HEAD,
        choices=(AUTO_HEAD, *HEADS),
        help="conversion of the head. script: compile its code; export: use torch.export with free sizes; trace: "
        "record it on the example; auto: the first of these that is right (default: auto)",
    )
    verb.add_argument(
        "--engine",
        default="auto",
        help="comma-separated backends, best first, e.g. openvino:bf16,torchscript; fastest: all, ordered by measured "
        "time (default: auto)",
    )
    verb.add_argument(
        "--precision",
        default="fp32",
        choices=(*PRECISIONS, AUTO_PRECISION),
        help="precision of the engines; auto: the fastest that is right on this machine (default: fp32)",
    )
    add_compiler_arguments(verb)
    verb.add_argument(
        "--sizes", help="image sizes HEIGHTxWIDTH,... to support (default: all that the detector's transform accepts)"
    )
    verb.add_argument(
        "--state",
        default=STATES[0],
        choices=STATES,
        help="treatment of a detector that keeps state between images: refuse it, or reset the state before each call "
        "(default: refuse)",
    )
    verb.add_argument("--no-fallback", action="store_true", help="do not store a TorchScript variant")


def _add_verification(verb: argparse.ArgumentParser) -> None:
    """Adds the options of the checks that the hybrid has to pass before it is saved."""
    verb.add_argument("--no-verify", action="store_true", help="save without verifying the results")
    verb.add_argument(
        "--coco",
        type=Path,
        metavar="JSON",
        help="COCO annotations: report the mAP of both, and refuse a drop beyond --max-map-drop",
    )
    verb.add_argument(
        "--coco-images",
        "--pictures",
        dest="coco_images",
        type=Path,
        help="directory of the images of --coco (default: that of the JSON file)",
    )
    verb.add_argument("--coco-limit", type=int, metavar="N", help="use only the first N images of --coco")
    verb.add_argument(
        "--max-map-drop",
        type=float,
        default=0.005,
        help="largest allowed drop of the mAP (0..1) (default: 0.005)",
    )


def _add_output(verb: argparse.ArgumentParser) -> None:
    """Adds the options for everything that is written besides the engines."""
    verb.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="class names: one per line, the first for label 0, or JSON, a list or an object of labels "
        "(default: those of torchvision's weights, the detector or --coco)",
    )
    verb.add_argument("--no-golden", action="store_true", help="do not store a golden sample")
    verb.add_argument("--no-measure", action="store_true", help="do not measure latencies")
    verb.add_argument(
        "--latency-contract",
        action="store_true",
        help="store the times of 100 calls on this machine in the bundle, for verify --latency",
    )
    add_sign_argument(verb)
    verb.add_argument("--report", type=Path, metavar="FILE", help="write the report to FILE.html or FILE.json")


def _convert(options: argparse.Namespace) -> int:
    from ..conversion.convert import convert  # its import takes a second, which no other verb needs

    example, *others = images_at(options.example)
    result = convert(
        detector_named(options.detector),
        ([example],),
        options.output,
        segments=options.segments if options.segments in ("auto", "graph") else options.segments.split(","),
        fuse=not options.no_fuse,
        head=options.head,
        engine=options.engine if options.engine in ("auto", FASTEST) else options.engine.split(","),
        precision=options.precision,
        device=options.device,
        options=compiler_options(options.option),
        calibration_data=calibration_images(options.calibration_data),
        shapes=sizes_of(options.sizes) or None,
        state=options.state,
        fallback=not options.no_fallback,
        verify=not options.no_verify,
        verify_inputs=[([image],) for image in others],
        dataset=_dataset(options),
        max_map_drop=options.max_map_drop,
        class_names=class_names_for(options.detector, options.class_names),
        golden=not options.no_golden,
        measure=not options.no_measure,
        latency_contract=options.latency_contract,
        report=options.report,
        sign=options.sign,
        progress=True,
    )
    print(result.report)
    return 0


def _dataset(options: argparse.Namespace) -> CocoDataset | None:
    if options.coco is None:
        if options.coco_images is not None or options.coco_limit is not None:
            raise OptionError.make("cli", "--coco-images, --coco-limit", expected="--coco as well", got="none")
        return None
    return CocoDataset(options.coco, options.coco_images or options.coco.parent, options.coco_limit)
