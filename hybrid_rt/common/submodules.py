"""Replaces submodules in a copy of a detector that shares everything else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def with_submodules(detector: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a copy of a detector with some submodules replaced. The copy shares all weights with the original.

    A submodule that has several names is replaced under each, because the detector may call it by any of them.

    Args:
        detector: The detector. It is not modified.
        replacements: New submodules by dotted path.
    """
    root = _shallow(detector)
    for name, replacement in replacements.items():
        replaced = detector.get_submodule(name)
        for alias, module in detector.named_modules(remove_duplicate=False):
            if module is replaced:
                _put(root, alias, replacement)
    return root


def _put(root: nn.Module, name: str, replacement: nn.Module) -> None:
    """Replaces one submodule. The modules on the path to it become copies."""
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


def image_transform(detector: nn.Module) -> tuple[str, nn.Module] | None:
    """Returns torchvision's transform, which resizes images, with its name: the detector's own or that of one inside.

    Returns:
        The name and the module; None if there is none, or if there are several and the detector has none of its own.
    """
    found = {name: module for name, module in detector.named_modules() if _is_transform(name, module)}
    name = "transform" if "transform" in found or len(found) != 1 else next(iter(found))
    return (name, found[name]) if name in found else None


def _is_transform(name: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2] == "transform" and hasattr(module, "min_size")


def modules_with_hooks(detector: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields each module once with its first name, except TorchScript modules, which take no hooks."""
    for name, module in detector.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module
