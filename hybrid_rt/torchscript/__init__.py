"""All that touches TorchScript: torch.jit itself, graphs, generated modules."""
