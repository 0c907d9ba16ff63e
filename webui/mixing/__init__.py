"""The adapters at hand and in use: library, rows, their text, saved mixes, export."""
