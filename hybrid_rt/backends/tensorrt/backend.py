"""NVIDIA TensorRT and TensorRT-RTX: the artifact is a built engine, and what is to be known of it where no GPU is."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ... import _native
from ...capture import onnx_export
from ...common.errors import BackendError, CaptureError
from ...common.specs import Artifact, TensorSpec, blob_from_bytes
from ..base import Availability, Backend, RuntimeCheck, VendorPackages
from . import runtimes, torch2trt_frontend
from .builder import TIMING_DIRECTORY, Messages, Vendor, build, check_capabilities
from .options import CURRENT, Options, Range, check_library, checked, profiles_of
from .precision import lower_precision, quantize

if TYPE_CHECKING:
    from ...capture.program import Program

_MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Of each library the Python modules that may bring it; pip's package for TensorRT-RTX has the second name."""

_INSTALL = (
    "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings onnx builds engines for GeForce and RTX GPUs on any "
    "machine; TensorRT for the others comes from NVIDIA"
)

_VERSIONS = {"tensorrt": ((10,), (12,)), "tensorrt_rtx": ((1, 5), (2,))}
"""The first version that the run half knows how to call, and the first whose interface it does not know."""

_RUNTIME_CACHE_DIRECTORY = "tensorrt_rtx"
"""The run half keeps the kernels there that TensorRT-RTX compiled (cpp/backends/tensorrt/runtime_cache.cpp)."""

_SUPPORTED = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


class TensorRTBackend(Backend):
    """Exports the traced segment to ONNX, or runs torch2trt on it, and builds an engine of that."""

    name = "tensorrt"
    precisions = ("fp32", "fp16", "bf16", "int8")
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    files: ClassVar[Mapping[str, str]] = {"engine": ".engine", "bindings": ".json"}
    vendor = VendorPackages(
        requirements=(
            "tensorrt-rtx-cu13-libs>=1.5,<2",
            "tensorrt-rtx-cu13-bindings>=1.5,<2",
            "onnx>=1.15,<2",
            "onnxruntime>=1.18,<2",  # calibrates int8
        ),
        modules=("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "torch2trt", "onnx", "onnxruntime"),
        libraries={
            "HYBRID_RT_TENSORRT_LIBRARY": "tensorrt_libs/libnvinfer.so*",
            "HYBRID_RT_TENSORRT_RTX_LIBRARY": "tensorrt_rtx_libs/libtensorrt_rtx.so*",
        },
    )
    auto_for: ClassVar[Mapping[str, int]] = {"cuda": 20}
    cache_directories = (TIMING_DIRECTORY, _RUNTIME_CACHE_DIRECTORY)

    def availability(self) -> Availability:
        """Checks that one of the vendor's two builders and the onnx package can be imported."""
        vendors, reasons = _vendors()
        if not vendors:
            return Availability(False, f"{'; '.join(reasons)}; {_INSTALL}")
        try:
            import onnx  # noqa: F401
        except Exception as error:  # a broken install raises anything
            return Availability(False, f"the onnx package can't be imported ({error}); pip install onnx")
        return Availability(True, version=", ".join(f"{vendor.library} {vendor.version}" for vendor in vendors))

    def misfit(self) -> str:
        """Returns what TensorRT-RTX builds for, where the GPU that is here is another one."""
        options, gpu = Options(**self.given), _current_gpu()
        vendor = _chosen(options)
        if not gpu or not vendor.is_rtx or options.compute_capabilities == CURRENT:
            return ""
        if gpu["capability"] in options.compute_capabilities:
            return ""
        return f"it builds for {', '.join(options.compute_capabilities)}, here is {gpu['name']} of {gpu['capability']}"

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :class:`hybrid_rt.backends.tensorrt.options.Options`."""
        return checked(options)

    def options(self) -> Mapping[str, str]:
        """The user's, and which library they lead to here: with a GPU at hand it may be another one."""
        options = Options(**self.given)
        vendor = _chosen(options)
        texts = {name: repr(value) for name, value in asdict(options).items()}
        gpu = _current_gpu() if _builds_for_current(vendor, options) else {}
        return {**texts, "library": f"{vendor.library} {vendor.version}", "gpu": str(gpu.get("name", ""))}

    def made_for(self) -> Mapping[str, str]:
        """Returns the GPUs and the library; nothing where it needs a GPU and there is none, which compile() says."""
        options, gpu = Options(**self.given), _current_gpu()
        vendor = _chosen(options)
        if _builds_for_current(vendor, options) and not gpu:
            return {}
        return _requirements(vendor, options, gpu)

    def runtime_checks(self) -> Sequence[RuntimeCheck]:
        """Returns a check of TensorRT 10, TensorRT 11 and TensorRT-RTX for each GPU, as the run half finds them."""
        plugins = {str(info["name"]): str(info["plugin"]) for info in _native.backends()}
        if self.name not in plugins:
            return ()
        devices, reason = _native.cuda_devices()
        return runtimes.checks(devices, reason, runtimes.run_half(plugins[self.name]))

    def compile(self, program: Program, precision: str) -> Artifact:
        """Builds the engine.

        Raises:
            CaptureError: an operation that torch's exporter does not put into ONNX.
            BackendError: a GPU is needed and there is none, the vendor's parser or builder refuses; the text holds its
                message.
            OptionError: a profile that does not fit the segment, a size without an upper bound, an option of the other
                library.
        """
        options = Options(**self.given)
        vendor = _chosen(options)
        check_library(options, vendor.library)
        needs_gpu = _builds_for_current(vendor, options)
        gpu = _current_gpu() if needs_gpu else {}
        if needs_gpu and not gpu:
            raise _no_gpu(program.name, vendor)
        if vendor.is_rtx and needs_gpu:
            check_capabilities(vendor, [gpu["capability"]], program.name)
        _check_dtypes(program)
        profiles = profiles_of(options, program.inputs, program.name)
        names, outputs = onnx_export.value_names(program.inputs, program.outputs)
        if options.frontend == "torch2trt":
            network = torch2trt_frontend.populate(vendor, program, precision, names, outputs, profiles)
            used = names
        else:
            model = _model(program, precision, names)
            network = _parse(vendor, model, program)
            present = {value.name for value in model.graph.input}
            used = [name if name in present else "" for name in names]
        engine = build(vendor, options, network, used, profiles, program.name, self.progress)
        spec = self.spec(
            program,
            precision,
            versions={vendor.library: vendor.version, "torch": torch.__version__, **_built_with(options, gpu)},
            requirements=_requirements(vendor, options, gpu),
        )
        bindings = {
            "inputs": used,
            "outputs": outputs,
            "profiles": [[_limits(ranges) for ranges in profile] for profile in profiles],
            "version_compatible": options.version_compatible,
            **_switches(options),
        }
        spec = replace(spec, inputs=tuple(map(_bounded, program.inputs, *profiles)))
        blobs = {"engine": blob_from_bytes(engine), "bindings": blob_from_bytes(json.dumps(bindings).encode())}
        return Artifact(spec, blobs)


def _vendors() -> tuple[list[Vendor], list[str]]:
    """Those that can be imported, and why the others can't."""
    found, reasons = [], []
    for library, modules in _MODULES.items():
        failures = []
        for name in modules:
            try:
                module = importlib.import_module(name)
                version = tuple(map(int, str(module.__version__).split(".")[:2]))
                assert hasattr(module, "Builder"), "it has no Builder"
            except Exception as error:  # pip's stub of TensorRT and broken installs raise anything
                failures.append(str(error) or type(error).__name__)
                continue
            oldest, unknown = _VERSIONS[library]
            if not oldest <= version < unknown:
                wanted = " and before ".join(".".join(map(str, numbers)) for numbers in (oldest, unknown))
                failures.append(f"{library} {module.__version__} is installed, a version from {wanted} is needed")
                continue
            found.append(Vendor(library, module))
            break
        else:
            reasons.append(f"{library} can't be imported ({failures[-1]})")
    return found, reasons


def _chosen(options: Options) -> Vendor:
    """The library that builds.

    Raises:
        BackendError: the one that the user named is not installed.
    """
    vendors, reasons = _vendors()
    if options.library != "auto":
        vendors = [vendor for vendor in vendors if vendor.library == options.library]
    elif not _current_gpu():
        vendors.sort(key=lambda vendor: not vendor.is_rtx)  # the other one builds only where a GPU is
    if vendors:
        return vendors[0]
    raise BackendError.make(
        TensorRTBackend.name,
        "option 'library'",
        expected="TensorRT's Python package" if options.library == "auto" else f"the package of {options.library}",
        got="; ".join(reasons),
        remedy=f"{_INSTALL}.",
        code="engine-not-installed",
    )


def _builds_for_current(vendor: Vendor, options: Options) -> bool:
    return not vendor.is_rtx or options.compute_capabilities == CURRENT


def _current_gpu() -> dict[str, Any]:
    """The first GPU, if there is one."""
    devices, _ = _native.cuda_devices()
    return devices[0] if devices else {}


def _no_gpu(segment: str, vendor: Vendor) -> BackendError:
    _, reason = _native.cuda_devices()
    return BackendError.make(
        TensorRTBackend.name,
        f"segment '{segment}'",
        expected=f"a GPU, for which {vendor.library} {vendor.version} builds",
        got=f"none: {reason}",
        remedy="Convert on the machine that will run it; TensorRT-RTX builds without a GPU for those that the option "
        "'compute_capabilities' lists.",
        code="no-gpu-here",
    )


def _check_dtypes(program: Program) -> None:
    for spec in (*program.inputs, *program.outputs):
        if spec.dtype not in _SUPPORTED:
            raise BackendError.make(
                TensorRTBackend.name,
                f"segment '{program.name}', tensor '{spec.name}'",
                expected=f"one of {', '.join(_SUPPORTED)}",
                got=spec.dtype,
                remedy="Convert the tensor inside the segment, or use another engine.",
                code="dtype-not-in-engine",
            )


def _model(program: Program, precision: str, names: Sequence[str]) -> Any:
    """The ONNX model in the precision. Its nodes keep where they come from, for the parser's messages."""
    import onnx

    try:
        model = onnx.load_model_from_string(program.onnx())
    except CaptureError as error:
        raise BackendError(str(error)) from error
    onnx_export.hoist_constants(model)
    if precision in ("fp16", "bf16"):
        return lower_precision(model, precision)
    if precision == "int8":
        return quantize(model, names, program.calibration)
    return model


def _parse(vendor: Vendor, model: Any, program: Program) -> Any:
    """Adds the model to a network with the vendor's parser."""

    def populate(network: Any, messages: Messages) -> None:
        parser = vendor.module.OnnxParser(network, messages.logger)
        if parser.parse(model.SerializeToString()):
            return
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise BackendError.make(
            TensorRTBackend.name,
            f"segment '{program.name}'",
            expected="operations that TensorRT's ONNX parser takes",
            got="\n  " + "\n  ".join(_error_text(error, model, program) for error in errors) + "\n",
            remedy="Exclude that module from the segment (segments=), or use another engine.",
            code="operator-not-in-engine",
        )

    return populate


def _error_text(error: Any, model: Any, program: Program) -> str:
    """The parser's message, after the operation and where in the user's code it comes from."""
    text = str(error.desc()).strip()
    operator, name = error.node_operator(), error.node_name()
    if not operator:
        return text
    return f"{operator} in {_place(operator, name, model, program) or name}: {text}"


_CONVOLUTIONS = {"Conv", "ConvTranspose", "_convolution", "convolution", "conv2d"}


def _place(operator: str, name: str, model: Any, program: Program) -> str:
    """Returns the submodule and the line of an ONNX node, or an empty string if they are unknown.

    torch's exporter keeps neither for a frozen module. Convolutions become one node each, in the same order: between
    the same two of them is the operation of torch that has the node's name.
    """
    before = 0
    for node in model.graph.node:
        if node.name == name:
            break
        before += node.op_type in _CONVOLUTIONS
    seen, places = 0, []
    for operation, module, line in program.operations():
        is_named = operator.lower() in operation.replace("_", "")
        if seen == before and is_named:
            places.append(f"{module} ({line})" if line else module)
        seen += operation in _CONVOLUTIONS
    return " or ".join(dict.fromkeys(places))


def _requirements(vendor: Vendor, options: Options, gpu: Mapping[str, Any]) -> dict[str, str]:
    return {
        "compute_capability": _capabilities(vendor, options, gpu),
        vendor.library: _version_range(vendor, options),
    }


def _capabilities(vendor: Vendor, options: Options, gpu: Mapping[str, Any]) -> str:
    """Returns the requirement that :func:`unmet` compares with the GPU's capability."""
    if vendor.is_rtx and options.compute_capabilities != CURRENT:
        return ",".join(options.compute_capabilities)
    if not vendor.is_rtx and options.hardware_compatibility == "ampere_plus":
        return ">=8.0"
    return str(gpu["capability"])


def _version_range(vendor: Vendor, options: Options) -> str:
    """An engine runs on the version that built it; version-compatible ones of TensorRT on newer ones too."""
    number = ".".join(vendor.version.split(".")[:3])
    return f">={number}" if options.version_compatible else f"=={number}"


def _built_with(options: Options, gpu: Mapping[str, Any]) -> dict[str, str]:
    """For people: how an engine was built, beyond its precision."""
    facts = {"tf32": "on"} if options.tf32 else {}
    if options.frontend != "onnx":
        facts["frontend"] = options.frontend
    if gpu:
        facts["gpu"] = str(gpu["name"])
    return facts


def _switches(options: Options) -> dict[str, str]:
    """Returns what the run half tells TensorRT-RTX, except for its defaults."""
    names = ("kernel_specialization", "cuda_graphs")
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(Options, name)}


def _limits(ranges: Sequence[Range]) -> dict[str, list[int]]:
    return {"min": [low for low, _, _ in ranges], "max": [high for _, _, high in ranges]}


def _bounded(spec: TensorSpec, *profiles: Sequence[Range]) -> TensorSpec:
    """The input's spec with the sizes that the profiles hold: those between two profiles are refused by the run half.

    A dimension that the segment counts may be 0.
    """
    low = [min(sizes) for sizes in zip(*([size[0] for size in ranges] for ranges in profiles), strict=True)]
    high = [max(sizes) for sizes in zip(*([size[2] for size in ranges] for ranges in profiles), strict=True)]
    if low and spec.min[0] == 0:
        low[0] = 0
    return replace(spec, min=tuple(low), opt=tuple(size[1] for size in profiles[0]), max=tuple(high))
