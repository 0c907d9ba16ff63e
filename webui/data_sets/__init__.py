"""Datasets as the page shows them: folders, uploads, captions, edits, crops. Knows no Gradio and no torch."""
