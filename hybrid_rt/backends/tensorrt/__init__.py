"""TensorRT and TensorRT-RTX."""

from .backend import TensorRTBackend

__all__ = ["TensorRTBackend"]
