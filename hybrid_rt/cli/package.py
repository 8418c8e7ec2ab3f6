"""``hybrid-rt package``: writes a directory that runs bundles without Python."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..common.atomic_files import atomic_write
from ..conversion.export.package import Package, package
from ..conversion.export.sbom import bill, parts_of_requirements


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser(
        "package", help="write a directory with .pt files and everything to run them without Python"
    )
    verb.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="path of a .pt")
    verb.add_argument("-o", "--output", type=Path, required=True, help="directory to write")
    verb.add_argument(
        "--backend",
        help="comma-separated backends to include (default: all of the models' that run on this CPU)",
    )
    verb.add_argument(
        "--external-torch",
        action="store_true",
        help="leave out libtorch; on the target, HYBRID_RT_TORCH names its directory",
    )
    verb.add_argument("--tar", action="store_true", help="also write OUTPUT.tar")
    verb.add_argument("--overwrite", action="store_true", help="replace an existing package")
    verb.add_argument("--json", action="store_true", help="print the content of package.json")
    verb.set_defaults(run=_package)

    verb = verbs.add_parser("sbom", help="print a bill of materials of the installed hybrid_rt (CycloneDX)")
    verb.add_argument("-o", "--output", type=Path, help="file to write (default: stdout)")
    verb.set_defaults(run=_sbom)


def _sbom(options: argparse.Namespace) -> int:
    text = bill("hybrid_rt", parts_of_requirements(extras=("all",)))
    if options.output is None:
        print(text, end="")
        return 0
    with atomic_write(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def _package(options: argparse.Namespace) -> int:
    made = package(
        options.models,
        options.output,
        backends=None if options.backend is None else options.backend.split(","),
        torch="external" if options.external_torch else "include",
        archive=options.tar,
        overwrite=options.overwrite,
    )
    print(json.dumps(made.manifest, indent=1) if options.json else _described(made))
    return 0


def _described(made: Package) -> str:
    facts = made.manifest
    size = sum(file["size"] for file in facts["files"])
    backends = ", ".join(f"{name} {version}" for name, version in facts["backends"].items())
    lines = [f"{made.directory}: {len(facts['files'])} files, {size / 1e6:.1f} MB"]
    lines += [f"{made.archive}"] if made.archive else []
    lines += [
        f"  models: {', '.join(model['name'] for model in facts['models'])}",
        f"  backends: {backends}",
        *(f"  left out: {name}: {reason}" for name, reason in facts["left_out"].items()),
        f"  runs on {facts['machine']} with glibc {facts['glibc']} or newer",
        *(
            f"  needs {entry['name']} {entry['version']}, its directory in {entry['variable']}"
            for entry in facts["external"]
            if "variable" in entry
        ),
        f"  start: {made.directory / 'serve'}, {made.directory / 'detect'}",
    ]
    return "\n".join(lines)
