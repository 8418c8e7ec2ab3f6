"""Vendors' compilers, and the first run of what they made, in a process of their own: a crash there ends nothing here."""
