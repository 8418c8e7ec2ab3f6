"""Turns plain objects that a detector holds, such as box coders and configurations, into modules.

TorchScript reads an attribute that is an object only if it can compile the object's class: each argument of
``__init__`` needs a type, and so does each method. If a module holds the same values, TorchScript reads them and
compiles only the methods that are called. A list of objects becomes a ModuleList, over which a loop may run beside
other ModuleLists.
"""

from __future__ import annotations

import enum
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_NOT_HELPERS = (Tensor, nn.Module, type, ModuleType, FunctionType, enum.Enum, torch.ScriptObject, torch.Generator)

_OWN = frozenset(vars(nn.Module()))
"""Attributes in which a module keeps its parts."""


def use_modules_for_objects(detector: nn.Module) -> bool:
    """Replaces the objects that TorchScript can't read, and lists of objects, by modules.

    Args:
        detector: The detector. It is changed.

    Returns:
        True if an object was replaced.
    """
    made: dict[int, nn.Module] = {}
    for module in list(detector.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in list(vars(module).items()):
            replaced = None if name in _OWN or not _can_be_child(module, name) else _replaced(value, made)
            if replaced is not None:
                delattr(module, name)
                module.add_module(name, replaced)
    return bool(made)


def _can_be_child(module: nn.Module, name: str) -> bool:
    """Returns true unless the attribute hides one of the class, such as ``forward``, or has a dot in its name."""
    return "." not in name and not hasattr(type(module), name)


def _replaced(value: Any, made: dict[int, nn.Module]) -> nn.Module | None:
    """Returns the module for an attribute; None if it stays as it is."""
    if isinstance(value, (list, tuple)) and value and all(map(_is_helper, value)):
        return nn.ModuleList([_module_of(each, made) for each in value]).eval()
    if _is_helper(value) and not torch._C._jit_try_infer_type(value).success():
        return _module_of(value, made)
    return None


def _is_helper(value: Any) -> bool:
    """Returns true for an object of a class in Python code that keeps its values in attributes."""
    owner = type(value)
    if isinstance(value, _NOT_HELPERS) or owner.__module__ == "torch" or owner.__module__.startswith("torch."):
        return False
    if callable(value) and not isinstance(_call_of(owner), FunctionType):
        return False  # a bound method or functools.partial, whose code TorchScript can't read
    return hasattr(value, "__dict__") and not isinstance(value, (int, float, str, list, tuple, dict, set))


def _call_of(owner: type) -> Any:
    """Returns what the class defines or inherits as ``__call__``; None if its objects can't be called."""
    return next((vars(base)["__call__"] for base in owner.__mro__ if "__call__" in vars(base)), None)


def _module_of(value: Any, made: dict[int, nn.Module]) -> nn.Module:
    """Returns the module for an object, the same for each place that holds the object."""
    if id(value) in made:
        return made[id(value)]
    owner = type(value)
    methods = {
        name: member
        for base in reversed(owner.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, (FunctionType, staticmethod)) and not name.startswith("__")
    }
    call = _call_of(owner)
    forward = _named_forward(call) if isinstance(call, FunctionType) else _never_called
    made_class: Any = type(
        owner.__name__, (nn.Module,), {**methods, "forward": forward, "__module__": owner.__module__}
    )
    module: nn.Module = made_class()
    made[id(value)] = module
    for name, held in vars(value).items():
        replaced = _replaced(held, made)
        setattr(module, name, held if replaced is None else replaced)
    return module.eval()


def _named_forward(call: FunctionType) -> FunctionType:
    """Returns a copy of ``__call__`` under the name that TorchScript calls a module by."""
    named = FunctionType(call.__code__, call.__globals__, "forward", call.__defaults__, call.__closure__)
    named.__kwdefaults__, named.__annotations__ = call.__kwdefaults__, call.__annotations__
    named.__qualname__, named.__module__ = call.__qualname__, call.__module__
    return named


def _never_called(self: Any) -> None:
    """Is the forward of an object that can't be called."""
