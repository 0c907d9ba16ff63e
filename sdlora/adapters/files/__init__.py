"""Adapter files: read, write, names, metadata."""
