"""Modules with other submodules, sharing all the rest."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def with_submodules(detector: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a detector with other submodules at the named places; the given one stays as it is, weights are shared.

    A submodule that has several names is replaced under each: the detector may call it by any.
    """
    root = _shallow(detector)
    for name, replacement in replacements.items():
        replaced = detector.get_submodule(name)
        for alias, module in detector.named_modules(remove_duplicate=False):
            if module is replaced:
                _put(root, alias, replacement)
    return root


def _put(root: nn.Module, name: str, replacement: nn.Module) -> None:
    """Puts a module at a place in the tree; the modules on the way there become copies."""
    *path, last = name.split(".")
    parent = root
    for part in path:
        child = _shallow(parent.get_submodule(part))
        parent._modules[part] = child
        parent = child
    parent._modules[last] = replacement


def _shallow(module: nn.Module) -> nn.Module:
    duplicate = copy.copy(module)
    duplicate._modules = dict(module._modules)
    return duplicate


def modules_with_hooks(detector: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields each module once with the first of its names, but those that are TorchScript: they take no hooks."""
    for name, module in detector.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module
