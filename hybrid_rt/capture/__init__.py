"""Captures a detector's segments as programs: observes, chooses segments, records, exports."""
