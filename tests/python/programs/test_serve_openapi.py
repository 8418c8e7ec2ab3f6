"""Tests the server against its OpenAPI document: schemathesis sends requests and checks the responses."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from helpers.paths import ROOT
from helpers.serving import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.service]

DOCUMENT = ROOT / "cpp" / "apps" / "serve" / "openapi.json"
TOKEN = "a-token-for-tests"

# A deadline of a millisecond can't be met, and 503 and 504 say so; 500 never passes.
CONFIGURATION = """
hooks = "serve_openapi_hooks"
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""


def load() -> dict[str, Any]:
    return json.loads(DOCUMENT.read_text())


def nodes(value: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields all objects of the document with their paths."""
    if isinstance(value, dict):
        yield path, value
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nodes(item, f"{path}/{key}")


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document with additional fields forbidden, so that undocumented fields are found."""
    document = copy.deepcopy(document)
    for path, node in nodes(document["components"]["schemas"]):
        if node.get("type") == "object" and "properties" in node:
            assert "additionalProperties" not in node, path
            node["additionalProperties"] = False
    return document


def schemathesis(
    server: Server, document: dict[str, Any], directory: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    (directory / "openapi.json").write_text(json.dumps(document))
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    return subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--config-file", directory / "schemathesis.toml"),
            *("run", directory / "openapi.json", "--url", server.url, "--checks", "all", "--seed", "1"),
            *("--max-examples", "15", "--continue-on-failure", "--no-color", *arguments),
        ],
        cwd=directory,  # where it writes its files
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_document_refers_to_what_it_has() -> None:
    document = load()
    assert document["openapi"].startswith("3.1")
    references = [node["$ref"] for _, node in nodes(document) if "$ref" in node]
    for reference in references:
        place: Any = document
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]
    for kind, members in document["components"].items():
        used = {f"#/components/{kind}/{name}" for name in members} - set(references)
        assert kind == "securitySchemes" or not used, f"never referred to: {used}"


def test_the_examples_fit_their_schemas() -> None:
    document = load()
    checked = []
    for path, node in nodes(document):
        if "example" in node and "schema" in node:
            Draft202012Validator({**node["schema"], "components": document["components"]}).validate(node["example"])
            checked.append(path)
    assert len(checked) > 15
    for name, response in document["components"]["responses"].items():
        example = response["content"].get("application/problem+json", {}).get("example")
        assert name == "NotReady" or example["detail"].startswith("hybrid_rt["), name


def test_the_statuses_of_the_examples_are_those_of_the_responses() -> None:
    document = load()
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                name = response.get("$ref", "").rpartition("/")[2]
                content = document["components"]["responses"].get(name, {}).get("content", {})
                if "application/problem+json" in content:
                    assert content["application/problem+json"]["example"]["status"] == int(status), name


def test_the_server_serves_the_document(demo_bundle: Path) -> None:
    with serving(demo_bundle) as server:
        answer = server.request("/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == DOCUMENT.read_bytes()


def test_the_server_does_what_the_document_says(demo_bundle: Path, tmp_path: Path) -> None:
    with serving(demo_bundle) as server:
        done = schemathesis(server, closed(load()), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(load()['paths'])}" in done.stdout


def test_every_route_needs_the_token_if_one_is_set(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    document = closed(load())
    assert document["security"] == [{}, {"bearer": []}]
    document["security"] = [{"bearer": []}]
    with serving(demo_bundle, token_file=tmp_path / "token") as server:
        done = schemathesis(server, document, tmp_path, "--header", f"Authorization: Bearer {TOKEN}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("lie", ["status", "field", "header", "type"])
def test_an_untrue_document_is_reported(lie: str, demo_bundle: Path, tmp_path: Path) -> None:
    document = closed(load())
    detect = document["paths"]["/v1/detect"]["post"]
    models = document["paths"]["/v1/models"]["get"]["responses"]["200"]
    if lie == "status":
        del detect["responses"]["400"]
    elif lie == "field":
        del document["components"]["schemas"]["Model"]["properties"]["engines"]
        document["components"]["schemas"]["Model"]["required"].remove("engines")
    elif lie == "header":
        models["headers"]["X-Other"] = {"required": True, "schema": {"type": "string"}}
    else:
        models["content"] = {"text/plain": {}}
    with serving(demo_bundle) as server:
        path = "/v1/detect" if lie == "status" else "/v1/models"
        done = schemathesis(
            server, document, tmp_path, "--phases", "coverage", "--max-failures", "1", "--include-path", path
        )
    assert done.returncode == 1, done.stdout + done.stderr
