"""A report as one HTML page that needs nothing else: small pictures are inside."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from sdlora.data.decoding import UnreadableImageError, load_rgb, open_image
from sdlora.data.lint.findings import Finding, Report
from sdlora.words import as_typed

_PICTURE_PX = 96
_PICTURES_EACH = 8
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
section { border-left: .4rem solid #888; padding: .2rem 1rem; margin: 1rem 0; background: #f6f6f6 }
section.error { border-color: #c62828 } section.warning { border-color: #ef8f00 } section.note { border-color: #1976d2 }
h2 { font-size: 1rem; margin: .3rem 0 } p { margin: .3rem 0 } code { background: #e4e4e4; padding: 0 .2rem }
figure { display: inline-block; margin: .3rem .6rem .3rem 0; vertical-align: top; width: 8rem; font-size: .8rem }
figcaption { overflow-wrap: anywhere } ul { font-size: .9rem }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } section { background: #242424 }
code { background: #333 } }
"""


def as_html(report: Report) -> str:
    """The whole page. Pictures that can't be read are named without a picture."""
    folders = ", ".join(escape(str(folder)) for folder in report.folders)
    body = "".join(_section(finding, report) for finding in report.findings)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Dataset check</title><style>{_STYLE}</style></head><body>"
        f"<h1>Dataset check</h1><p>{folders}<br>{report.summary}</p>{body}</body></html>\n"
    )


def _section(finding: Finding, report: Report) -> str:
    shown, rest = finding.files[:_PICTURES_EACH], finding.files[_PICTURES_EACH:]
    figures = "".join(_figure(path, report) for path in shown)
    more = "".join(f"<li>{escape(report.name(path))}</li>" for path in rest)
    listed = f"<details><summary>and {len(rest)} more</summary><ul>{more}</ul></details>" if rest else ""
    command = as_typed("sdlora", "dataset", "fix", report.folders[0], "--rules", finding.fix)
    fix = f"<p>Fixes it: <code>{escape(command)}</code></p>" if finding.fix else ""
    return (
        f'<section class="{finding.severity}"><h2>{finding.severity}: {finding.rule}</h2>'
        f"<p>{escape(finding.message)}</p>{figures}{listed}{fix}</section>"
    )


def _figure(path: Path, report: Report) -> str:
    source = _picture(path)
    image = f'<img src="{source}" alt="">' if source else ""
    return f"<figure>{image}<figcaption>{escape(report.name(path))}</figcaption></figure>"


def _picture(path: Path) -> str | None:
    """The picture as a small JPEG in a data address, None for files that hold none."""
    try:
        with open_image(path) as image:
            image.draft("RGB", (_PICTURE_PX, _PICTURE_PX))
            # The quick way, for what needs neither turning nor a background: a JPEG decoded at a fraction of its size.
            if image.format == "JPEG" and not image.getexif().get(0x0112):
                small = image.convert("RGB")
            else:
                small = load_rgb(path, "#ffffff")
    except (UnreadableImageError, OSError):
        return None
    small.thumbnail((_PICTURE_PX, _PICTURE_PX), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
