"""A whole detector in ONNX Runtime, through torch's exporter and the vendor's Python interface."""

from __future__ import annotations

from pathlib import Path

import torch

from ..whole_graph import Call, WholeDetector, WholeGraph

_FILE = "detector.onnx"


class OnnxRuntimeWholeGraph(WholeGraph):
    """Exports the detector with free height and width."""

    def build(self, whole: WholeDetector, precision: str, directory: Path) -> None:
        """Writes the ONNX model."""
        torch.onnx.export(
            whole.detector,
            (whole.images[0],),
            str(directory / _FILE),
            dynamo=False,  # torch.export takes no detector of torchvision (data-dependent sizes)
            opset_version=18,
            input_names=["image"],
            output_names=list(whole.outputs),
            dynamic_axes={"image": {1: "height", 2: "width"}},
        )

    def open(self, precision: str, directory: Path, threads: int) -> Call:
        """Opens a session on the CPU."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(directory / _FILE, options, providers=["CPUExecutionProvider"])
        return lambda image: [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]
