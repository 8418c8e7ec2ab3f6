"""Base of the backends that quantise to int8 by trials."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ..base import Backend
from .options import checked, tightened


class QuantizingBackend(Backend):
    """A backend whose int8 needs a tool of its own, and has the options of :mod:`.options`."""

    @abstractmethod
    def missing_tool(self) -> str:
        """Returns why the tool that quantises can't be used here; empty if it can."""

    def missing(self, precision: str) -> str:
        """Returns why int8 can't be compiled here; the other precisions need no further package."""
        return self.missing_tool() if precision == "int8" else ""

    def tightened(self, precision: str) -> Mapping[str, Any] | None:
        """Returns the options with half of the error that layers in int8 may cause."""
        return tightened(self.given) if precision == "int8" else None

    def checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Checks the options of int8."""
        return checked(self.name, options)
