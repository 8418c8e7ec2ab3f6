"""Autograd functions as what they are in eval mode: their forward's operations.

TorchScript's tracer records a call of a torch.autograd.Function as a call of Python code, which no file can hold. A
segment or head that is recorded needs no gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

from torch.autograd import Function
from torch.autograd.function import FunctionCtx


def _run_forward(function: type[Function], *arguments: Any, **keyword: Any) -> Any:
    if function.setup_context is not Function.setup_context:
        return function.forward(*arguments, **keyword)
    context = FunctionCtx()
    context.needs_input_grad = (False,) * len(arguments)  # type: ignore[attr-defined]
    return function.forward(context, *arguments, **keyword)


@contextmanager
def forwards_alone() -> Iterator[None]:
    """Within it, ``apply`` of each autograd function runs its forward as plain operations.

    Also where ``apply`` was given another name in a Python module: ``swish = SwishFunction.apply``.
    """
    aliases = list(_aliases())
    original = vars(Function).get("apply")
    Function.apply = classmethod(_run_forward)
    for namespace, name, bound in aliases:
        namespace[name] = MethodType(_run_forward, bound.__self__)
    try:
        yield
    finally:
        if original is None:
            del Function.apply
        else:
            Function.apply = original
        for namespace, name, bound in aliases:
            namespace[name] = bound


def _aliases() -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The names of ``apply`` in the packages that define autograd functions: namespace, name, bound method."""
    packages = {function.__module__.partition(".")[0] for function in _subclasses(Function)} - {"torch"}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages or not isinstance(module, ModuleType):
            continue
        namespace = vars(module)
        for key, value in list(namespace.items()):
            if isinstance(value, (BuiltinMethodType, MethodType)) and _is_apply(value):
                yield namespace, key, value


def _is_apply(value: BuiltinMethodType | MethodType) -> bool:
    owner = value.__self__
    return value.__name__ == "apply" and isinstance(owner, type) and issubclass(owner, Function)


def _subclasses(function: type) -> Iterator[type]:
    subclasses: list[type] = function.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)
