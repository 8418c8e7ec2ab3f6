"""Detects state that a detector keeps between calls. A bundle treats each image as the first one."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..common.errors import CaptureError
from ..common.tensor_tree import leaves, map_tensors

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has. They are not state of the user's code."""

RESET = "reset"
STATES = ("refuse", RESET)
"""Values of ``state=``: how to treat a detector that keeps state."""

_SAME = 1e-4
"""Relative and absolute tolerance. A detector repeats its result exactly, unless its sums are computed in another
order."""


class StateWatch:
    """Remembers the buffers and attributes of a detector, reports which ones changed, and restores them.

    Attributes:
        kept: Changes that :meth:`require_none` found, whether they affect the result or not.
    """

    def __init__(self, detector: nn.Module) -> None:
        """Remembers the current values.

        Args:
            detector: The detector, before its first run.
        """
        self._detector = detector
        self.kept: list[str] = []
        self._before = {place: (value, _kept(value)) for place, value in _places(detector)}

    def changed(self) -> list[str]:
        """Returns the buffers and attributes whose values have changed, in words: ``buffer 'previous'``."""
        now = dict(_places(self._detector))
        names = []
        for place in {**self._before, **now}:
            module, kind, key = place
            was = self._before[place][1] if place in self._before else None
            if not _equal(was, now.get(place)):
                names.append(f"{kind} '{f'{module}.{key}' if module else key}'")
        return names

    def restore(self) -> None:
        """Restores every value. Tensors and containers that were written into remain the same objects."""
        modules = dict(self._detector.named_modules())

        def holder(module: str, kind: str) -> dict[str, Any]:
            return cast(dict[str, Any], modules[module]._buffers if kind == "buffer" else vars(modules[module]))

        for place, value in list(_places(self._detector)):
            module, kind, key = place
            held = holder(module, kind)
            if place not in self._before:
                del held[key]
                continue
            original, kept = self._before[place]
            if not _equal(kept, original):
                if isinstance(original, Tensor) and original.shape == kept.shape:
                    with torch.no_grad():
                        original.copy_(kept)
                else:
                    original = _put_back(original, _kept(kept))  # a copy, because the next call may write into it
            if value is not original:
                held[key] = original
        for (module, kind, key), (original, _) in self._before.items():
            held = holder(module, kind)
            if key not in held:  # not setdefault(): a ScriptModule's buffers have no such method
                held[key] = original

    def require_none(self, example: tuple[Any, ...], result: Any) -> None:
        """Checks that the changes do not affect the result.

        A grid that is kept for the last size does not affect it. The features of the last image do.

        Args:
            example: Arguments of the detector.
            result: The detector's result for the example, before it saw other inputs.

        Raises:
            CaptureError: The result differs. The text names the buffers and attributes.
        """
        self.kept = names = self.changed()
        if not names:
            return
        with torch.no_grad():
            again = self._detector(*map_tensors(example, Tensor.clone))
        if same_results(result, again):
            return
        raise CaptureError.make(
            "convert",
            f"detector {type(self._detector).__name__}",
            expected="the same result for the same input, regardless of earlier calls",
            got=f"a different result after other images, because of state in {', '.join(names)}",
            remedy="Pass state='reset' to treat each image as the first one, as a bundle that serves images of many "
            "sources must. Otherwise, pass the state in and out as arguments and results, or convert only the part of "
            "the detector that keeps no state.",
            code="keeps-state",
        )


def reset_before_each_call(detector: nn.Module) -> StateWatch:
    """Resets a detector before each call: its buffers and attributes get the values that they have now.

    Copies of the detector are not reset.

    Args:
        detector: The detector. Its class is replaced by a subclass.

    Returns:
        The watch that restores the values.
    """
    watch = StateWatch(detector)
    owner = type(detector)

    def call(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        if self is detector:
            watch.restore()
        return owner.__call__(self, *arguments, **named)

    namespace = {"__call__": call, "__module__": owner.__module__, "__qualname__": owner.__qualname__}
    detector.__class__ = type(owner.__name__, (owner,), namespace)
    return watch


def _places(detector: nn.Module) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """Yields (module, kind, name) and value of everything that a forward could keep state in, except weights."""
    for module_name, module in detector.named_modules():
        for key, buffer in module._buffers.items():
            yield (module_name, "buffer", key), buffer
        for key, value in vars(module).items():
            if key not in _OWN and all(_is_value(leaf) for leaf in leaves(_plain(value))):
                yield (module_name, "attribute", key), value


def _is_value(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, (Tensor, bool, int, float, str))


def _plain(value: Any) -> Any:
    """Returns a deque as a list, because trackers keep the last frames in one; other values unchanged."""
    return list(value) if isinstance(value, deque) else value


def _kept(value: Any) -> Any:
    if isinstance(value, deque):
        return deque(_kept(list(value)), value.maxlen)
    return value.detach().clone() if isinstance(value, Tensor) else map_tensors(copy.copy(value), Tensor.clone)


def _put_back(held: Any, values: Any) -> Any:
    """Restores a container in place, because a hook may refer to it; anything else is replaced."""
    if type(held) is not type(values) or not isinstance(held, (dict, list, deque)):
        return values
    held.clear()
    if isinstance(held, dict):
        held.update(values)
    else:
        held.extend(values)
    return held


def _equal(one: Any, other: Any) -> bool:
    first, second = list(leaves(_plain(one))), list(leaves(_plain(other)))
    return len(first) == len(second) and all(map(_equal_leaves, first, second))


def _equal_leaves(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other or one != one)
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return bool(((one == other) | ((one != one) & (other != other))).all())


def same_results(one: Any, other: Any) -> bool:
    """Returns true if two results of a detector have the same values in the same order, apart from rounding."""
    first, second = list(leaves(one)), list(leaves(other))
    if len(first) != len(second):
        return False
    for a, b in zip(first, second, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point():
            if a.shape != b.shape or not torch.allclose(a, b, rtol=_SAME, atol=_SAME, equal_nan=True):
                return False
        elif (isinstance(a, Tensor) or _is_value(a)) and not _equal_leaves(a, b):
            return False
    return True
