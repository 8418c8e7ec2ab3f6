"""NVIDIA TensorRT and TensorRT-RTX: the artifact is a built engine and the facts that only a GPU could read from it."""

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
"""Python modules that may provide each library. The second name is that of pip's package for TensorRT-RTX."""

_INSTALL = (
    "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings onnx builds engines for GeForce and RTX GPUs on any "
    "machine; TensorRT for the others comes from NVIDIA"
)

_VERSIONS = {"tensorrt": ((10,), (12,)), "tensorrt_rtx": ((1, 5), (2,))}
"""First supported version of each library, and the first version whose interface the run half can't call."""

_RUNTIME_CACHE_DIRECTORY = "tensorrt_rtx"
"""Directory of the cache in which the run half stores compiled kernels (cpp/backends/tensorrt/runtime_cache.cpp)."""

_SUPPORTED = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


class TensorRTBackend(Backend):
    """Exports the traced segment to ONNX, or converts it with torch2trt, and builds an engine from the result."""

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
        """Checks that the onnx package and at least one of the vendor's two builders can be imported."""
        vendors, reasons = _vendors()
        if not vendors:
            return Availability(False, f"{'; '.join(reasons)}; {_INSTALL}")
        try:
            import onnx  # noqa: F401
        except Exception as error:  # a broken install raises anything
            return Availability(False, f"the onnx package can't be imported ({error}); pip install onnx")
        return Availability(True, version=", ".join(f"{vendor.library} {vendor.version}" for vendor in vendors))

    def misfit(self) -> str:
        """Returns why an engine built here would not run on this machine's GPU; empty if it would, or without a GPU."""
        options, gpu = Options(**self.given), _current_gpu()
        vendor = _chosen(options)
        if not gpu or not vendor.is_rtx or options.compute_capabilities == CURRENT:
            return ""
        if gpu["capability"] in options.compute_capabilities:
            return ""
        return f"it builds for {', '.join(options.compute_capabilities)}, but {gpu['name']} has {gpu['capability']}"

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Checks the user's options against :class:`hybrid_rt.backends.tensorrt.options.Options`.

        Raises:
            OptionError: An option is unknown, or its value is not allowed.
        """
        return checked(options)

    def options(self) -> Mapping[str, str]:
        """Returns the options, the library that they select on this machine, and the GPU if the build is for it."""
        options = Options(**self.given)
        vendor = _chosen(options)
        texts = {name: repr(value) for name, value in asdict(options).items()}
        gpu = _current_gpu() if _builds_for_current(vendor, options) else {}
        return {**texts, "library": f"{vendor.library} {vendor.version}", "gpu": str(gpu.get("name", ""))}

    def made_for(self) -> Mapping[str, str]:
        """Returns the required GPUs and library version; empty if the build needs a GPU and there is none."""
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

        Args:
            program: The captured segment.
            precision: "fp32", "fp16", "bf16" or "int8".

        Returns:
            The artifact, with the engine and the names and profiles of its bindings as blobs.

        Raises:
            CaptureError: torch's exporter can't express an operation in ONNX.
            BackendError: The build needs a GPU and there is none, or the vendor's parser or builder refuses the
                segment. The text includes the vendor's message.
            OptionError: A profile does not fit the segment, a size has no upper bound, or an option belongs to the
                other library.
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
    """Returns the libraries that can be imported, and the reasons why the others can't."""
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
    """Returns the library to build with.

    Raises:
        BackendError: The requested library, or with "auto" every library, is not installed.
    """
    vendors, reasons = _vendors()
    if options.library != "auto":
        vendors = [vendor for vendor in vendors if vendor.library == options.library]
    elif not _current_gpu():
        vendors.sort(key=lambda vendor: not vendor.is_rtx)  # TensorRT itself builds only on a machine with a GPU
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
    """Returns the name and capability of the first GPU; empty if there is none."""
    devices, _ = _native.cuda_devices()
    return devices[0] if devices else {}


def _no_gpu(segment: str, vendor: Vendor) -> BackendError:
    _, reason = _native.cuda_devices()
    return BackendError.make(
        TensorRTBackend.name,
        f"segment '{segment}'",
        expected=f"a GPU, because {vendor.library} {vendor.version} builds only for an installed one",
        got=f"none: {reason}",
        remedy="Convert on the machine that will run it, or use TensorRT-RTX, which builds without a GPU for those in "
        "the option 'compute_capabilities'.",
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
    """Returns the ONNX model in a precision. Its nodes keep their source locations for the parser's messages."""
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
    """Returns a function that adds the model to a network with the vendor's parser."""

    def populate(network: Any, messages: Messages) -> None:
        parser = vendor.module.OnnxParser(network, messages.logger)
        if parser.parse(model.SerializeToString()):
            return
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise BackendError.make(
            TensorRTBackend.name,
            f"segment '{program.name}'",
            expected="operations that TensorRT's ONNX parser supports",
            got="\n  " + "\n  ".join(_error_text(error, model, program) for error in errors) + "\n",
            remedy="Exclude that module from the segment (segments=), or use another engine.",
            code="operator-not-in-engine",
        )

    return populate


def _error_text(error: Any, model: Any, program: Program) -> str:
    """Returns the parser's message, preceded by the operation and its place in the user's code."""
    text = str(error.desc()).strip()
    operator, name = error.node_operator(), error.node_name()
    if not operator:
        return text
    return f"{operator} in {_place(operator, name, model, program) or name}: {text}"


_CONVOLUTIONS = {"Conv", "ConvTranspose", "_convolution", "convolution", "conv2d"}


def _place(operator: str, name: str, model: Any, program: Program) -> str:
    """Returns the submodule and the source line of an ONNX node, or an empty string if they are unknown.

    torch's exporter records neither for a frozen module. Each convolution becomes exactly one node, and their order
    does not change. So the node is located between two convolutions, and torch's operation of that name between the
    same two is its origin.
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
    """Returns the required versions: the one that built the engine, and with ``version_compatible`` newer ones."""
    number = ".".join(vendor.version.split(".")[:3])
    return f">={number}" if options.version_compatible else f"=={number}"


def _built_with(options: Options, gpu: Mapping[str, Any]) -> dict[str, str]:
    """Returns facts about the build, beyond its precision, to show to users."""
    facts = {"tf32": "on"} if options.tf32 else {}
    if options.frontend != "onnx":
        facts["frontend"] = options.frontend
    if gpu:
        facts["gpu"] = str(gpu["name"])
    return facts


def _switches(options: Options) -> dict[str, str]:
    """Returns the settings that the run half passes to TensorRT-RTX, without those at their defaults."""
    names = ("kernel_specialization", "cuda_graphs")
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(Options, name)}


def _limits(ranges: Sequence[Range]) -> dict[str, list[int]]:
    return {"min": [low for low, _, _ in ranges], "max": [high for _, _, high in ranges]}


def _bounded(spec: TensorSpec, *profiles: Sequence[Range]) -> TensorSpec:
    """Returns the input's spec, limited to the sizes of all profiles. The run half refuses sizes between two profiles.

    A first dimension whose minimum is 0 in the segment keeps that minimum.
    """
    low = [min(sizes) for sizes in zip(*([size[0] for size in ranges] for ranges in profiles), strict=True)]
    high = [max(sizes) for sizes in zip(*([size[2] for size in ranges] for ranges in profiles), strict=True)]
    if low and spec.min[0] == 0:
        low[0] = 0
    return replace(spec, min=tuple(low), opt=tuple(size[1] for size in profiles[0]), max=tuple(high))
