"""AOTInductor, torch's ahead-of-time compiler."""

from .backend import AOTInductorBackend

__all__ = ["AOTInductorBackend"]
