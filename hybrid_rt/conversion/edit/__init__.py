"""Changes a saved bundle without the detector's code."""
