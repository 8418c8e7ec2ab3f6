"""Replaces operators of torchvision by hybrid_rt's, so that a C++ program needs no torchvision; checks the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch

from ..common.errors import CaptureError
from . import jit

HEAD_OPERATORS = {
    "torchvision::nms": ("dets scores iou_threshold", 1),
    "torchvision::roi_align": ("input rois scale height width sampling_ratio aligned", 1),
    "torchvision::roi_pool": ("input rois scale height width", 2),
    "torchvision::ps_roi_pool": ("input rois scale height width", 2),
    "torchvision::ps_roi_align": ("input rois scale height width sampling_ratio", 2),
    "torchvision::deform_conv2d": (
        "input weight offset mask bias stride_h stride_w pad_h pad_w dilation_h dilation_w groups offset_groups "
        "use_mask",
        1,
    ),
}
"""Names of each operator's inputs, and the number of its results."""

_IN_LIBTORCH = frozenset(
    ("aten", "prim", "prepacked", "quantized", "_quantized", "mkldnn", "mkldnn_prepacked", "onednn", "sparse")
)
"""Namespaces of operators that libtorch registers itself, without Python."""


def ours(name: str) -> str:
    """Returns hybrid_rt's name of an operator of torchvision."""
    return name.replace("torchvision::", "hybrid_rt::")


def rewrite(module: torch.jit.ScriptModule) -> list[str]:
    """Replaces torchvision's operators by hybrid_rt's in a module and all its submodules.

    Args:
        module: The module. It is modified.

    Returns:
        Sorted names of the operators that the module now calls and that libtorch does not register: hybrid_rt's, and
            those of other libraries.
    """
    called: set[str] = set()
    for graph in jit.graphs_of(module):
        kinds = {node.kind() for node in jit.nodes_of(graph)}
        for name in kinds & HEAD_OPERATORS.keys():
            inputs, results = HEAD_OPERATORS[name]
            jit.replace_operator(graph, name, ours(name), inputs.split(), results)
        called |= {ours(kind) if kind in HEAD_OPERATORS else kind for kind in kinds}
    return sorted(kind for kind in called if kind.partition("::")[0] not in _IN_LIBTORCH)


def restore(module: torch.jit.ScriptModule) -> None:
    """Undoes :func:`rewrite`, for compilers that know torchvision's operators but not hybrid_rt's."""
    for graph in jit.graphs_of(module):
        kinds = {node.kind() for node in jit.nodes_of(graph)}
        for name, (inputs, results) in HEAD_OPERATORS.items():
            if ours(name) in kinds:
                jit.replace_operator(graph, ours(name), name, inputs.split(), results)


def rewritten(module: torch.jit.ScriptModule, subject: str) -> torch.jit.ScriptModule:
    """Returns a module that calls hybrid_rt's operators: a copy, or the same module if it calls none of torchvision's.

    Args:
        module: The module of a segment. It is not modified.
        subject: Name of the module in messages.

    Raises:
        CaptureError: The module calls an operator of torchvision that hybrid_rt does not have.
    """
    kinds = {node.kind() for graph in jit.graphs_of(module) for node in jit.nodes_of(graph)}
    if kinds & HEAD_OPERATORS.keys():
        module = jit.from_bytes(jit.to_bytes(module))
        kinds = set(rewrite(module))
    check_foreign([kind for kind in kinds if kind.partition("::")[0] not in _IN_LIBTORCH], subject)
    return module


def check_foreign(operators: Iterable[str], subject: str) -> None:
    """Warns of operators that neither libtorch nor hybrid_rt registers.

    Args:
        operators: Names of operators.
        subject: Name of the caller in messages.

    Raises:
        CaptureError: An operator belongs to torchvision, whose library hybrid_rt's programs do not load.
    """
    foreign = sorted(name for name in operators if not name.startswith("hybrid_rt::"))
    left = [name for name in foreign if name.startswith("torchvision::")]
    if left:
        raise CaptureError.make(
            "capture",
            subject,
            expected=f"no operators of torchvision other than {', '.join(HEAD_OPERATORS)}",
            got=", ".join(left),
            remedy="Put the module that calls it into a segment of another engine.",
            code="operator-not-in-cpp",
        )
    if foreign:
        warnings.warn(
            f"hybrid_rt[capture]: {subject}: expected operators of torch, torchvision or hybrid_rt, got "
            f"{', '.join(foreign)}. They must be registered at run time: a C++ program must load the library that "
            "registers them before it loads the file.",
            RuntimeWarning,
            stacklevel=2,
        )
