"""Reports a conversion: its data, as text for a terminal and as an HTML page with images."""
