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
    """Returns the class names by label: those passed, else the detector's, else the dataset's, else none.

    Args:
        given: the argument ``class_names``; None: look at the detector and the dataset.
        detector: the detector, which may have the attribute ``class_names``.
        truth: the annotated images, whose categories may have names.

    Raises:
        OptionError: The names in ``given`` can't be used. Unusable names from elsewhere are ignored.
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
    """Refuses a list of names that is too short: usually it lacks the background, which shifts all other names.

    Args:
        given: the argument ``class_names``. A mapping gives the label of each name, so it may be incomplete.
        names: the result of :func:`names_for`.
        result: the detector's result on the example.

    Raises:
        OptionError: The result contains a label beyond the end of the list.
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
        remedy='A list starts at label 0: torchvision\'s begins with "__background__". Pass {label: name} to name only '
        "some labels.",
    )
