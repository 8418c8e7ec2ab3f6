"""Makes a working copy of a detector: it shares the weights, owns everything else, and has no wrappers.

After training, modules often differ from their source: they may be wrapped (DataParallel, AveragedModel,
torch.compile), have weights that hooks or parametrizations compute, or have a forward that was replaced on the
instance. The copy consists of plain modules that compute the same in eval mode. Changes to the copy, or state that it
keeps when it runs, do not affect the user's detector.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..common.tensor_tree import map_tensors
from ..torchscript.scripted_part import ScriptedPart, scripted_part

_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": "_checkpoint_wrapped_module",
}
"""Name of the submodule that wrapper classes forward every call to in eval mode. Importing some of them takes seconds,
so they are identified by name."""

_HOLDERS = (nn.Module, MethodType, functools.partial, dict, list, set, deque)
"""Types through which a function can refer to the detector: modules, and containers in which a hook keeps tensors."""

_DECORATORS = ("torch.utils._contextlib", "torch._dynamo")
"""Modules whose decorators (no_grad, inference_mode, torch.compile) do not change what a forward computes."""


def working_copy(detector: nn.Module, replacements: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """Returns a detector that computes the same in eval mode, shares the weights, and may be modified freely.

    Args:
        detector: The detector, in eval mode. It is not modified.
        replacements: Replacements of submodules, by name. They take effect wherever the detector refers to the
            submodule, including under another name or in a function that it holds.
    """
    copier = _Copier()
    for name, replacement in (replacements or {}).items():
        copier.replace(detector.get_submodule(name), replacement)
    return copier.module(detector)


def own_arguments(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns a detector's arguments with inference tensors cloned, because those can't be written into later."""
    return tuple(map_tensors(arguments, lambda tensor: tensor.clone() if tensor.is_inference() else tensor))


def without_wrappers(module: nn.Module) -> nn.Module:
    """Returns the module inside DataParallel, AveragedModel, torch.compile and the like, or the module itself."""
    while True:
        names = (f"{owner.__module__}.{owner.__qualname__}" for owner in type(module).__mro__)
        inner = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)
        if inner is None:
            return module
        module = module._modules[inner]  # type: ignore[assignment]


def is_training(module: nn.Module) -> bool:
    """Returns true if a module may compute as in training: its flag is set, and its class's code reads the flag.

    Layers that were put into a detector after ``eval()``, by quantising it or by fusing convolutions with norms, have
    the flag of a new module, which most of them never read.
    """
    if not module.training:
        return False
    if isinstance(module, torch.jit.ScriptModule):
        return True
    owners = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    functions = [_plain(value) for owner in owners for value in vars(owner).values()]
    functions.append(_plain(vars(module).get("forward")))
    return any("training" in code.co_names or "training" in code.co_consts for code in _codes(functions))


def _plain(value: Any) -> Any:
    """Returns the function of a method, property, class method or decorated function."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
    return inspect.unwrap(value) if callable(value) else value


def _codes(functions: Iterable[Any]) -> Iterator[CodeType]:
    """Yields the code of functions, and of the functions inside them."""
    found = [code for function in functions if isinstance(code := getattr(function, "__code__", None), CodeType)]
    while found:
        code = found.pop()
        yield code
        found += [each for each in code.co_consts if isinstance(each, CodeType)]


class _Copier:
    """Copies an object graph of modules, including the modules and tensors that their attributes hold."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []  # keeps the objects alive, so that their ids stay unique

    def _keep(self, original: Any, copied: Any) -> Any:
        self._originals.append(original)
        self._copies[id(original)] = copied
        return copied

    def replace(self, original: nn.Module, replacement: nn.Module) -> None:
        """Registers a module as the copy of another one. Its own attributes are not copied."""
        self._keep(original, replacement)
        self._keep(replacement, replacement)

    def module(self, original: nn.Module) -> nn.Module:
        original = without_wrappers(original)
        if id(original) in self._copies:
            known: nn.Module = self._copies[id(original)]
            return known
        if isinstance(original, ScriptedPart):
            return original
        if isinstance(original, torch.jit.ScriptModule):
            part: nn.Module = self._keep(original, scripted_part(original))
            return part
        copied: nn.Module = self._keep(original, object.__new__(type(original)))
        for key, value in vars(original).items():
            vars(copied)[key] = self.value(value)
        _store_computed_weights(original, copied)
        _take_forward(copied)
        return copied

    def value(self, original: Any) -> Any:
        """Returns the copy of an attribute's value, or the same object if it can hold neither modules nor tensors."""
        if isinstance(original, nn.Module):
            return self.module(original)
        if id(original) in self._copies:
            return self._copies[id(original)]
        if isinstance(original, Tensor):
            return self._keep(original, _own(original))
        kind = type(original)
        if kind in (dict, OrderedDict):
            copied = self._keep(original, kind())
            copied.update((key, self.value(value)) for key, value in original.items())
            return copied
        if kind is list:
            copied = self._keep(original, [])
            copied.extend(map(self.value, original))
            return copied
        if kind is deque:
            return self._keep(original, deque(map(self.value, original), original.maxlen))
        if kind in (tuple, set):
            return self._keep(original, kind(map(self.value, original)))
        return self._callable(original)

    def _callable(self, original: Any) -> Any:
        """Copies a callable that refers to modules of the detector, so that it refers to the copies."""
        if isinstance(original, MethodType) and isinstance(original.__self__, nn.Module):
            return MethodType(original.__func__, self.module(original.__self__))
        if isinstance(original, functools.partial):
            arguments = map(self.value, original.args)
            keywords = {key: self.value(value) for key, value in original.keywords.items()}
            return functools.partial(self.value(original.func), *arguments, **keywords)
        if isinstance(original, FunctionType):
            plain = _undecorated(original)
            return self._function(plain) if isinstance(plain, FunctionType) else self.value(plain)
        return original

    def _function(self, original: FunctionType) -> FunctionType:
        cells = [_content(cell) for cell in original.__closure__ or ()]
        if not any(isinstance(cell, _HOLDERS) for cell in cells):
            return original
        closure = tuple(CellType(self.value(content)) for content in cells)
        copied = FunctionType(
            original.__code__, original.__globals__, original.__name__, original.__defaults__, closure
        )
        copied.__kwdefaults__ = original.__kwdefaults__
        functools.update_wrapper(copied, original)
        return copied


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the name is not bound yet
        return None


def _own(tensor: Tensor) -> Tensor:
    """Returns a parameter itself, and a copy of any other tensor, which may be written into."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.clone(), requires_grad=False) if tensor.is_inference() else tensor
    return tensor.detach().clone()


def _store_computed_weights(original: nn.Module, copied: nn.Module) -> None:
    """Stores weights that parametrizations or hooks compute as plain parameters of the copy."""
    with torch.no_grad():
        if parametrize.is_parametrized(original):
            names = list(original.parametrizations)  # type: ignore[arg-type]
            values = {name: getattr(original, name) for name in names}
            copied.__class__ = type(original).__bases__[0]
            del copied._modules["parametrizations"]
            for name in names:
                copied.register_parameter(name, nn.Parameter(values[name].detach().clone(), requires_grad=False))
        for key, hook in list(original._forward_pre_hooks.items()):
            found = _computed(hook, original)
            if found is None:
                continue
            name, value = found
            del copied._forward_pre_hooks[key]
            vars(copied).pop(name, None)
            copied._buffers.pop(name, None)
            copied.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))


def _computed(hook: Any, module: nn.Module) -> tuple[str, Tensor] | None:
    """Returns name and value of the weight that one of torch's own hooks computes in each forward; None for others."""
    if isinstance(hook, WeightNorm):
        return hook.name, hook.compute_weight(module)
    if isinstance(hook, SpectralNorm):
        return hook.name, hook.compute_weight(module, do_power_iteration=False)
    if isinstance(hook, BasePruningMethod):
        return hook._tensor_name, hook.apply_mask(module)  # type: ignore[no-untyped-call]
    return None


def _undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function without those of torch's decorators that do not change its results."""
    while True:
        inner = getattr(function, "_torchdynamo_orig_callable", None) or getattr(function, "__wrapped__", None)
        if inner is None:
            return function
        code = getattr(function, "__code__", None)
        where = getattr(inspect.getmodule(code), "__name__", "") if code is not None else ""
        if not where.startswith(_DECORATORS):
            return function
        function = inner


def _take_forward(module: nn.Module) -> None:
    """Moves a forward that was replaced on the instance, and methods that are decorated, into a class of its own.

    TorchScript assumes that modules of one class with the same attributes have the same code, and looks up the names in
    a decorated method among those of the decorator.
    """
    vars(module)["_compiled_call_impl"] = None
    vars(module).pop("_compiled_call_impl")
    replaced = vars(module).get("forward")
    owner = type(module)
    taken = _without_decorators(owner)
    if isinstance(replaced, MethodType) and replaced.__self__ is module:
        taken["forward"] = _undecorated(replaced.__func__)
        del vars(module)["forward"]
    elif replaced is not None:
        taken.pop("forward", None)
    if taken:
        module.__class__ = type(owner.__name__, (owner,), {**taken, "__module__": owner.__module__})


def _without_decorators(owner: type[nn.Module]) -> dict[str, Any]:
    """Returns the methods of a class that torch's decorators wrap, without these."""
    methods: dict[str, Any] = {}
    for each in reversed(owner.__mro__[: owner.__mro__.index(nn.Module)]):
        methods |= vars(each)
    plain = {name: _undecorated(value) for name, value in methods.items() if isinstance(value, FunctionType)}
    return {name: value for name, value in plain.items() if value is not methods[name]}
