"""Checks the names of a detector's classes, and looks up names and colours by label."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from .errors import OptionError


class Weights(Protocol):
    """One of torchvision's weights, e.g. ``FasterRCNN_ResNet50_FPN_Weights.DEFAULT``."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Metadata of the weights; "categories" are the class names."""


GREATEST_LABEL = 65_535
"""Largest label that can have a name, because names are stored as a list with one entry per label."""

_GOLDEN_RATIO = 0.618033988749895
_SHADES = ((0.9, 1.0), (0.95, 0.6), (0.45, 1.0), (0.7, 0.8))

ClassNames = Sequence[str] | Mapping[int, str] | Weights
"""Class names as a user passes them: a list by label, a mapping from labels, or torchvision's weights."""

Colour = tuple[int, int, int]


def checked_names(given: Any, scope: str = "convert") -> list[str]:
    """Returns the names as a list whose index is the label; a label without a name has an empty one.

    Args:
        given: a sequence of names, whose index is the label; a mapping of labels to names; or one of torchvision's
            weights, whose ``meta["categories"]`` are used. Names may repeat.
        scope: scope of the error.

    Raises:
        OptionError: ``given`` has another type or no names, a label is not an integer in 0..65535, or a name is not one
            line of text.
    """
    meta = getattr(given, "meta", None)
    if isinstance(meta, Mapping):
        given = meta.get("categories", given)
    if isinstance(given, Mapping):
        names = _listed(given, scope)
    elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        names = list(given)
        if len(names) > GREATEST_LABEL + 1:
            raise _wrong(f"at most {GREATEST_LABEL + 1} names", str(len(names)), scope)
    else:
        raise _wrong(
            "a sequence of names, a mapping of labels to names, or weights of torchvision with their categories",
            f"'{given}'" if isinstance(given, str) else type(given).__name__,
            scope,
        )
    for label, name in enumerate(names):
        reason = _fault(name)
        if reason:
            raise _wrong("each name to be one line of text", f"{reason} for label {label}", scope)
    if not any(names):
        raise _wrong("at least one name", "none", scope)
    return names


def _listed(given: Mapping[Any, Any], scope: str) -> list[str]:
    for label in given:
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label <= GREATEST_LABEL:
            raise _wrong(f"labels that are integers in 0..{GREATEST_LABEL}", repr(label), scope)
    return [given.get(label, "") for label in range(max(given, default=-1) + 1)]


def _fault(name: Any) -> str:
    if not isinstance(name, str):
        return f"{type(name).__name__} {name!r}"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return ascii(name)
    return ""


def _wrong(expected: str, got: str, scope: str) -> OptionError:
    return OptionError.make(
        scope,
        "class_names",
        expected=expected,
        got=got,
        remedy='A list starts at label 0: torchvision\'s begins with "__background__".',
    )


def names_of_categories(
    categories: Iterable[Mapping[str, Any]], labels: Mapping[int, int] | None = None
) -> dict[int, str]:
    """Returns the name of each label that has one in a COCO file.

    Args:
        categories: the file's "categories", each with "id" and perhaps "name".
        labels: {label of the detector: category id}; None: labels are the category ids.
    """
    by_id = {category["id"]: category.get("name") for category in categories}
    ids = {id: id for id in by_id} if labels is None else labels
    names = {label: by_id.get(id) for label, id in ids.items() if isinstance(label, int)}
    return {label: name for label, name in names.items() if name and 0 <= label <= GREATEST_LABEL and not _fault(name)}


def name_of(label: int, names: Sequence[str]) -> str:
    """Returns the name of a label; empty if it has none."""
    return names[label] if 0 <= label < len(names) else ""


def text_of(label: int, names: Sequence[str]) -> str:
    """Returns the name of a label, or its number if it has no name."""
    return name_of(label, names) or str(label)


def summary_of(names: Sequence[str], most: int = 12) -> str:
    """Returns the number of labels with a name, and the first names: ``3 (cat, dog, bird)``; empty if none has one."""
    known = [name for name in names if name]
    shown = ", ".join([*known[:most], *(["..."] if len(known) > most else [])])
    return f"{len(known)} ({shown})" if known else ""


def class_colour(label: int) -> Colour:
    """Returns red, green and blue of a class, each in 0..255; cpp/apps/image/class_colours.cpp gives the reasons."""
    turns = _GOLDEN_RATIO * label
    sextant = (turns - math.floor(turns)) * 6
    saturation, value = _SHADES[label % 4]

    def channel(shift: int) -> int:
        distance = math.fmod(sextant + shift, 6)
        level = value * (1 - saturation * min(max(min(distance, 4 - distance), 0.0), 1.0))
        return math.floor(255 * level + 0.5)

    return channel(5), channel(3), channel(1)


def text_colour(background: Colour) -> Colour:
    """Returns black or white, whichever has more contrast with ``background`` (at least 4.5 to 1)."""
    light = luminance(background) + 0.05
    return (0, 0, 0) if light * light >= 0.05 * 1.05 else (255, 255, 255)


def luminance(colour: Colour) -> float:
    """Returns the relative luminance in 0..1, see https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
