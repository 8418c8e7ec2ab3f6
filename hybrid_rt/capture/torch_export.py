"""Segments as torch.export sees them, with sizes that stay free, and what they take for granted of these sizes."""

from __future__ import annotations

import ast
import builtins
import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..common.error_text import described
from ..common.errors import CaptureError
from ..common.silenced import silenced
from ..common.specs import UNBOUNDED, TensorSpec, dtype_name
from ..torchscript.autograd_functions import forwards_alone

_OPERATORS = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.And: "and",
    ast.Or: "or",
}

_LOGGER = "torch._export.non_strict_utils"
"""It logs the sizes that became fixed, which our error tells."""

_LARGEST = 2**62
"""A bound above it is torch's way to write none."""


class Chain(nn.Module):
    """Segments between which data flows straight, as one function of flat tensors; see ``capture.Member``."""

    def __init__(
        self,
        segments: Sequence[nn.Module],
        sources: Sequence[Sequence[int]],
        dtypes: Sequence[torch.dtype],
        inside: torch.dtype | None = None,
    ) -> None:
        """``dtypes``: of the outputs; ``inside``: the dtype that takes the place of float32 within, None for none."""
        super().__init__()
        self.segments = nn.ModuleList(_cast(segment, inside) if inside else segment for segment in segments)
        self.sources = [tuple(each) for each in sources]
        self.dtypes = tuple(dtypes)
        self.inside = inside

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the segments."""
        if self.inside is not None:
            tensors = tuple(x.to(self.inside) if x.dtype == torch.float32 else x for x in tensors)
        outputs: tuple[Tensor, ...] = ()
        for segment, sources in zip(self.segments, self.sources, strict=True):
            outputs += tuple(segment(*([outputs[i] for i in sources] if sources else tensors)))
        return tuple(x.to(dtype) for x, dtype in zip(outputs, self.dtypes, strict=True))


def _cast(segment: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with ``dtype`` in the place of float32."""
    copied = copy.deepcopy(segment)
    for module in copied.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype == torch.float32:
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype == torch.float32:
                module._buffers[name] = buffer.to(dtype)
    return copied


def export(
    name: str,
    chain: nn.Module,
    examples: Sequence[Tensor],
    specs: Sequence[TensorSpec],
    least: Sequence[Sequence[int]],
) -> ExportedProgram:
    """The exported program of a segment: its free sizes are symbols, its fixed ones numbers.

    Args:
        name: the segment's, for messages.
        chain: a function of flat tensors that returns a tuple.
        examples: its inputs; a free size may be anything, also 0 or 1.
        specs: the ranges of the inputs' dimensions.
        least: for each dimension of each input the smallest size that must work. Sizes between the range's minimum
            and it may be ones that the segment itself refuses, see :func:`conditions`.

    Raises:
        CaptureError: the segment can't be exported, or only for fewer sizes than the ranges hold.
    """
    shapes = tuple({d: Dim.AUTO(min=low, max=high) for d, (low, high) in _free(spec)} for spec in specs)
    try:
        with torch.no_grad(), free_sizes(), silenced(_LOGGER), forwards_alone():
            exported = torch.export.export(chain, tuple(examples), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever the user's code and torch's raise
        raise CaptureError.make(
            "capture",
            f"segment '{name}'",
            expected="a module that torch.export takes",
            got=described(error),
            remedy="Name smaller submodules in segments= to exclude that operation, narrow the sizes with shapes=, or"
            " use an engine that does not need torch.export (openvino, torchscript).",
            code="segment-not-captured",
        ) from error
    _check_ranges(name, exported, specs, least)
    return exported


@contextmanager
def free_sizes() -> Iterator[None]:
    """Makes torch take free sizes as such: 0 and 1 are not special, and pooling does not ask for remainders.

    torch 2.11 rounds the division in pooling's output size by hand and so fixes whether the example's remainder is
    zero, though Python's ``//`` rounds down already. torch 2.14 does what this does.

    Python's ``max`` and ``min`` of sizes stay free too: they would be the branch that the example takes.
    """
    import torch._meta_registrations as meta

    rounded = meta.div_rtn
    meta.div_rtn = _floor_division
    builtins.max, builtins.min = _largest, _smallest
    try:
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            yield
    finally:
        meta.div_rtn = rounded
        builtins.max, builtins.min = _max, _min


_max, _min = builtins.max, builtins.min


def _largest(*values: Any, **options: Any) -> Any:
    if len(values) > 1 and not options and any(isinstance(value, torch.SymInt) for value in values):
        return functools.reduce(torch.sym_max, values)
    return _max(*values, **options)


def _smallest(*values: Any, **options: Any) -> Any:
    if len(values) > 1 and not options and any(isinstance(value, torch.SymInt) for value in values):
        return functools.reduce(torch.sym_min, values)
    return _min(*values, **options)


def _floor_division(x: int, y: int) -> int:
    return x // y


def _free(spec: TensorSpec) -> Iterator[tuple[int, tuple[int, int | None]]]:
    """Each free dimension with its range."""
    for d, (low, high) in enumerate(zip(spec.min, spec.max, strict=True)):
        if low != high:
            yield d, (low, None if high == UNBOUNDED else high)


def _shapes(exported: ExportedProgram) -> list[torch.Size]:
    """Returns the inputs' shapes, including symbols."""
    names = exported.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    return [values[name].shape for name in names]


def size_range(exported: ExportedProgram, size: int | torch.SymInt) -> tuple[int | None, int | None]:
    """Returns the least and the largest value of a size, or of a number computed from sizes; None: no bound."""
    from torch.utils._sympy.value_ranges import bound_sympy

    if isinstance(size, int):
        return size, size
    bounds = bound_sympy(size.node.expr, exported.range_constraints)
    lower, upper = (int(bound) if bound.is_Integer else None for bound in (bounds.lower, bounds.upper))  # no infinity
    return lower, upper


def _range(exported: ExportedProgram, size: int | torch.SymInt) -> tuple[int, int | None]:
    """The sizes that a free dimension may have; None for no upper bound."""
    lower, upper = size_range(exported, size)
    return lower or 0, upper


def _check_ranges(
    name: str, exported: ExportedProgram, specs: Sequence[TensorSpec], least: Sequence[Sequence[int]]
) -> None:
    for spec, shape, smallest in zip(specs, _shapes(exported), least, strict=True):
        for d, (_, high) in _free(spec):
            lower, upper = _range(exported, shape[d])
            if lower <= smallest[d] and (upper is None or (high is not None and upper >= high)):
                continue
            sizes = f"{lower} only" if lower == upper else f"{lower}..{'' if upper is None else upper}"
            raise CaptureError.make(
                "capture",
                f"segment '{name}', input '{spec.name}', dimension {d}",
                expected=f"a program for every size of {spec.sizes}",
                got=f"one for {sizes}",
                remedy="Its code decides by this size: narrow it with shapes=, or name a smaller submodule in "
                "segments=.",
                code="sizes-in-python",
            )


def conditions(exported: ExportedProgram, specs: Sequence[TensorSpec]) -> list[tuple[str, str]]:
    """Returns the program's conditions on its input sizes beyond the specs' ranges.

    Returns:
        Pairs: for people (``input 0's size 2 == 2 * input 1's size 2``, as torch words it), and in postfix notation
        with ``INPUT.DIMENSION:`` for a size: ``0.2: 2 1.2: * ==``.

    Raises:
        CaptureError: one of them is of another kind than comparisons of whole numbers.
    """
    found = []
    for i, (spec, shape) in enumerate(zip(specs, _shapes(exported), strict=True)):
        for d, _ in _free(spec):
            lower, _ = _range(exported, shape[d])
            if lower > spec.min[d]:
                found.append((f"{spec.name}.shape[{d}] >= {lower}", f"{i}.{d}: {lower} >="))
    for guard in exported._guards_code:  # no public name for them, nor for the C++ side's check in AOTInductor
        tree = ast.parse(guard, mode="eval").body
        try:
            words = " ".join(_postfix(tree))
        except ValueError as error:
            raise CaptureError.make(
                "capture",
                "sizes",
                expected="conditions that compare whole numbers",
                got=guard,
                remedy="Fix the sizes with shapes=, or name a smaller submodule in segments=.",
                code="sizes-in-python",
            ) from error
        found.append((ast.unparse(_Readable([spec.name for spec in specs]).visit(tree)), words))
    return found


def _size(node: ast.AST) -> tuple[int, int] | None:
    """(input, dimension) of ``L['tensors'][input].size()[dimension]``."""
    match node:
        case ast.Subscript(
            value=ast.Call(
                func=ast.Attribute(
                    value=ast.Subscript(
                        value=ast.Subscript(value=ast.Name(id="L")), slice=ast.Constant(value=int(index))
                    ),
                    attr="size",
                )
            ),
            slice=ast.Constant(value=int(dimension)),
        ):
            return index, dimension
    return None


def _postfix(node: ast.AST) -> Iterator[str]:
    """The words of an expression.

    Raises:
        ValueError: it has something else in it.
    """
    size = _size(node)
    if size is not None:
        yield f"{size[0]}.{size[1]}:"
        return
    match node:
        case ast.Constant(value=int(number)):
            yield str(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            yield str(-number)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            yield from _postfix(left)
            yield from _postfix(right)
            yield _OPERATORS[type(operator)]
        case ast.BoolOp(op=operator, values=values):
            yield from _joined(values, _OPERATORS[type(operator)])
        case ast.Call(func=ast.Name(id="min" | "max" | "Min" | "Max" as called), args=values):
            yield from _joined(values, called.lower())
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="torch"), attr="sym_min" | "sym_max" as called), args=values
        ):
            yield from _joined(values, called.removeprefix("sym_"))
        case ast.Compare(left=left, ops=operators, comparators=others) if all(type(o) in _OPERATORS for o in operators):
            for i, (a, comparison, b) in enumerate(zip([left, *others], operators, others, strict=False)):
                yield from _postfix(a)
                yield from _postfix(b)
                yield _OPERATORS[type(comparison)]
                if i:
                    yield "and"
        case _:
            raise ValueError(ast.unparse(node))


def _joined(values: Sequence[ast.AST], word: str) -> Iterator[str]:
    for i, value in enumerate(values):
        yield from _postfix(value)
        if i:
            yield word


class _Readable(ast.NodeTransformer):
    """``L['tensors'][0].size()[2]`` -> ``pictures.shape[2]``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> ast.AST:
        size = _size(node)
        if size is None:
            return super().generic_visit(node)
        return ast.Name(f"{self.names[size[0]]}.shape[{size[1]}]")


def input_specs(exported: ExportedProgram, names: Sequence[str]) -> list[TensorSpec]:
    """Returns the inputs with the sizes that the program takes of each dimension, apart from :func:`conditions`.

    ``names``: of the inputs, in their order.
    """
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    tensors = [values[name] for name in exported.graph_signature.user_inputs]
    specs = []
    for name, tensor in zip(names, tensors, strict=True):
        ranges = [_range(exported, size) for size in tensor.shape]
        specs.append(
            TensorSpec(
                name,
                dtype_name(tensor.dtype),
                tuple(low for low, _ in ranges),
                tuple(low for low, _ in ranges),
                tuple(UNBOUNDED if high is None or high > _LARGEST else high for _, high in ranges),
            )
        )
    return specs
