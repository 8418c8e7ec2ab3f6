"""Shared by all stages: errors, specs, nested tensors, files, images, progress, latency."""
