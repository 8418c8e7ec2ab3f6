"""OpenVINO."""

from .backend import OpenVINOBackend

__all__ = ["OpenVINOBackend"]
