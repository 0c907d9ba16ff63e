"""The web page over sdlora's public API: `python -m webui`. Imports no torch."""
