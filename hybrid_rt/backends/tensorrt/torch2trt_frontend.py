"""Converts a segment with torch2trt, which runs it and adds a layer to the network for each call of torch.

torch2trt (https://github.com/NVIDIA-AI-IOT/torch2trt) was written for TensorRT up to 10. While it is imported, this
module supplies the names that it expects in the vendor's module and that newer versions lack. Only its converters are
used; the engine is built like any other.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ...common.errors import BackendError
from .options import Range

if TYPE_CHECKING:
    from ...capture.program import Program
    from .builder import Messages, Vendor

_IMPORTING = threading.Lock()
"""Held during the import and the conversion, which both patch torch for the whole process."""

_INSTALL = "pip install it from a checkout of NVIDIA-AI-IOT/torch2trt, or pass frontend='onnx'"


class _Placeholder:
    """Replaces names that newer versions lack. torch2trt uses them on import, but not to convert."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

    def __getattr__(self, name: str) -> Any:
        return self


class _VendorModule(ModuleType):
    """The vendor's module, with the name and the attributes that torch2trt expects."""

    def __init__(self, vendor: Vendor) -> None:
        super().__init__("tensorrt")
        self._module = vendor.module
        # torch2trt compares this with TensorRT's versions, and TensorRT-RTX has the interface of TensorRT 11.
        self.__version__ = "11.0" if vendor.is_rtx else vendor.version

    def __getattr__(self, name: str) -> Any:
        if hasattr(self._module, name):
            return getattr(self._module, name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder if name.startswith("I") else _Placeholder()


def populate(
    vendor: Vendor,
    program: Program,
    precision: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    profiles: Sequence[Sequence[Sequence[Range]]],
) -> Callable[[Any, Messages], None]:
    """Returns a function that adds the segment to a network.

    Raises:
        BackendError: torch2trt is not installed, or the precision is not fp32.
    """
    if precision != "fp32":
        raise BackendError.make(
            "tensorrt",
            f"segment '{program.name}', frontend 'torch2trt'",
            expected="fp32: newer versions of TensorRT compute in the types of the network",
            got=precision,
            remedy="Use frontend='onnx', which supports the others.",
            code="precision-not-in-engine",
        )
    with _imported(vendor, program.name) as torch2trt:
        pass

    def put(network: Any, messages: Messages) -> None:
        with _IMPORTING:
            _convert(torch2trt, program, network, inputs, outputs, profiles, messages)

    return put


@contextmanager
def _imported(vendor: Vendor, segment: str) -> Iterator[Any]:
    """Yields torch2trt's module. The name ``tensorrt`` refers to the vendor's module only during the import."""
    with _IMPORTING:
        before = sys.modules.get("tensorrt")
        sys.modules["tensorrt"] = _VendorModule(vendor)
        try:
            importlib.import_module("torch2trt.converters")
            yield importlib.import_module("torch2trt.torch2trt")
        except Exception as error:  # torch2trt's imports may raise anything
            raise BackendError.make(
                "tensorrt",
                f"segment '{segment}', frontend 'torch2trt'",
                expected="torch2trt to be installed",
                got=f"{type(error).__name__}: {error}",
                remedy=f"{_INSTALL[0].upper()}{_INSTALL[1:]}.",
                code="engine-not-installed",
            ) from error
        finally:
            if before is None:
                del sys.modules["tensorrt"]
            else:
                sys.modules["tensorrt"] = before


def _convert(
    torch2trt: Any,
    program: Program,
    network: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    profiles: Sequence[Sequence[Sequence[Range]]],
    messages: Messages,
) -> None:
    module = program.chain()
    arguments = {"module": module, "device_types": {}, "default_device_type": None, "gpu_fallback": False}
    context = torch2trt.ConversionContext(network, torch2trt_kwargs=arguments)
    # Without this, torch2trt would name layers by the device types of older versions.
    context.network._configure_layer = lambda layer: None
    tensors = tuple(tensor.clone() for tensor in program.examples)
    for i, (name, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        free = [len({size for profile in profiles for size in profile[i][d]}) > 1 for d in range(tensor.dim())]
        shape = [-1 if is_free else size for is_free, size in zip(free, tensor.shape, strict=True)]
        made = network.add_input(name, torch2trt.torch_dtype_to_trt(tensor.dtype), tuple(shape))
        setattr(tensor, "_trt", made)  # noqa: B010 (torch2trt's converters look here)
    try:
        with torch.no_grad(), context:
            results = module(*tensors)
        for name, result in zip(outputs, results, strict=True):
            made = network.add_identity(result._trt).get_output(0)  # even if two results are the same
            made.name = name
            network.mark_output(made)
    except Exception as error:  # converters raise anything; AttributeError stands for an operation without a converter
        raise BackendError.make(
            "tensorrt",
            f"segment '{program.name}', frontend 'torch2trt'",
            expected="operations that torch2trt converts",
            got=messages.take() or f"{type(error).__name__}: {error}",
            remedy="Use frontend='onnx', or exclude the operation from the segment.",
            code="operator-not-in-engine",
        ) from error
