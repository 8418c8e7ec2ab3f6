"""Exports of a saved bundle: vendor files, a package without Python, a Triton model."""
