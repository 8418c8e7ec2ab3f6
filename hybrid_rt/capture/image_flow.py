"""Follows the inputs of a detector to its convolutions: an input whose pixels reach one is an image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.image_inputs import Place
from ..common.tensor_tree import map_places, tensors_in

_CONVOLUTIONS = {"convolution", "_convolution", "conv2d", "conv3d", "thnn_conv2d", "deform_conv2d"}

_MIXES = {
    *("mm", "addmm", "bmm", "baddbmm", "addbmm", "matmul", "linear", "einsum", "mv", "addmv", "dot", "bilinear"),
    *("conv1d", "scaled_dot_product_attention"),
    *("embedding", "embedding_bag", "gather", "scatter", "scatter_add", "index_put", "one_hot"),
}
"""Operators whose results are not pixels of their inputs."""

_GROWS = {
    *("cat", "stack", "copy_", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"),
    *("slice_scatter", "select_scatter", "grid_sampler", "grid_sampler_2d"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}
"""Operators whose results may be larger than an image among their inputs without spreading a single value."""

_SPREAD = 4
"""Largest growth of a grey image (to four channels); a tensor that grows more is a value spread over an image."""


class _AllFound(BaseException):
    """Ends the search once all inputs are found; a BaseException, so that the detector's handlers don't catch it."""


def convolved_inputs(
    detector: nn.Module, arguments: tuple[Any, ...], places: Iterable[Place]
) -> dict[Place, Sequence[int]]:
    """Runs a detector until all inputs have reached a two- or three-dimensional convolution, or to its end.

    Permuted, padded, resized, normalised and stacked pixels still count as the input's; results of a convolution,
    matrix product or lookup do not. A value that is spread over an image, such as a time step, is not an image.

    Args:
        detector: the detector; an error in its code ends the search.
        arguments: its positional arguments, which are not changed.
        places: places of the tensors to follow.

    Returns:
        The shape of the convolution's input, for each place that reached one.
    """
    wanted = set(places)
    flow = _Flow(wanted)
    own = map_places(arguments, lambda place, tensor: flow.begin(place, tensor.clone()))
    # Plain runs report errors of the detector's own code; TorchScript converts _AllFound to a RuntimeError.
    with contextlib.suppress(_AllFound, Exception), torch.no_grad(), flow:
        detector(*own)
    return flow.found


class _Flow(TorchDispatchMode):
    """Tracks from which inputs the values of each storage come; views share their storage."""

    def __init__(self, wanted: set[Place]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[Place, Sequence[int]] = {}
        self._wanted = wanted
        self._origins: dict[int, frozenset[Place]] = {}
        self._held: list[Tensor] = []  # a storage's address is its own for as long as it lives

    def begin(self, place: Place, tensor: Tensor) -> Tensor:
        """Follows a tensor if its place is among the wanted ones."""
        if place in self._wanted:
            self._note(tensor, frozenset([place]))
        return tensor

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        name = operator._schema.name.partition("::")[2]
        kwargs = dict(kwargs or {})
        if name in _CONVOLUTIONS:
            self._convolution(args[0])
            return operator(*args, **kwargs)
        if name in _MIXES:
            return operator(*args, **kwargs)
        given = [(tensor, origin) for tensor in self._tensors((args, kwargs)) if (origin := self._origin(tensor))]
        result = operator(*args, **kwargs)
        if given:
            for tensor in self._tensors(result):
                passed = [origin for source, origin in given if _passes(name, source, tensor)]
                if passed:
                    self._note(tensor, frozenset().union(*passed))
        return result

    def _convolution(self, taken: Tensor) -> None:
        if taken.dim() not in (4, 5) or min(taken.shape[-2:]) < 2:
            return
        for place in self._origin(taken):
            self.found.setdefault(place, tuple(taken.shape))
        if self._wanted <= self.found.keys():
            raise _AllFound

    @staticmethod
    def _tensors(value: Any) -> list[Tensor]:
        return [tensor for tensor in tensors_in(value) if tensor.layout == torch.strided]

    def _origin(self, tensor: Tensor) -> frozenset[Place]:
        return self._origins.get(tensor.untyped_storage()._cdata, frozenset())

    def _note(self, tensor: Tensor, origin: frozenset[Place]) -> None:
        storage = tensor.untyped_storage()._cdata
        known = self._origins.get(storage)
        if known is None:
            self._held.append(tensor)
        self._origins[storage] = origin | (known or frozenset())


def _passes(name: str, source: Tensor, result: Tensor) -> bool:
    """Returns true if one tensor holds the other's pixels rather than one value spread over all of them."""
    distinct = 1
    for size, stride in zip(source.shape, source.stride(), strict=True):
        distinct *= size if stride else 1
    return distinct * _SPREAD >= (source if name in _GROWS else result).numel()
