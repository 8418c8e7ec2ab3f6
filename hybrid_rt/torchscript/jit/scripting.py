"""Turns modules and functions into TorchScript: by scripting, by tracing, and from generated classes."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from types import FunctionType
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from ...common.error_text import described
from ...common.errors import CaptureError
from ...common.tensor_tree import map_tensors
from ..autograd_functions import forwards_alone
from ..function_caches import without_function_caches
from ..generated_module import generated_class
from ..observed_types import ObservedTypes, located, type_of
from ..rewritten_calls import inherited_methods, rewrite_calls
from .archives import freeze, submodule
from .graphs import returns_losses_and_detections
from .helper_objects import use_modules_for_objects
from .notices import quiet


@contextmanager
def _attempt() -> Iterator[None]:
    """Isolates an attempt: TorchScript forgets its known types of modules before it, and those that it makes after it.

    TorchScript assumes that modules of one class with the same attributes have the same code, although a forward may
    have been replaced. It would also reuse a type whose compilation failed halfway.

    Classes that are not modules stay registered, even if the attempt fails. TorchScript registers a class once all of
    its methods are compiled, and keeps its code for the lifetime of the process. If the class were removed, the next
    attempt would compile it under another name, and methods that name the class would get the earlier one.
    """
    recursive: Any = torch.jit._recursive
    store = recursive.concrete_type_store
    recursive.concrete_type_store = recursive.ConcreteTypeStore()
    try:
        yield
    finally:
        recursive.concrete_type_store = store


@contextmanager
def _recording() -> Iterator[None]:
    """Prepares for tracing: only the operations of modules are recorded, and no property or hook is compiled."""
    recursive: Any = torch.jit._recursive
    properties, hooks = recursive.get_property_stubs, recursive.get_hook_stubs
    recursive.get_property_stubs = lambda _: []
    recursive.get_hook_stubs = lambda _: ([], [])
    try:
        with quiet(), _attempt(), forwards_alone(), torch.no_grad():
            yield
    finally:
        recursive.get_property_stubs, recursive.get_hook_stubs = properties, hooks


def trace(module: nn.Module, examples: tuple[Tensor, ...], name: str) -> torch.jit.ScriptModule:
    """Traces a module that takes and returns tensors.

    Args:
        module: The module.
        examples: Its inputs.
        name: Name of the segment, for messages.

    Raises:
        CaptureError: The tracer fails. The text includes its message.
    """
    try:
        with _recording():
            return torch.jit.trace(module, examples, check_trace=False, strict=True)
    except Exception as error:
        raise CaptureError.make(
            "capture",
            f"segment '{name}'",
            expected="a module that torch.jit.trace records",
            got=described(error),
            remedy="A segment takes and returns tensors and has no control flow that depends on their values: "
            "name a smaller submodule in segments=.",
            code="segment-not-captured",
        ) from error


@contextmanager
def _typed_where_none(annotation: str) -> Iterator[None]:
    """Makes TorchScript read an unannotated parameter with the default None by an annotation instead of as a Tensor.

    As a Tensor its default would be an undefined tensor, which no file can store, and ``is not None`` would always be
    true.

    Args:
        annotation: "Optional[Tensor]", or "Any" for parameters that receive None and types that nothing shows.
    """
    frontend: Any = torch.jit.frontend
    original = frontend.build_param_list

    def build_param_list(ctx: Any, arguments: ast.arguments, *others: Any) -> Any:
        defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
        for argument, default in zip(arguments.args, defaults, strict=True):
            is_none = isinstance(default, ast.Constant) and default.value is None
            if is_none and argument.annotation is None:
                argument.annotation = located(annotation, argument)
        return original(ctx, arguments, *others)

    frontend.build_param_list = build_param_list
    try:
        yield
    finally:
        frontend.build_param_list = original


@contextmanager
def _with_types(types: ObservedTypes) -> Iterator[None]:
    """Makes TorchScript read the types that were observed where the code has none."""
    frontend: Any = torch.jit.frontend
    original = frontend.parse_def

    def parse_def(function: Any) -> Any:
        parsed = original(function)
        parsed = parsed._replace(ast=copy.deepcopy(parsed.ast))  # torch caches it
        types.complete(parsed.ast.body[0], function, (parsed.filename, parsed.file_lineno))
        rewrite_calls(parsed.ast.body[0], function)
        return parsed

    frontend.parse_def = parse_def
    try:
        yield
    finally:
        frontend.parse_def = original


def _scripted(module: nn.Module, types: ObservedTypes | None) -> torch.jit.ScriptModule:
    first: Exception | None = None
    with quiet():
        if types is not None:
            for annotation in ("Optional[Tensor]", "Any"):
                try:
                    with _attempt(), _typed_where_none(annotation), _with_types(types):
                        return torch.jit.script(module)
                except Exception as error:  # the compiler may raise anything
                    first = first or error
        try:
            with _attempt(), _typed_where_none("Optional[Tensor]"):
                return torch.jit.script(module)
        except Exception as error:
            first = first or error
        try:
            with _attempt():  # some code compiles only if no tensor is optional: then each one must be passed
                scripted = torch.jit.script(module)
        except Exception as error:
            raise first from error  # it knew the most types, so that it got the furthest
    for argument in scripted.forward.schema.arguments:
        if str(argument.type) == "Tensor" and argument.has_default_value():
            raise TypeError(
                f"the argument '{argument.name}' of forward is None by default: annotate it as Optional[Tensor]"
            )
    return scripted


def script(module: nn.Module, types: ObservedTypes | None = None) -> torch.jit.ScriptModule:
    """Scripts a module.

    Args:
        module: The module.
        types: Types for code without annotations. They are not used if the code compiles only without them.

    Raises:
        CaptureError: The compiler fails. The text includes its message, which names the line.
    """
    try:
        return _scripted(module, types)
    except Exception as error:
        raise CaptureError.make(
            "capture",
            "the detector's head",
            expected="code that torch.jit.script compiles",
            got=described(error).replace(": ", ":\n", 1) + "\n",  # puts the compiler's frames on their own lines
            remedy="Change the line that it names (see 'TorchScript language reference' in torch's documentation), or "
            "put it into a segment.",
            code="head-not-scriptable",
        ) from error


def script_function(function: FunctionType) -> Any:
    """Scripts a function from generated source. A trace that calls it keeps its branches."""
    with quiet():
        return torch.jit.script(function)


def is_type(annotation: Any) -> bool:
    """Returns true if TorchScript reads an annotation, a Python object, as an optional type."""
    try:
        found = torch.jit.annotations.try_ann_to_type(annotation, None)
    except Exception:  # a user's own type may raise anything here
        return False
    return isinstance(found, torch._C.OptionalType)


class _DetectionsOnly(nn.Module):
    """Unwraps torchvision's scripted pair (losses, detections) to what the detector returns in eager eval mode."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Returns a dict of boxes, labels, scores, ... for each image [3, H, W] with values in 0..1."""
        return self.detector(images)[1]


def _detections(
    self: Any, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
) -> list[dict[str, Tensor]]:
    """Replaces the forward of a detector inside another module."""
    return self.losses_and_detections(images, targets)[1]


def _return_detections(module: nn.Module) -> None:
    """Makes a detector of torchvision's kind return in TorchScript what it returns in eager eval mode."""
    owner: Any = type(module)
    both = _copied(owner.forward)
    both.__name__ = "losses_and_detections"  # TorchScript takes a method's name from the function
    names = {"forward": _detections, both.__name__: both, "__module__": owner.__module__}
    module.__class__ = type(owner.__name__, (owner,), names)


def _returns_pair_if_scripted(module: nn.Module) -> bool:
    """Returns true for a detector that returns (losses, detections) in TorchScript, and one of them in Python."""
    owner: Any = type(module)
    if not hasattr(owner, "eager_outputs") or list(signature(owner.forward).parameters)[1:] != ["images", "targets"]:
        return False
    returned = str(_annotations(owner.forward).get("return")).lower().replace("typing.", "")
    return returned == _PAIR.format(tensor=f"{Tensor.__module__}.{Tensor.__name__}").lower()


_PAIR = "tuple[dict[str, {tensor}], list[dict[str, {tensor}]]]"


def script_detector(detector: nn.Module, types: ObservedTypes) -> torch.jit.ScriptModule:
    """Scripts a detector with engines in it. The result returns what the detector returns in eager eval mode.

    Args:
        detector: The detector, in eval mode. It is changed.
        types: Types that its code had in a run.

    Raises:
        CaptureError: The compiler fails. The text includes its message, which names the line.
    """
    for module in detector.modules():
        _annotate_as_held(module)
        _name_inherited(module)
        if hasattr(module, "_has_warned"):
            # torchvision warns once that scripted detectors return a pair, which is unwrapped here.
            vars(module)["_has_warned"] = True
        if module is not detector and _returns_pair_if_scripted(module):
            _return_detections(module)
    with without_function_caches(detector):
        try:
            scripted = script(detector, types)
        except CaptureError:
            if not use_modules_for_objects(detector):
                raise
            scripted = script(detector, types)
    if returns_losses_and_detections(scripted):
        scripted = script(_DetectionsOnly(scripted).eval())
    return scripted


def trace_head(module: nn.Module, example: tuple[Any, ...]) -> torch.jit.ScriptModule:
    """Traces a detector with engines in it on its example. The result has no branches or loops of the head.

    Args:
        module: The detector.
        example: Its positional arguments.

    Raises:
        CaptureError: The tracer fails. The text includes its message.
    """
    own = map_tensors(example, Tensor.clone)  # the detector may write into them
    try:
        with _recording():
            return torch.jit.trace(module, own, check_trace=False, strict=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError.make(
            "capture",
            "the detector's head",
            expected="code that torch.jit.trace records",
            got=described(error),
            remedy="Take and return tensors in lists, tuples and dicts, or pass head='script'.",
            code="head-not-recordable",
        ) from error


_CHAIN = '''\
class Chain(nn.Module):
    """Modules of flat tensors, each fed by the ones before it."""

    def forward(self, {parameters}) -> Tuple[{returned}]:
        {calls}
        return ({results},)
'''


def chain(
    members: Sequence[torch.jit.ScriptModule], inputs: int, sources: Sequence[Sequence[int]], counts: Sequence[int]
) -> torch.jit.ScriptModule:
    """Joins modules that take and return tensors into one, which returns the outputs of all.

    Args:
        members: The modules. Each is frozen and becomes the submodule ``member_0``, ``member_1``, ...
        inputs: Number of inputs of the first module.
        sources: For each module, the indices of its inputs among all outputs so far; empty for the first.
        counts: Number of outputs of each module.
    """
    parameters = [f"input_{i}" for i in range(inputs)]
    calls: list[str] = []
    results: list[str] = []
    for i, (fed_by, count) in enumerate(zip(sources, counts, strict=True)):
        given = [results[j] for j in fed_by] if fed_by else parameters
        calls.append(f"output_{i} = self.member_{i}({', '.join(given)})")
        results += [f"output_{i}[{k}]" for k in range(count)]
    source = _CHAIN.format(
        parameters=", ".join(f"{name}: Tensor" for name in parameters),
        returned=", ".join(["Tensor"] * len(results)),
        calls="\n        ".join(calls),
        results=", ".join(results),
    )
    module = generated_class(source, "Chain", {"nn": nn})()
    for i, member in enumerate(members):
        module.add_module(f"member_{i}", submodule(freeze(member)))
    return script(module.eval())


def unused(method: FunctionType) -> Any:
    """Returns a copy of a method that TorchScript does not compile. Calling it in TorchScript raises."""
    return torch.jit.unused(_copied(method))


def _copied(method: FunctionType) -> FunctionType:
    copied = FunctionType(method.__code__, method.__globals__, method.__name__, method.__defaults__, method.__closure__)
    copied.__kwdefaults__, copied.__annotations__ = method.__kwdefaults__, _annotations(method)
    copied.__qualname__, copied.__module__ = method.__qualname__, method.__module__
    return copied


def compiled_methods(module: nn.Module, methods: Mapping[str, FunctionType]) -> set[str]:
    """Returns the names of the methods that TorchScript can compile in a module.

    A method that calls another one of them can be compiled only if that one can.

    Args:
        module: The module.
        methods: The methods to try, by name.
    """
    owner = type(module)
    compiled: set[str] = set()
    for name in methods:
        namespace = {**methods, "forward": _nothing, name: _exported(methods[name])}
        trial: nn.Module = object.__new__(type(owner.__name__, (owner,), namespace))
        vars(trial).update(vars(module))
        try:
            with quiet(), _attempt():
                torch.jit.script(trial)
        except Exception:  # the compiler may raise anything
            continue
        compiled.add(name)
    return compiled


def _nothing(self: nn.Module) -> None:
    """Placeholder for a forward."""


def _exported(method: FunctionType) -> Any:
    return torch.jit.export(_copied(method))


def _name_inherited(module: nn.Module) -> None:
    """Gives a module the methods of base classes that its own call by ``super()`` under names of their own."""
    owner = type(module)
    named: dict[str, Any] = {}
    for name, method in inherited_methods(owner).items():
        named[name] = _copied(method)
        named[name].__name__ = name  # TorchScript takes a method's name from the function
    if named:
        module.__class__ = type(owner.__name__, (owner,), {**named, "__module__": owner.__module__})


def _annotate_as_held(module: nn.Module) -> None:
    """Replaces a class's annotations of lists and dicts that the module's values contradict.

    Example: ``IntermediateLayerGetter`` annotates names of layers as strings, but they may be integers.
    """
    owner = type(module)
    annotations = getattr(owner, "__annotations__", {})
    held = {name: _fitting(vars(module).get(name), kind) for name, kind in annotations.items()}
    if any(held[name] is not kind for name, kind in annotations.items()):
        module.__class__ = type(owner.__name__, (owner,), {"__annotations__": held, "__module__": owner.__module__})


def _fitting(value: Any, annotation: Any) -> Any:
    """Returns an attribute's annotation, or the one that fits its value if that is a list or dict of another type."""
    held = type_of(value)
    if held is None:
        return annotation
    wanted: Any = torch.jit.annotations.try_ann_to_type(annotation, None)
    inferred = torch._C._jit_try_infer_type(value)
    fits = wanted is None or not inferred.success() or inferred.type().isSubtypeOf(wanted)
    return annotation if fits else held


def _annotations(method: FunctionType) -> dict[str, Any]:
    """Returns a method's annotations as objects.

    TorchScript does not resolve annotations that are strings in methods that it does not compile.
    """
    try:
        return get_type_hints(method)
    except Exception:  # some names may exist only for type checkers
        return dict(method.__annotations__)


_TENSORS_ONLY = '''\
class TensorsOnly(nn.Module):
    """A detector of lists and dicts, for a caller who has tensors only: an image, or images of one size."""

    def forward(self, picture: Tensor) -> Tuple[{returned}]:
        {decode}
        found = self.detector({images})
        {results}
'''


_PADDED = """\
most = 0
        for one in found:
            most = max(most, one["{first}"].size(0))
        {names} = {lists}
        counts: List[int] = []
        for one in found:
            missing = most - one["{first}"].size(0)
            counts.append(one["{first}"].size(0))
            {appends}
        return ({stacked}, torch.tensor(counts).unsqueeze(1))"""


def tensors_only(
    detector: torch.jit.ScriptModule, fields: Mapping[str, int], *, batched: bool, from_bytes: bool
) -> torch.jit.ScriptModule:
    """Wraps a detector with torchvision's interface in a module that takes one tensor and returns a tuple of tensors.

    Args:
        detector: Takes a list of [3, H, W] and returns a dict for each. It must be freshly opened, and can't be used
            afterwards.
        fields: Number of dimensions of each entry of the dicts, in the order of the tuple.
        batched: Images have a leading dimension N. Results are padded with zeros to the largest number of detections,
            and one more tensor [N, 1], int64, contains the number of detections of each image.
        from_bytes: An image is uint8 [H, W, 3], RGB. Otherwise it is float32 [3, H, W] in 0..1.
    """
    names = [f"field_{i}" for i in range(len(fields))]
    if batched:
        decode = "picture.permute(0, 3, 1, 2).to(torch.float32) / 255" if from_bytes else "picture"
        pads = {field: ", ".join(["0, 0"] * (dimensions - 1) + ["0, missing"]) for field, dimensions in fields.items()}
        results = _PADDED.format(
            first=next(iter(fields)),
            names=", ".join(names),
            lists=", ".join(["torch.jit.annotate(List[Tensor], [])"] * len(names)),
            appends="\n            ".join(
                f'{name}.append(torch.constant_pad_nd(one["{field}"], [{pads[field]}]))'
                for name, field in zip(names, fields, strict=True)
            ),
            stacked=", ".join(f"torch.stack({name})" for name in names),
        )
    else:
        decode = "picture.permute(2, 0, 1).to(torch.float32) / 255" if from_bytes else "picture"
        results = "return ({},)".format(", ".join(f'found[0]["{field}"]' for field in fields))
    source = _TENSORS_ONLY.format(
        returned=", ".join(["Tensor"] * (len(fields) + batched)),
        decode=f"decoded = {decode}",
        images="list(decoded.unbind(0))" if batched else "[decoded]",
        results=results,
    )
    module = generated_class(source, "TensorsOnly", {"nn": nn})()
    module.detector = submodule(detector)
    return script(module.eval())
