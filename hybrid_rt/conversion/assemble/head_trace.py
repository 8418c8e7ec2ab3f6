"""Records the head of a detector whose arguments or results torch.jit.trace does not support."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ...capture.flat_detector import FlatDetector, flat_arguments
from ...common.value_tree import ValueTree
from ...torchscript import jit
from ...torchscript.generated_module import generated_class
from .argument_checks import argument_checks

_TEMPLATE = '''\
class Head(nn.Module):
    """A detector as torch.jit.trace recorded it, with the values that it takes and returns."""

    def forward(self, {parameters}) -> {returned}:
        {body}
        return {result}
'''


def recorded_head(detector: nn.Module, example: tuple[Any, ...]) -> torch.jit.ScriptModule:
    """Records a detector on its example; numbers and other plain values in its result stay those of the example.

    Raises:
        CaptureError: It can't be recorded, or takes or returns something that TorchScript has no type for.
    """
    arguments, tensors = flat_arguments(detector, example)
    results: list[ValueTree] = []
    recorded = jit.trace_head(FlatDetector(detector, list(arguments.values()), results).eval(), tuple(tensors))
    result = results[-1]
    checks, paths = argument_checks(arguments)
    lines = [*checks, f"found = self.recorded({', '.join(paths)})"]
    source = _TEMPLATE.format(
        parameters=", ".join(f"{name}: {tree.annotation}" for name, tree in arguments.items()),
        returned=result.annotation,
        body="\n        ".join(lines),
        result=result.put_together(_places()),
    )
    source = "\n\n".join([*result.definitions().values(), source])
    module = generated_class(source, "Head", {"nn": nn, "Any": Any, "NamedTuple": NamedTuple})()
    module.recorded = recorded
    return jit.script(module.eval())


def _places() -> Iterator[str]:
    i = 0
    while True:
        yield f"found[{i}]"
        i += 1
