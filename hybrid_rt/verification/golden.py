"""The golden sample of a bundle: an input with the detector's result, for a test on the target machine.

Nothing is pickled: the manifest describes the values, and one record holds the tensors' bytes (docs/format.md).
cpp/src/torchscript/golden.cpp reads it in C++.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..bundle import archive
from ..common.errors import BundleError
from ..common.tensor_tree import Node, build, fold, map_tensors, plain
from ..common.value_tree import opened
from .boxes import detections_of
from .thresholds import Thresholds
from .verify import Verification, compare_results

RECORD = archive.GOLDEN_RECORD

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


class _NotStorable(Exception):
    """The sample contains a value other than tensors, numbers and strings."""


@dataclass(frozen=True)
class GoldenSample:
    """The sample that a bundle stores.

    Attributes:
        inputs: the detector's positional arguments.
        expected: the detector's result. Masks are cut at 0.5: uint8 of 0 and 1.
        precision: precision of the bundle.
        thresholds: limits for equality.
        compared: true if convert() compared the hybrid with the detector on it before it saved the bundle.
    """

    inputs: tuple[Any, ...]
    expected: Any
    precision: str
    thresholds: Thresholds
    compared: bool


@dataclass(frozen=True)
class GoldenVerification:
    """Result of :func:`verify_golden`.

    Attributes:
        verification: the comparison.
        engines: how each engine ran, see :func:`hybrid_rt.engines`.
        thresholds: limits that were used.
        compared: true if :func:`convert` compared hybrid and detector on the sample before it saved the bundle.
    """

    verification: Verification
    engines: list[dict[str, Any]]
    thresholds: Thresholds
    compared: bool

    @property
    def passed(self) -> bool:
        """Returns true if the bundle's result on this machine matches the detector's at conversion."""
        return self.verification.passed

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values with the fields that ``hybrid-rt-detect --verify --json`` prints."""
        return {
            "passed": self.passed,
            "precision": self.verification.precision,
            "engines": {engine["engine"]: engine["description"] for engine in self.engines},
            "pictures": [asdict(match) for match in self.verification.pictures],
            "tensors": [
                {"output": error.output, "relative_error": error.relative_error, "cosine": error.cosine}
                for error in self.verification.tensors
            ],
            "failures": self.verification.failures,
            "thresholds": self.thresholds.to_json(),
        }


class SampleChoice:
    """Chooses the golden sample of a conversion; a ``watch`` for :func:`.verify.compare_modules`.

    It is the first input on which the detector found boxes, or else the first one. Inputs whose results depend on
    rounding (see :mod:`.self_noise`) are skipped, because judging them requires the detector, which the target lacks.
    """

    def __init__(self, example_inputs: tuple[Any, ...], result: Any, thresholds: Thresholds) -> None:
        """``result``: the detector's result on the example, which is used if nothing was compared."""
        self._inputs, self._expected = example_inputs, result
        self._thresholds = thresholds
        self._compared = self._is_judged = False

    def __call__(self, arguments: tuple[Any, ...], expected: Any, found: Any) -> None:
        """Considers the input of a comparison."""
        self._compared = True
        compared = _native.compare_results(plain(expected), plain(found), self._thresholds.to_native(), "golden sample")
        if compared.failures:
            return
        if not self._is_judged or (_boxes_in(expected) and not _boxes_in(self._expected)):
            self._inputs, self._expected = arguments, expected
        self._is_judged = True

    def sample(self, precision: str) -> GoldenSample | None:
        """Returns the sample, with the precision and thresholds of the conversion; None if all inputs were skipped."""
        if self._compared and not self._is_judged:
            return None
        return GoldenSample(self._inputs, self._expected, precision, self._thresholds, self._compared)


def _boxes_in(result: Any) -> int:
    return sum(len(image["boxes"]) for image in detections_of(result) or [])


NOT_REPEATED = "rounding decides on its result: no target can judge it without the detector"
"""Reason why a conversion has no golden sample although one was requested."""


def pack(
    golden: GoldenSample | None, absent: str = "switched off by golden=False"
) -> tuple[dict[str, Any], bytes | None]:
    """Returns the manifest's entry and the record's bytes, or the reason why a sample cannot be stored.

    Args:
        golden: the sample, or None.
        absent: the reason, if ``golden`` is None.
    """
    if golden is None:
        return {"absent": absent}, None
    images = detections_of(golden.expected)
    if images is not None and not any(len(image["boxes"]) for image in images):
        return {"absent": "the detector found no box on the example, so that there is nothing to compare"}, None
    data = bytearray()
    try:
        description = {
            "record": RECORD,
            "precision": golden.precision,
            "thresholds": golden.thresholds.to_json(),
            "compared": golden.compared,
            "inputs": [_pack(value, data) for value in golden.inputs],
            "expected": _pack(_compact(opened(golden.expected)), data),
        }
    except _NotStorable as error:
        return {"absent": f"inputs and results may hold tensors, numbers and strings, not {error}"}, None
    return description, bytes(data)


def _compact(expected: Any) -> Any:
    """Returns detections with binary masks, because float masks of all boxes would be larger than the bundle."""
    images = detections_of(expected)
    if images is None:
        return expected
    return [
        {name: (value >= 0.5).to(torch.uint8) if name == "masks" else value for name, value in image.items()}
        for image in images
    ]


def _pack(value: Any, data: bytearray) -> dict[str, Any]:
    def container(node: Node, children: list[dict[str, Any]]) -> dict[str, Any]:
        if node.kind != "dict":
            return {"kind": node.kind, "items": children}
        if not all(type(key) in (str, int) for key in node.keys) or len(set(map(str, node.keys))) < len(node.keys):
            raise _NotStorable("a dict with keys other than strings or integers")
        return {"kind": "dict", "keys": list(node.keys), "items": children}

    return fold(value, lambda leaf: _pack_leaf(leaf, data), container)


def _pack_leaf(value: Any, data: bytearray) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return _pack_tensor(value, data)
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no such number
        raise _NotStorable(f"the number {value}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"kind": "value", "value": value}
    raise _NotStorable(type(value).__name__)


def _pack_tensor(tensor: Tensor, data: bytearray) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or tensor.layout != torch.strided:
        raise _NotStorable(f"a tensor of {dtype}, {tensor.layout}")
    plain = tensor.detach().cpu().contiguous()
    as_bytes = _eight_bit(plain)
    stored = plain if as_bytes is None else as_bytes
    raw = stored.reshape(-1).view(torch.uint8).numpy().tobytes()
    offset = len(data)
    data += raw
    return {
        "kind": "tensor",
        "dtype": dtype,
        "shape": list(tensor.shape),
        "stored": "raw" if as_bytes is None else "8 bit",
        "offset": offset,
        "size": len(raw),
    }


def _eight_bit(tensor: Tensor) -> Tensor | None:
    """Returns an image in 0..1 as uint8; None if the conversion would not be exact."""
    if tensor.dtype != torch.float32 or not tensor.numel() or not bool(((tensor >= 0) & (tensor <= 1)).all()):
        return None
    as_bytes = (tensor * 255).round().to(torch.uint8)
    return as_bytes if torch.equal(as_bytes.float() / 255, tensor) else None


def describe(description: Mapping[str, Any] | None) -> str:
    """Describes the manifest's ``golden`` in one line, without reading a record."""
    if description is None:
        return "none (an older hybrid_rt made this file)"
    if "absent" in description:
        return f"none ({description['absent']})"
    inputs = ", ".join(
        "x".join(map(str, leaf["shape"])) for value in description["inputs"] for leaf in _tensors_of(value)
    )
    expected = description["expected"]
    boxes = [
        dict(zip(entry["keys"], entry["items"], strict=True))["boxes"]["shape"][0]
        for entry in expected.get("items", [])
        if entry["kind"] == "dict" and {"boxes", "labels", "scores"} <= set(entry["keys"])
    ]
    found = f"{sum(boxes)} boxes" if boxes else f"{sum(1 for _ in _tensors_of(expected))} tensors"
    return f"input {inputs}; the detector found {found}"


def _tensors_of(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the descriptions of all tensors in a tree."""
    found: list[Mapping[str, Any]] = []
    _unpack(tree, lambda leaf: found.append(leaf) if leaf["kind"] == "tensor" else None)
    return found


def read(path: str | os.PathLike[str]) -> GoldenSample:
    """Reads the golden sample of a bundle.

    Raises:
        BundleError: The file is not a bundle, was altered, or has no golden sample.
    """
    name = os.fspath(path)
    description = archive.inspect(path).get("golden")
    if description is None or "absent" in description:
        raise BundleError.make(
            "bundle",
            name,
            expected="a golden sample",
            got=describe(description),
            remedy="Convert the detector again, or compare with hybrid_rt.verify(detector, path, inputs).",
        )
    try:
        data = _native.read_record(os.fsencode(path), description["record"])

        def value_of(leaf: Mapping[str, Any]) -> Any:
            return _unpack_tensor(leaf, data) if leaf["kind"] == "tensor" else leaf["value"]

        return GoldenSample(
            tuple(_unpack(value, value_of) for value in description["inputs"]),
            _unpack(description["expected"], value_of),
            description["precision"],
            Thresholds.from_json(description["thresholds"]),
            bool(description["compared"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError.make(
            "bundle",
            f"{name}, golden sample",
            expected="inputs and results as docs/format.md describes them",
            got=f"{type(error).__name__}: {error}",
            remedy="The file was altered or damaged: copy or convert it again.",
        ) from error


def _unpack(tree: Mapping[str, Any], leaf: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Builds the described value; ``leaf`` is called with each description of a tensor or plain value."""
    kind = tree["kind"]
    if kind in ("tensor", "value"):
        return leaf(tree)
    if kind not in ("list", "tuple", "dict"):
        raise ValueError(f"kind '{kind}'")
    children = [_unpack(child, leaf) for child in tree["items"]]
    return build(Node(kind, tuple(tree["keys"]) if kind == "dict" else ()), children)


def _unpack_tensor(tree: Mapping[str, Any], data: bytes) -> Tensor:
    offset, size, shape = int(tree["offset"]), int(tree["size"]), [int(length) for length in tree["shape"]]
    if tree["dtype"] not in _DTYPES or tree["stored"] not in ("raw", "8 bit"):
        raise ValueError(f"a tensor of {tree['dtype']}, stored as {tree['stored']}")
    dtype = getattr(torch, tree["dtype"]) if tree["stored"] == "raw" else torch.uint8
    if not 0 <= offset <= offset + size <= len(data):
        raise ValueError(f"a tensor beyond the record's end: {size} bytes at {offset} of {len(data)}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"a tensor whose shape {shape} does not fit its {size} bytes")
    if not size:
        return torch.zeros(shape, dtype=getattr(torch, tree["dtype"]))
    tensor = torch.frombuffer(bytearray(data[offset : offset + size]), dtype=dtype).reshape(shape)
    return tensor if tree["stored"] == "raw" else tensor.float() / 255


def verify_golden(
    path: str | os.PathLike[str],
    *,
    backend: str = "",
    device: str | torch.device = "cpu",
    threads: int = 0,
    thresholds: Thresholds | None = None,
) -> GoldenVerification:
    """Runs a bundle on its golden sample on this machine, and compares the result with the detector's.

    The detector is not needed.

    Args:
        path: path of the `.pt`.
        backend: use only this backend's variants, see :func:`hybrid_rt.load`.
        device: device to run on, e.g. "cpu" or "cuda:0".
        threads: threads per engine and call; 0: as many as torch uses in this thread.
        thresholds: limits for equality; None: those that the bundle stores.

    Returns:
        The comparison; its ``passed`` is true if nothing differs.

    Raises:
        BundleError: the file is not a bundle, was altered, or has no golden sample.
        BackendError: no variant of an engine can run here.
        OptionError: the device is not available.

    Examples:
        >>> hybrid_rt.verify_golden("detector.pt").passed
        True
    """
    golden = read(path)
    module = archive.load(path, device, backend=backend, threads=threads)
    limits = thresholds or golden.thresholds
    with torch.no_grad():
        found = module(*map_tensors(golden.inputs, lambda tensor: tensor.to(device)))
    findings = compare_results(golden.expected, map_tensors(found, Tensor.cpu), limits, "golden sample")
    return GoldenVerification(
        Verification(golden.precision).with_findings(findings), archive.engines(module), limits, golden.compared
    )
