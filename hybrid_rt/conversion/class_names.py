"""Determines the class names of a conversion and checks them against the detector's labels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from ..common.class_names import checked_names, name_of, names_of_categories
from ..common.errors import OptionError
from ..verification.boxes import detections_of
from ..verification.coco import Truth


def names_for(given: Any, detector: nn.Module, truth: Truth | None) -> list[str]:
    """Returns the class names by label, or none: what was given, else the detector's own, else the dataset's.

    Args:
        given: the argument ``class_names``; None: take them from elsewhere if there are some.
        detector: one with the attribute ``class_names`` names its classes by itself.
        truth: the annotated images, whose categories may have names.

    Raises:
        OptionError: names were given that can't be used; others are left out then.
    """
    if given is not None:
        return checked_names(given)
    with suppress(OptionError):  # the attribute may be something else's
        return checked_names(getattr(detector, "class_names", None))
    if truth is not None:
        with suppress(OptionError):
            return checked_names(names_of_categories(truth.content["categories"], truth.labels))
    return []


def check_labels(given: Any, names: list[str], result: Any) -> None:
    """Refuses a list of names that is too short: most often it lacks the background, so that all others are wrong too.

    Args:
        given: the argument ``class_names``. A mapping says the label of each name, so it may leave some out.
        names: what :func:`names_for` made of it.
        result: what the detector found on the example.

    Raises:
        OptionError: a label that was found is beyond the end of the list.
    """
    if given is None or isinstance(given, Mapping):
        return
    labels = {label for found in detections_of(result) or () for label in found["labels"].tolist()}
    if not labels or max(labels) < len(names):
        return
    raise OptionError.make(
        "convert",
        "class_names",
        expected=f"a name for each label that the detector finds on the example, up to {max(labels)}",
        got=f"{len(names)} names, for the labels 0 to {len(names) - 1} ('{name_of(len(names) - 1, names)}')",
        remedy='A list starts at label 0: torchvision\'s begins with "__background__". {label: name} names some only.',
    )
