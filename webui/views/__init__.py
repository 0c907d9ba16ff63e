"""What the tabs show, as HTML of the templates. Values in, text out; knows no Gradio."""
