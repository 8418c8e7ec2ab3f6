"""The native part, cpp/python/."""

from typing import Any

import torch
from torch import Tensor

torch_version: str

class LoadOptions:
    def __init__(
        self,
        *,
        device: str,
        backend: str,
        threads: int = 0,
        emulate_precision: bool = False,
        strict: bool = False,
        warm_up: list[tuple[int, int]] = ...,
        trust: str = "digests",
        concurrency: int = 1,
        trusted_keys: list[bytes] = ...,
    ) -> None: ...

class OpenedEngine:
    def run(self, inputs: list[Tensor]) -> list[Tensor]: ...
    def description(self) -> str: ...
    def variants(self) -> list[dict[str, Any]]: ...

class Thresholds:
    """As hybrid_rt.Thresholds; fp32's when it is made."""

    iou: float
    score: float
    recall: float
    relative_error: float
    mask_iou: float
    keypoint_distance: float
    keypoint_recall: float

class BoxMatch:
    """As hybrid_rt.verification.boxes.BoxMatch."""

    expected: int
    found: int
    matched: int
    min_iou: float
    max_score_difference: float
    expected_at_cut: int
    found_at_cut: int
    max_box_drift: float
    masks: int
    masks_differ: int
    min_mask_iou: float | None
    keypoints: int
    keypoints_differ: int
    max_keypoint_distance: float | None
    max_keypoint_score_difference: float | None
    where: str
    lost: str

    def recall_of_expected(self) -> float: ...
    def recall_of_found(self) -> float: ...
    def recall(self) -> float: ...
    def masks_recall(self) -> float: ...
    def keypoint_recall(self) -> float: ...

class OutputError:
    output: str
    relative_error: float
    cosine: float

    def __init__(self, output: str, relative_error: float, cosine: float) -> None: ...

class Failure:
    text: str
    severity: float | None

class Comparison:
    pictures: list[BoxMatch]
    outputs: list[OutputError]
    failures: list[Failure]

def compare_results(expected: Any, found: Any, thresholds: Thresholds, where: str) -> Comparison: ...
def are_detections(value: Any) -> bool: ...
def match_boxes(expected: dict[str, Any], found: dict[str, Any], thresholds: Thresholds) -> BoxMatch: ...
def matching_boxes(
    expected: dict[str, Any], found: dict[str, Any], thresholds: Thresholds
) -> list[tuple[int, int]]: ...
def box_iou(first: Tensor, second: Tensor) -> Tensor: ...
def differences(match: BoxMatch, thresholds: Thresholds) -> list[str]: ...
def output_error(name: str, expected: Tensor, found: Tensor) -> OutputError: ...
def error_text(error: OutputError, thresholds: Thresholds) -> str: ...
def sign(path: bytes, private_key: bytes) -> tuple[str, str]: ...
def verify_signature(path: bytes, trusted_keys: list[bytes]) -> list[bytes]: ...
def check_head(path: bytes) -> None: ...
def load(path: str | bytes, options: LoadOptions) -> Any: ...
def open_engine(path: str | bytes, name: str, options: LoadOptions) -> OpenedEngine: ...
def read_manifest(path: str | bytes) -> str: ...
def read_record(path: str | bytes, record: str) -> bytes: ...
def verify_records(path: str | bytes) -> None: ...
def check(
    path: str | bytes, options: LoadOptions, cpu: set[str] | None, memory: int | None, capability: str | None
) -> list[dict[str, Any]]: ...
def engines(module: Any) -> list[dict[str, Any]]: ...
def move_to(module: Any, device: torch.device) -> None: ...
def cpu_flags() -> set[str]: ...
def cuda_devices() -> tuple[list[dict[str, Any]], str]: ...
def backends() -> list[dict[str, Any]]: ...
def add_plugin_folder(folder: str) -> None: ...
