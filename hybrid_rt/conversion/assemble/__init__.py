"""Replaces the segments with engines, and converts the head to TorchScript."""
