"""Exports segments with torch.export, with free sizes, and extracts their conditions on these sizes."""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
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
from ..torchscript.function_caches import without_function_caches
from .export_conditions import FUNCTIONS
from .size_caches import separate_caches

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
"""Logs the sizes that became fixed, which our error reports."""

_LARGEST = 2**62
"""Torch expresses "no upper bound" by a bound above this."""


class Chain(nn.Module):
    """Segments that feed each other directly, as one function of tensors; see ``capture.Member``."""

    def __init__(
        self,
        segments: Sequence[nn.Module],
        sources: Sequence[Sequence[int]],
        dtypes: Sequence[torch.dtype],
        inside: torch.dtype | None = None,
    ) -> None:
        """Joins the segments.

        Args:
            segments: The segments, in order.
            sources: For each segment, the indices of its inputs among all outputs so far; empty for the chain's own
                inputs.
            dtypes: Dtypes of the outputs.
            inside: Dtype that replaces float32 inside the chain; None keeps float32.
        """
        super().__init__()
        self.segments = nn.ModuleList(_cast(segment, inside) if inside else segment for segment in segments)
        self.sources = [tuple(each) for each in sources]
        self.dtypes = tuple(dtypes)
        self.inside = inside

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the segments and returns the outputs of all."""
        if self.inside is not None:
            tensors = tuple(x.to(self.inside) if x.dtype == torch.float32 else x for x in tensors)
        outputs: tuple[Tensor, ...] = ()
        for segment, sources in zip(self.segments, self.sources, strict=True):
            outputs += tuple(segment(*([outputs[i] for i in sources] if sources else tensors)))
        return tuple(x.to(dtype) for x, dtype in zip(outputs, self.dtypes, strict=True))


def _cast(segment: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of a segment with ``dtype`` instead of float32."""
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
    """Exports a segment. Its free sizes become symbols, its fixed ones numbers.

    Args:
        name: Name of the segment, for messages.
        chain: A function of tensors that returns a tuple of tensors.
        examples: Its inputs. A free size may have any value, including 0 and 1.
        specs: Ranges of the inputs' dimensions.
        least: Smallest size that must work, per input and dimension. The segment itself may refuse sizes between the
            range's minimum and this one, see :func:`conditions`.

    Raises:
        CaptureError: The segment can't be exported, or only for a part of the ranges.
    """
    shapes = tuple({d: Dim.AUTO(min=low, max=high) for d, (low, high) in _free(spec)} for spec in specs)
    try:
        with (
            torch.no_grad(),
            free_sizes(),
            silenced(_LOGGER),
            forwards_alone(),
            separate_caches(chain),
            without_function_caches(chain),
        ):
            exported = torch.export.export(chain, tuple(examples), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # the user's code and torch may raise anything
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
    """Makes torch treat free sizes as free: 0 and 1 are not special, and pooling does not test remainders.

    Equations on sizes that sympy can't solve do not end the export. torch solves them only to suggest names of sizes in
    its messages; the conditions on sizes stay in the exported program.

    torch 2.11 implements the rounding in pooling's output size itself, and thereby fixes whether the example's
    remainder is zero, although Python's ``//`` rounds down already. torch 2.14 does the same as this function.

    Python's ``max`` and ``min`` keep sizes free too. Otherwise they would record the branch that the example takes.
    """
    import torch._meta_registrations as meta
    from torch.fx.experimental.symbolic_shapes import DimConstraints

    rounded, solve = meta.div_rtn, DimConstraints.solve
    meta.div_rtn = _floor_division
    DimConstraints.solve = _solved_if_possible(solve)  # type: ignore[assignment]
    builtins.max, builtins.min = _largest, _smallest
    try:
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            yield
    finally:
        meta.div_rtn, DimConstraints.solve = rounded, solve  # type: ignore[method-assign]
        builtins.max, builtins.min = _max, _min


def _solved_if_possible(solve: Callable[[Any], None]) -> Callable[[Any], None]:
    def solved(constraints: Any) -> None:
        with contextlib.suppress(NotImplementedError):
            solve(constraints)

    return solved


_max, _min = builtins.max, builtins.min

_SYMBOLS = (torch.SymInt, torch.SymFloat)


def _largest(*values: Any, **options: Any) -> Any:
    if len(values) > 1 and not options and any(isinstance(value, _SYMBOLS) for value in values):
        return functools.reduce(torch.sym_max, values)
    return _max(*values, **options)


def _smallest(*values: Any, **options: Any) -> Any:
    if len(values) > 1 and not options and any(isinstance(value, _SYMBOLS) for value in values):
        return functools.reduce(torch.sym_min, values)
    return _min(*values, **options)


def _floor_division(x: int, y: int) -> int:
    return x // y


def _free(spec: TensorSpec) -> Iterator[tuple[int, tuple[int, int | None]]]:
    """Yields each free dimension with its range."""
    for d, (low, high) in enumerate(zip(spec.min, spec.max, strict=True)):
        if low != high:
            yield d, (low, None if high == UNBOUNDED else high)


def _shapes(exported: ExportedProgram) -> list[torch.Size]:
    """Returns the inputs' shapes, including symbols."""
    names = exported.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    return [values[name].shape for name in names]


def size_range(exported: ExportedProgram, size: int | torch.SymInt) -> tuple[int | None, int | None]:
    """Returns the smallest and largest value of a size, or of a number computed from sizes; None for no bound."""
    from torch.utils._sympy.value_ranges import bound_sympy

    if isinstance(size, int):
        return size, size
    bounds = bound_sympy(size.node.expr, exported.range_constraints)
    lower, upper = (int(bound) if bound.is_Integer else None for bound in (bounds.lower, bounds.upper))  # else inf
    return lower, upper


def _range(exported: ExportedProgram, size: int | torch.SymInt) -> tuple[int, int | None]:
    """Returns the smallest and largest size of a free dimension; None for no upper bound."""
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
                remedy="Its code depends on this size: narrow it with shapes=, or name a smaller submodule in "
                "segments=.",
                code="sizes-in-python",
            )


def conditions(
    exported: ExportedProgram, specs: Sequence[TensorSpec], *, fractions: bool = False
) -> list[tuple[str, str]]:
    """Returns the program's conditions on its input sizes beyond the specs' ranges.

    Args:
        exported: The program.
        specs: Specs of its inputs.
        fractions: Allow floats, which the head computes as the detector does. Engines compute in integers: fractions of
            sizes are multiplied out, which gives the same for all sizes below 2**26.

    Returns:
        Pairs of a text to show to users (``input 0's size 2 == 2 * input 1's size 2``, in torch's wording) and the same
        condition in postfix notation, where ``INPUT.DIMENSION:`` stands for a size (``0.2: 2 1.2: * ==``).

    Raises:
        CaptureError: A condition is not a comparison of sizes, or has floats that are not supported.
    """
    postfix = _WithFractions if fractions else _Postfix
    found = []
    for i, (spec, shape) in enumerate(zip(specs, _shapes(exported), strict=True)):
        for d, _ in _free(spec):
            lower, _ = _range(exported, shape[d])
            if lower > spec.min[d]:
                found.append((f"{spec.name}.shape[{d}] >= {lower}", f"{i}.{d}: {lower} >="))
    for guard in exported._guards_code:  # torch has no public API for these, nor for AOTInductor's check
        tree = ast.parse(guard, mode="eval").body
        try:
            words = " ".join(postfix().words(tree))
        except ValueError as error:
            raise CaptureError.make(
                "capture",
                "sizes",
                expected="conditions that compare "
                + ("sizes and numbers" if fractions else "integers and fractions of sizes"),
                got=guard,
                remedy="Fix the sizes with shapes=, or name a smaller submodule in segments=.",
                code="sizes-in-python",
            ) from error
        found.append((ast.unparse(_Readable([spec.name for spec in specs]).visit(tree)), words))
    return found


def _size(node: ast.AST) -> tuple[int, int] | None:
    """Returns (input, dimension) for ``L['tensors'][input].size()[dimension]``; None for anything else."""
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


class _Postfix:
    """Writes expressions of integers in postfix notation."""

    def words(self, node: ast.AST) -> Iterator[str]:
        """Yields the words of an expression.

        Raises:
            ValueError: The expression contains something else.
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
                yield from self.words(left)
                yield from self.words(right)
                yield _OPERATORS[type(operator)]
            case ast.BoolOp(op=operator, values=values):
                yield from self.joined(values, _OPERATORS[type(operator)])
            case ast.Call(func=ast.Name(id="min" | "max" | "Min" | "Max" as called), args=values):
                yield from self.joined(values, called.lower())
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="torch"), attr="sym_min" | "sym_max" as called), args=values
            ):
                yield from self.joined(values, called.removeprefix("sym_"))
            case ast.Compare(left=left, ops=operators, comparators=others) if all(
                type(o) in _OPERATORS for o in operators
            ):
                for i, (a, comparison, b) in enumerate(zip([left, *others], operators, others, strict=False)):
                    yield from self.compared(a, _OPERATORS[type(comparison)], b)
                    if i:
                        yield "and"
            case _:
                yield from self.of_floats(node)

    def joined(self, values: Sequence[ast.AST], word: str) -> Iterator[str]:
        """Yields the words of several expressions joined by one operator."""
        for i, value in enumerate(values):
            yield from self.words(value)
            if i:
                yield word

    def compared(self, left: ast.AST, comparison: str, right: ast.AST) -> Iterator[str]:
        """Yields the words of a comparison. Fractions with positive denominators are multiplied out."""
        (above, below), (other_above, other_below) = _fraction(left), _fraction(right)
        yield from self.words(above)
        yield from self._times(other_below)
        yield from self.words(other_above)
        yield from self._times(below)
        yield comparison

    def _times(self, factor: ast.AST | None) -> Iterator[str]:
        if factor is not None:
            yield from self.words(factor)
            yield "*"

    def of_floats(self, node: ast.AST) -> Iterator[str]:
        """Yields the words of an integer in floating point, or of a fraction that is rounded to one."""
        match node:
            case ast.Constant(value=float(number)) if number.is_integer():
                yield str(int(number))
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="math"), attr="floor" | "ceil" as called),
                args=[ast.BinOp(op=ast.Div(), left=above, right=below)],
            ) if _is_positive(below):
                if called == "floor":
                    yield from [*self.words(above), *self.words(below), "//"]
                else:
                    yield from ["0", "0", *self.words(above), "-", *self.words(below), "//", "-"]
            case _:
                raise ValueError(ast.unparse(node))


class _WithFractions(_Postfix):
    """Writes expressions that may have floats."""

    def compared(self, left: ast.AST, comparison: str, right: ast.AST) -> Iterator[str]:
        yield from [*self.words(left), *self.words(right), comparison]

    def of_floats(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Constant(value=float(number)) if math.isfinite(number):
                yield repr(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                yield from ["0", *self.words(operand), "-"]
            case ast.BinOp(op=ast.Div(), left=left, right=right):
                yield from [*self.words(left), *self.words(right), "/"]
            case ast.Call(func=ast.Attribute(value=ast.Name(id="math" | "torch"), attr=called), args=[value]) if (
                called in FUNCTIONS
            ):
                yield from [*self.words(value), called]
            case ast.Call(func=ast.Name(id="round"), args=[value]):
                yield from [*self.words(value), "round"]
            case _:
                raise ValueError(ast.unparse(node))


def _fraction(node: ast.AST) -> tuple[ast.AST, ast.AST | None]:
    """Returns the numerator and the denominator of an expression; None for the denominator 1.

    Raises:
        ValueError: The denominator may be zero or negative.
    """
    match node:
        case ast.BinOp(op=ast.Div(), left=above, right=below):
            if not _is_positive(below):
                raise ValueError(ast.unparse(node))
            return above, below
    return node, None


def _is_positive(node: ast.AST) -> bool:
    """Returns true for sizes and positive constants, and for the smallest or largest of several."""
    match node:
        case ast.Constant(value=int(number)):
            return number > 0
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="sym_min" | "sym_max"), args=values):
            return all(map(_is_positive, values))
    return _size(node) is not None


class _Readable(ast.NodeTransformer):
    """Writes sizes and functions readably: ``images.shape[2]`` for ``L['tensors'][0].size()[2]``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> ast.AST:
        size = _size(node)
        if size is not None:
            return ast.Name(f"{self.names[size[0]]}.shape[{size[1]}]")
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="sym_min" | "sym_max" | "sym_float" as called):
                return ast.Name(called.removeprefix("sym_"))
        return super().generic_visit(node)


def input_specs(exported: ExportedProgram, names: Sequence[str]) -> list[TensorSpec]:
    """Returns the specs of the inputs, with the range of each dimension that the program accepts.

    :func:`conditions` may restrict these sizes further.

    Args:
        exported: The program.
        names: Names of the inputs, in order.
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
