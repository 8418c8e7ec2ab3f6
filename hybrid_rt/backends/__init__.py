"""The compile half of each backend, and the interface that a plug-in implements.

A module or sub-package per backend, found by :mod:`hybrid_rt.backends.registry`.
"""

from ..capture.program import Program
from ..common.specs import Artifact, ArtifactSpec, blob_from_bytes
from .base import Availability, Backend, CompileContext, RuntimeFiles, VendorPackages
from .whole_graph import WholeGraph

__all__ = [
    "Artifact",
    "ArtifactSpec",
    "Availability",
    "Backend",
    "CompileContext",
    "Program",
    "RuntimeFiles",
    "VendorPackages",
    "WholeGraph",
    "blob_from_bytes",
]
