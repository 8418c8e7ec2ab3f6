"""The report of a conversion, which can be shown as text or saved as JSON or HTML."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...common.atomic_files import atomic_write
from ...common.errors import OptionError
from .data import ReportData
from .html import report_html
from .terminal import report_text

SUFFIXES = (".html", ".json")


class ConversionReport(ReportData):
    """Report of a conversion. Its attributes are the fields that docs/report.md describes."""

    def __str__(self) -> str:
        """Returns tables for a terminal."""
        return report_text(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report to a file.

        Args:
            path: path that ends in ``.html``, for a page that needs no other file, or in ``.json``.

        Raises:
            OptionError: the path has another suffix.
            BundleError: the file can't be written.
        """
        target = report_path(path)
        text = report_html(self) if target.suffix == ".html" else json.dumps(self.to_json(), indent=1, allow_nan=False)
        with atomic_write(target) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # paths may be any bytes


def report_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path after checking that its suffix is that of a known format.

    Raises:
        OptionError: The suffix is unknown.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise OptionError.make("report", str(target), expected=f"a name that ends in {' or '.join(SUFFIXES)}",
                               got=f"'{target.suffix}'")  # fmt: skip
    return target
