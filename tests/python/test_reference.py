"""Checks that every public name has a complete entry in the reference, and that the examples run."""

from __future__ import annotations

import ast
import copy
import dataclasses
import doctest
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hybrid_rt
import hybrid_rt.backends
from helpers.paths import ROOT
from helpers.small_detectors import Backbone, ListDetector, SmallDetector

PLUGIN_INTERFACE = sys.modules["hybrid_rt.backends"]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))

FUNCTIONS = [name for name in hybrid_rt.__all__ if inspect.isfunction(getattr(hybrid_rt, name))]
CLASSES = [
    *(getattr(hybrid_rt, name) for name in hybrid_rt.__all__ if inspect.isclass(getattr(hybrid_rt, name))),
    *(getattr(PLUGIN_INTERFACE, name) for name in PLUGIN_INTERFACE.__all__ if name != "blob_from_bytes"),
]


def entries() -> list[str]:
    """Returns the objects that the pages document, from the paths in their directives."""
    return [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def test_every_exported_name_has_one_entry() -> None:
    expected = {f"hybrid_rt.{name}" for name in hybrid_rt.__all__} - {"hybrid_rt.backends"}
    found = entries()
    assert sorted(set(found)) == sorted(found)
    assert expected | {"hybrid_rt.backends.registry.backends"} <= set(found)


def test_every_name_of_the_plugin_interface_has_an_entry() -> None:
    found = {name.rsplit(".", 1)[1]: name.rsplit(".", 1)[0] for name in entries()}
    for name in PLUGIN_INTERFACE.__all__:
        exported = getattr(PLUGIN_INTERFACE, name)
        assert getattr(importlib.import_module(found[name]), name) is exported


def test_the_overview_lists_every_exported_name() -> None:
    table = (ROOT / "docs" / "api.md").read_text().split("## Examples")[0]
    missing = set(hybrid_rt.__all__) - set(re.findall(r"`(\w+)`", table))
    assert {name for name in missing if not name.endswith("Error")} == set()


# Docstrings


def sections(documented: Any) -> dict[str, list[Any]]:
    """Returns the sections of a docstring by kind; a list of names for parameters, attributes and exceptions."""
    import griffe  # in the group "docs"

    found: dict[str, list[Any]] = {}
    text = inspect.getdoc(documented) or ""
    for section in griffe.Docstring(text, parser="google").parse(warnings=False):
        value = section.value
        if section.kind.value in ("parameters", "attributes"):
            found[section.kind.value] = [entry.name.lstrip("*") for entry in value]
        else:
            found[section.kind.value] = list(value) if isinstance(value, list) else [value]
    return found


def missing_of_function(function: Callable[..., Any], *, is_method: bool) -> list[str]:
    """Returns the elements missing from the docstring of a function."""
    signature, found = inspect.signature(function), sections(function)
    taken = [name for name in signature.parameters if name not in ("self", "cls")]
    missing = [name for name in taken if name not in found.get("parameters", [])]
    missing += [f"no parameter: {name}" for name in found.get("parameters", []) if name not in taken]
    text = inspect.getdoc(function) or ""
    returns = signature.return_annotation not in (None, "None")
    if returns and "returns" not in found and not text.startswith("Returns "):
        missing.append("Returns")
    if not is_method and "raises" not in found and "Does not raise" not in text:
        missing.append("Raises")
    if not is_method and not any(">>>" in str(value) for kind in ("examples",) for value in found.get(kind, [])):
        missing.append("Examples")
    return missing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented_in_full(name: str) -> None:
    assert missing_of_function(getattr(hybrid_rt, name), is_method=False) == []


def own_members(documented: type) -> Iterator[tuple[str, Any]]:
    """Yields the public methods and properties that a class defines itself."""
    for name, member in vars(documented).items():
        if name == "__call__" or not name.startswith("_"):
            yield name, getattr(member, "__func__", member)


@pytest.mark.parametrize("documented", CLASSES, ids=lambda documented: documented.__name__)
def test_a_class_is_documented_in_full(documented: type) -> None:
    missing = [] if inspect.getdoc(documented) else ["docstring"]
    if dataclasses.is_dataclass(documented):
        described = [name for base in documented.__mro__ for name in sections(base).get("attributes", [])]
        if documented is hybrid_rt.ConversionReport:  # the page of its JSON describes them
            described = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "report.md").read_text(), re.MULTILINE)
        named = [field.name for field in dataclasses.fields(documented) if not field.name.startswith("_")]
        missing += [name for name in named if name not in described]
    for name, member in own_members(documented):
        if isinstance(member, property):
            missing += [] if inspect.getdoc(member) else [name]
        elif inspect.isfunction(member):
            missing += [f"{name}: {what}" for what in missing_of_function(member, is_method=True)]
    assert missing == []


def test_the_check_sees_what_a_docstring_lacks() -> None:
    def incomplete(path: str, size: int) -> str:  # noqa: D417  that is the point
        """Reads a file.

        Args:
            path: the file.
            name: none of the arguments.
        """
        return path * size

    found = missing_of_function(incomplete, is_method=False)
    assert found == ["size", "no parameter: name", "Returns", "Raises", "Examples"]


# Examples


@pytest.fixture(scope="module")
def small_detector() -> ListDetector:
    torch.manual_seed(0)
    return ListDetector(SmallDetector()).eval()


@pytest.fixture(scope="module")
def small_image() -> Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, small_detector: ListDetector, small_image: Tensor) -> Path:
    """A directory with the files that the examples read."""
    directory = tmp_path_factory.mktemp("examples")
    hybrid_rt.convert(
        small_detector, ([small_image],), directory / "detector.pt", segments="backbone", fuse=False, measure=False
    )
    private = str(directory / "private.pem")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", str(directory / "public.pem")], check=True)
    return directory


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_example_runs(
    name: str,
    stocked: Path,
    small_detector: ListDetector,
    small_image: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checks the names that docs/api.md promises."""
    monkeypatch.chdir(tmp_path)
    for file in stocked.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(1)
    names = {
        "hybrid_rt": hybrid_rt,
        "torch": torch,
        "detector": copy.deepcopy(small_detector),
        "image": small_image,
        "new_backbone": Backbone().eval(),
    }
    function = getattr(hybrid_rt, name)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", names, name, None, None)
    assert example.examples
    printed: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=printed.append, clear_globs=False)
    assert result.failed == 0, "".join(printed)


# The public headers


def undocumented(headers: Path, output: Path) -> list[str]:
    """Returns Doxygen's warnings."""
    program = shutil.which("doxygen")
    assert program is not None, "install the packages of tools/debian/tests.txt"
    places = f'INPUT = "{headers}"\nOUTPUT_DIRECTORY = "{output}"\nSTRIP_FROM_PATH = "{headers}"\n'
    settings = (ROOT / "cpp" / "Doxyfile").read_text() + places
    done = subprocess.run([program, "-"], input=settings, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_everything_in_the_public_headers_is_documented(tmp_path: Path) -> None:
    assert undocumented(ROOT / "cpp" / "include", tmp_path) == []


def test_the_check_sees_what_a_header_lacks(tmp_path: Path) -> None:
    headers = tmp_path / "include"
    shutil.copytree(ROOT / "cpp" / "include", headers)
    with (headers / "hybrid_rt" / "log.h").open("a") as file:
        file.write("namespace hybrid_rt {\nint forgotten(int value);\nstruct Plain { int field; };\n}\n")
    found = "\n".join(undocumented(headers, tmp_path / "out"))
    for name in ("forgotten(int value)", "Compound hybrid_rt::Plain", "Member field"):
        assert name in found


# The stubs of the native module


def declared(stub: str) -> dict[str, str]:
    """Returns the names of a stub with their types, and functions with their parameters (``=``: with a default)."""
    found: dict[str, str] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = "class"
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[prefix + node.target.id] = outer_type(node.annotation)
            elif isinstance(node, ast.FunctionDef):
                decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
                if "setter" not in decorators:
                    taken = "" if "property" in decorators else f"({parameters(node.args)}) -> "
                    found[prefix + node.name] = taken + outer_type(node.returns)

    visit(ast.parse(stub).body, "")
    return {name: kind for name, kind in found.items() if name != "__all__"}


def outer_type(annotation: ast.expr | None) -> str:
    """Returns a type without its module and elements, because pybind11's dicts and lists have no element types."""
    assert annotation is not None
    return re.sub(r"\[.*\]", "", ast.unparse(annotation)).removeprefix("torch.")


def parameters(arguments: ast.arguments) -> str:
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = {argument.arg for argument in positional[len(positional) - len(arguments.defaults) :]}
    optional |= {
        argument.arg
        for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if value is not None
    }
    names = [argument.arg for argument in [*positional, *arguments.kwonlyargs] if argument.arg != "self"]
    return ", ".join(f"{name}=" if name in optional else name for name in names)


def test_the_stubs_are_those_of_the_native_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11-stubgen generates them from the module; the file in the repository adds types that it cannot know."""
    import pybind11_stubgen  # in the group "lint"

    monkeypatch.setattr(sys, "argv", ["pybind11-stubgen", "hybrid_rt._native", "--output-dir", str(tmp_path)])
    pybind11_stubgen.main()
    generated = declared((tmp_path / "hybrid_rt" / "_native.pyi").read_text())
    written = declared((ROOT / "hybrid_rt" / "_native.pyi").read_text())
    # A constructor without arguments may be left undeclared.
    generated = {name: kind for name, kind in generated.items() if kind != "() -> None" or "__init__" not in name}
    assert written == generated


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(hybrid_rt.__file__).parent / "py.typed").exists()
