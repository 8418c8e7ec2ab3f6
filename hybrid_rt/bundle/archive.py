"""Writes, loads and checks bundles, the `.pt` files that hold head, engines and manifest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import _native
from ..backends import registry
from ..common.atomic_files import atomic_write
from ..common.errors import OptionError
from ..torchscript import jit
from . import old_names, signing
from .manifest import FORMAT_VERSION, Manifest, Record

_PREFIX = "extra/hybrid_rt"
GOLDEN_RECORD = f"{_PREFIX}/golden.bin"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class VariantCheck:
    """One variant of an engine, and whether it can run.

    Attributes:
        backend: name of the backend, e.g. "openvino".
        precision: precision of the artifact, e.g. "bf16".
        chosen: true for the variant that runs.
        refusal: reason why it can't run here; empty if it can.
    """

    backend: str
    precision: str
    chosen: bool
    refusal: str


@dataclass(frozen=True)
class EngineCheck:
    """The variants of an engine in the file's order.

    Attributes:
        engine: name of the engine, for messages: "backbone+rpn.head".
        segments: dotted paths of the submodules that it replaces.
        variants: the check of each variant.
    """

    engine: str
    segments: tuple[str, ...]
    variants: tuple[VariantCheck, ...]

    @property
    def chosen(self) -> VariantCheck | None:
        """Returns the variant that would run here; None if none can."""
        return next((variant for variant in self.variants if variant.chosen), None)


def save(
    module: torch.jit.ScriptModule,
    path: str | os.PathLike[str],
    manifest: Manifest,
    golden: bytes | None = None,
    *,
    sign: signing.Keys = (),
    source: str | os.PathLike[str] | None = None,
) -> signing.SignatureChange:
    """Writes a bundle. The file is written completely or not at all; an old one stays until it is replaced.

    A process that is killed while it writes leaves a hidden directory ``.hybrid_rt-*`` beside the file; a later
    write into the same directory removes it once it is a day old.

    Args:
        module: the frozen hybrid.
        path: path of the file to write.
        manifest: the manifest, to which the digest of each record is added.
        golden: the bytes of the golden sample that ``manifest.golden`` describes.
        sign: the private keys that sign it before it replaces an old file.
        source: the bundle that it was derived from, whose signatures do not apply to it.

    Returns:
        The keys that have signed it, and those whose signatures were dropped.

    Raises:
        BundleError: It can't be written, or does more than compute, so that it could not be loaded either.
        OptionError: A key can't be read.
    """
    place = Path(path)
    keys = signing.signing_keys(sign)
    before = signing.signers_of(place) | (signing.signers_of(source) if source is not None else set())
    archive = jit.to_bytes(module)
    _native.check_script(archive, os.fsencode(place))
    with atomic_write(place) as temporary, ThreadPoolExecutor(1) as pool:
        records = pool.submit(_records, archive, manifest)  # hundreds of megabytes: digests while they are written
        temporary.write_bytes(archive)
        _append_manifest(temporary, manifest, *records.result(), golden)
        signed = signing.sign_copy(temporary, keys)
    signing.remove_detached(place)
    return signing.SignatureChange(signed, tuple(sorted(before - set(signed))))


def _records(archive: bytes, manifest: Manifest) -> tuple[str, dict[str, Record]]:
    """Returns the archive's root directory, and each record's digest and size."""
    blobs = {entry.sha256 for engine in manifest.engines for entry in engine.table}
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        root = opened.namelist()[0].split("/", 1)[0]
        records = {}
        for name in opened.namelist():
            digest = _sha256_of_record(opened, name)
            size = opened.getinfo(name).file_size
            records[name.split("/", 1)[1]] = Record(digest, size, is_blob=digest in blobs)
    return root, records


def _append_manifest(
    path: Path, manifest: Manifest, root: str, records: dict[str, Record], golden: bytes | None
) -> None:
    if golden is not None:
        digest = hashlib.sha256(golden).hexdigest()
        records[GOLDEN_RECORD] = Record(digest, len(golden), is_golden=True)
    written = replace(manifest, format_version=FORMAT_VERSION, records=records)
    text = json.dumps(written.to_json(), indent=1)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        if golden is not None:  # the one record that nothing maps into memory, and that is mostly zeros if it has masks
            archive.writestr(f"{root}/{GOLDEN_RECORD}", golden, zipfile.ZIP_DEFLATED)
        archive.writestr(f"{root}/{_PREFIX}/format_version", str(FORMAT_VERSION))
        archive.writestr(f"{root}/{_PREFIX}/manifest.json", text)
        archive.writestr(f"{root}/{_PREFIX}/manifest.sha256", hashlib.sha256(text.encode()).hexdigest())


def _sha256_of_record(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    backend: str | Sequence[str] = "",
    threads: int = 0,
    strict: bool = False,
    warm_up: Sequence[tuple[int, int]] = (),
    trust: str = "digests",
    emulate_precision: bool = False,
    concurrency: int = 1,
    trusted_keys: Sequence[str | os.PathLike[str]] = (),
    allow: Sequence[str] | None = None,
    pin_threads: bool = False,
) -> torch.jit.ScriptModule:
    """Loads a bundle as a module that behaves like the detector. Problems are raised here, not at the first call.

    Bytes of variants that do not run are not kept in memory; they are read from the file if they are needed later.

    Args:
        path: path of the `.pt`.
        device: device to run on, e.g. "cpu" or "cuda:0". Pass inputs on the same device.
        backend: use only this backend's variants, or those of several, best first; "openvino:bf16" names one by its
            precision. Empty: the environment's HYBRID_RT_BACKEND, or all in the file's order.
        threads: threads per engine and call; 0: as many as torch uses in this thread.
        strict: raise an error instead of falling back if the first variant can't run.
        warm_up: image sizes (height, width) to run now, so that the first call is not slow. The engines run first; if
            one fails, the next variant replaces it.
        trust: "digests": everything that is read matches its stored digest. "signed": one of the trusted keys has also
            signed the file, see :func:`sign`; checked before any byte reaches torch or an engine.
        emulate_precision: run a bf16 variant in bf16 even on a CPU without the instructions (much slower), to verify
            its results. By default it runs in f32 there.
        concurrency: number of threads that will call the module concurrently. Each engine is prepared for that many
            calls, each with ``threads`` threads.
        trusted_keys: PEM files with the Ed25519 public keys that you trust; any key requires a signature. Empty: those
            of the environment's HYBRID_RT_TRUSTED_KEYS, separated by colons.
        allow: the backends that may run the file's engines, named as in `backend`; all others are refused, whatever
            the file or `backend` requests. `["openvino", "onnxruntime"]` keeps native code in the file from running
            (see docs/threat-model.md). None: those of the environment's HYBRID_RT_ALLOW, separated by commas, or all.
        pin_threads: bind an engine's threads to CPUs during a call, if they occupy every CPU that the process may run
            on and `concurrency` is 1. OpenVINO only. Not for a process that forks afterwards: the calls of all children
            would share one CPU.

    Returns:
        The module; its forward takes and returns the same as the detector's in eval mode.

    Raises:
        BundleError: the file is missing, altered, truncated, of a newer format, or lacks a required signature.
        BackendError: no variant of an engine can run here, or with ``strict`` not the first one; the text lists each
            with its reason.
        OptionError: the device is not available, the detector does not accept a size, or `allow` is empty.

    Examples:
        >>> module = hybrid_rt.load("detector.pt", threads=1, warm_up=[(64, 64)])
        >>> detections = module([image])  # one dict per image
        >>> sorted(detections[0])
        ['boxes', 'labels', 'scores']
    """
    registry.load_plugins()
    options = _options(
        device,
        backend,
        threads=threads,
        strict=strict,
        warm_up=[(height, width) for height, width in warm_up],
        trust=trust,
        emulate_precision=emulate_precision,
        concurrency=concurrency,
        trusted_keys=[os.fsencode(key) for key in trusted_keys],
        allow=_policy(allow),
        pin_threads=pin_threads,
    )
    return jit.load(path, options)


def _policy(allow: Sequence[str] | None) -> list[str]:
    """Returns the allowed backends for the native part; an empty list means no policy.

    Raises:
        OptionError: The policy names no backend.
    """
    names = [allow] if isinstance(allow, str) else list(allow or ())
    if allow is not None and not all(names or [""]):
        raise OptionError.make(
            "bundle",
            "allow",
            expected="at least one backend's name",
            got=repr(allow),
            remedy="Pass None to allow every backend.",
        )
    return names


def _options(device: str | torch.device, backend: str | Sequence[str], **further: Any) -> Any:
    """Converts the arguments of :func:`load` to those of the native module."""
    names = backend if isinstance(backend, str) else ",".join(backend)
    return _native.LoadOptions(device=str(device), backend=names, **further)


def open_engine(
    path: str | os.PathLike[str],
    name: str,
    device: str | torch.device = "cpu",
    *,
    backend: str | Sequence[str] = "",
    threads: int = 0,
    strict: bool = False,
    allow: Sequence[str] | None = None,
) -> OpenedEngine:
    """Opens one engine without TorchScript: for a program that has its own head.

    Args:
        path: path of the `.pt`.
        name: name of the engine, or of one of its segments.
        device: device to run on, e.g. "cpu" or "cuda:0".
        backend: use only these backends' variants, best first, see :func:`load`.
        threads: threads per call; 0: as many as torch uses in this thread.
        strict: raise an error if the first variant can't run.
        allow: the backends that may run, see :func:`load`.

    Returns:
        The engine; call it with flat tensors.

    Raises:
        BundleError: the file is missing, altered, truncated, or of a newer format.
        BackendError: no variant of the engine can run here.
        OptionError: the bundle has no such engine.

    Examples:
        >>> backbone = hybrid_rt.open_engine("detector.pt", "backbone")
        >>> features = backbone(image[None])  # the backbone takes a batch [N, 3, H, W]
        >>> [tuple(feature.shape) for feature in features]
        [(1, 8, 32, 32), (1, 8, 16, 16)]
    """
    registry.load_plugins()
    options = _options(device, backend, threads=threads, strict=strict, allow=_policy(allow))
    return OpenedEngine(_native.open_engine(os.fsencode(path), name, options))


class OpenedEngine:
    """An engine: flat tensors in, flat tensors out, in the order of the manifest's inputs and outputs."""

    def __init__(self, native: Any) -> None:
        """See :func:`open_engine`."""
        self._native = native

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Runs the engine once. Several threads may call it at the same time.

        Args:
            inputs: the tensors in the order of the manifest's ``inputs``, with the dtypes and within the size ranges
                given there, on the engine's device.

        Returns:
            New tensors in the order of the manifest's ``outputs``.

        Raises:
            InputError: an input violates the engine's contract (count, dtype, rank, range, device).
            BackendError: the vendor's runtime fails.
        """
        outputs: list[torch.Tensor] = self._native.run(list(inputs))
        return outputs

    @property
    def description(self) -> str:
        """Returns one line: the runtime, its version, the precision in use, and the number of threads."""
        text: str = self._native.description()
        return text

    @property
    def variants(self) -> tuple[VariantCheck, ...]:
        """Returns the variant that runs, and the reasons against the others."""
        return tuple(VariantCheck(**variant) for variant in self._native.variants())


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of a bundle, without unpickling anything or opening an engine.

    A manifest of format version 1 is converted to version 2. The key ``segments``, which version 1 used for
    ``engines``, still works, with a ``DeprecationWarning``.

    Args:
        path: path of the `.pt`.

    Returns:
        The manifest as JSON values; docs/format.md describes each key.

    Raises:
        BundleError: the file is not a bundle, or the manifest does not match its digest.

    Examples:
        >>> manifest = hybrid_rt.inspect("detector.pt")
        >>> [member["name"] for engine in manifest["engines"] for member in engine["members"]]
        ['backbone']
    """
    return old_names.manifest(json.loads(_native.read_manifest(os.fsencode(path))))


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Returns the result of :func:`inspect` as a typed object.

    Raises:
        BundleError: the file is not a bundle, or the manifest does not match its digest.
    """
    return Manifest.from_json(inspect(path))


def check(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    backend: str | Sequence[str] = "",
    strict: bool = False,
    cpu: Sequence[str] | None = None,
    memory: int | None = None,
    capability: str | None = None,
    allow: Sequence[str] | None = None,
) -> list[EngineCheck]:
    """Compares every record of a file with its digest, and returns the variants that would run.

    Loads no engine.

    Args:
        path: path of the `.pt`.
        device: device to check for, see :func:`load`.
        backend: names of the variants to consider, see :func:`load`.
        strict: require the first variant, see :func:`load`.
        cpu: CPU flags of another machine, as its kernel names them (/proc/cpuinfo); None: this machine's.
        memory: free memory of another machine, in bytes; None: this machine's.
        capability: compute capability of another machine's GPU, e.g. "8.6"; None: this machine's GPUs.
        allow: the backends that may run, see :func:`load`.

    Returns:
        One entry per engine, with its variants in the file's order.

    Raises:
        BundleError: the file is not a bundle, a record does not match its digest, or the head does more than compute.

    Examples:
        >>> [engine.chosen.backend for engine in hybrid_rt.check("detector.pt")]
        ['openvino']
    """
    registry.load_plugins()
    _native.verify_records(os.fsencode(path))
    return [
        EngineCheck(
            entry["engine"],
            tuple(entry["segments"]),
            tuple(VariantCheck(**variant) for variant in entry["variants"]),
        )
        for entry in _native.check(
            os.fsencode(path),
            _options(device, backend, strict=strict, allow=_policy(allow)),
            None if cpu is None else set(cpu),
            memory,
            capability,
        )
    ]


def engines(module: torch.jit.ScriptModule) -> list[dict[str, Any]]:
    """Returns how each engine of a loaded bundle runs.

    Args:
        module: a module that :func:`load` returned.

    Returns:
        One dict per engine: its name ("engine"), the dotted paths of its submodules ("segments"), the variant that
        runs ("backend", "precision", "description"), and the reasons against the others ("variants"). Empty for a
        module without engines. Does not raise.

    Examples:
        >>> module = hybrid_rt.load("detector.pt", backend="torchscript")
        >>> [(engine["engine"], engine["backend"]) for engine in hybrid_rt.engines(module)]
        [('backbone', 'torchscript')]
    """
    return [old_names.engine_choice(choice) for choice in _native.engines(module._c)]
