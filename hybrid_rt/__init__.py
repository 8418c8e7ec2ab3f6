"""hybrid_rt: the dense part of a detector as an engine, the rest as TorchScript, both in one `.pt` for C++."""

from pathlib import Path as _Path

import torch as _torch

from .errors import (
    BackendError,
    BundleError,
    CaptureError,
    HybridRTError,
    InputError,
    OptionError,
    VerificationError,
)

__version__ = "0.1.0"

try:
    from . import _native
except ImportError as _error:
    raise BackendError.make(
        "import",
        "the native library",
        expected=f"one built for torch {_torch.__version__}",
        got=f"an import error: {_error}",
        remedy="Install hybrid_rt again in this environment, after torch: pip install --force-reinstall --no-deps .",
    ) from _error

if _native.torch_version.split(".")[:2] != _torch.__version__.split(".")[:2]:
    raise BackendError.make(
        "import",
        "the native library",
        expected=f"one built for torch {_torch.__version__}",
        got=f"one for {_native.torch_version}",
        remedy="Install hybrid_rt again in this environment, after torch: pip install --force-reinstall --no-deps .",
    )

from . import _fake as _fake
from .bank import BankReport, add_variant, remove_variant
from .bundle import Segment, SegmentCheck, VariantCheck, check, engines, inspect, load, open_segment
from .coco import Accuracy, CocoDataset, DatasetComparison
from .comparison import Row, compare
from .compile_segment import CompiledSegment, compile_segment
from .convert import ConversionResult, convert
from .extract import extract
from .golden import GoldenCheck, verify_golden
from .measure import Latency, benchmark
from .registry import BackendInfo, backends
from .report import ConversionReport
from .swap import SwapReport, swap_backbone
from .verify import THRESHOLDS, Thresholds, Verification, verify

cmake_prefix_path = str(_Path(__file__).parent / "cmake")
"""For ``cmake -Dhybrid_rt_DIR=``: where find_package(hybrid_rt) finds the package config."""

__all__ = [
    "THRESHOLDS",
    "Accuracy",
    "BackendError",
    "BackendInfo",
    "BankReport",
    "BundleError",
    "CaptureError",
    "CocoDataset",
    "CompiledSegment",
    "ConversionReport",
    "ConversionResult",
    "DatasetComparison",
    "GoldenCheck",
    "HybridRTError",
    "InputError",
    "Latency",
    "OptionError",
    "Row",
    "Segment",
    "SegmentCheck",
    "SwapReport",
    "Thresholds",
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
    "open_segment",
    "remove_variant",
    "swap_backbone",
    "verify",
    "verify_golden",
]
