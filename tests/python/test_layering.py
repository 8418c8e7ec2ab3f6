"""Checks the rules on dependencies that no compiler checks."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import ROOT
from hybrid_rt.backends import registry

PACKAGE = ROOT / "hybrid_rt"
CPP = ROOT / "cpp"

# The modules that each backend may import; torch, torchvision, numpy, PIL and rich are the package's own requirements.
MODULES_OF = {name: set(registry.backend(name).vendor.modules) for name in registry.names()}
VENDORS = set().union(*MODULES_OF.values())
CUDA_HEADER = re.compile(r"^cuda\.h|^cuda_(runtime|fp16|bf16)|^(c10|ATen)/cuda/")
VENDOR_HEADER = re.compile(
    r"openvino|onnxruntime|NvInfer|NvOnnx|tvm|dlpack|torch/csrc/inductor|pybind|torch/extension|Python\.h|"
    + CUDA_HEADER.pattern
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}


def nodes(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Yields all nodes except those under ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not inside_functions:
            continue
        yield node
        yield from nodes(node, inside_functions=inside_functions)


def imports(path: Path, *, inside_functions: bool) -> Iterator[str]:
    """Yields the absolute names of imports; relative ones begin with ``hybrid_rt.``."""
    package = ["hybrid_rt", *path.relative_to(PACKAGE).parts[:-1]]
    for node in nodes(ast.parse(path.read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield ".".join([*base, node.module])
            else:
                yield from (".".join([*base, alias.name]) for alias in node.names)


def test_the_source_is_found() -> None:
    assert {"conversion.convert", "backends.base", "cli.main"} <= set(MODULES)


def test_backends_do_not_import_each_other() -> None:
    of = {module: module.split(".")[1] for module in MODULES if module.startswith("backends.")}
    backends = set(of.values()) - registry.SHARED
    assert len(backends) >= 6
    for module, backend in of.items():
        imported = {name.removeprefix("hybrid_rt.") for name in imports(MODULES[module], inside_functions=True)}
        known = {name.split(".")[1] for name in imported if name.startswith("backends.")}
        assert not known & (backends - {backend}), module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_vendors_are_imported_inside_functions_of_their_backend(module: str) -> None:
    at_the_top = {name.split(".")[0] for name in imports(MODULES[module], inside_functions=False)}
    assert not at_the_top & VENDORS
    anywhere = {name.split(".")[0] for name in imports(MODULES[module], inside_functions=True)}
    own = MODULES_OF.get(module.split(".")[1], set()) if module.startswith("backends.") else set()
    assert anywhere & VENDORS <= own


def test_the_vendor_rule_sees_imports_in_functions() -> None:
    assert {"openvino", "onnx", "onnxruntime", "tensorrt_rtx", "tvm"} <= VENDORS
    openvino = MODULES["backends.openvino.vendor"]
    assert "openvino" in set(imports(openvino, inside_functions=True))
    assert "openvino" not in set(imports(openvino, inside_functions=False))


def jit_uses(path: Path) -> set[str]:
    """Returns the names used from torch.jit and its part of torch._C, outside of annotations: ``torch.jit.freeze``."""
    tree = ast.parse(path.read_text())
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if re.fullmatch(r"torch\.jit\.\w+|torch\._C\._jit\w+", text):
                used.add(text)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            used |= {name for name in imports_of(node) if name.startswith("torch.jit")}
    return used


def imports_of(node: ast.Import | ast.ImportFrom) -> set[str]:
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
    return {prefix + alias.name for alias in node.names}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_torch_jit_is_called_in_one_package(module: str) -> None:
    if not module.startswith("torchscript.jit"):
        assert jit_uses(MODULES[module]) <= {"torch.jit.ScriptModule"}  # a type for annotations and isinstance


def test_the_package_for_torch_jit_calls_it() -> None:
    used = {name for module in MODULES if module.startswith("torchscript.jit.") for name in jit_uses(MODULES[module])}
    assert {"torch.jit.trace", "torch.jit.script", "torch.jit.freeze", "torch.jit.load"} <= used


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def sources(directory: Path) -> list[Path]:
    found = sorted(path for path in directory.rglob("*") if path.suffix in {".h", ".hpp", ".cpp", ".cc", ".cu"})
    assert found, directory
    return found


CUDA = CPP / "src" / "operators" / "cuda"
LIBRARY = [path for path in sources(CPP / "src") if CUDA not in path.parents]

# The directories of cpp/src. Each includes only earlier ones.
DIRECTORIES = ["common", "spec", "bundle", "engine", "operators", "torchscript", "verify", "service"]


def test_the_directories_of_the_library_are_layers() -> None:
    assert sorted(path.name for path in (CPP / "src").iterdir()) == sorted(DIRECTORIES)
    for path in sources(CPP / "src"):
        directory = path.relative_to(CPP / "src").parts[0]
        used = {name.split("/")[0] for name in includes(path)} & set(DIRECTORIES)
        assert used <= set(DIRECTORIES[: DIRECTORIES.index(directory) + 1]), path


@pytest.mark.parametrize("path", LIBRARY + sources(CPP / "include"), ids=lambda path: path.name)
def test_the_library_includes_neither_vendors_nor_python(path: Path) -> None:
    assert [name for name in includes(path) if VENDOR_HEADER.search(name)] == []


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.name)
def test_the_library_does_not_know_its_backends_or_programs(path: Path) -> None:
    assert [name for name in includes(path) if "backends/" in name or "apps/" in name] == []


@pytest.mark.parametrize(
    "name", ["error.h", "specs.h", "engine.h", "engine_choice.h", "backends.h", "plugin/backend.h", "log.h"]
)
def test_contracts_are_free_of_torchscript(name: str) -> None:
    seen: set[str] = set()
    waiting = [f"hybrid_rt/{name}"]
    while waiting:
        header = waiting.pop()
        seen.add(header)
        path = CPP / "include" / header
        waiting += [other for other in includes(path) if other.startswith("hybrid_rt/") and other not in seen]
        assert [other for other in includes(path) if re.match(r"torch/(script|custom_class|csrc|all)", other)] == []


BACKEND_DIRECTORIES = sorted(path for path in (CPP / "backends").iterdir() if path.is_dir())


@pytest.mark.parametrize("directory", BACKEND_DIRECTORIES, ids=lambda path: path.name)
def test_a_backend_knows_the_contracts_itself_and_its_vendor(directory: Path) -> None:
    own = {path.relative_to(directory).as_posix() for path in sources(directory)}
    others = {path.name for path in BACKEND_DIRECTORIES} - {directory.name}
    headers = CPP / "include" / "hybrid_rt"
    public = {path.relative_to(headers).as_posix() for path in headers.rglob("*.h")}
    public -= {"bundle.h", "hybrid_rt.h", "verify.h"}
    internal = {path.name for path in (CPP / "src").rglob("*.h")} - own
    for path in sources(directory):
        for name in includes(path):
            assert name.split("/")[0] not in others, f"{path.name} includes {name} of another backend"
            assert Path(name).name not in internal or name in own, f"{path.name} includes {name} of src/"
            assert ".." not in Path(name).parts, f"{path.name} includes {name}"
            if name.startswith("hybrid_rt/"):
                assert name.removeprefix("hybrid_rt/") in public, f"{path.name} includes {name}"


def test_only_the_cuda_operators_and_backends_include_cuda() -> None:
    users = {path.parent for path in sources(CPP) if any(map(CUDA_HEADER.search, includes(path)))}
    assert {path for path in users if CPP / "backends" not in path.parents} == {CUDA}


@pytest.mark.parametrize("path", sources(CUDA), ids=lambda path: path.name)
def test_the_cuda_operators_know_the_library_and_cuda_only(path: Path) -> None:
    vendors = [name for name in includes(path) if VENDOR_HEADER.search(name)]
    assert [name for name in vendors if not CUDA_HEADER.search(name)] == []
    assert [name for name in includes(path) if "backends/" in name or "apps/" in name or ".." in name] == []


@pytest.mark.parametrize("path", sorted(CUDA.glob("*.cu")), ids=lambda path: path.name)
def test_sources_for_nvcc_do_not_include_torch(path: Path) -> None:
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        source = waiting.pop()
        seen.add(source)
        assert [name for name in includes(source) if re.match(r"(torch|ATen|c10)/", name)] == [], source.name
        found = [directory / name for name in includes(source) for directory in (CUDA, CPP / "src", CPP / "include")]
        waiting += [other for other in found if other.exists() and other not in seen]
    assert CUDA / "kernels.h" in seen


def test_only_the_python_module_includes_python() -> None:
    python = re.compile(r"pybind|torch/extension|Python\.h")
    users = {path.relative_to(CPP).parts[0] for path in sources(CPP) if any(map(python.search, includes(path)))}
    assert users == {"python"}


def test_the_pragmas_of_the_arithmetic_end_with_their_source() -> None:
    operators = CPP / "src" / "operators"
    listed = re.search(
        r"set_source_files_properties\((.*?) TARGET_DIRECTORY", (operators / "CMakeLists.txt").read_text(), re.S
    )
    assert listed is not None
    uses = [path.name for path in sorted(operators.glob("*.cpp")) if "no_contraction.h" in path.read_text()]
    assert listed[1].split() == uses, "a unity build would apply them to other sources"


def test_operators_are_registered_in_one_file() -> None:
    pattern = re.compile(r"^TORCH_LIBRARY(_IMPL|_FRAGMENT)?\(", re.MULTILINE)
    assert [path.name for path in sources(CPP) if pattern.search(path.read_text())] == ["register.cpp"]


@pytest.mark.parametrize("path", sorted((ROOT / "tools").rglob("*.py")), ids=lambda path: path.name)
def test_the_names_that_tools_import_exist(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "hybrid_rt":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                is_module = (
                    importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                )
                assert is_module or hasattr(module, alias.name), f"{node.module} has no {alias.name}"
