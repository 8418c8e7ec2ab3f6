"""Finds what submodules do that an engine can't repeat."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.tensor_tree import tensors_in

_DATA_DEPENDENT = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
_UNTAGGED = {"torchvision::nms", "aten::is_nonzero"}


class SideEffects(TorchDispatchMode):
    """Notes what submodules do that a recording can't repeat: use values as sizes or conditions, write into what is
    not theirs, draw random numbers.

    Use as a context manager around a run of the detector; then ask :attr:`findings`: a submodule's name to what it did
    first, with the line.
    """

    def __init__(self, detector: nn.Module) -> None:
        """``detector``: whose submodules are watched."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.findings: dict[str, str] = {}
        self._names = {module: name for name, module in detector.named_modules() if name}
        self._open: list[tuple[str, set[int], dict[str, Any]]] = []
        self._constants = {
            name: {_storage(tensor) for tensor in [*module.parameters(), *module.buffers()]}
            for module, name in self._names.items()
        }
        self._hooks = ExitStack()

    def __enter__(self) -> SideEffects:
        """Begins to watch."""
        for module in self._names:
            pre = module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
            self._hooks.callback(pre.remove)
            self._hooks.callback(module.register_forward_hook(self._leave).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Ends it."""
        self._hooks.close()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def _enter(self, module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
        inputs = {_storage(tensor) for tensor in tensors_in((positional, keyword))}
        self._open.append((self._names[module], inputs, _plain_attributes(module)))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        name, _inputs, before = self._open.pop()
        after = _plain_attributes(module)
        changed = [key for key in after if key not in before or before[key] != after[key]]
        if changed:
            self._note(name, f"a change of its attribute '{changed[0]}'")

    def _note(self, name: str, what: str) -> None:
        """For the submodule and all that it is inside of."""
        for outer in [name, *(entry[0] for entry in self._open)]:
            self.findings.setdefault(outer, what)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        kwargs = kwargs or {}
        if self._open:
            self._check(operator, args, kwargs)
        return operator(*args, **kwargs)

    def _check(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        schema = operator._schema
        given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
        written = {
            _storage(tensor)
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors_in(given.get(argument.name))
        }
        depends = _depends_on_values(operator, schema.name, args)
        random = torch.Tag.nondeterministic_seeded in operator.tags and _draws(schema.name, given)
        if not (written or depends or random):
            return
        read = {_storage(tensor) for tensor in tensors_in((args, kwargs))}
        for name, inputs, _ in self._open:
            what = ""
            if depends and not read <= self._constants[name]:
                what = f"{schema.name}, which depends on the values of tensors"
            elif random:
                what = f"{schema.name}, which draws random numbers"
            elif written & inputs:
                what = f"{schema.name}, which writes into an input"
            elif written & self._constants[name]:
                what = f"{schema.name}, which writes into a weight or buffer"
            if what and name not in self.findings:
                self.findings[name] = f"{what} ({user_line()})"


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}


def _depends_on_values(operator: Any, name: str, args: tuple[Any, ...]) -> bool:
    if name == "aten::index" and len(args) > 1:
        # Picking by position is dense; only a mask's values decide on a size.
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(list(args[1])))
    return name in _UNTAGGED or any(tag in operator.tags for tag in _DATA_DEPENDENT)


def _draws(name: str, given: dict[str, Any]) -> bool:
    """Recurrent layers and dropout are tagged as random even in eval mode."""
    if name in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu", "aten::dropout", "aten::native_dropout"):
        return bool(given.get("train", False)) and float(given.get("dropout", given.get("p", 0.0)) or 0.0) > 0
    return "scaled_dot_product" not in name or float(given.get("dropout_p", 0.0)) > 0


def user_line() -> str:
    """Returns the line of the detector's code that the running operator comes from."""
    libraries = (f"{Path(__file__).parent}/", f"{torch.__path__[0]}/", f"{torchvision.__path__[0]}/ops/")
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(libraries):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "unknown line"


def find_side_effects(detector: nn.Module, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Runs the detector once; returns what each submodule does that an engine can't repeat (:class:`SideEffects`)."""
    effects = SideEffects(detector)
    with torch.no_grad(), effects:
        detector(*arguments)
    return effects.findings
