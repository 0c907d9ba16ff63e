"""X/Y/Z grids."""
