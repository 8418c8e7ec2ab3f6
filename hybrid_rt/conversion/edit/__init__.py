"""Changes of a saved bundle, without the detector's code."""
