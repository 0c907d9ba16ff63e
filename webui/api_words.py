"""What the library says to who types commands, in the words of who calls the API."""

from __future__ import annotations

import re

_ARGUMENTS = {
    "memory": "memory_gib",
    "for": "subject",
    "trigger": "trigger",
    "base": "base",
    "method": "method",
    "rank": "rank",
    "energy": "energy",
}
"""Options of commands that arguments of the API stand for."""
_OPTION = re.compile(rf"--({'|'.join(_ARGUMENTS)})\b")
_SET = re.compile(r"--set (?=\S)")
_COMMANDS = (
    (re.compile(r"`sdlora runs(?: [^`]+)?` lists"), "/runs lists"),
    (re.compile(r"; `sdlora explain [^`]+` knows other programs' names, `sdlora explain` lists all settings"), ""),
    (re.compile(r"`sdlora (stop|resume|evaluate) [^`]*?([^`/\\ ]+)`"), r"/\1 of '\2'"),
    (re.compile(r"write it as 8GB or 8000MB"), "give a number of GiB, as 8"),
)


def in_words_of_the_api(text: str) -> str:
    """The text with the API's calls and arguments in place of commands and options.

    A command without a call like it stays: it is what helps then.
    """
    for command, instead in _COMMANDS:
        text = command.sub(instead, text)
    parts = text.split("`")  # every other one is a command to be typed as it stands
    parts[::2] = [_OPTION.sub(lambda found: _ARGUMENTS[found[1]], _SET.sub("", part)) for part in parts[::2]]
    return "`".join(parts)
