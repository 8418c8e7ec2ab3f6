"""Writes the demo detector's bundle for the C++ tests: python -m tools.dev.make_test_bundle OUTPUT."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

import hybrid_rt
from hybrid_rt.common.images import read_image
from models import digits_detector

image = sorted((ROOT / "models" / "held_out").glob("*.png"))[0]
# tools/gpu_check also runs the tests on machines without OpenVINO.
engine = "auto" if any(info.name == "openvino" and info.available for info in hybrid_rt.backends()) else "torchscript"
hybrid_rt.convert(digits_detector.load(), ([read_image(image)],), sys.argv[1], segments="backbone", engine=engine)
