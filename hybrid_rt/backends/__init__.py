"""The compile half of each backend, and the interface that a plug-in implements.

Each backend is a module or sub-package, which :mod:`hybrid_rt.backends.registry` finds.
"""

from ..capture.program import Program
from ..common.specs import Artifact, ArtifactSpec, blob_from_bytes
from .base import Availability, Backend, CompileContext, RuntimeFiles, VendorPackages
from .whole_graph import WholeDetector, WholeGraph

__all__ = [
    "Artifact",
    "ArtifactSpec",
    "Availability",
    "Backend",
    "CompileContext",
    "Program",
    "RuntimeFiles",
    "VendorPackages",
    "WholeDetector",
    "WholeGraph",
    "blob_from_bytes",
]
