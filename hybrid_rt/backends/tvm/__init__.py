"""Apache TVM."""

from .backend import TVMBackend

__all__ = ["TVMBackend"]
