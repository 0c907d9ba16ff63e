"""The web page over sdlora's public API: `sdlora webui`, or `python -m webui`. Imports no torch."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, which else looks up its own servers
