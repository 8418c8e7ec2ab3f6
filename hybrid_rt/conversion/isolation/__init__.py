"""Runs vendors' compilers, and the first run of their artifacts, in a separate process that may crash."""
