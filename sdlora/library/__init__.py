"""Folders of adapter files: what lies in them, the one rule that resolves a name, and the adapters in use."""
