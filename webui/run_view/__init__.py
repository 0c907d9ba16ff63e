"""What runs look like: lists, figures, curves, pictures and files, as HTML and SVG; no Gradio here."""
