"""Quantises the converted model to int8 with NNCF, except for layers that would lose too much accuracy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ...common.silenced import silenced
from ..quantization.engine_quantizer import EngineQuantizer, quantize
from ..quantization.names import module_names
from ..quantization.record import Quantization
from .graph import clone_with, in_order, layers_of, ranges_before, real_weights, scoped_names, weighted_layers
from .vendor import import_nncf, import_openvino

if TYPE_CHECKING:
    from ...capture.program import Program

Sample = Sequence[Any]
"""The inputs of one call, as NumPy arrays."""


def missing() -> str:
    """Returns why NNCF can't be used; empty if it can."""
    try:
        with quiet():
            import_nncf()
    except Exception as error:  # a broken install raises anything
        return f"int8 needs the nncf package, which can't be imported ({error}); pip install 'hybrid_rt[int8]'"
    return ""


def quantize_model(
    model: Any, program: Program, options: Mapping[str, float], progress: Callable[[float, str], None]
) -> tuple[Any, Quantization]:
    """Returns the model in int8, with the record of its quantisation.

    Args:
        model: the segment in fp32, as OpenVINO converted it.
        program: the segment, with the calibration samples.
        options: see :mod:`..quantization.options`.
        progress: receives the progress of the search.

    Raises:
        BackendError: NNCF refuses a layer, quantises none, or too much would have to stay in fp32.
    """
    return quantize(NncfQuantizer(model, program), options, progress)


class NncfQuantizer(EngineQuantizer):
    """A segment that NNCF quantises."""

    backend = "openvino"
    instead = "bf16 or fp32"

    def __init__(self, model: Any, program: Program) -> None:
        """Quantises all layers; ``model``: in fp32; ``program``: the segment, with calibration samples.

        Raises:
            BackendError: There are no samples, NNCF refuses the model, or it quantises nothing.
        """
        super().__init__(program, model, [[tensor.numpy() for tensor in inputs] for inputs in program.calibration])
        found = layers_of(self.everywhere, self.outputs)
        self.layers, self.edges, self.branches = found.names, found.edges, found.branches
        self.shown = scoped_names(self.layers, program.name) or module_names(program, *in_order(model))
        if not self.layers:
            raise self.refused("a layer that int8 computes, such as a convolution", "none")

    def opened(self, model: Any) -> Callable[[Sample], list[torch.Tensor]]:
        """Compiles a model for this machine."""
        compiled = _compiled(model)

        def run(sample: Sample) -> list[torch.Tensor]:
            found = compiled(list(sample))
            # Copy, because the next call overwrites the request's memory.
            return [torch.from_numpy(numpy.array(found[i])) for i in range(len(compiled.outputs))]

        return run

    def without(self, kept: Collection[str]) -> Any:
        """Returns the model with all layers in int8 but ``kept``."""
        try:
            return self._quantize(kept)
        except Exception as error:  # NNCF raises many types
            raise self.refused("a model that NNCF quantises", self._named(error, kept)) from error

    def alone(self, layer: str) -> Any:
        """Returns the model with only one layer quantised, with NNCF's ranges and weights."""
        return clone_with(
            self.model, layer, ranges_before(self.everywhere, layer), real_weights(self.everywhere, layer)
        )

    def _quantize(self, kept: Collection[str]) -> Any:
        nncf = import_nncf()
        with quiet():
            return nncf.quantize(
                self.model.clone(),
                nncf.Dataset(self.samples, list),
                subset_size=len(self.samples),
                target_device=nncf.TargetDevice.CPU,
                ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False) if kept else None,
                # Without VNNI, the sum of two 8-bit products overflows its 16 bits. A bundle may run on any CPU, and
                # 7-bit weights are right on all of them.
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
            )

    def _named(self, error: Exception, kept: Collection[str]) -> str:
        """Returns the text of NNCF's error, with the layer that causes it if there is a single one.

        NNCF's texts seldom name the layer.
        """
        text = f"{type(error).__name__}: {error}"
        layers = [name for name in weighted_layers(self.model) if name not in kept]
        names = scoped_names(layers, self.program.name) or module_names(self.program, *in_order(self.model))
        while len(layers) > 1:
            half = layers[: len(layers) // 2]
            layers = half if self._quantizes([*kept, *half]) else layers[len(half) :]
        if layers and self._quantizes([*kept, *layers]):
            return f"{text}; at {names.get(layers[0], layers[0])}"
        return text

    def _quantizes(self, kept: Collection[str]) -> bool:
        try:
            self._quantize(kept)
        except Exception:  # NNCF raises many types
            return False
        return True


def _compiled(model: Any) -> Any:
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return import_openvino().Core().compile_model(model, "CPU", hints)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences NNCF, which writes progress bars and notes to stdout, and warns of its own dependencies."""
    with silenced("nncf"), contextlib.redirect_stdout(io.StringIO()):
        yield
