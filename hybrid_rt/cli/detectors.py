"""Creates the modules that the command line names as PACKAGE.MODULE:CALLABLE."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from ..common.errors import OptionError


def built(text: str, what: str) -> nn.Module:
    """Returns the callable's result in eval mode.

    Args:
        text: PACKAGE.MODULE:CALLABLE; the current directory is on the import path.
        what: the argument's name, for errors.

    Raises:
        OptionError: It can't be imported, or does not return an nn.Module.
    """
    module, separator, name = text.partition(":")
    if not separator:
        raise OptionError.make("cli", what, expected="PACKAGE.MODULE:CALLABLE", got=f"'{text}'")
    sys.path.insert(0, os.getcwd())
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: an empty or relative name
        raise OptionError.make(
            "cli",
            what,
            expected="an importable PACKAGE.MODULE:CALLABLE",
            got=f"'{text}' ({error})",
            remedy="The current directory is on the import path.",
        ) from error
    made = build()
    if not isinstance(made, nn.Module):
        raise OptionError.make("cli", what, expected=f"{text}() to return an nn.Module", got=type(made).__name__)
    return made.eval()


def detector_named(text: str) -> nn.Module:
    """Returns the detector that a command line names, in eval mode.

    Args:
        text: PACKAGE.MODULE:CALLABLE, see :func:`built`, or torchvision:NAME, with its pretrained weights.

    Raises:
        OptionError: There is no such detector, or its weights can't be loaded.
    """
    module, separator, name = text.partition(":")
    if not separator:
        raise OptionError.make(
            "cli", "detector", expected="PACKAGE.MODULE:CALLABLE or torchvision:NAME", got=f"'{text}'"
        )
    if module == "torchvision":
        import torchvision

        if name not in torchvision.models.list_models(module=torchvision.models.detection):
            known = ", ".join(torchvision.models.list_models(module=torchvision.models.detection))
            raise OptionError.make("cli", "detector", expected=f"one of {known}", got=f"'{name}'")
        try:
            detector: nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
        except OSError as error:  # no network, or a damaged download
            raise OptionError.make(
                "cli",
                f"detector {name}",
                expected="to load torchvision's pretrained weights",
                got=str(error),
                remedy="Download them on a machine with a network, or name your own PACKAGE.MODULE:CALLABLE.",
            ) from error
        return detector.eval()
    return built(text, "detector")


def class_names_for(detector: str, file: Path | None) -> list[str] | dict[int, str] | None:
    """Returns the class names that a command line gives, for ``convert(class_names=)``.

    Args:
        detector: the text passed to :func:`detector_named` before; torchvision's weights name their classes.
        file: one name per line, the first for label 0; or JSON: a list of names, or an object of labels and names.

    Raises:
        OptionError: The file can't be read, or is JSON of another form.
    """
    if file is not None:
        return _names_in(file)
    module, _, name = detector.partition(":")
    if module != "torchvision":
        return None
    import torchvision

    categories: list[str] = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    return categories


def _names_in(file: Path) -> list[str] | dict[int, str]:
    subject = f"--class-names {file}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError.make(
            "cli",
            subject,
            expected="a text file in UTF-8 with one class name per line, or JSON",
            got=getattr(error, "strerror", None) or str(error),
            remedy="Check the path.",
        ) from error
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.strip("\r\n").split("\n")]
    try:
        content: Any = json.loads(text)
        if isinstance(content, dict):
            return {int(label): name for label, name in content.items()}
    except ValueError as error:
        raise OptionError.make(
            "cli", subject, expected='JSON, ["name", ...] or {"label": "name", ...}', got=str(error)
        ) from error
    names: list[str] = content
    return names
