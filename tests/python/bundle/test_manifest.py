"""Tests of the manifest's types and schema, and of what writers produce from them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from torch import nn

import hybrid_rt
from helpers.bundle_surgery import rewrite_manifest
from helpers.small_detectors import small_detector, small_image
from hybrid_rt import BundleError
from hybrid_rt import bundle as bundle_package
from hybrid_rt.bundle import manifest as format_2
from hybrid_rt.bundle.archive import read_manifest
from hybrid_rt.bundle.manifest import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")

SCHEMA = json.loads(Path(bundle_package.__file__).with_name("manifest.schema.json").read_text(encoding="utf-8"))


def errors_of(values: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(values)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a small bundle. Do not modify it."""
    path = tmp_path_factory.mktemp("manifest") / "small.pt"
    hybrid_rt.convert(small_detector(), (small_image(),), path, segments="backbone", measure=False)
    return path


@pytest.fixture
def values(path: Path) -> dict[str, Any]:
    """Returns a copy of its manifest."""
    return copy.deepcopy(hybrid_rt.inspect(path))


# Writing


def test_files_of_convert_fit_the_schema(values: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert errors_of(values) == []


def test_files_of_add_and_remove_variant_fit_the_schema(path: Path, tmp_path: Path) -> None:
    more, fewer = tmp_path / "more.pt", tmp_path / "fewer.pt"
    hybrid_rt.add_variant(path, "torchscript:bf16", more)
    assert errors_of(hybrid_rt.inspect(more)) == []
    hybrid_rt.remove_variant(more, "openvino", fewer)
    assert errors_of(hybrid_rt.inspect(fewer)) == []


def test_files_of_swap_backbone_fit_the_schema(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "swapped.pt"
    backbone: nn.Module = small_detector().backbone
    hybrid_rt.swap_backbone(path, backbone, output)
    values = hybrid_rt.inspect(output)
    assert errors_of(values) == []
    assert values["engines"][0]["swapped"]["segment"] == "backbone"


@pytest.mark.parametrize("name", ["format_version", "engines", "records"])
def test_the_schema_refuses_a_manifest_that_lacks_a_field(values: dict[str, Any], name: str) -> None:
    del values[name]
    assert errors_of(values)


# Types and schema agree


JSON_NAMES = {"class_name": "class"}


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        (format_2.Manifest, SCHEMA),
        (format_2.Engine, SCHEMA["$defs"]["engine"]),
        (format_2.Member, SCHEMA["$defs"]["member"]),
        (format_2.Variant, SCHEMA["$defs"]["variant"]),
        (format_2.Blob, SCHEMA["$defs"]["blob"]),
        (format_2.TableEntry, SCHEMA["$defs"]["table_entry"]),
        (format_2.Record, SCHEMA["$defs"]["record"]),
        (format_2.Swapped, SCHEMA["$defs"]["swapped"]),
        (format_2.SizeConditions, SCHEMA["$defs"]["conditions"]),
        (format_2.ImageInput, SCHEMA["$defs"]["image"]),
        (format_2.Detector, SCHEMA["$defs"]["detector"]),
        (format_2.Head, SCHEMA["$defs"]["head"]),
        (hybrid_rt.LatencyContract, SCHEMA["$defs"]["latency_contract"]),
        (hybrid_rt.MachineDescription, SCHEMA["$defs"]["machine"]),
        (hybrid_rt.SizeLatency, SCHEMA["$defs"]["size_latency"]),
        (hybrid_rt.common.specs.TensorSpec, SCHEMA["$defs"]["tensor"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_types_and_the_schema_have_the_same_fields(kind: type, definition: dict[str, Any]) -> None:
    names = {JSON_NAMES.get(each.name, each.name) for each in fields(kind)} - {"further"}
    assert names == set(definition["properties"])


def test_the_golden_sample_is_there_or_the_reason_is() -> None:
    there, absent = SCHEMA["$defs"]["golden"], SCHEMA["$defs"]["no_golden"]
    assert {each.name for each in fields(format_2.Golden)} == {*there["properties"], *absent["properties"]}


# Reading and writing


def test_a_manifest_survives_reading_and_writing(values: dict[str, Any]) -> None:
    values["class_names"] = ["background", "cat"]
    values["engines"][0]["swapped"] = {"segment": "backbone", "class": "models.Other"}
    values["engines"][0]["conditions"] = {"inputs": [["x.shape[2] % 32 == 0", "0.2: 32 % 0 =="]]}
    values["images"].append(
        {"place": [1, None, "m"], "layout": "HW", "shape": [8, 9], "dtype": "bool", "is_mask": True}
    )
    assert errors_of(values) == []
    manifest = Manifest.from_json(values)
    assert manifest.class_names == ("background", "cat")
    assert json.loads(json.dumps(manifest.to_json())) == values
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_unknown_values_are_left_out(values: dict[str, Any]) -> None:
    least = {name: values[name] for name in ("format_version", "engines", "records")}
    manifest = Manifest.from_json(least)
    assert (manifest.detector, manifest.class_names, manifest.head, manifest.golden) == (None, None, None, None)
    assert manifest.images is None
    assert json.loads(json.dumps(manifest.to_json())) == {**least, "versions": {}, "verification": None}


def test_further_fields_of_file_and_engine_are_kept(path: Path, tmp_path: Path) -> None:
    def note(manifest: dict) -> None:
        manifest["colour"] = "green"
        manifest["engines"][0]["colour"] = ["blue"]
        manifest["engines"][0]["variants"][0]["colour"] = "ignored"

    noted = rewrite_manifest(path, tmp_path / "noted.pt", note)
    hybrid_rt.remove_variant(noted, "openvino")
    values = hybrid_rt.inspect(noted)
    assert (values["colour"], values["engines"][0]["colour"]) == ("green", ["blue"])
    assert "colour" not in values["engines"][0]["variants"][0]


def test_names_of_fused_segments_are_a_list(values: dict[str, Any]) -> None:
    values["engines"][0]["members"] = [
        {"name": "a+b", "first": 0, "count": 1},
        {"name": "rpn.head", "first": 1, "count": 1},
    ]
    manifest = Manifest.from_json(values)
    (engine,) = manifest.engines
    assert engine.segments == ("a+b", "rpn.head")
    assert engine.name == "a+b+rpn.head"
    assert manifest.engine("rpn.head") == manifest.engine("a+b+rpn.head") == engine
    assert manifest.engine("a") is None


def drop(*keys: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        del values[keys[-1]]

    return change


def put(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


VARIANT = ("engines", 0, "variants", 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("engines"), "manifest: expected a field 'engines', got none."),
        (put(5, "engines"), "manifest, engines: expected a list, got 5."),
        (put([5], "engines"), "manifest, engines[0]: expected an object, got 5."),
        (put([], "engines", 0, "members"), "manifest, engines[0].members: expected a list of at least 1, got an empty"),
        (put([], "engines", 0, "variants"), "engines[0].variants: expected a list of at least 1, got an empty one."),
        (put(True, "engines", 0, "members", 0, "count"), "members[0].count: expected an integer, got True."),
        (drop(*VARIANT, "backend"), "manifest, engines[0].variants[0]: expected a field 'backend', got none."),
        (put(None, *VARIANT, "precision"), "variants[0].precision: expected a text, got None."),
        (put({"cpu": 1}, *VARIANT, "requirements"), "variants[0].requirements.cpu: expected a text, got 1."),
        (put([1], *VARIANT, "inputs", 0, "min"), "inputs[0]: expected min, opt and max of equal length, got {'min'"),
        (put([[0, 0]], *VARIANT, "blobs", 0, "pieces"), "pieces[0]: expected [index, offset, size], got [0, 0]."),
        (put(5, "records", "x"), "manifest, record 'x': expected an object, got 5."),
        (put({}, "records", "x"), "manifest, record 'x': expected a field 'sha256', got none."),
        (put([1], "class_names"), "manifest, class_names[0]: expected a text, got 1."),
        (put({"absent": 5}, "golden"), "manifest, golden.absent: expected a text, got 5."),
        (put({}, "golden"), "manifest, golden: expected a field 'record', got none."),
        (put({}, "detector"), "manifest, detector: expected a field 'class', got none."),
        (put([0.5], "images", 0, "place"), "images[0].place[0]: expected a string, an integer or null, got 0.5."),
        (drop("images", 0, "layout"), "manifest, images[0]: expected a field 'layout', got none."),
        (
            put({"inputs": [["x"]]}, "engines", 0, "conditions"),
            "conditions.inputs[0]: expected two strings, got 1 values.",
        ),
    ],
)
def test_a_field_that_is_missing_or_of_another_type_is_named(
    values: dict[str, Any], change: Callable[[Any], None], text: str
) -> None:
    change(values)
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(values)
    assert str(caught.value).startswith("hybrid_rt[bundle]: manifest")
    assert text in str(caught.value)


def test_the_typed_manifest_of_a_file(path: Path) -> None:
    manifest = read_manifest(path)
    assert manifest == Manifest.from_json(hybrid_rt.inspect(path))
    assert [variant.label for variant in manifest.engines[0].variants] == ["openvino:fp32", "torchscript:fp32"]


def test_images_and_masks_are_recorded(values: dict[str, Any]) -> None:
    shape = list(small_image().shape)
    assert values["images"] == [{"place": [0], "layout": "NCHW", "shape": shape, "dtype": "float32"}]
