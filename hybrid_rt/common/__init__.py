"""What every stage shares: errors, specs, nested tensors, files, images, progress, latency."""
