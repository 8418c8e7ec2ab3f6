"""The module that stands in a segment's place: it takes and returns what the segment did, and runs the engine."""

from __future__ import annotations

import itertools
import json
import linecache
from typing import Any

import torch
from torch import nn

from .capture import Program
from .specs import Artifact, pack

_serial = itertools.count()


class EngineModule(nn.Module):
    """Base of the generated modules: holds the TorchScript class ``hybrid_rt.Engine``."""

    def __init__(self, engine: Any) -> None:
        """``engine``: see :func:`make_engine`."""
        super().__init__()
        self.engine = engine

    def prepare(self, backend: str = "", *, emulate_precision: bool = False) -> None:
        """Chooses a variant for the CPU and loads it; see :func:`hybrid_rt.load` for the arguments."""
        engine: Any = self.engine
        engine.prepare(backend, torch.device("cpu"), 0, emulate_precision)


_TEMPLATE = '''\
class Generated(EngineModule):
    """{docstring}"""

    def forward(self, {parameters}) -> {returned}:
        {checks}
        outputs = torch.ops.hybrid_rt.run_engine(self.engine, [{inputs}])
        return {result}
'''


def make_engine(name: str, artifacts: list[Artifact]) -> Any:
    """The TorchScript class ``hybrid_rt.Engine`` of a segment with these variants, best first; it is not prepared."""
    variants, blobs = pack(artifacts)
    return torch.classes.hybrid_rt.Engine({"segment": name, "variants": json.dumps(variants)}, blobs)


def _length_check(segment: str, expression: str, length: int) -> str:
    text = f"hybrid_rt[engine]: segment '{segment}', {expression}: expected {length} entries, got "
    return f"assert len({expression}) == {length}, {text!r} + str(len({expression})) + '.'"


def engine_module(program: Program, artifacts: list[Artifact]) -> EngineModule:
    """A scriptable module with the program's inputs and outputs, any nest of lists, tuples and dicts of tensors.

    TorchScript types each value statically, so the forward is generated for the program's structure.
    """
    inputs = program.input_structures
    checks = [
        _length_check(program.name, expression, length)
        for key, structure in inputs.items()
        for expression, length in structure.lengths(key)
    ]
    source = _TEMPLATE.format(
        docstring=f"Runs the engine of the segment {program.name!r}.",
        parameters=", ".join(f"{key}: {structure.annotation}" for key, structure in inputs.items()),
        returned=program.output_structure.annotation,
        checks="\n        ".join(checks) or "pass",
        inputs=", ".join(part for key, structure in inputs.items() for part in structure.take_apart(key)),
        result=program.output_structure.put_together(f"outputs[{i}]" for i in itertools.count()),
    )
    # torch.jit.script reads a class's source by its file name.
    file_name = f"<hybrid_rt engine module {next(_serial)}>"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    namespace: dict[str, Any] = {"torch": torch, "EngineModule": EngineModule, "__name__": __name__}
    exec(compile("from typing import Dict, List, Tuple\nfrom torch import Tensor\n", file_name, "exec"), namespace)
    exec(compile(source, file_name, "exec"), namespace)
    module: EngineModule = namespace["Generated"](make_engine(program.name, artifacts))
    return module.eval()
