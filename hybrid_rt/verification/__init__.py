"""Verifies that the hybrid matches the detector: tensors, boxes, mAP, the golden sample."""
