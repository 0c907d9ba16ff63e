"""What the dataset check found, for the page: one block a rule, with a button where a fix is known."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FILES_SHOWN = 6
_MESSAGES_SHOWN = 3
_SEVERITY_WORDS = {"error": "Error", "warning": "Warning", "note": "Note"}
_FIX_WORDS = {
    "unreadable": "Move them to the trash",
    "exact-duplicate": "Keep one of each",
    "animated": "Keep the first frame",
    "exif-rotated": "Turn the pixels",
    "caption-extension": "Rename to .txt",
    "caption-encoding": "Write as UTF-8",
    "duplicate-tags": "Keep one of each tag",
    "near-miss-spelling": "Use the frequent spelling",
    "trigger-missing": "Put the trigger in front",
}


def report(found: Mapping[str, Any], folder: Path) -> str:
    """HTML of `sdlora dataset check --json`. Its buttons carry the fix's name in data-fix, files in data-image."""
    rules: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for finding in found["findings"]:
        rules[finding["rule"]].append(finding)
    if not rules:
        return f'<p class="good">{found["images"]} images checked: nothing to fix.</p>'
    return "".join([_summary(found), *(_rule(rule, findings, folder) for rule, findings in rules.items())])


def summary_words(found: Mapping[str, Any]) -> str:
    """`1 error, 2 warnings`."""
    counts = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in found["counts"].items() if count]
    return ", ".join(counts) or "nothing to fix"


def _summary(found: Mapping[str, Any]) -> str:
    return f"<p>{found['images']} images: <strong>{html.escape(summary_words(found))}</strong></p>"


def _rule(rule: str, findings: Sequence[Mapping[str, Any]], folder: Path) -> str:
    severity = str(findings[0]["severity"])
    files = list(dict.fromkeys(name for finding in findings for name in finding["files"]))
    messages = "".join(f"<p>{html.escape(finding['message'])}</p>" for finding in findings[:_MESSAGES_SHOWN])
    if len(findings) > _MESSAGES_SHOWN:
        messages += f"<p>and {len(findings) - _MESSAGES_SHOWN} more like it</p>"
    title = f"{_SEVERITY_WORDS[severity]}: {html.escape(rule.replace('-', ' '))}"
    return (
        f'<section class="finding {severity}"><h3>{title}</h3>'
        f"{messages}{_file_list(files, folder)}{_fix_button(findings[0]['fix'])}</section>"
    )


def _file_list(files: Sequence[str], folder: Path) -> str:
    names = [_below(Path(name), folder) for name in files]
    shown = "".join(
        f'<li><button type="button" data-image="{html.escape(name, quote=True)}">{html.escape(name)}</button></li>'
        for name in names[:_FILES_SHOWN]
    )
    rest = names[_FILES_SHOWN:]
    more = (
        f"<details><summary>and {len(rest)} more</summary><p>{html.escape(', '.join(rest))}</p></details>"
        if rest
        else ""
    )
    return f"<ul>{shown}</ul>{more}" if names else ""


def _fix_button(fix: str | None) -> str:
    if fix is None:
        return ""
    words = _FIX_WORDS.get(fix, "Fix")
    return f'<button type="button" class="fix" data-fix="{html.escape(fix, quote=True)}">{words}</button>'


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
