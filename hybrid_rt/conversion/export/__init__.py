"""Exports a saved bundle as vendor files, as a package that needs no Python, or as a Triton model."""
