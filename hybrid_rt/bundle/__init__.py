"""Writes, loads, inspects and signs bundles, the `.pt` files."""
