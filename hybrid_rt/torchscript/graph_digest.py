"""Computes a digest of a TorchScript module's computation that is the same in every process."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn


class NoDigest(Exception):
    """The module contains something that this code can't read. The text names it."""


def graph_digest(module: torch.jit.ScriptModule) -> str:
    """Returns the SHA-256, in hexadecimal, of the operations, constants and weights that a module's forward uses.

    Two modules with the same digest compute the same. The digest ignores everything that varies between runs without
    any effect: names of values, scopes, source locations, classes of modules, and shapes that the tracer recorded.

    Args:
        module: The module.

    Raises:
        NoDigest: The graph has a node or a constant that this code does not know.
    """
    return _Writer(module).digest()


class _Writer:
    """Writes a graph as lines of Python literals.

    Constants and weights are identified by their content, because the tracer does not guarantee their order. Other
    values are identified by the order of their definition.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._hash = hashlib.sha256()
        self._module = module
        self._names: dict[int, Any] = {}  # names of values, by torch's number
        self._modules: dict[int, nn.Module] = {}  # values that are modules, by torch's number
        self._tensors: dict[Any, str] = {}  # digests; a weight that is used often is read once
        self._defined = 0

    def digest(self) -> str:
        graph: Any = self._module.inlined_graph
        self._modules[next(graph.inputs()).unique()] = self._module
        self._block(graph)
        return self._hash.hexdigest()

    def _write(self, *parts: Any) -> None:
        self._hash.update(repr(parts).encode() + b"\n")

    def _define(self, values: Any) -> list[str]:
        """Numbers the values and returns their types."""
        types = []
        for value in values:
            if value.unique() not in self._modules:
                self._names[value.unique()] = self._defined
                self._defined += 1
                types.append(_type(value))
        return types

    def _use(self, values: Any, where: str) -> list[Any]:
        try:
            return [self._names[value.unique()] for value in values]
        except KeyError:
            raise NoDigest(f"{where} of a module") from None

    def _block(self, block: Any) -> None:
        self._write("block", self._define(block.inputs()))
        for node in block.nodes():
            if node.kind() == "prim::GetAttr":
                self._get_attribute(node)
            elif node.kind() == "prim::Constant":
                self._names[node.output().unique()] = ("constant", self._attributes(node), _type(node.output()))
            else:
                self._node(node)
        self._write("return", self._use(block.outputs(), "return"))

    def _get_attribute(self, node: Any) -> None:
        owner = self._modules.get(node.input().unique())
        if owner is None:
            raise NoDigest("an attribute of an object that is not a module")
        value = getattr(owner, node.s("name"))
        if isinstance(value, nn.Module):
            self._modules[node.output().unique()] = value
        else:
            self._names[node.output().unique()] = ("attribute", self._literal(value))

    def _node(self, node: Any) -> None:
        kind = node.kind()
        if kind in ("prim::PythonOp", "prim::CallFunction", "prim::CallMethod"):
            raise NoDigest(kind)  # the graph does not contain their code
        inputs = self._use(node.inputs(), kind)
        self._write(kind, inputs, self._attributes(node), self._define(node.outputs()))
        for inner in node.blocks():
            self._block(inner)

    def _attributes(self, node: Any) -> list[tuple[str, Any]]:
        attributes = []
        for name in sorted(node.attributeNames()):
            read = getattr(node, node.kindOf(name), None)
            if read is None:
                raise NoDigest(f"{node.kind()} with {name}")
            attributes.append((name, self._literal(read(name))))
        return attributes

    def _literal(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            return value
        if isinstance(value, Tensor):
            return ("tensor", str(value.dtype), tuple(value.shape), value.stride(), self._tensor(value))
        if isinstance(value, (list, tuple)):
            return (type(value).__name__, [self._literal(entry) for entry in value])
        if isinstance(value, dict):
            return ("dict", [(self._literal(key), self._literal(entry)) for key, entry in value.items()])
        if isinstance(value, (torch.device, torch.dtype)):
            return str(value)
        raise NoDigest(f"a constant of type {type(value).__name__}")

    def _tensor(self, tensor: Tensor) -> str:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            raise NoDigest("a tensor that is sparse, quantized or a lazy view")
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place not in self._tensors:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._tensors[place] = hashlib.sha256(flat.numpy().data).hexdigest()
        return self._tensors[place]


def _type(value: Any) -> str:
    """Returns a value's type without torch's suffix for classes of the same name, which differs between processes."""
    return re.sub(r"___torch_mangle_\d+\.", "", str(value.type()))
