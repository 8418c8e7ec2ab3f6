"""Chooses segments, the submodules of a detector that become engines."""

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
"""Smallest fraction of the detector's counted work for which an engine is worth its cost."""

_TOO_SMALL = f"takes less than {LEAST_SHARE:.0%} of the work"

ENGINE_SPEEDUP: Mapping[str, float] = {name: precision.speedup for name, precision in PRECISIONS.items()}
"""Speed-up of an engine over eager mode by precision, used only for the prediction."""


@dataclass(frozen=True)
class Share:
    """A submodule's share of the detector's work, and the decision whether it becomes a segment.

    Attributes:
        name: the dotted path.
        milliseconds: duration of all its calls in one run on the example; not used for the decision.
        share: fraction of the detector's counted work, 0..1; the decision is based on it.
        chosen: true if it becomes a segment.
        reason: why it was not chosen; empty if it was.
        measured: fraction of the detector's time, 0..1; not used for the decision.
        operations: counted operations, see :class:`hybrid_rt.capture.counted_work.Work`.
        bytes: bytes read and written, see :class:`hybrid_rt.capture.counted_work.Work`.
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
    """Checks the dotted names that the user passed, and returns them as a list.

    Raises:
        OptionError: There is no name, a name does not exist (the text lists similar ones), or one is inside another.
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
                remedy=f"Similar names: {', '.join(near)}." if near else "See detector.named_modules().",
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
    """Returns the submodules that become segments unless further checks find a reason against them."""
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
        findings: operations of submodules that an engine can't repeat, see
            :class:`hybrid_rt.capture.side_effects.SideEffects`.
        names: the user's choice. None: the outermost submodules that have weights, take and return tensors, contain
            only operations that an engine can repeat, and do at least :data:`LEAST_SHARE` of the counted work.
        fuse: also choose small submodules whose inputs all come from chosen ones, because they add no cost to a shared
            engine.

    Raises:
        OptionError: No submodule is worth compiling; the text lists those that were considered.
        CaptureError: A submodule that the user named is not called, or contains something that an engine can't repeat.
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
    """Returns the shortest name of each submodule, by its first name."""
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

    It is based on the counted shares, so it is reproducible. Amdahl's law: 1 / ((1 - p) + p / s). https://doi.org/10.1145/1465482.1465560
    """
    part = min(1.0, sum(share.share for share in shares if share.chosen))
    return 1 / max(1e-9, (1 - part) + part / speedup)


def fuse_groups(observation: Observation, names: Sequence[str], *, fuse: bool) -> list[list[str]]:
    """Groups segments that feed each other directly: all inputs of a segment are results of others in its group.

    Args:
        observation: the detector's run, which recorded the source of each tensor.
        names: the segments.
        fuse: False: put each segment into a group of its own.

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
