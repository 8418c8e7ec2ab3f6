"""Copies a segment's attributes, properties and methods to the module that replaces it in a scripted head."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from ...torchscript import jit


def answer_for(stand_in: nn.Module, segment: nn.Module) -> None:
    """Gives a stand-in the members of a segment other than forward, as far as TorchScript can hold them.

    Attributes and buffers keep the segment's values, and properties become constants with their present value. A method
    is compiled if it does not need the segment's submodules. Any other method raises an error when it is called, so
    that code that does not run in eval mode, such as compute_loss, may still refer to it.
    """
    for name, value in _values(segment):
        if name == "engine":
            type(stand_in).engine = None  # type: ignore[attr-defined]
        elif hasattr(type(stand_in), name):
            continue
        if isinstance(value, Tensor):
            stand_in.register_buffer(name, value.detach())  # freezing drops what the head does not read
        else:
            setattr(stand_in, name, value)
    methods = {name: method for name, method in _methods(segment) if not hasattr(type(stand_in), name)}
    compiled = jit.compiled_methods(stand_in, methods)
    for name, method in methods.items():
        setattr(type(stand_in), name, method if name in compiled else jit.unused(method))


_OWN = frozenset(vars(nn.Module())) | {"hybrid_rt_engine"}


def _values(segment: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the plain values and tensors that are attributes of a segment, with their names."""
    for name in dir(type(segment)):
        for owner in type(segment).__mro__:
            if owner is nn.Module or hasattr(nn.Module, name):
                break
            if name in vars(owner):
                value = vars(owner)[name]
                if isinstance(value, property):
                    value = _value_of(segment, name)
                if is_plain(value) or isinstance(value, Tensor):
                    yield name, value
                break
    for name, value in vars(segment).items():
        if name not in _OWN and (is_plain(value) or isinstance(value, Tensor)):
            yield name, value
    yield from segment.named_parameters(recurse=False)
    yield from segment.named_buffers(recurse=False)


def _value_of(segment: nn.Module, name: str) -> Any:
    try:
        return getattr(segment, name)
    except Exception:  # a property may hold in training only
        return None


def is_plain(value: Any) -> bool:
    """Returns true for numbers, strings, and non-empty lists, tuples and dicts of one type of them."""
    if isinstance(value, (list, tuple)) and value:
        return len({type(entry) for entry in value}) == 1 and all(map(is_plain, value))
    if isinstance(value, dict) and value:
        return all(isinstance(key, str) for key in value) and is_plain(list(value.values()))
    return isinstance(value, (bool, int, float, str))


def _methods(segment: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Yields the methods that the segment's classes define in addition to those of nn.Module, with their names."""
    seen: set[str] = set()
    for owner in type(segment).__mro__:
        if owner is nn.Module:
            return
        for name, value in vars(owner).items():
            if isinstance(value, FunctionType) and name not in seen and not hasattr(nn.Module, name):
                seen.add(name)
                yield name, value
