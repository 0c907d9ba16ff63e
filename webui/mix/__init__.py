"""The Mix tab, and the rows of adapters in use."""
