"""What a run shows while it goes: validation, previews, metadata."""
