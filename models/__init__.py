"""Detectors for the demo, the benchmarks and the tests.

``digits_data`` generates images with known boxes, ``digits_detector`` is a small Faster R-CNN trained on them, and
``torchvision_detectors`` builds torchvision's large detectors with random weights that behave well numerically. None of
it is part of the ``hybrid_rt`` package.
"""
