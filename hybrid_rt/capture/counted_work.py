"""Counts a detector's operations, which, unlike measured times, are equal in every process and under any load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ..common.tensor_tree import tensors_in

_OPERATIONS_PER_BYTE = 8
"""Operations that a CPU core does while it moves one byte: about 100 GFLOP/s divided by 12 GB/s."""

_OPERATIONS_PER_CALL = 200_000
"""Operations that a CPU core does during the overhead of one call in eager mode, about 2 microseconds."""


@dataclass(frozen=True)
class Work:
    """Counted work of operators.

    Attributes:
        operations: multiplications plus additions of convolutions, matrix products and attention; for any other
            operator, one per element of its result.
        bytes: bytes read and written; none for a view.
        cost: sum over all calls of the larger of ``operations`` and ``bytes`` (converted to operations), plus the
            overhead of the call.
    """

    operations: int = 0
    bytes: int = 0
    cost: int = 0

    def __add__(self, other: Work) -> Work:
        """Returns the sum."""
        return Work(self.operations + other.operations, self.bytes + other.bytes, self.cost + other.cost)


NO_WORK = Work()


class WorkCounter(TorchDispatchMode):
    """Calls ``add`` with the work of each operator that runs within the block."""

    def __init__(self, add: Callable[[Work], None]) -> None:
        """``add``: receives the work of one call."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._add = add

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        self._add(_work_of(operator, args, kwargs, result))
        return result


def _work_of(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Work:
    schema = operator._schema
    if any(output.alias_info is not None and not output.alias_info.is_write for output in schema.returns):
        return Work(cost=_OPERATIONS_PER_CALL)
    given, made = list(tensors_in((args, kwargs))), list(tensors_in(result))
    operations = _operations(operator, schema.name, args, kwargs, result, given)
    if operations is None:
        operations = sum(tensor.numel() for tensor in made)
    moved = sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
    return Work(operations, moved, max(operations, moved * _OPERATIONS_PER_BYTE) + _OPERATIONS_PER_CALL)


_WITH_WEIGHTS = ("aten::mkldnn_rnn_layer", "aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd")
"""Operators that compute several matrix products, and for which torch has no formula."""


def _operations(
    operator: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, given: list[Tensor]
) -> int | None:
    """Returns the number of operations of a convolution, matrix product or attention; None for other operators."""
    if name.startswith("aten::_scaled_dot_product") and len(given) >= 3:
        query, key, value = (tuple(tensor.shape) for tensor in given[:3])
        return int(sdpa_flop_count(query, key, value)) if len(query) == 4 else None  # type: ignore[no-untyped-call]
    formula = flop_registry.get(operator._overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=result))
    if name in _WITH_WEIGHTS:
        rows = math.prod(given[0].shape[:-1])
        return 2 * rows * _elements(tensor for tensor in given[1:] if tensor.dim() == 2)
    return None


def _elements(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
