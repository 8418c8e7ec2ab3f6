"""Vendors' compilers, and the first run of what they made, in a process of their own, which may crash."""
