"""Folders of adapter files and the one rule that resolves a name."""
