"""Converts a detector to a bundle, and changes or exports saved bundles."""
