"""hybrid_rt: the dense part of a detector as an engine, the rest as TorchScript, both in one `.pt` for C++."""

import typing as _typing
import warnings as _warnings
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

import torch as _torch

from .common.errors import (
    BackendError,
    BundleError,
    CaptureError,
    HybridRTError,
    InputError,
    OptionError,
    VerificationError,
)
from .common.version import __version__ as __version__
from .common.version import another_torch as _another_torch
from .common.version import built_for_torch as _built_for_torch

# Before the library is loaded: one that was built for another torch may end the process.
if _differs := _another_torch(_torch.__version__, _built_for_torch(__name__)):
    raise _differs
try:
    from . import _native
except ImportError as _error:
    _checkout = _Path(__file__).resolve().parents[1]
    if _find_spec(f"{__name__}._native") is None and (_checkout / "CMakeLists.txt").exists():
        raise BackendError.make(
            "import",
            f"the source tree at {_checkout}",
            expected="an installed package",
            got="sources without the native library",
            remedy="Run tools/setup, or start Python with -P to import the installed hybrid_rt.",
        ) from _error
    raise BackendError.make(
        "import",
        "the native library",
        expected=f"one built for torch {_torch.__version__}",
        got=f"an import error: {_error}",
        remedy="Install hybrid_rt again in this environment, after torch: pip install --force-reinstall --no-deps .",
    ) from _error

if _differs := _another_torch(_torch.__version__, _native.torch_version):
    raise _differs

from .backends.registry import BackendInfo, backends
from .bench.bundles import BundleBenchmark, compare
from .bench.profile import Profile, profile
from .bundle.archive import EngineCheck, OpenedEngine, VariantCheck, check, engines, inspect, load, open_engine
from .bundle.latency_contract import LatencyContract, MachineDescription, SizeLatency
from .bundle.signing import Signature, sign, verify_signature
from .common.latency import Latency, benchmark
from .conversion.compile_segment import CompiledSegment, compile_segment
from .conversion.edit.measure import MeasureReport, measure
from .conversion.edit.swap import SwapReport, swap_backbone
from .conversion.edit.variants import VariantChangeReport, add_variant, remove_variant
from .conversion.export.extract import extract
from .conversion.report.report import ConversionReport
from .torchscript import fake_engine as fake_engine
from .verification.coco import Accuracy, CocoDataset, DatasetComparison
from .verification.golden import GoldenVerification, verify_golden
from .verification.latency import LatencyCheck, verify_latency
from .verification.verify import THRESHOLDS, Thresholds, Verification, verify

if _typing.TYPE_CHECKING:
    from .conversion.convert import ConversionResult, convert

cmake_prefix_path = str(_Path(_native.__file__).parent / "cmake")
"""For ``cmake -Dhybrid_rt_DIR=``: where find_package(hybrid_rt) finds the package config."""

_RENAMED = {
    "BankReport": "VariantChangeReport",
    "GoldenCheck": "GoldenVerification",
    "Row": "BundleBenchmark",
    "Segment": "OpenedEngine",
    "SegmentCheck": "EngineCheck",
    "open_segment": "open_engine",
}


def __getattr__(name: str) -> _typing.Any:
    """Returns convert() or the class of its result on first use, or the object that had this name in earlier versions.

    convert() needs torchvision and torch.export, whose import takes as long as torch's; load() does not.
    """
    if name in ("ConversionResult", "convert"):
        from .conversion import convert as recipe

        value = globals()[name] = getattr(recipe, name)
        return value
    if name not in _RENAMED:
        raise AttributeError(f"module 'hybrid_rt' has no attribute '{name}'")
    _warnings.warn(f"hybrid_rt.{name} is deprecated, use hybrid_rt.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "THRESHOLDS",
    "Accuracy",
    "BackendError",
    "BackendInfo",
    "BundleBenchmark",
    "BundleError",
    "CaptureError",
    "CocoDataset",
    "CompiledSegment",
    "ConversionReport",
    "ConversionResult",
    "DatasetComparison",
    "EngineCheck",
    "GoldenVerification",
    "HybridRTError",
    "InputError",
    "Latency",
    "LatencyCheck",
    "LatencyContract",
    "MachineDescription",
    "MeasureReport",
    "OpenedEngine",
    "OptionError",
    "Profile",
    "Signature",
    "SizeLatency",
    "SwapReport",
    "Thresholds",
    "VariantChangeReport",
    "VariantCheck",
    "Verification",
    "VerificationError",
    "add_variant",
    "backends",
    "benchmark",
    "check",
    "cmake_prefix_path",
    "compare",
    "compile_segment",
    "convert",
    "engines",
    "extract",
    "inspect",
    "load",
    "measure",
    "open_engine",
    "profile",
    "remove_variant",
    "sign",
    "swap_backbone",
    "verify",
    "verify_golden",
    "verify_latency",
    "verify_signature",
]
