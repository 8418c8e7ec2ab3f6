"""Compares detectors, engines and runtimes, each case in its own process: ``hybrid-rt compare-engines``."""
