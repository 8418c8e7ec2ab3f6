"""The manifest of a bundle as typed values: the Python home of the file format (docs/format.md, manifest.schema.json).

This is version 2. Files of version 1 can be read too: the native part converts their manifests to version 2
(cpp/src/bundle/manifest.cpp), so no Python code handles version 1.

Unknown fields of a manifest and of its engines are kept, so that editing a file does not lose them; unknown fields
elsewhere are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from ..common.errors import BundleError
from ..common.specs import ArtifactSpec, TensorSpec, engine_name
from .latency_contract import LatencyContract

FORMAT_VERSION = 2

Piece = tuple[int, int, int]
"""Index of an entry of the engine's table, offset and size in bytes."""

_Built = TypeVar("_Built")


@dataclass(frozen=True)
class Member:
    """A segment in an engine.

    Attributes:
        name: its dotted path.
        first: index of its first output among the engine's.
        count: number of its outputs.
    """

    name: str
    first: int
    count: int


@dataclass(frozen=True)
class TableEntry:
    """An entry of an engine's blob table: number of bytes, and their SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Blob:
    """A byte string of an artifact, and the pieces of the engine's table that it consists of."""

    name: str
    size: int
    sha256: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Variant(ArtifactSpec):
    """An artifact in the file: its spec, and the blobs that hold its bytes."""

    blobs: tuple[Blob, ...] = ()

    @property
    def spec(self) -> ArtifactSpec:
        """Returns the spec without the blobs."""
        return ArtifactSpec(**{each.name: getattr(self, each.name) for each in fields(ArtifactSpec)})

    @property
    def size(self) -> int:
        """Returns the number of bytes of all blobs."""
        return sum(blob.size for blob in self.blobs)


@dataclass(frozen=True)
class SizeConditions:
    """Conditions on the sizes of an engine's tensors beyond their ranges, in readable form and in postfix notation.

    Attributes:
        inputs: conditions on the inputs, e.g. ``("x.shape[2] % 32 == 0", "0.2: 32 % 0 ==")``.
        outputs: conditions on the outputs that are inputs of a later segment of the engine.
    """

    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {name: [list(pair) for pair in pairs] for name, pairs in vars(self).items() if pairs}


@dataclass(frozen=True)
class ImageInput:
    """An input of the detector that is an image, or a mask with the height and width of the images.

    Attributes:
        place: path to it in forward's arguments: positions and keys; None: every entry of a list.
        layout: letters from N, C, T, D, H and W.
        shape: shape of the example, one size per letter.
        dtype: dtype of the example.
        is_mask: true for a mask.
    """

    place: tuple[str | int | None, ...]
    layout: str
    shape: tuple[int, ...]
    dtype: str
    is_mask: bool = False

    def to_json(self) -> dict[str, Any]:
        """Marks that are not set are left out."""
        return {name: value for name, value in asdict(self).items() if value is not False}


@dataclass(frozen=True)
class Swapped:
    """A segment that was replaced, with the new module's class ("class" in JSON)."""

    segment: str
    class_name: str

    def to_json(self) -> dict[str, str]:
        """As the manifest has it."""
        return {"segment": self.segment, "class": self.class_name}


@dataclass(frozen=True)
class Engine:
    """One engine: its segments, its variants (best first), and the table of their bytes."""

    members: tuple[Member, ...]
    variants: tuple[Variant, ...]
    table: tuple[TableEntry, ...]
    swapped: Swapped | None = None
    conditions: SizeConditions | None = None
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def segments(self) -> tuple[str, ...]:
        """Returns the dotted paths of its members."""
        return tuple(member.name for member in self.members)

    @property
    def name(self) -> str:
        """Returns the name for messages, e.g. "backbone+rpn.head"."""
        return engine_name(self.segments)

    def is_named(self, name: str) -> bool:
        """Returns true if this is its name or the name of one of its segments."""
        return name == self.name or name in self.segments

    @property
    def added_sizes(self) -> list[int]:
        """Returns the number of bytes that each variant adds to those before it."""
        seen: set[int] = set()
        sizes = []
        for variant in self.variants:
            used = {index for blob in variant.blobs for index, _, _ in blob.pieces}
            sizes.append(sum(self.table[index].size for index in used - seen))
            seen |= used
        return sizes

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        values: dict[str, Any] = {
            "members": [asdict(member) for member in self.members],
            "variants": [asdict(variant) for variant in self.variants],
            "table": [asdict(entry) for entry in self.table],
        }
        if self.swapped is not None:
            values["swapped"] = self.swapped.to_json()
        if self.conditions is not None:
            values["conditions"] = self.conditions.to_json()
        return {**self.further, **values}


@dataclass(frozen=True)
class Record:
    """A record of the archive; ``is_blob``: bytes of an engine; ``is_golden``: those of the golden sample."""

    sha256: str
    size: int
    is_blob: bool = False
    is_golden: bool = False

    def to_json(self) -> dict[str, Any]:
        """Marks that are not set are left out."""
        return {name: value for name, value in asdict(self).items() if value is not False}


@dataclass(frozen=True)
class Golden:
    """The golden sample, or the reason why there is none.

    Attributes:
        record: the record with the tensors' bytes.
        precision: precision of the bundle.
        thresholds: limits for equality, by the names of ``hybrid_rt.Thresholds``.
        compared: true if convert() compared the hybrid with the detector on it.
        inputs: forward's arguments, each as docs/format.md describes a value.
        expected: the detector's result, as such a value.
        absent: why there is none; empty if there is one.
    """

    record: str = ""
    precision: str = ""
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    compared: bool = False
    inputs: tuple[Mapping[str, Any], ...] = ()
    expected: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""

    @classmethod
    def from_json(cls, values: Any) -> Golden:
        """Reads the manifest's entry.

        Raises:
            BundleError: A field is missing or has another type.
        """
        return _golden(_Object(values, "golden"))

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        if self.absent:
            return {"absent": self.absent}
        return {
            "record": self.record,
            "precision": self.precision,
            "thresholds": dict(self.thresholds),
            "compared": self.compared,
            "inputs": list(self.inputs),
            "expected": self.expected,
        }


@dataclass(frozen=True)
class Detector:
    """The detector's Python class, with its module ("class" in JSON)."""

    class_name: str

    def to_json(self) -> dict[str, str]:
        """As the manifest has it."""
        return {"class": self.class_name}


@dataclass(frozen=True)
class Head:
    """The TorchScript part: the hybrid_rt operators that it calls."""

    operators: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"operators": list(self.operators)}


@dataclass(frozen=True)
class Manifest:
    """Content of a bundle that is known without opening an engine.

    Attributes:
        engines: the engines, in the order in which they were captured.
        format_version: version of the format of these fields.
        versions: versions of hybrid_rt and torch that wrote the file.
        detector: the detector that was converted; None if unknown.
        class_names: the detector's class names by label; None if unknown.
        images: the inputs that are images or masks; None in files of a hybrid_rt that did not record them.
        head: the TorchScript part; None if unknown.
        verification: the comparison before saving, as written by :class:`hybrid_rt.Verification`; None: not compared.
        golden: the golden sample; None in files of a hybrid_rt that did not store one.
        latency_contract: the times that were measured on one machine; None: not measured.
        records: the records of the archive by name, except those of the manifest itself.
        further: fields that this version does not know.
    """

    engines: tuple[Engine, ...]
    format_version: int = FORMAT_VERSION
    versions: Mapping[str, str] = field(default_factory=dict)
    detector: Detector | None = None
    class_names: tuple[str, ...] | None = None
    images: tuple[ImageInput, ...] | None = None
    head: Head | None = None
    verification: Mapping[str, Any] | None = None
    golden: Golden | None = None
    latency_contract: LatencyContract | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Any) -> Manifest:
        """Reads the result of :func:`hybrid_rt.inspect`.

        Raises:
            BundleError: A field is missing or has another type; the text names it.
        """
        manifest = _Object(values, "")
        return cls(
            engines=manifest.objects("engines", _engine),
            format_version=manifest.get("format_version", int),
            versions=manifest.texts_by_name("versions", {}),
            detector=manifest.part("detector", lambda detector: Detector(detector.get("class", str))),
            class_names=None if manifest.is_none("class_names") else manifest.texts("class_names"),
            images=None if manifest.is_none("images") else manifest.objects("images", _image),
            head=manifest.part("head", lambda head: Head(head.texts("operators"))),
            verification=None if manifest.is_none("verification") else manifest.get("verification", dict),
            golden=manifest.part("golden", _golden),
            latency_contract=manifest.part("latency_contract", lambda part: LatencyContract.from_json(part.values)),
            records={
                name: _record(_Object(record, f"record '{name}'"))
                for name, record in manifest.get("records", dict).items()
            },
            further=manifest.further(cls),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, without fields that are unknown."""
        values: dict[str, Any] = {
            "format_version": self.format_version,
            "versions": dict(self.versions),
            "detector": None if self.detector is None else self.detector.to_json(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "images": None if self.images is None else [image.to_json() for image in self.images],
            "engines": [engine.to_json() for engine in self.engines],
            "head": None if self.head is None else self.head.to_json(),
            "golden": None if self.golden is None else self.golden.to_json(),
            "latency_contract": None if self.latency_contract is None else self.latency_contract.to_json(),
        }
        known = {name: value for name, value in values.items() if value is not None}
        return {
            **known,
            "verification": None if self.verification is None else dict(self.verification),
            "records": {name: record.to_json() for name, record in self.records.items()},
            **self.further,
        }

    def engine(self, name: str) -> Engine | None:
        """Returns the engine of that name, or the engine that contains a segment of that name."""
        return next((engine for engine in self.engines if engine.is_named(name)), None)

    def with_engine(self, engine: Engine) -> Manifest:
        """Returns the manifest with the engine that has the same segments replaced."""
        return replace(self, engines=tuple(engine if old.segments == engine.segments else old for old in self.engines))


def _refusal(where: str, expected: str, got: str) -> BundleError:
    return BundleError.make(
        "bundle",
        f"manifest, {where}" if where else "manifest",
        expected=expected,
        got=got,
        remedy="The file was altered, or written by another version of hybrid_rt: convert the detector again.",
    )


_KINDS: Mapping[type, str] = {
    str: "a text",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_REQUIRED: Any = object()


def _typed(value: Any, kind: type, where: str) -> Any:
    is_alike = isinstance(value, dict) if kind is dict else kind is list and isinstance(value, tuple)
    if type(value) is not kind and not is_alike:
        raise _refusal(where, _KINDS[kind], repr(value)[:80])
    return value


class _Object:
    """A JSON object whose fields are type-checked when they are read."""

    def __init__(self, values: Any, where: str) -> None:
        self.values: Mapping[str, Any] = _typed(values, dict, where)
        self.where = where

    def _at(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def get(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        if name not in self.values:
            if default is _REQUIRED:
                raise _refusal(self.where, f"a field '{name}'", "none")
            return default
        return _typed(self.values[name], kind, self._at(name))

    def is_none(self, name: str) -> bool:
        """Returns true if a field is missing or null."""
        return self.values.get(name) is None

    def part(self, name: str, build: Callable[[_Object], _Built]) -> _Built | None:
        """Builds an object from a nested one; returns None if it is missing or null."""
        return None if self.is_none(name) else build(_Object(self.values[name], self._at(name)))

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.get(name, list)
        return tuple(_typed(value, str, f"{self._at(name)}[{i}]") for i, value in enumerate(values))

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """Returns pairs of strings; empty if the field is missing."""
        found = []
        for i, pair in enumerate(self.get(name, list, [])):
            where = f"{self._at(name)}[{i}]"
            if len(_typed(pair, list, where)) != 2:
                raise _refusal(where, "two strings", f"{len(pair)} values")
            found.append((_typed(pair[0], str, where), _typed(pair[1], str, where)))
        return tuple(found)

    def integers(self, name: str) -> tuple[int, ...]:
        values = self.get(name, list)
        return tuple(_typed(value, int, f"{self._at(name)}[{i}]") for i, value in enumerate(values))

    def texts_by_name(self, name: str, default: Any = _REQUIRED) -> dict[str, str]:
        values = self.get(name, dict, default)
        return {key: _typed(value, str, f"{self._at(name)}.{key}") for key, value in values.items()}

    def objects(self, name: str, build: Callable[[_Object], _Built], least: int = 0) -> tuple[_Built, ...]:
        values = self.get(name, list)
        if len(values) < least:
            raise _refusal(self._at(name), f"a list of at least {least}", "an empty one")
        return tuple(build(_Object(value, f"{self._at(name)}[{i}]")) for i, value in enumerate(values))

    def further(self, kind: type[Manifest] | type[Engine]) -> dict[str, Any]:
        """Returns the fields that the dataclass does not have."""
        known = {each.name for each in fields(kind)}
        return {name: value for name, value in self.values.items() if name not in known}


def _engine(values: _Object) -> Engine:
    return Engine(
        members=values.objects("members", _member, least=1),
        variants=values.objects("variants", _variant, least=1),
        table=values.objects("table", _table_entry),
        swapped=values.part("swapped", lambda swapped: Swapped(swapped.get("segment", str), swapped.get("class", str))),
        conditions=values.part("conditions", _conditions),
        further=values.further(Engine),
    )


def _conditions(values: _Object) -> SizeConditions:
    return SizeConditions(*(values.pairs(name) for name in ("inputs", "outputs")))


def _image(values: _Object) -> ImageInput:
    place = []
    for i, step in enumerate(values.get("place", list)):
        if step is not None and type(step) not in (str, int):
            raise _refusal(f"{values.where}.place[{i}]", "a string, an integer or null", repr(step)[:80])
        place.append(step)
    return ImageInput(
        tuple(place),
        values.get("layout", str),
        values.integers("shape"),
        values.get("dtype", str),
        values.get("is_mask", bool, False),
    )


def _member(values: _Object) -> Member:
    return Member(values.get("name", str), values.get("first", int), values.get("count", int))


def _table_entry(values: _Object) -> TableEntry:
    return TableEntry(values.get("size", int), values.get("sha256", str))


def _variant(values: _Object) -> Variant:
    return Variant(
        backend=values.get("backend", str),
        precision=values.get("precision", str),
        device=values.get("device", str),
        inputs=values.objects("inputs", _tensor),
        outputs=values.objects("outputs", _tensor),
        requirements=values.texts_by_name("requirements"),
        versions=values.texts_by_name("versions"),
        blobs=values.objects("blobs", _blob),
    )


def _tensor(values: _Object) -> TensorSpec:
    limits = {name: values.integers(name) for name in ("min", "opt", "max")}
    if len({len(sizes) for sizes in limits.values()}) != 1:
        raise _refusal(values.where, "min, opt and max of equal length", repr(limits)[:80])
    return TensorSpec(values.get("name", str), values.get("dtype", str), **limits)


def _blob(values: _Object) -> Blob:
    pieces: list[Piece] = []
    for i, piece in enumerate(values.get("pieces", list)):
        where = f"{values.where}.pieces[{i}]"
        if len(_typed(piece, list, where)) != 3:
            raise _refusal(where, "[index, offset, size]", repr(piece)[:80])
        index, offset, size = (_typed(number, int, where) for number in piece)
        pieces.append((index, offset, size))
    return Blob(values.get("name", str), values.get("size", int), values.get("sha256", str), tuple(pieces))


def _record(values: _Object) -> Record:
    return Record(
        values.get("sha256", str),
        values.get("size", int, 0),
        values.get("is_blob", bool, False),
        values.get("is_golden", bool, False),
    )


def _golden(values: _Object) -> Golden:
    if "absent" in values.values:
        return Golden(absent=values.get("absent", str))
    return Golden(
        record=values.get("record", str),
        precision=values.get("precision", str),
        thresholds=values.get("thresholds", dict),
        compared=values.get("compared", bool),
        inputs=tuple(values.get("inputs", list)),
        expected=values.get("expected", dict),
    )
