"""The compile halves of the backends: one module a backend, named after it, found by :mod:`hybrid_rt.registry`."""
