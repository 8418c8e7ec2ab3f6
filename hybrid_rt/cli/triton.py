"""``hybrid-rt export-triton``: a bundle as a model of a Triton Inference Server."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..common.images import read_picture
from ..conversion.export.triton import INPUTS, ServingOptions, export_triton, library


def add_verbs(verbs: Any) -> None:
    """``verbs``: what ``add_subparsers`` returned."""
    verb = verbs.add_parser("export-triton", help="write a .pt into a model repository of Triton Inference Server")
    verb.add_argument("model", type=Path)
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="REPOSITORY", help="its folder of models")
    verb.add_argument("--name", help="the model's (default: the file's)")
    verb.add_argument(
        "--picture", type=Path, help="to try it with; it has to find something (default: the golden sample's)"
    )
    verb.add_argument(
        "--input", default="uint8", choices=INPUTS, help="uint8: [H, W, 3]; fp32: [3, H, W] in 0..1 (default: uint8)"
    )
    verb.add_argument(
        "--max-batch", type=int, default=0, metavar="N", help="pictures that run at once; 0: requests have no batch"
    )
    verb.add_argument("--max-delay-ms", type=float, default=5.0, help="that a picture waits for others (default: 5)")
    verb.add_argument("--instances", type=int, default=1, metavar="N", help="that run side by side (default: 1)")
    verb.add_argument("--threads", type=int, default=0, help="of each (default: as torch)")
    verb.add_argument("--force", action="store_true", help="replace a model of that name")
    verb.add_argument("--json", action="store_true")
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
        picture=None if options.picture is None else read_picture(options.picture),
        force=options.force,
    )
    facts = {"library": str(library()), "torch": torch.__version__}
    if options.json:
        print(json.dumps({**asdict(model), "folder": str(model.folder), **facts}, indent=1))
        return 0
    print(f"{model.folder}: finds what {options.model} finds")
    for tensor in (*model.inputs, *model.outputs):
        print(f"  {tensor.name}: {tensor.data_type} {list(tensor.dims)}")
    print(f"Preload {facts['library']}, with libtorch {facts['torch']}; docs/many-machines.md has the commands.")
    return 0
