"""Reads the engines of a saved bundle, and recovers their segments as programs.

The programs are taken from the TorchScript variant, without the detector's Python code.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import _native
from ...backends import registry
from ...bundle.blob_table import unpack
from ...bundle.manifest import Engine as StoredEngine
from ...bundle.manifest import Manifest, Variant
from ...bundle.manifest import Member as StoredMember
from ...capture.derived_shapes import second_shapes, small_shapes, tile_to_shape
from ...capture.program import FlatCall, Member, Program
from ...capture.segment_contract import Contract, examples_for
from ...common.errors import BundleError, OptionError
from ...common.specs import REFERENCE_PRECISION, TensorSpec
from ...common.structure import TENSOR, Structure
from ...torchscript import head_operators, jit
from ...torchscript.engine import Engine
from ...torchscript.graph_interpreter import ScriptGraph


def captured() -> tuple[str, str]:
    """Returns backend and precision of the variant that holds the segment as it was captured."""
    return registry.fallback().name, REFERENCE_PRECISION


def opened_head(path: Path, scope: str) -> torch.jit.ScriptModule:
    """Reads a bundle's module without preparing its engines.

    Raises:
        BundleError: torch can't read it, it was altered, or it lacks the signature that the environment requires.
    """
    _native.check_head(os.fsencode(path))
    try:
        return jit.open_archive(path)
    except RuntimeError as error:
        raise BundleError.make(
            scope,
            str(path),
            expected=f"a TorchScript module that this torch ({torch.__version__}) reads",
            got=str(error),
            remedy="Load it with the torch that saved it, or a newer one (COMPATIBILITY.md).",
        ) from error


@dataclass(frozen=True)
class SavedEngine:
    """An engine of a bundle, with its description in the manifest."""

    stored: StoredEngine
    engine: Engine

    @property
    def name(self) -> str:
        """Returns the name for messages, e.g. "backbone+rpn.head"."""
        return self.stored.name

    @property
    def members(self) -> tuple[StoredMember, ...]:
        """Returns its segments."""
        return self.stored.members

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Returns the available variants, best first."""
        return self.stored.variants

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Returns the inputs of the first segment."""
        return self.variants[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Returns the outputs of all segments."""
        return self.variants[0].outputs

    def scripts(self, scope: str) -> list[tuple[torch.jit.ScriptModule, tuple[int, ...]]]:
        """Returns the segments as TorchScript, each with the indices of the earlier outputs that are its inputs.

        Raises:
            OptionError: The file has no TorchScript variant in fp32. One in bf16 differs from the captured segment.
            BundleError: The variant has another number of segments.
        """
        kinds = [(variant.backend, variant.precision) for variant in self.variants]
        found = next((variant for variant, kind in zip(self.variants, kinds, strict=True) if kind == captured()), None)
        if found is None:
            raise OptionError.make(
                scope,
                f"engine '{self.name}'",
                expected="a TorchScript variant in fp32 in the file, to take its segments from",
                got=f"only {', '.join(map(':'.join, kinds))}",
                remedy="Convert the detector with fallback=True.",
                code="no-torchscript-variant",
            )
        blob = unpack(found.blobs[0], self.engine.blobs())
        content = blob.numpy().tobytes()
        _native.check_script(content, f"engine '{self.name}', the TorchScript variant")
        opened = jit.open_archive(io.BytesIO(content))
        head_operators.restore(opened)
        stored = jit.members_of(opened)
        if len(stored) != len(self.members):
            raise BundleError.make(
                scope,
                f"engine '{self.name}'",
                expected=f"a TorchScript variant of {len(self.members)} segments",
                got=f"{len(stored)}",
                remedy="Convert the detector again.",
            )
        return stored

    def program(self, scope: str) -> Program:
        """Returns the segments as a program, with calls on noise, at two sizes if its sizes may vary.

        Raises:
            OptionError, BundleError: see :meth:`scripts`.
        """
        members = []
        for entry, (script, sources) in zip(self.members, self.scripts(scope), strict=True):
            names = [spec.name for spec in self.inputs] if not sources else [f"input_{i}" for i in range(len(sources))]
            members.append(stored_member(entry, script, sources, names))
        ranges = [list(zip(spec.min, spec.max, strict=True)) for spec in self.inputs]
        small = small_shapes([spec.opt for spec in self.inputs], ranges)
        contract = Contract(self.name, self.inputs, self.outputs)
        first = tuple(map(tile_to_shape, examples_for(contract), small))
        shapes = second_shapes(small, ranges)
        program = Program(self.name, tuple(members), self.inputs, self.outputs, ())
        sizes = [first] + ([tuple(map(tile_to_shape, first, shapes))] if shapes else [])
        calls = [FlatCall(inputs, program.run(inputs)) for inputs in sizes]
        calls.sort(key=lambda call: sum(tensor.numel() for tensor in call.inputs))
        return Program(self.name, tuple(members), self.inputs, self.outputs, tuple(calls))


def stored_member(
    stored: StoredMember, script: torch.jit.ScriptModule, sources: tuple[int, ...], inputs: list[str]
) -> Member:
    """Converts a segment of the manifest to a member of a program; ``inputs``: names of its inputs."""
    output = Structure("tuple", (TENSOR,) * stored.count)
    module = ScriptGraph(script)
    return Member(stored.name, module, dict.fromkeys(inputs, TENSOR), output, sources, stored.first)


def saved_engines(head: torch.jit.ScriptModule, manifest: Manifest) -> list[SavedEngine]:
    """Returns the engines of a bundle in the order in which the head runs them.

    Raises:
        BundleError: The manifest does not describe one of them.
    """
    found = []
    for name, engine in jit.engines_of(head).items():
        stored = next((each for each in manifest.engines if each.segments == tuple(engine.segments())), None)
        if stored is None:
            raise BundleError.make(
                "bundle",
                f"engine '{name}'",
                expected="the manifest to describe it",
                got=", ".join(each.name for each in manifest.engines) or "no engine",
                remedy="Convert the detector again.",
            )
        found.append(SavedEngine(stored, engine))
    return found
