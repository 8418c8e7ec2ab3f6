"""Compiled artifacts on disk, found by their content."""
