"""Segments: the submodules of a detector that become engines."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields

from torch import nn

from ..common.errors import CaptureError, OptionError
from ..common.specs import PRECISIONS
from .observe import Observation, Use

LEAST_SHARE = 0.01
"""Of the detector's counted work: a smaller segment can't pay for the engine that it needs."""

_TOO_SMALL = f"takes less than {LEAST_SHARE:.0%} of the work"

ENGINE_SPEEDUP: Mapping[str, float] = {name: precision.speedup for name, precision in PRECISIONS.items()}
"""How many times faster than eager mode an engine runs, by precision: for the prediction only."""


@dataclass(frozen=True)
class Share:
    """A submodule that was looked at: its part of what the detector computes, and whether it becomes a segment.

    Attributes:
        name: the dotted path.
        milliseconds: that all its calls took in one run on the example. Measured, so it decides nothing.
        share: of the detector's counted work, 0..1: what the choice goes by.
        chosen: whether it becomes a segment.
        reason: why not; empty if chosen.
        measured: the part of the detector's time, 0..1. It decides nothing either.
        operations: that were counted, see :class:`hybrid_rt.capture.counted_work.Work`.
        bytes: that were read and written, likewise.
    """

    name: str
    milliseconds: float
    share: float
    chosen: bool
    reason: str = ""
    measured: float = 0.0
    operations: int = 0
    bytes: int = 0


def resolve_names(detector: nn.Module, segments: str | Sequence[str]) -> list[str]:
    """Returns the dotted names that the user gave, checked.

    Raises:
        OptionError: no name, a name that does not exist (with the near ones), one inside another.
    """
    known = [name for name, _ in detector.named_modules(remove_duplicate=False) if name]
    names = [segments] if isinstance(segments, str) else list(segments)
    if not names:
        raise OptionError.make(
            "convert", "segments", expected="'auto' or at least one name", got="an empty list", code="segment-misnamed"
        )
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise OptionError.make(
                "convert",
                "segments",
                expected=f"a submodule of {type(detector).__name__}",
                got=f"'{name}'",
                remedy=f"Near it: {', '.join(near)}." if near else "See detector.named_modules().",
                code="segment-misnamed",
            )
    for outer in names:
        for inner in names:
            if inner.startswith(f"{outer}.") or (inner == outer and names.count(inner) > 1):
                raise OptionError.make(
                    "convert",
                    "segments",
                    expected="each submodule once",
                    got=f"'{inner}' twice" if inner == outer else f"'{inner}' inside '{outer}'",
                    remedy="Leave one of them out.",
                    code="segment-misnamed",
                )
    return names


def candidate_segments(observation: Observation) -> list[str]:
    """Returns the submodules that become segments if a closer look finds nothing against it."""
    shares = _outermost(observation.detector, "", observation, {}, _shortest_names(observation.detector))
    return [share.name for share in shares if share.chosen or share.reason == _TOO_SMALL]


def shares_of(
    observation: Observation,
    findings: Mapping[str, str],
    names: Sequence[str] | None,
    *,
    fuse: bool = True,
) -> list[Share]:
    """Returns the share of the work of each submodule that could be a segment, largest first.

    Args:
        observation: the detector's run on its example.
        findings: what submodules do that an engine can't (:class:`hybrid_rt.capture.side_effects.SideEffects`).
        names: the user's choice. None: the outermost submodules are chosen that have weights, take and return
            tensors, do only what an engine can repeat, and do at least :data:`LEAST_SHARE` of the counted work.
        fuse: also choose small submodules that are fed by chosen ones alone: in one engine they cost nothing.

    Raises:
        OptionError: nothing is worth it; the text lists what was looked at.
        CaptureError: a name of the user's that is not called, or does what an engine can't repeat.
    """
    if names is not None:
        shares = []
        for name in names:
            use = _required(name, observation.use(name), findings)
            shares.append(_share(observation, use, name))
    else:
        names_of = _shortest_names(observation.detector)
        shares = list(_outermost(observation.detector, "", observation, findings, names_of))
        shares = _with_small_followers(observation, shares) if fuse else shares
    shares.sort(key=lambda share: (-share.share, share.name))
    if not any(share.chosen for share in shares):
        looked = "".join(f"\n  {share.name}: {share.share:.1%}, {share.reason}" for share in shares)
        raise OptionError.make(
            "convert",
            "segments='auto'",
            expected=f"a submodule that takes at least {LEAST_SHARE:.0%} of the work and that an engine can run",
            got=f"a {type(observation.detector).__name__} with{looked or ' no submodule that runs'}\n",
            remedy="Name the segments: segments=[...].",
            code="no-segment-pays",
        )
    return shares


def _share(observation: Observation, use: Use, name: str, reason: str = "") -> Share:
    return Share(
        name,
        use.seconds * 1e3,
        observation.share(use.name),
        not reason,
        reason,
        observation.measured_share(use.name),
        use.work.operations,
        use.work.bytes,
    )


def _required(name: str, use: Use | None, findings: Mapping[str, str]) -> Use:
    if use is None:
        raise CaptureError.make(
            "capture",
            f"segment '{name}'",
            expected="the detector to call it",
            got="no call on the example inputs",
            remedy="Name a submodule whose forward runs in eval mode.",
            code="segment-not-called",
        )
    if use.refusal:
        raise CaptureError(use.refusal)
    if use.name in findings:
        raise CaptureError.make(
            "capture",
            f"segment '{name}'",
            expected="the same operations in every call, on its inputs alone",
            got=findings[use.name],
            remedy="An engine can't repeat that: leave it to the head by naming smaller submodules in segments=.",
            code="not-repeatable",
        )
    return use


def _shortest_names(detector: nn.Module) -> dict[str, str]:
    """A submodule that has several names is known by the shortest."""
    names: dict[int, str] = {}
    first: dict[int, str] = {}
    for name, module in detector.named_modules(remove_duplicate=False):
        first.setdefault(id(module), name)
        if id(module) not in names or name.count(".") < names[id(module)].count("."):
            names[id(module)] = name
    return {first[key]: name for key, name in names.items()}


def _outermost(
    module: nn.Module,
    path: str,
    observation: Observation,
    findings: Mapping[str, str],
    names: Mapping[str, str],
) -> Iterator[Share]:
    for key, child in module.named_children():
        name = f"{path}.{key}" if path else key
        use = observation.uses.get(name)
        share = observation.share(name)
        if use is None:  # a container, or another name of a module that was seen under its first
            yield from _outermost(child, name, observation, findings, names)
            continue
        reason = ""
        if use.refusal:
            reason = "takes or returns more than tensors"
        elif name in findings:
            reason = findings[name]
        elif next(child.parameters(), None) is None:
            reason = "has no weights"
        elif share < LEAST_SHARE:
            reason = _TOO_SMALL
        elif not use.calls:
            reason = "is not called"
        if reason and share >= LEAST_SHARE:
            inner = list(_outermost(child, name, observation, findings, names))
            yield from inner
            if not any(entry.chosen for entry in inner):
                yield _share(observation, use, names[name], reason)
        else:
            yield _share(observation, use, names[name], reason)


def _with_small_followers(observation: Observation, shares: Sequence[Share]) -> list[Share]:
    chosen = [share.name for share in shares if share.chosen]
    result = []
    for share in shares:
        if share.reason == _TOO_SMALL and chosen:
            groups = fuse_groups(observation, [*chosen, share.name], fuse=True)
            if any(share.name in members[1:] for members in groups):
                share = replace_fields(share, chosen=True, reason="")
        result.append(share)
    return result


def predicted_gain(shares: Sequence[Share], speedup: float) -> float:
    """Returns the predicted speed-up of the detector if the chosen segments become ``speedup`` times faster.

    By the counted shares, so that it is the same each time. Amdahl's law: 1 / ((1 - p) + p / s). https://doi.org/10.1145/1465482.1465560
    """
    part = min(1.0, sum(share.share for share in shares if share.chosen))
    return 1 / max(1e-9, (1 - part) + part / speedup)


def fuse_groups(observation: Observation, names: Sequence[str], *, fuse: bool) -> list[list[str]]:
    """Puts together the segments between which data flows straight: one is fed with nothing but what others return.

    Args:
        observation: the detector's run, which saw which tensors went where.
        names: the segments.
        fuse: False: each segment for itself.

    Returns:
        The groups; a group's first segment is called first, and gets the group's inputs.
    """
    uses = {name: use for name in names if (use := observation.use(name)) is not None}
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda name: uses[name].order):
        feeding = next((members for members in groups if _is_fed_by(uses[name], [uses[m] for m in members])), None)
        if fuse and feeding is not None:
            feeding.append(name)
        else:
            groups.append([name])
    return groups


def _is_fed_by(use: Use, members: Sequence[Use]) -> bool:
    if len(use.calls) != 1 or any(len(member.calls) != 1 for member in members):
        return False  # which call feeds which?
    (call,) = use.calls
    names = {member.name for member in members}
    return call is not None and all(any(name in names for name, _ in sources) for sources in call.sources)
