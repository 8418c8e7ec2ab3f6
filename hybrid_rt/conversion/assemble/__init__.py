"""Engines into the segments' places, the head into TorchScript."""
