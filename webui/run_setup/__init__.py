"""From a preset and a person's changes to a run: everything behind the Train tab that needs no Gradio."""
