"""Adapters attached to a loaded model."""
