"""int8 for the engines of CPUs: which layers bear it, found by trying, and what is recorded of that."""
