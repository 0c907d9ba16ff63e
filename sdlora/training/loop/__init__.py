"""The run and its optimizer steps."""
