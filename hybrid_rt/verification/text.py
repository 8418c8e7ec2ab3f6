"""Formats a verification as text, in the same way for the report, the saved file and the golden sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .boxes import BoxMatch
from .verify import TensorError, Verification

if TYPE_CHECKING:
    from .golden import GoldenVerification


def summary(verification: Verification | None) -> list[str]:
    """Summarizes the comparisons and their errors: all images together, and one line per engine.

    Args:
        verification: the verification of a conversion, new or read from a file; None: nothing was compared.
    """
    if verification is None:
        return ["not verified"]
    lines = []
    text = f"{'verified' if verification.passed else 'VERIFICATION FAILED'} in {verification.precision}"
    if verification.pictures:
        lines.append(f"{text}: {_counts(verification.pictures)}{_drift(verification.pictures)}")
    elif verification.tensors:
        lines.append(text)
    lines += _worst_tensors(verification.tensors)
    if verification.dataset is not None:
        lines.append(str(verification.dataset))
    return [*lines, *(f"  not compared: {reason}" for reason in verification.not_run)]


def verdict(name: str, check: GoldenVerification) -> list[str]:
    """Returns lines that state whether a bundle matches its detector on the golden sample, with details per image.

    hybrid-rt-detect --verify prints the same (cpp/apps/detect/verdict.cpp).

    Args:
        name: name of the bundle.
        check: the comparison.
    """
    lines = [f"{name}: " + ("matches its detector" if check.passed else "DIFFERS from its detector")]
    lines += [f"  {engine['engine']}: {engine['description']}" for engine in check.engines]
    lines += map(_image, check.verification.pictures)
    tensors = check.verification.tensors
    if tensors:
        count = f"{len(tensors)} output{'' if len(tensors) == 1 else 's'}"
        lines.append(f"  {count}, worst relative error {_worst(tensors).relative_error:.2g}")
    lines += [f"  FAILED: {text}" for text in check.verification.failures]
    if not check.compared:
        lines.append("  (not compared when it was converted: verify=False)")
    return lines


def _counts(matches: Sequence[BoxMatch]) -> str:
    matched, expected = (sum(counts) for counts in zip(*((m.matched, m.expected) for m in matches), strict=True))
    return f"{matched} of {expected} boxes matched"


def _drift(matches: Sequence[BoxMatch]) -> str:
    """Returns the drift as text; empty for a file whose writer did not measure it yet."""
    drift = max(match.max_box_drift for match in matches)
    if math.isnan(drift):
        return ""
    score = max(match.max_score_difference for match in matches)
    return f", box drift {drift:.2f} pixels, score drift {score:.2g}"


def _image(match: BoxMatch) -> str:
    text = f"  {match.where}: {_counts([match])} among {match.found}, worst IoU {match.min_iou:.4f}{_drift([match])}"
    if match.min_mask_iou is not None:
        text += f", mask IoU {match.min_mask_iou:.4f}"
    if match.max_keypoint_distance is not None:
        text += f", keypoint drift {match.max_keypoint_distance:.2f} pixels"
    return text


def _worst(errors: Sequence[TensorError]) -> TensorError:
    return max(errors, key=lambda error: error.relative_error)


def _worst_tensors(errors: Sequence[TensorError]) -> Iterator[str]:
    for engine in dict.fromkeys(error.engine for error in errors):
        worst = _worst([error for error in errors if error.engine == engine])
        where = f"{worst.output} on {worst.backend}" if worst.backend else worst.output
        yield f"  {engine}: greatest relative error {worst.relative_error:.2g} in {where}"
