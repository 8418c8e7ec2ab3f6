"""The conversion's report: data, terminal, page, images."""
