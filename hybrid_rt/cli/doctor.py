"""``hybrid-rt doctor``: lists the installation and the backends that can run."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
from dataclasses import asdict
from typing import Any

import torch

from .. import _native
from ..backends import registry
from ..common.executables import find_program
from ..common.version import __version__


def add_verbs(verbs: Any) -> None:
    """Adds the verbs to the result of ``add_subparsers``."""
    verb = verbs.add_parser("doctor", help="list installed backends and devices, and why others are unavailable")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    facts, found, checks = _facts(), registry.backends(), registry.runtime_checks()
    if options.json:
        listed = [{**asdict(info), "available": info.available} for info in found]
        print(json.dumps({**facts, "backends": listed, "gpu_libraries": [asdict(check) for check in checks]}, indent=1))
        return 0
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print("backends:")
    for info in found:
        where = f"{', '.join(info.devices)}; {', '.join(info.precisions)}"
        state = f"available ({where})" if info.available else f"NOT available: {info.reason}"
        print(f"  {info.name} {info.version}: {state}")
    for device, on_device in itertools.groupby(checks, key=lambda check: check.device):
        print(f"on {device}:" if device else "no GPU is here:")
        for check in on_device:
            installed = f" ({check.version})" if check.version else ""
            print(
                f"  {check.library}{installed}: {f'would NOT run: {check.refusal}' if check.refusal else 'would run'}"
            )
    return 0


def _facts() -> dict[str, str]:
    """Describes this machine and the installation."""
    return {
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


def _cuda_devices() -> str:
    devices, reason = _native.cuda_devices()
    named = [
        f"{i}: {device['name']}, compute capability {device['capability']}, {device['memory'] / 1e9:.0f} GB"
        for i, device in enumerate(devices)
    ]
    return "; ".join(named) or f"no device: {reason}"
