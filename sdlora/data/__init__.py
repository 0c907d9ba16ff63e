"""Images and captions, from a folder to batches. Knows no model."""
