"""HTML of the page from the templates beside this file. Whatever is put into one is escaped, wherever it came from.

A template file holds macros. `macros("runs.html").headline(run)` gives the HTML of one; a view hands it values and
decides what is said, the template decides how it looks.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sdlora.words import count


class Macros:
    """The macros of one template file, each called with its values and giving HTML without blanks around it."""

    def __init__(self, template: Any) -> None:
        self._module = template.module

    def __getattr__(self, name: str) -> Any:
        macro = getattr(self._module, name)
        return lambda *values, **named: str(macro(*values, **named)).strip()


def macros(file: str) -> Macros:
    """The macros of a file in `templates/`."""
    return Macros(_ENVIRONMENT.get_template(file))


def file_address(path: Path) -> str:
    """Where the page loads a served file from; relative, so that it holds behind a proxy's path too."""
    return "gradio_api/file=" + urllib.parse.quote(str(path), safe="/")


def _lines(text: object) -> Markup:
    """Text with its line breaks kept."""
    return Markup("<br>").join(escape(line) for line in str(text).split("\n"))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    # A misspelt name fails loudly instead of leaving a hole in the page.
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"lines": _lines, "address": file_address, "count": count}
