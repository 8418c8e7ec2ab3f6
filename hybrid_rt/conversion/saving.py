"""Writes the bundle, and measures its latency and its detector's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..bundle import archive
from ..bundle.latency_contract import LatencyContract
from ..bundle.manifest import Detector, Golden, Head, ImageInput, Manifest, Member, SizeConditions
from ..bundle.manifest import Engine as StoredEngine
from ..capture.profile import Profile
from ..capture.program import Program
from ..common.image_inputs import EACH, Place, general_place
from ..common.progress import Steps
from ..common.tensor_tree import places_of
from ..common.version import __version__
from ..verification import golden
from ..verification.latency import measured_contract
from .assemble.builds import EngineBuild
from .assemble.hybrid import Hybrid
from .checks import Checks
from .options import OutputOptions
from .report.measurement import Measurement, measure_hybrid


@dataclass(frozen=True)
class Saved:
    """The outcome of saving a bundle; the defaults stand for a conversion that saved nothing.

    Attributes:
        golden: description of the golden sample for the report.
        file_size: size of the file, in bytes.
        measurement: the latencies; None: see ``not_measured``.
        not_measured: why no latencies were measured.
        signed_with: the keys that have signed the bundle.
        signatures_dropped: the keys that had signed the file that it replaced.
        latency_contract: the latency contract in the bundle; None: it has none.
    """

    golden: str = ""
    file_size: int = 0
    measurement: Measurement | None = None
    not_measured: str = "not requested"
    signed_with: list[str] = field(default_factory=list)
    signatures_dropped: list[str] = field(default_factory=list)
    latency_contract: LatencyContract | None = None


def save_hybrid(
    hybrid: Hybrid,
    profile: Profile,
    checks: Checks,
    output: OutputOptions,
    class_names: Sequence[str],
    inputs: Sequence[tuple[Any, ...]],
    steps: Steps,
) -> Saved:
    """Writes the bundle, then times it on the example if requested.

    Args:
        hybrid: the hybrid.
        profile: the detector.
        checks: the comparison, which passed.
        output: the files to write, and their content.
        class_names: class names by label; empty: the bundle stores none.
        inputs: tuples of arguments that were compared besides the example.
        steps: shows the progress.

    Raises:
        BundleError: The file can't be written.
        BackendError: A latency contract was requested, but the bundle can't run here. It is saved without a contract.
    """
    with steps.step("save"):
        description, record = golden.pack(checks.golden, golden.NOT_REPEATED) if output.golden else golden.pack(None)
        manifest = _manifest(hybrid, profile, checks, Golden.from_json(description), class_names)
        change = archive.save(hybrid.module, output.path, manifest, record, sign=output.sign)
    contract = None
    if output.contract_sizes is not None:
        with steps.step("measure the latency contract"):
            contract = _contract(output, None if record is not None else profile.example, hybrid.device)
            promised = replace(manifest, latency_contract=contract)
            archive.save(hybrid.module, output.path, promised, record, sign=output.sign)
    measurement, reason = None, "not requested"
    if output.measure:
        with steps.step("measure"):
            programs = [build.program for build in hybrid.builds]
            measurement, reason = measure_hybrid(
                profile.truth,
                output.path,
                [profile.example, *inputs],
                profile.images,
                programs,
                profile.observation.seconds,
            )
    return Saved(
        golden.describe(description),
        output.path.stat().st_size,
        measurement,
        reason,
        signed_with=list(change.signed),
        signatures_dropped=list(change.dropped),
        latency_contract=contract,
    )


def _contract(output: OutputOptions, example: tuple[Any, ...] | None, device: str) -> LatencyContract:
    """Measures the saved bundle on ``example``; None: on its golden sample."""
    return measured_contract(output.path, example, sizes=output.contract_sizes or (), device=device, scope="convert")


def _manifest(
    hybrid: Hybrid, profile: Profile, checks: Checks, golden_sample: Golden, class_names: Sequence[str]
) -> Manifest:
    detector = type(profile.truth)
    return Manifest(
        engines=tuple(_stored(build) for build in hybrid.builds),
        versions={"hybrid_rt": __version__, "torch": torch.__version__},
        detector=Detector(f"{detector.__module__}.{detector.__qualname__}"),
        class_names=tuple(class_names) or None,
        images=_images(profile),
        head=Head(tuple(hybrid.operators)),
        verification=checks.verification.to_json() if checks.verification else None,
        golden=golden_sample,
    )


def _images(profile: Profile) -> tuple[ImageInput, ...]:
    """Returns the inputs that are images or masks, for programs that run the bundle at other sizes."""
    found: dict[Place, ImageInput] = {}
    for place, leaf in places_of(profile.example):
        layout, mask = profile.images.layout_at(place), profile.images.mask_at(place)
        if isinstance(leaf, Tensor) and (layout or mask):
            general = general_place(profile.example, place)
            found.setdefault(
                general,
                ImageInput(
                    tuple(None if step is EACH else step for step in general),
                    layout or mask or "",
                    tuple(leaf.shape),
                    str(leaf.dtype).removeprefix("torch."),
                    is_mask=not layout,
                ),
            )
    return tuple(found.values())


def _stored(build: EngineBuild) -> StoredEngine:
    members = [Member(member.name, member.first, member.output.count) for member in build.program.members]
    return replace(build.packed.engine(members), conditions=_conditions(build.program))


def _conditions(program: Program) -> SizeConditions | None:
    """Returns the conditions on sizes; those of a later segment refer to the outputs that are its inputs."""
    of_inputs: list[tuple[str, str]] = []
    of_outputs: list[tuple[str, str]] = []
    for member in program.members:
        for text, words in program.conditions(member):
            if member.sources:
                of_outputs.append((text, _moved(words, member.sources)))
            else:
                of_inputs.append((text, words))
    return SizeConditions(tuple(of_inputs), tuple(of_outputs)) if of_inputs or of_outputs else None


def _moved(words: str, places: Sequence[int]) -> str:
    """Returns a condition in postfix notation with its tensors' indices replaced by ``places``."""
    return re.sub(r"\b(\d+)\.(?=\d+:)", lambda found: f"{places[int(found[1])]}.", words)
