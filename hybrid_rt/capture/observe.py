"""Observes a detector's run: each submodule's counted work, time, inputs and outputs."""

from __future__ import annotations

import functools
import inspect
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import CaptureError
from ..common.structure import Structure, structure_of
from ..common.submodules import modules_with_hooks
from ..common.tensor_tree import map_tensors
from ..torchscript.function_caches import without_function_caches
from ..torchscript.observed_types import ObservedTypes
from .counted_work import NO_WORK, Work, WorkCounter

Source = tuple[str, int]
"""Name of the submodule that returned a tensor, and the tensor's index among those that it returned."""

_WARM = 0.5
"""Duration in seconds below which a detector is run again, because its first run is mostly set-up."""

_REPEATS = 3


@dataclass
class Call:
    """One call of a submodule whose inputs and outputs are tensors in lists, tuples and dicts.

    ``returned`` is the result with empty tensors, which preserves the classes of its containers.
    """

    inputs: dict[str, Structure]
    input_tensors: list[tuple[torch.Size, torch.dtype]]
    sources: list[frozenset[Source]]
    output: Structure | None = None
    returned: Any = None
    output_tensors: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)


@dataclass
class Use:
    """Observations of a submodule in one run of the detector.

    Attributes:
        name: the dotted path.
        seconds: duration of all its calls, including its own submodules.
        work: counted work of all its calls, including its own submodules.
        calls: its calls in order; None for a call whose inputs or outputs are not tensors.
        order: its position among all submodules, by their first calls.
        refusal: why a call can't be captured; empty if all can.
    """

    name: str
    seconds: float = 0.0
    calls: list[Call | None] = field(default_factory=list)
    order: int = 0
    refusal: str = ""
    work: Work = NO_WORK


@dataclass(frozen=True)
class Observation:
    """A detector's run on its example.

    Attributes:
        detector: the detector.
        example: the positional arguments of the run.
        result: the detector's result.
        seconds: the run's duration.
        uses: the observation of each submodule that was called, by the first of its names.
        work: the counted work of the run.
        types: types of the code's arguments and variables in the run, and later in those at other sizes.
    """

    detector: nn.Module
    example: tuple[Any, ...]
    result: Any
    seconds: float
    uses: dict[str, Use]
    work: Work = NO_WORK
    types: ObservedTypes = field(default_factory=ObservedTypes)

    @functools.cached_property
    def _first_names(self) -> dict[int, str]:
        return {id(module): name for name, module in self.detector.named_modules()}

    def first_name(self, name: str) -> str:
        """Returns the first of the names under which the detector holds a submodule."""
        return self._first_names[id(self.detector.get_submodule(name))]

    def use(self, name: str) -> Use | None:
        """Returns the observation of a submodule, given any of its names; None if it was not called."""
        return self.uses.get(self.first_name(name))

    def calls(self, name: str) -> list[Call]:
        """Returns the calls of a submodule whose inputs and outputs are tensors."""
        use = self.use(name)
        return [call for call in use.calls if call is not None] if use else []

    def share(self, name: str) -> float:
        """Returns the fraction of the counted work that a submodule does, 0..1."""
        return self.uses[name].work.cost / self.work.cost if name in self.uses and self.work.cost else 0.0

    def measured_share(self, name: str) -> float:
        """Returns the fraction of the time that a submodule took, 0..1."""
        return self.uses[name].seconds / self.seconds if name in self.uses and self.seconds else 0.0


def observe(detector: nn.Module, example: tuple[Any, ...]) -> Observation:
    """Runs the detector on the example: once if that takes long, else until it is warm.

    The first run counts work and observes types, which costs some microseconds per operator and call; the later ones
    only measure time.
    """
    counted = _Observer(detector).run(example, counts=True)
    if counted.seconds >= _WARM:
        return counted
    warm = min((_Observer(detector).run(example) for _ in range(_REPEATS)), key=lambda run: run.seconds)
    for name, use in warm.uses.items():
        use.work = counted.uses[name].work if name in counted.uses else Work()
    return replace(warm, work=counted.work, types=counted.types)


class _Observer:
    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector
        self.names = {module: name for name, module in modules_with_hooks(detector) if name}
        self.uses: dict[str, Use] = {}
        self.open: list[tuple[Use, Call | None, float]] = []
        self.sources: dict[int, tuple[weakref.ref[Tensor], int, frozenset[Source]]] = {}
        self.work = Work()
        self.counts = False
        self.types = ObservedTypes()

    def run(self, example: tuple[Any, ...], *, counts: bool = False) -> Observation:
        with ExitStack() as hooks, torch.no_grad():
            for module in self.names:
                hooks.callback(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._leave).remove)
            arguments = map_tensors(example, Tensor.clone)  # it may change them
            if counts:
                hooks.enter_context(WorkCounter(self._count))
                hooks.enter_context(without_function_caches(self.detector))  # to see the types in cached functions too
                hooks.enter_context(self.types.observing())
            self.counts = counts
            start = time.perf_counter()
            result = self.detector(*arguments)
            seconds = time.perf_counter() - start
            self.counts = False
        return Observation(self.detector, example, result, seconds, self.uses, self.work, self.types)

    def _count(self, work: Work) -> None:
        if not self.counts:
            return  # what the hooks do themselves
        self.work += work
        for use in {id(use): use for use, _, _ in self.open}.values():  # a module that calls itself counts it once
            use.work += work

    def _enter(self, module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
        name = self.names[module]
        use = self.uses.setdefault(name, Use(name, order=len(self.uses)))
        call = None
        try:
            arguments = arguments_of(module, positional, keyword)
            inputs = structures_of(arguments, name)
            tensors = [tensor for key, structure in inputs.items() for tensor in structure.flatten(arguments[key])]
            call = Call(inputs, [(tensor.shape, tensor.dtype) for tensor in tensors], list(map(self._source, tensors)))
        except CaptureError as error:
            use.refusal = str(error)
        self.open.append((use, call, time.perf_counter()))

    def _leave(self, module: nn.Module, _: tuple[Any, ...], result: Any) -> None:
        use, call, start = self.open.pop()
        use.seconds += time.perf_counter() - start
        use.calls.append(call)
        if call is None:
            return
        try:
            call.output = structure_of(result, f"segment '{use.name}', output")
        except CaptureError as error:
            use.refusal = str(error)
            use.calls[-1] = None
            return
        counts, self.counts = self.counts, False
        call.returned = map_tensors(result, lambda tensor: tensor.new_empty(0))
        self.counts = counts
        for i, tensor in enumerate(call.output.flatten(result)):
            call.output_tensors.append((tensor.shape, tensor.dtype))
            self.sources[id(tensor)] = (
                weakref.ref(tensor),
                _version(tensor),
                self._source(tensor) | {(use.name, i)},
            )

    def _source(self, tensor: Tensor) -> frozenset[Source]:
        """Returns the module that returned this very tensor, if it is unchanged since."""
        reference, version, sources = self.sources.get(id(tensor), (None, 0, frozenset()))
        known = reference is not None and reference() is tensor and _version(tensor) == version
        return sources if known else frozenset()


def _version(tensor: Tensor) -> int:
    """Returns how often a tensor was written into; inference mode does not count this."""
    return 0 if tensor.is_inference() else tensor._version


def arguments_of(module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by the names of forward's parameters, without those equal to their defaults.

    Raises:
        CaptureError: forward has ``*args`` or ``**kwargs``, whose entries have no parameters.
    """
    signature = inspect.signature(module.forward)
    bound = signature.bind(*positional, **keyword).arguments
    for name, parameter in signature.parameters.items():
        if name in bound and parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CaptureError.make(
                "capture",
                f"{type(module).__name__}.forward, argument '{name}'",
                expected="parameters with names",
                got=f"'{parameter}'",
                remedy="Name the parameters in forward's signature, or choose a submodule.",
                code="segment-interface",
            )
    return {name: value for name, value in bound.items() if not _is_default(value, signature.parameters[name].default)}


def _is_default(value: Any, default: Any) -> bool:
    plain = isinstance(value, (bool, int, float, str)) and type(value) is type(default)
    return value == default if plain else value is None and default is None


def structures_of(arguments: Mapping[str, Any], segment: str) -> dict[str, Structure]:
    """Returns the structures of a segment's arguments; numbers, strings and None in them are constants.

    Raises:
        CaptureError: An argument contains a value of another type, or no argument contains a tensor.
    """
    where = f"segment '{segment}'"
    found = {key: structure_of(value, f"{where}, input '{key}'", constants=True) for key, value in arguments.items()}
    if not any(structure.count for structure in found.values()):
        raise CaptureError.make(
            "capture",
            where,
            expected="a tensor among the inputs",
            got=", ".join(found) or "none",
            remedy="Choose a submodule that takes one.",
            code="segment-interface",
        )
    return found
