"""Code that all stages share: errors, specs, nested tensors, files, images, progress, latency."""
