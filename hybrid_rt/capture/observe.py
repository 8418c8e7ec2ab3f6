"""Watches a detector run: what each submodule costs, what it takes and returns, and what an engine could not repeat."""

from __future__ import annotations

import inspect
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.errors import CaptureError
from ..common.structure import Structure, structure_of
from ..torchscript.jit import HEAD_OPERATORS

Source = tuple[str, int]
"""The submodule that returned a tensor, and which of its tensors it is."""

_WARM = 0.5
"""Seconds: a detector that is faster is run again, since its first run is mostly set-up."""

_REPEATS = 3


@dataclass
class Call:
    """One call of a submodule whose inputs and outputs are tensors in lists, tuples and dicts."""

    inputs: dict[str, Structure]
    input_tensors: list[tuple[torch.Size, torch.dtype]]
    sources: list[frozenset[Source]]
    output: Structure | None = None
    output_tensors: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)


@dataclass
class Use:
    """What was seen of a submodule in one run of the detector.

    Attributes:
        name: the dotted path.
        seconds: of all its calls, those of its own submodules included.
        calls: in order; None for one whose inputs or outputs are not tensors.
        order: its place among all submodules, by their first call.
        refusal: why a call can't be captured; empty if each can.
    """

    name: str
    seconds: float = 0.0
    calls: list[Call | None] = field(default_factory=list)
    order: int = 0
    refusal: str = ""


@dataclass(frozen=True)
class Observation:
    """A detector's run on its example: what it found, how long it took, and what each submodule did."""

    result: Any
    seconds: float
    uses: dict[str, Use]

    def share(self, name: str) -> float:
        """The part of the time that a submodule takes, 0..1."""
        return self.uses[name].seconds / self.seconds if name in self.uses and self.seconds else 0.0


def observe(detector: nn.Module, example: tuple[Any, ...]) -> Observation:
    """Runs the detector on the example: once if that takes long, else until it is warm."""
    observation = _Observer(detector).run(example)
    if observation.seconds < _WARM:
        observation = min((_Observer(detector).run(example) for _ in range(_REPEATS)), key=lambda run: run.seconds)
    return observation


class _Observer:
    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector
        self.names = {module: name for name, module in detector.named_modules() if name}
        self.uses: dict[str, Use] = {}
        self.open: list[tuple[Use, Call | None, float]] = []
        self.sources: dict[int, tuple[weakref.ref[Tensor], int, frozenset[Source]]] = {}

    def run(self, example: tuple[Any, ...]) -> Observation:
        with ExitStack() as hooks, torch.no_grad():
            for module in self.names:
                hooks.callback(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._leave).remove)
            arguments = _copied(example)  # it may change them
            start = time.perf_counter()
            result = self.detector(*arguments)
            seconds = time.perf_counter() - start
        return Observation(result, seconds, self.uses)

    def _enter(self, module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
        name = self.names[module]
        use = self.uses.setdefault(name, Use(name, order=len(self.uses)))
        call = None
        try:
            arguments = arguments_of(module, positional, keyword)
            inputs = {key: structure_of(value, f"segment '{name}', input '{key}'") for key, value in arguments.items()}
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
        for i, tensor in enumerate(call.output.flatten(result)):
            call.output_tensors.append((tensor.shape, tensor.dtype))
            self.sources[id(tensor)] = (
                weakref.ref(tensor),
                tensor._version,
                self._source(tensor) | {(use.name, i)},
            )

    def _source(self, tensor: Tensor) -> frozenset[Source]:
        """Who returned this very tensor, unchanged since."""
        reference, version, sources = self.sources.get(id(tensor), (None, 0, frozenset()))
        known = reference is not None and reference() is tensor and tensor._version == version
        return sources if known else frozenset()


def arguments_of(module: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of forward's parameters; ones that are None, as by default, are left out.

    Raises:
        CaptureError: forward takes ``*args`` or ``**kwargs``, which have no names.
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
            )
    return {
        name: value
        for name, value in bound.items()
        if not (value is None and signature.parameters[name].default is None)
    }


_DATA_DEPENDENT = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
_UNTAGGED = {"torchvision::nms", "aten::is_nonzero"}


class Watch(TorchDispatchMode):
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

    def __enter__(self) -> Watch:
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
        inputs = {_storage(tensor) for tensor in _tensors((positional, keyword))}
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
            for tensor in _tensors(given.get(argument.name))
        }
        depends = _depends_on_values(operator, schema.name, args)
        random = torch.Tag.nondeterministic_seeded in operator.tags and _draws(schema.name, given)
        if not (written or depends or random):
            return
        read = {_storage(tensor) for tensor in _tensors((args, kwargs))}
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
                self.findings[name] = f"{what} ({_line()})"


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _tensors(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _tensors(child)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}


def _depends_on_values(operator: Any, name: str, args: tuple[Any, ...]) -> bool:
    if name == "aten::index" and len(args) > 1:
        # Picking by position is dense; only a mask's values decide on a size.
        return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(list(args[1])))
    return name in _UNTAGGED or any(tag in operator.tags for tag in _DATA_DEPENDENT)


def _draws(name: str, given: dict[str, Any]) -> bool:
    """Recurrent layers and dropout are tagged as random even in eval mode."""
    if name in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu", "aten::dropout", "aten::native_dropout"):
        return bool(given.get("train", False)) and float(given.get("dropout", given.get("p", 0.0)) or 0.0) > 0
    return "scaled_dot_product" not in name or float(given.get("dropout_p", 0.0)) > 0


def _line() -> str:
    """The line of the detector's code that the running operator comes from."""
    libraries = (__file__, f"{torch.__path__[0]}/", f"{torchvision.__path__[0]}/ops/")
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(libraries):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "unknown line"


def watch(detector: nn.Module, arguments: tuple[Any, ...]) -> dict[str, str]:
    """What each submodule does that an engine can't repeat, in one run (see :class:`Watch`)."""
    watching = Watch(detector)
    with torch.no_grad(), watching:
        detector(*arguments)
    return watching.findings


class HeadOperators(TorchDispatchMode):
    """Within it, torchvision's operators that hybrid_rt has too are hybrid_rt's: the hybrid's own, and faster."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        name = operator._schema.name
        if name in HEAD_OPERATORS:
            operator = getattr(torch.ops.hybrid_rt, name.removeprefix("torchvision::"))
        return operator(*args, **(kwargs or {}))


@contextmanager
def recording(detector: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[tuple[dict[str, Any], Any]]]]:
    """Within it, calls of the named submodules are kept: (arguments by parameter name, result), tensors copied.

    The detector may write into them in place: hence the copies.
    """
    seen: dict[str, list[tuple[dict[str, Any], Any]]] = {name: [] for name in names}
    with ExitStack() as hooks:
        for name in names:
            pending: list[dict[str, Any]] = []

            def before(
                module: nn.Module,
                positional: tuple[Any, ...],
                keyword: dict[str, Any],
                pending: list[dict[str, Any]] = pending,
            ) -> None:
                pending.append(_copied(arguments_of(module, positional, keyword)))

            def after(
                _: nn.Module,
                __: tuple[Any, ...],
                result: Any,
                name: str = name,
                pending: list[dict[str, Any]] = pending,
            ) -> None:
                seen[name].append((pending.pop(), _copied(result)))

            submodule = detector.get_submodule(name)
            hooks.callback(submodule.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
            hooks.callback(submodule.register_forward_hook(after).remove)
        yield seen


def _copied(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, value)
