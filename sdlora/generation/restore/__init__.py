"""Images with their settings, and the way back."""
