"""Contains all code that depends on TorchScript: torch.jit itself, graphs, generated modules."""
