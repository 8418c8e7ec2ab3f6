"""Finds operations of a detector and its submodules that an engine can't repeat."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..common.error_text import line_of
from ..common.submodules import modules_with_hooks
from ..common.tensor_tree import leaves, map_tensors, tensors_in

_DATA_DEPENDENT = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
_UNTAGGED = {"torchvision::nms", "aten::is_nonzero"}


ITSELF = ""
"""The detector's own name."""

_CHANGE = "a change of its attribute"


class SideEffects(TorchDispatchMode):
    """Records the operations of submodules that a recording cannot repeat.

    These are values used as sizes or conditions, writes into tensors of others, random numbers, and tensors that are
    used outside of a submodule although it does not return them.

    Use it as a context manager around a run of the detector. Afterwards, :attr:`findings` has the first such operation
    of each submodule by name, and :attr:`drawn` the first operator that draws random numbers, each with its line.
    """

    def __init__(self, detector: nn.Module) -> None:
        """``detector``: the detector to watch, with its submodules."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.findings: dict[str, str] = {}
        self.drawn = ""
        self._names = {module: name for name, module in modules_with_hooks(detector)}
        self._open: list[tuple[str, set[int], dict[str, Any]]] = []
        self._constants = {
            name: _memory([*module.parameters(), *module.buffers()]) for module, name in self._names.items()
        }
        self._hooks = ExitStack()
        self._inside: Any = WeakIdKeyDictionary()  # tensors by the submodules that made them and did not return them
        self._opaque: set[str] = set()

    def __enter__(self) -> SideEffects:
        """Starts watching."""
        for module in self._names:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                self._hooks.callback(hooks.update, dict(hooks))
                hooks.update({key: _with_aliases(hook) for key, hook in hooks.items()})
            pre = module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
            self._hooks.callback(pre.remove)
            self._hooks.callback(module.register_forward_hook(self._leave).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stops watching."""
        self._hooks.close()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def _enter(self, module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
        self._open.append((self._names[module], _memory((positional, keyword)), _attributes(module)))

    def _leave(self, module: nn.Module, _arguments: Any, result: Any) -> None:
        name, _inputs, before = self._open.pop()
        self._see_result(name, result)
        after = _attributes(module)
        changed = [key for key in after if key not in before or not _same(before[key], after[key])]
        if changed:
            self._note(name, f"{_CHANGE} '{changed[0]}'")

    def _note(self, name: str, what: str) -> None:
        """Adds a finding to a submodule and to all modules that contain it, except the detector itself."""
        for outer in [name, *(entry[0] for entry in self._open)]:
            if outer != ITSELF:
                self.findings.setdefault(outer, what)

    def _see_result(self, name: str, result: Any) -> None:
        """Notes the tensors that a submodule returns; its other tensors must not be used outside of it."""
        if not all(leaf is None or isinstance(leaf, _WATCHED) for leaf in leaves(result)):
            self._opaque.add(name)
        for tensor in tensors_in(result):
            self._inside.get(tensor, set()).discard(name)
        self._see_use(tensors_in(result))

    def _see_use(self, tensors: Iterable[Tensor]) -> None:
        """Notes submodules whose tensors are used outside of them without having been returned."""
        running = {entry[0] for entry in self._open}
        for tensor in tensors:
            for name in self._inside.get(tensor, set()) - running - self._opaque:
                self.findings.setdefault(
                    name, f"a tensor used outside of it that it does not return, as a hook keeps one ({user_line()})"
                )

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        kwargs = kwargs or {}
        if self._open:
            self._check(operator, args, kwargs)
            self._see_use(tensors_in((args, kwargs)))
        result = operator(*args, **kwargs)
        running = {entry[0] for entry in self._open} - {ITSELF}
        for tensor in tensors_in(result) if running else ():
            self._inside.setdefault(tensor, set(running))
        return result

    def _check(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        schema = operator._schema
        given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
        written = _memory(
            [
                given.get(argument.name)
                for argument in schema.arguments
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
        )
        depends = _depends_on_values(operator, schema.name, args)
        random = torch.Tag.nondeterministic_seeded in operator.tags and draws(schema.name, given)
        if not (written or depends or random):
            return
        if random and not self.drawn:
            self.drawn = f"{schema.name} ({user_line()})"
        read = _memory((args, kwargs))
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


def _with_aliases(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a hook so that it gets separate tensor objects, which do not count as the submodule's result if kept."""

    def watched(module: nn.Module, *given: Any) -> Any:
        return hook(module, *map_tensors(given, Tensor.detach))

    return watched


def _storages(tensor: Tensor) -> set[int]:
    """Returns the ids of a tensor's storages: one, or those of a sparse tensor's indices and values."""
    if tensor.layout == torch.strided:
        return {int(tensor.untyped_storage()._cdata)}
    parts = (getattr(tensor, name)() for name in _PARTS.get(tensor.layout, ()))
    return {int(part.untyped_storage()._cdata) for part in parts}


_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
"""The methods that return a sparse tensor's parts, by layout."""


def _memory(value: Any) -> set[int]:
    """Returns the ids of the storages of all tensors in a value."""
    return set().union(*map(_storages, tensors_in(value)))


def _attributes(module: nn.Module) -> dict[str, list[Any]]:
    """Returns the numbers, strings and tensors in a module's attributes and buffers, including nested ones."""
    values = {key: value for key, value in vars(module).items() if key not in _INTERNAL} | module._buffers
    return {key: [leaf for leaf in leaves(value) if isinstance(leaf, _WATCHED)] for key, value in values.items()}


_WATCHED = (bool, int, float, str, Tensor)

_INTERNAL = frozenset(vars(nn.Module()))


def _same(before: list[Any], after: list[Any]) -> bool:
    """Returns true if an attribute is unchanged; tensors must be the very same objects."""
    return len(before) == len(after) and all(
        a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b for a, b in zip(before, after, strict=True)
    )


def _depends_on_values(operator: Any, name: str, args: tuple[Any, ...]) -> bool:
    if name == "aten::index" and len(args) > 1:
        # Indexing by position gives a known size; the size of a masked result depends on the mask's values.
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(list(args[1])))
    return name in _UNTAGGED or any(tag in operator.tags for tag in _DATA_DEPENDENT)


def draws(name: str, given: dict[str, Any]) -> bool:
    """Returns true if a call really draws random numbers.

    torch tags recurrent layers and dropout as random even in eval mode.
    """
    if name in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu", "aten::dropout", "aten::native_dropout"):
        return bool(given.get("train", False)) and float(given.get("dropout", given.get("p", 0.0)) or 0.0) > 0
    return "scaled_dot_product" not in name or float(given.get("dropout_p", 0.0)) > 0


class OwnNoise(TorchDispatchMode):
    """Records reasons why a detector's result differs from that of exact arithmetic.

    Attributes:
        random: the first operator that draws random numbers, with its line; empty if none does.
        narrow: the first line that computes in float16 or bfloat16, by dtype; empty if none does.
    """

    def __init__(self) -> None:
        """Use it as a context manager around a run of the detector."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.random = ""
        self.narrow: dict[torch.dtype, str] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        schema, kwargs = operator._schema, kwargs or {}
        if not self.random and torch.Tag.nondeterministic_seeded in operator.tags:
            given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
            if draws(schema.name, given | kwargs):
                self.random = f"{schema.name} ({user_line()})"
        result = operator(*args, **kwargs)
        for tensor in tensors_in(result):
            if tensor.dtype in (torch.float16, torch.bfloat16) and tensor.dtype not in self.narrow:
                self.narrow[tensor.dtype] = user_line()
        return result


def own_noise(detector: nn.Module, arguments: tuple[Any, ...]) -> OwnNoise:
    """Runs the detector, and returns the recorded noise."""
    noise = OwnNoise()
    own = map_tensors(arguments, Tensor.clone)
    with torch.no_grad(), noise:
        detector(*own)
    return noise


def user_line() -> str:
    """Returns the line of the detector's code that the running operator comes from."""
    return line_of(traceback.extract_stack())


def find_side_effects(detector: nn.Module, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Runs the detector; returns what engines can't repeat of it and its submodules, see :class:`SideEffects`."""
    return find_effects_and_draws(detector, arguments)[0]


def find_effects_and_draws(detector: nn.Module, arguments: tuple[Any, ...]) -> tuple[dict[str, str], str]:
    """Returns the findings of :func:`find_side_effects`, and the operator that draws random numbers, if one does.

    A changed attribute is a finding only if it changes again in a second run on the same input, which a cached grid for
    the size of the last call does not. Another check decides if a recording of such a module is right at other sizes.
    """
    findings, drawn = _findings_of_run(detector, arguments)
    changed = {name for name, what in findings.items() if what.startswith(_CHANGE)}
    if not changed:
        return findings, drawn
    again, _ = _findings_of_run(detector, arguments)
    kept = {name: what for name, what in findings.items() if name not in changed}
    return kept | {name: again[name] for name in changed if name in again}, drawn


def _findings_of_run(detector: nn.Module, arguments: tuple[Any, ...]) -> tuple[dict[str, str], str]:
    effects = SideEffects(detector)
    own = map_tensors(arguments, Tensor.clone)  # the detector may write into them, or add entries to a dict
    with torch.no_grad(), effects:
        detector(*own)
    return effects.findings, effects.drawn
