"""From a detector to a bundle, and from a bundle to another."""
