"""Measures the latency contract of a saved bundle on this machine, and writes it into the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ... import _native
from ...bundle import archive
from ...bundle.latency_contract import LatencyContract, Size
from ...bundle.manifest import Engine, Golden, Manifest
from ...bundle.signing import Keys, signing_keys
from ...common.atomic_files import check_writable
from ...common.progress import Steps
from ...verification.latency import REPEAT, measured_contract
from .saved_engines import opened_head


@dataclass(frozen=True)
class MeasureReport:
    """Result of :func:`measure`.

    Attributes:
        path: the bundle that was written.
        contract: the new latency contract.
        notes: the keys that have signed the file, and those whose signatures were removed.
    """

    path: str
    contract: LatencyContract
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """For a terminal."""
        return "\n".join([self.path, *self.contract.lines, *self.notes])


def measure(
    path: str | os.PathLike[str],
    inputs: tuple[Any, ...] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    sizes: Sequence[Size] = (),
    repeat: int = REPEAT,
    device: str | torch.device = "cpu",
    backend: str = "",
    threads: int = 0,
    sign: Keys = (),
    progress: bool | None = None,
) -> MeasureReport:
    """Measures a bundle on this machine and stores the times in it, as its latency contract.

    :func:`hybrid_rt.verify_latency`, `hybrid-rt verify --latency` and ``hybrid_rt::verify`` in C++ check later, or on
    another machine, whether the bundle keeps these times. An earlier contract is replaced.

    Args:
        path: the bundle.
        inputs: positional arguments of the detector; their images are resized. None: those of the golden sample, which
            every program has.
        output: the `.pt` to write; None: ``path``.
        sizes: image sizes (height, width) to measure, in pixels; none: that of the first image.
        repeat: timed calls per size, at least 20; the 99th percentile needs 100.
        device: device to run on, e.g. "cuda:0".
        backend: use only this backend's variants, see :func:`hybrid_rt.load`.
        threads: threads of torch and of each engine; 0: as many as torch uses in this thread.
        sign: private keys that sign the new file, see :func:`hybrid_rt.convert`. The old signatures are removed.
        progress: show each step on stderr; None: if it is a terminal.

    Returns:
        The contract.

    Raises:
        OptionError: The sizes or the number of calls can't be used.
        InputError: The inputs contain no images, or the bundle does not accept them.
        BundleError: The file is not a bundle, was altered, has no golden sample and no ``inputs`` were passed, or can't
            be written.
        BackendError: No variant of an engine can run here.

    Examples:
        >>> report = hybrid_rt.measure("detector.pt", sizes=[(64, 64)], repeat=20)
        >>> [(size.height, size.width, size.count) for size in report.contract.sizes]
        [(64, 64, 20)]
    """
    place = Path(output if output is not None else path)
    check_writable(place)
    keys = signing_keys(sign)
    steps = Steps(progress)
    manifest = archive.read_manifest(path)
    with steps.step("measure"):
        contract = measured_contract(
            path, inputs, sizes=sizes, repeat=repeat, device=device, backend=backend, threads=threads
        )
    with steps.step("save"):
        _native.verify_records(os.fsencode(path))
        golden = manifest.golden or Golden(absent="the file had none")
        record = None if golden.absent else _native.read_record(os.fsencode(path), golden.record)
        written = replace(manifest, golden=golden, latency_contract=contract)
        head = opened_head(Path(path), "measure")
        change = archive.save(head, place, written, record, sign=keys, source=path)
    return MeasureReport(str(place), contract, change.notes)


def without_stale_contract(before: Manifest, after: Manifest) -> tuple[Manifest, list[str]]:
    """Removes the latency contract from a changed manifest if a variant other than the measured one may run.

    Returns:
        The manifest, and a note if the contract was removed.
    """
    contract = before.latency_contract
    if contract is None or all(_still_runs(contract, before.engine(each.name), each) for each in after.engines):
        return after, []
    return replace(after, latency_contract=None), [
        "the latency contract was left out: another variant may run than the one that was measured. Measure it again: "
        "`hybrid-rt measure FILE`."
    ]


def _still_runs(contract: LatencyContract, before: Engine | None, after: Engine) -> bool:
    """Returns true if the measured variant is still there, preceded by the same variants as before."""
    measured = contract.engines.get(after.name, "")
    old = [variant.label for variant in before.variants] if before is not None else []
    new = [variant.label for variant in after.variants]
    return measured in old and old[: old.index(measured) + 1] == new[: old.index(measured) + 1]
