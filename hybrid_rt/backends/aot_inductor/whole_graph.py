"""A whole detector in AOTInductor, through torch's own packages."""

from __future__ import annotations

from pathlib import Path

import torch

from ..whole_graph import Call, WholeDetector, WholeGraph

_FILE = "detector.pt2"


class AOTInductorWholeGraph(WholeGraph):
    """Exports the detector for the first image's size."""

    def build(self, whole: WholeDetector, precision: str, directory: Path) -> None:
        """Writes torch's package."""
        exported = torch.export.export(whole.detector, (whole.images[0],))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(directory / _FILE))

    def open(self, precision: str, directory: Path, threads: int) -> Call:
        """Loads the package; it uses the process's own number of threads."""
        loaded: Call = torch._inductor.aoti_load_package(str(directory / _FILE))
        return loaded
