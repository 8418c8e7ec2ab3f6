"""Measures the latency of a saved bundle on this machine, for a latency contract or to compare with one.

cpp/src/verify/latency.cpp does the comparison in C++.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..bundle import archive
from ..bundle.latency_contract import (
    FEWEST_CALLS,
    LatencyContract,
    MachineDescription,
    Size,
    SizeLatency,
    check_sizes,
)
from ..common.errors import BundleError, InputError, OptionError
from ..common.image_inputs import resized_image
from ..common.latency import times_of
from ..common.tensor_tree import map_tensors
from . import golden

REPEAT = 100
"""Number of timed calls per size; a 99th percentile needs that many."""

TOLERANCE = 0.25
"""Fraction by which a percentile may exceed the contract's."""

_WARM_UP = 2
"""Number of warm-up calls: TorchScript profiles the first call and optimises in the second."""

GOLDEN, OWN = "golden sample", "own inputs"


@dataclass(frozen=True)
class SizeComparison:
    """The contract's times of one size, and those measured here."""

    promised: SizeLatency
    found: SizeLatency


@dataclass(frozen=True)
class LatencyCheck:
    """Result of :func:`verify_latency`.

    Attributes:
        machine: this machine.
        measured_on: the machine on which the contract was measured.
        tolerance: fraction by which a percentile may exceed the contract's.
        sizes: the times, by size.
        failures: percentiles that are too high.
        notes: conditions that differ from the contract's: machine, device, threads, input, variants of engines.
    """

    machine: MachineDescription
    measured_on: MachineDescription
    tolerance: float
    sizes: tuple[SizeComparison, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Returns true if no percentile is too high."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Returns the field ``latency`` of the JSON that ``hybrid-rt-detect --verify --latency --json`` prints."""
        values = asdict(self)
        lists = {name: list(values[name]) for name in ("sizes", "failures", "notes")}
        return {"holds": self.holds, **values, **lists}

    @property
    def lines(self) -> list[str]:
        """Returns lines for a terminal. hybrid-rt-detect prints the same (cpp/apps/detect/verdict.cpp)."""
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        lines = [f"  latency contract {verdict} on {self.machine}"]
        for size in self.sizes:
            found, promised = size.found, size.promised
            text = (
                f"    {found.height}x{found.width}, ms: p50 {found.p50:.2f} of {promised.p50:.2f}, "
                f"p95 {found.p95:.2f} of {promised.p95:.2f}"
            )
            if found.p99 is not None and promised.p99 is not None:
                text += f", p99 {found.p99:.2f} of {promised.p99:.2f}"
            lines.append(f"{text} ({found.count} calls)")
        lines += [f"    TOO SLOW: {failure}" for failure in self.failures]
        return [*lines, *(f"    note: {note}" for note in self.notes)]


def measured_contract(
    path: str | os.PathLike[str],
    inputs: tuple[Any, ...] | None,
    *,
    sizes: Sequence[Size] = (),
    repeat: int = REPEAT,
    device: str | torch.device = "cpu",
    backend: str = "",
    threads: int = 0,
    scope: str = "measure",
) -> LatencyContract:
    """Measures a bundle on this machine, without changing the file.

    Args:
        path: path of the `.pt`.
        inputs: positional arguments of the detector; None: those of the golden sample.
        sizes: image sizes (height, width) in pixels; empty: that of the inputs' first image.
        repeat: timed calls per size.
        device: device to run on.
        backend: use only this backend's variants.
        threads: threads of torch and of each engine; 0: as many as torch uses in this thread.
        scope: the caller, for the text of errors.

    Raises:
        OptionError: The sizes or the number of calls can't be used.
        InputError: The detector does not accept the inputs at one of the sizes.
        BundleError: The file is not a bundle, or has no golden sample and no inputs are given.
        BackendError: No variant of an engine can run here.
    """
    if repeat < FEWEST_CALLS:
        raise OptionError.make(scope, "repeat", expected=f"at least {FEWEST_CALLS} timed calls", got=str(repeat))
    given = golden.read(path).inputs if inputs is None else inputs
    wanted = check_sizes(sizes, scope) or [_size_of(given, scope)]
    with _torch_threads(threads) as used:
        module = archive.load(path, device, backend=backend, threads=used)
        found = tuple(_measured(module, given, size, repeat, device, scope) for size in wanted)
    place = torch.device(device)
    return LatencyContract(
        machine=MachineDescription.here(max(0, place.index or 0) if place.type == "cuda" else -1),
        device=place.type,
        threads=used,
        engines={engine["engine"]: f"{engine['backend']}:{engine['precision']}" for engine in archive.engines(module)},
        input=GOLDEN if inputs is None else OWN,
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sizes=found,
    )


def check_contract(inputs: tuple[Any, ...], sizes: Sequence[Size], device: str) -> None:
    """Checks before a long conversion that its result can be measured.

    Raises:
        OptionError: A size is impossible for an image, or this machine lacks the device.
        InputError: The inputs contain no images.
    """
    check_sizes(sizes, "convert")
    _size_of(inputs, "convert")
    if device == "cuda" and not _native.cuda_devices()[0]:
        raise OptionError.make(
            "convert",
            "latency_contract",
            expected="the target device to measure on",
            got="'cuda', and no GPU here",
            remedy="Measure on the target: hybrid-rt measure FILE --device cuda.",
            code="no-gpu-here",
        )


def verify_latency(
    path: str | os.PathLike[str],
    inputs: tuple[Any, ...] | None = None,
    *,
    sizes: Sequence[Size] = (),
    repeat: int = 0,
    tolerance: float = TOLERANCE,
    device: str | torch.device = "cpu",
    backend: str = "",
    threads: int = 0,
) -> LatencyCheck:
    """Measures a bundle on this machine and compares the times with its latency contract.

    The contract holds if no percentile exceeds its value by more than the tolerance. Load by other programs affects the
    times, as it does in a service.

    Args:
        path: path of the `.pt`.
        inputs: positional arguments of the detector; needed if the contract was not measured on the golden sample's.
        sizes: sizes (height, width) to check; empty: all of the contract.
        repeat: timed calls per size; 0: as many as for the contract.
        tolerance: fraction by which a percentile may exceed the contract's.
        device: device to run on, see :func:`hybrid_rt.load`.
        backend: use only this backend's variants.
        threads: threads of torch and of each engine; 0: as many as for the contract.

    Returns:
        The comparison; its ``holds`` is true if no percentile is too high.

    Raises:
        BundleError: The file is not a bundle, has no contract or one with impossible values, or lacks the golden sample
            that is needed.
        OptionError: A size is not in the contract, there are too few calls, or the tolerance is negative.
        InputError: The detector does not accept the inputs.
        BackendError: No variant of an engine can run here.

    Examples:
        >>> report = hybrid_rt.measure("detector.pt", repeat=20)
        >>> check = hybrid_rt.verify_latency("detector.pt", tolerance=1000.0)
        >>> check.holds, check.machine == check.measured_on
        (True, True)
    """
    contract = read_contract(path)
    text = json.dumps(contract.to_json())
    chosen = _native.latency_sizes(text, os.fspath(path), tolerance, repeat, [(*size,) for size in sizes])
    counts = {count for _, _, count in chosen}
    measured = [
        measured_contract(
            path,
            inputs,
            sizes=[(height, width) for height, width, own in chosen if own == count],
            repeat=count,
            device=device,
            backend=backend,
            threads=threads or contract.threads,
            scope="latency",
        )
        for count in sorted(counts)
    ]
    here = replace(measured[0], sizes=tuple(size for each in measured for size in each.sizes))
    values = json.loads(_native.compare_latency(text, json.dumps(here.to_json()), tolerance))
    return LatencyCheck(
        machine=MachineDescription(**values["machine"]),
        measured_on=MachineDescription(**values["measured_on"]),
        tolerance=values["tolerance"],
        sizes=tuple(
            SizeComparison(SizeLatency(**size["promised"]), SizeLatency(**size["found"])) for size in values["sizes"]
        ),
        failures=tuple(values["failures"]),
        notes=tuple(values["notes"]),
    )


def read_contract(path: str | os.PathLike[str]) -> LatencyContract:
    """Returns the latency contract of a bundle.

    Raises:
        BundleError: The file is not a bundle, or has no contract or one with impossible values.
    """
    contract = archive.read_manifest(path).latency_contract
    if contract is None:
        raise BundleError.make(
            "bundle",
            os.fspath(path),
            expected="a latency contract",
            got="none",
            remedy="Measure one on the target machine: hybrid-rt measure FILE, or convert with latency_contract=True.",
        )
    return contract


@contextmanager
def _torch_threads(count: int) -> Iterator[int]:
    """Sets the number of torch's threads within the block (0: keeps it), and yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


def _measured(
    module: torch.nn.Module,
    inputs: tuple[Any, ...],
    size: Size,
    repeat: int,
    device: str | torch.device,
    scope: str,
) -> SizeLatency:
    resized = map_tensors(at_size(inputs, size), lambda tensor: tensor.to(device))
    call: Callable[..., Any] = module
    if torch.device(device).type == "cuda":

        def call(*arguments: Any) -> None:
            module(*arguments)
            torch.cuda.synchronize(device)

    try:
        return SizeLatency.of(size, times_of(call, resized, repeat=repeat, warm_up=_WARM_UP))
    except RuntimeError as error:  # from TorchScript, whose traceback names no line of the user's
        raise InputError.make(
            scope,
            f"images of {size[0]}x{size[1]}",
            expected="a size that the bundle accepts",
            got=str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ").removesuffix("."),
        ) from error


def _size_of(inputs: tuple[Any, ...], scope: str) -> Size:
    """Returns the size of the first image."""
    found: list[Size] = []

    def noted(image: Tensor) -> Tensor:
        found.append((image.shape[-2], image.shape[-1]))
        return image

    for value in inputs:
        _map_images(value, noted)
    if not found:
        raise InputError.make(
            scope,
            "inputs",
            expected="images: floats or uint8, [C, H, W] or [N, C, H, W], alone or in a list",
            got="none",
            remedy="Time such a detector with hybrid_rt.benchmark.",
        )
    return found[0]


def at_size(inputs: tuple[Any, ...], size: Size) -> tuple[Any, ...]:
    """Returns the inputs with every image at one size, as ``load(warm_up)`` resizes them."""

    def resized(image: Tensor) -> Tensor:
        return image if image.shape[-2:] == size else resized_image(image, *size)

    return tuple(_map_images(value, resized) for value in inputs)


def _map_images(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Changes an argument's images, which are recognised by the rule of cpp/src/torchscript/images.cpp."""
    if isinstance(value, Tensor):
        return change(value) if _is_image(value) else value
    if not isinstance(value, (list, tuple)):
        return value
    are_images = all(isinstance(each, Tensor) and each.dim() == 3 and _is_image(each) for each in value)
    return map_tensors(value, change) if are_images else value


def _is_image(tensor: Tensor) -> bool:
    has_pixels = tensor.is_floating_point() or tensor.dtype == torch.uint8
    return has_pixels and tensor.dim() in (3, 4)
