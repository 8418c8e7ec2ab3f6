"""Caches compiled artifacts on disk, by the content that they depend on."""
