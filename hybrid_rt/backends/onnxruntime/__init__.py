"""ONNX Runtime."""

from .backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
