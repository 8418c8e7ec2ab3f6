"""``hybrid-rt export-triton``: exports a bundle as a model for Triton Inference Server."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..common.images import read_image
from ..conversion.export.triton import INPUTS, ServingOptions, export_triton, library


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("export-triton", help="write a .pt into a model repository of Triton Inference Server")
    verb.add_argument("model", type=Path, help="path of the .pt")
    verb.add_argument(
        "-o", "--output", type=Path, required=True, metavar="REPOSITORY", help="directory of the model repository"
    )
    verb.add_argument("--name", help="name of the model (default: the file name)")
    verb.add_argument(
        "--image", "--picture", dest="image", type=Path, help="test image with objects (default: the golden sample's)"
    )
    verb.add_argument(
        "--input",
        default="uint8",
        choices=INPUTS,
        help="uint8: input [H, W, 3]; fp32: input [3, H, W] in 0..1 (default: uint8)",
    )
    verb.add_argument(
        "--max-batch", type=int, default=0, metavar="N", help="maximum batch size; 0: requests have no batch dimension"
    )
    verb.add_argument(
        "--max-delay-ms", type=float, default=5.0, help="time that an image waits for others, in ms (default: 5)"
    )
    verb.add_argument(
        "--instances", type=int, default=1, metavar="N", help="number of concurrent instances (default: 1)"
    )
    verb.add_argument("--threads", type=int, default=0, help="threads per instance (default: as torch)")
    verb.add_argument("--force", action="store_true", help="replace an existing model of that name")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    model = export_triton(
        options.model,
        options.output,
        ServingOptions(
            input_type=options.input,
            max_batch=options.max_batch,
            max_delay_ms=options.max_delay_ms,
            instances=options.instances,
            threads=options.threads,
        ),
        name=options.name,
        image=None if options.image is None else read_image(options.image),
        force=options.force,
    )
    facts = {"library": str(library()), "torch": torch.__version__}
    if options.json:
        print(json.dumps({**asdict(model), "folder": str(model.folder), **facts}, indent=1))
        return 0
    print(f"{model.folder}: matches {options.model}")
    for tensor in (*model.inputs, *model.outputs):
        print(f"  {tensor.name}: {tensor.data_type} {list(tensor.dims)}")
    print(f"Preload {facts['library']}, with libtorch {facts['torch']}; see docs/many-machines.md for the commands.")
    return 0
