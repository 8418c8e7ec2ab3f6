"""Tests that adding a backend changes only its two directories, a page and an extra.

test_downstream.py adds one to a copy of the repository and runs it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.backend_names import places
from helpers.paths import ROOT
from hybrid_rt.backends import registry

OWN = [name for name in registry.names() if type(registry.backend(name)).__module__.startswith("hybrid_rt.backends.")]
NAMES = {
    *OWN,
    *registry.distributions(),
    *(module for name in OWN for module in registry.backend(name).vendor.modules),
}

A_WAY_TO_RUN = "TorchScript as a way to run a whole detector in torch, beside eager and torch.compile"
CUDA_ENGINES = "a fixed programme for one run on a GPU, the most wanted first; its parent process imports no hybrid_rt"

ONE_CALL = "the op's cost over one vendor's own call"

A_TESTS_BUNDLE = "the engines of the bundle that it makes"

ALLOWED = {
    "cpp/CMakeLists.txt": "the directory cpp/src/torchscript",
    "cpp/apps/detect/main.cpp": "an example of what it prints",
    "hybrid_rt/capture/onnx_export.py": "the scope of an error",
    "hybrid_rt/conversion/isolation/programs.py": "the form of a program that a compiler asks for",
    "hybrid_rt/bench/cases.py": A_WAY_TO_RUN,
    "hybrid_rt/bench/prepare.py": A_WAY_TO_RUN,
    "hybrid_rt/bench/run.py": A_WAY_TO_RUN,
    "hybrid_rt/bench/tables.py": A_WAY_TO_RUN,
    "hybrid_rt/bench/worker.py": A_WAY_TO_RUN,
    "cpp/apps/bench_worker/main.cpp": A_WAY_TO_RUN,
    "tools/gpu/cases.py": CUDA_ENGINES,
    "tools/gpu/engines.py": CUDA_ENGINES,
    "tools/gpu/measure.py": CUDA_ENGINES,
    "tools/gpu/report.py": CUDA_ENGINES,
    "tools/gpu/test_engines.py": CUDA_ENGINES,
    "tools/gpu_check": CUDA_ENGINES,
    "tools/benchmarks/bare_engine.py": "times a TensorRT engine without hybrid_rt",
    "tools/benchmarks/op.py": ONE_CALL,
    "tools/benchmarks/cpp/CMakeLists.txt": ONE_CALL,
    "tools/benchmarks/cpp/op.cpp": ONE_CALL,
    "tools/benchmarks/accuracy.py": "the hybrid beside one whole graph",
    "tools/benchmarks/bundle_size.py": "a default choice of engines",
    "tools/benchmarks/readme.py": "the engines of the README's table",
    "tools/gpu/pack.py": "what one vendor's library is called, for a machine without a network",
    "tools/dev/emulated_gpu.py": "the plug-in that the emulated GPU is for",
    "tools/dev/fuzz_bundles.py": A_TESTS_BUNDLE,
    "tools/dev/kill_test.py": A_TESTS_BUNDLE,
    "tools/dev/make_emulated_bundle.py": A_TESTS_BUNDLE,
    "tools/release/wheel.py": "the vendor's package that hybrid_rt itself requires",
    "tools/dev/arm.py": "the plug-ins that are compiled for 64-bit Arm",
    "tools/sanitize": "the plug-ins that run under sanitizers",
    "tools/dev/make_test_bundle.py": "the C++ tests ask for the engine that they know",
    "tools/load/main.py": "the load test's bundle has one engine",
    "pyproject.toml": "mypy does not read TVM's sources",
}
"""Files that name a backend, and why they would not change for another backend."""


@pytest.mark.slow
def test_only_files_with_a_reason_name_a_backend() -> None:
    found = places(ROOT, NAMES)
    assert {path: found[path] for path in found if path not in ALLOWED} == {}
    assert sorted(ALLOWED) == sorted(found), "files that name no backend any more need no reason"


def tree_with(root: Path, path: str, text: str) -> Path:
    """Writes a repository of one file, and returns its root."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "pyproject.toml").touch()
    (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("hybrid_rt/backends/selection.py", 'if engine == "openvino":\n    pass\n'),
        ("hybrid_rt/bench/results.py", 'ENGINES = {"tvm": 1}\n'),
        ("hybrid_rt/cli/main.py", 'DEFAULT = "openvino:bf16,torchscript"\n'),
        ("hybrid_rt/common/specs.py", 'import x\nx("apache-tvm>=0.27")\n'),
        ("cpp/src/engine/variants.cpp", 'auto name = "tensorrt";\n'),
        ("cpp/CMakeLists.txt", "add_subdirectory(onnxruntime)\n"),
        ("tools/setup", 'pip install "onnxruntime>=1.18"\n'),
        ("pyproject.toml", '[dependency-groups]\ntest = ["onnxruntime>=1.18"]\n'),
    ],
)
def test_a_name_in_another_file_is_found(path: str, text: str, tmp_path: Path) -> None:
    assert list(places(tree_with(tmp_path, path, text), NAMES)) == [path]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("hybrid_rt/cli/main.py", '"""openvino"""\nHELP = "comma-separated, e.g. openvino:bf16,torchscript"\n'),
        ("hybrid_rt/backends/openvino/backend.py", 'NAME = "openvino"\n'),
        ("hybrid_rt/backends/torchscript.py", 'NAME = "torchscript"\n'),
        ("cpp/backends/tvm/backend.cpp", 'auto name = "tvm";\n'),
        ("cpp/src/engine/variants.cpp", '// "tensorrt"\n#include "torchscript/golden.h"\n'),
        ("tools/setup", "# onnxruntime\n"),
        ("pyproject.toml", '[project.optional-dependencies]\ntvm = ["apache-tvm>=0.27"]\n'),
    ],
)
def test_prose_and_a_backends_own_files_are_exempt(path: str, text: str, tmp_path: Path) -> None:
    assert places(tree_with(tmp_path, path, text), NAMES) == {}
