"""From a detector to programs: observe, choose segments, record, export."""
