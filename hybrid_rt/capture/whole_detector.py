"""Turns a whole detector into one segment, under a head that has the detector's signature and rebuilds its result.

The segment takes the detector's tensors and returns the tensors of its result as a tuple. The head is generated source,
so that TorchScript compiles it whatever Python the detector is written in.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..common.errors import CaptureError
from ..common.structure import structure_of
from ..common.submodules import image_transform
from ..common.tensor_tree import map_tensors, node_of
from ..common.value_tree import ValueTree, literal, tree_of
from ..torchscript.generated_module import generated_class
from .observe import Call, Observation, Use, structures_of
from .profile import Profile
from .segments import LEAST_SHARE, Share

_SOURCE = '''\
class Tensors(nn.Module):
    """A detector that returns the tensors of its result."""

    def forward(self, {names}):
        return tuple(self.computed(self.detector({names})))


class Whole(nn.Module):
    """A detector that is one segment."""

    def forward(self, {parameters}) -> {returned}:
        {checks}
        found = self.{segment}({names})
        return {result}
'''

_REMEDY = "It then is converted in pieces."


@dataclass(frozen=True)
class _Signature:
    """A detector's parameters.

    Attributes:
        given: Names of the parameters that the example passes.
        written: Source of all parameters.
        checks: Source of assertions that the other parameters have their defaults.
    """

    given: tuple[str, ...]
    written: tuple[str, ...]
    checks: tuple[str, ...]


def whole_profile(profile: Profile) -> Profile | None:
    """Returns the profile of a detector as one segment; None if that is impossible or gains nothing.

    It is impossible if the detector takes or returns anything but tensors, or does something that an engine can't
    repeat. Nothing is gained if the chosen segments form a single group with all of the work in it.
    """
    detector, observation = profile.detector, profile.observation
    chosen = sum(share.share for share in profile.shares if share.chosen)
    if profile.obstacle or (len(profile.groups) == 1 and chosen >= 1 - LEAST_SHARE):
        return None
    if next(detector.parameters(), None) is None or image_transform(detector) is not None:
        return None
    signature = _signature(detector, profile.example)
    try:
        tree, tensors = tree_of(observation.result, "the result", _REMEDY, is_result=True)
    except CaptureError:
        return None
    if signature is None or not tensors or not _holds_tensors_only(tree):
        return None
    whole, name = _whole(detector, signature, tree)
    share = Share(name, observation.seconds * 1e3, 1.0, True, "", 1.0, observation.work.operations,
                  observation.work.bytes)  # fmt: skip
    return replace(
        profile,
        observation=_observed(whole, name, observation, signature, tuple(tensors), tree),
        samples=[replace(sample, detector=whole) for sample in profile.samples],
        first={},
        shares=[share],
        groups=[[name]],
        named=True,
        whole=True,
    )


def _holds_tensors_only(tree: ValueTree) -> bool:
    """Returns true if a result has no numbers: they may depend on sizes, but would be recorded as constants."""
    return all(
        node.kind in ("tensor", "list", "tuple", "dict")
        or (node.kind == "constant" and (node.constant is None or isinstance(node.constant, str)))
        for _, node in tree.paths("")
    )


def _signature(detector: nn.Module, example: tuple[Any, ...]) -> _Signature | None:
    """Returns the detector's signature; None if the example contains anything but tensors and dicts of tensors.

    The detector's own head accepts a list of images of any length, but an engine would fix it.
    """
    given: list[str] = []
    written: list[str] = []
    checks: list[str] = []
    for i, (name, parameter) in enumerate(inspect.signature(detector.forward).parameters.items()):
        default = parameter.default
        if i < len(example):
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or not name.isascii():
                return None
            annotation = _annotation(example[i])
            if annotation is not None:
                given.append(name)
                written.append(f"{name}: {annotation}")
                continue
            if example[i] is not None or default is not None:
                return None
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or not isinstance(
            default, (bool, int, float, str, type(None))
        ):
            break
        kind = "Optional[Tensor]" if default is None else type(default).__name__
        written.append(f"{name}: {kind} = {literal(default)}")
        text = f"hybrid_rt[head]: {name}: expected {default!r}, as in the example, got another value."
        checks.append(f"assert {name} {'is' if default is None else '=='} {literal(default)}, {text!r}")
    if len(example) > len(written) or not given:
        return None
    return _Signature(tuple(given), tuple(written), tuple(checks))


def _annotation(value: Any) -> str | None:
    """Returns the TorchScript type of an argument; None if its structure may differ in another call."""
    if isinstance(value, Tensor):
        return "Tensor"
    node = node_of(value)
    is_dict = node is not None and node.kind == "dict" and node.keys and all(isinstance(key, str) for key in node.keys)
    return "Dict[str, Tensor]" if is_dict and all(isinstance(entry, Tensor) for entry in value.values()) else None


def _whole(detector: nn.Module, signature: _Signature, tree: ValueTree) -> tuple[nn.Module, str]:
    """Returns the head with the segment in it, and the segment's name, which is the detector's class."""
    kind = type(detector)
    name = kind.__name__ if kind.__name__.isascii() and not hasattr(nn.Module, kind.__name__) else "detector"
    source = _SOURCE.format(
        names=", ".join(signature.given),
        parameters=", ".join(signature.written),
        returned=tree.annotation,
        checks="\n        ".join(signature.checks) or "pass",
        segment=name,
        result=tree.put_together(f"found[{i}]" for i in itertools.count()),
    )
    source = "\n\n".join([*tree.definitions().values(), source])
    names = {"nn": nn, "Any": Any, "NamedTuple": NamedTuple}
    tensors, whole = generated_class(source, "Tensors", names)(), generated_class(source, "Whole", names)()
    tensors.detector, tensors.computed = detector, _computed
    whole.add_module(name, tensors)
    type(whole).__name__, type(whole).__qualname__, type(whole).__module__ = (
        kind.__name__,
        kind.__qualname__,
        kind.__module__,
    )
    return whole.eval(), name


def _computed(result: Any) -> Iterator[Any]:
    _, tensors = tree_of(result, "the result", _REMEDY, is_result=True)
    return iter(tensors)


def _observed(
    whole: nn.Module,
    name: str,
    observation: Observation,
    signature: _Signature,
    tensors: tuple[Tensor, ...],
    tree: ValueTree,
) -> Observation:
    """Returns the observation of a run in which the detector, as one segment, is called once."""
    inputs = structures_of(
        {key: value for key, value in zip(_names(whole), observation.example, strict=False) if key in signature.given},
        name,
    )
    arguments = dict(zip(_names(whole), observation.example, strict=False))
    flat = [tensor for key, structure in inputs.items() for tensor in structure.flatten(arguments[key])]
    call = Call(
        inputs,
        [(tensor.shape, tensor.dtype) for tensor in flat],
        [frozenset()] * len(flat),
        structure_of(tensors, f"segment '{name}', output"),
        map_tensors(tensors, lambda tensor: tensor.new_empty(0)),
        [(tensor.shape, tensor.dtype) for tensor in tensors],
    )
    use = Use(name, observation.seconds, [call], work=observation.work)
    return replace(observation, detector=whole, result=tree.build(iter(tensors)), uses={name: use})


def _names(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
