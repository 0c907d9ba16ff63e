"""The Home tab: what one was at last."""
