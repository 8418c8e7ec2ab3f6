"""Detectors x engines x ways to run them, each in a process of its own: ``hybrid-rt compare-engines``."""
