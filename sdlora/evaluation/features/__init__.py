"""Images and texts as vectors that can be compared."""
