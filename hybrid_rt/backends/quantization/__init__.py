"""Chooses by trials which layers the engines of CPUs compute in int8, and records the choice."""
