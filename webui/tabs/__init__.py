"""One module a tab."""
