"""Prompts with a choice in them, settled by an image's seed: choices in braces (`sdlora.data.choices`), and files.

    __colour__            a line of colour.txt         __animals/*__       a line of any file in animals

Choices nest, also in lines of files. The same seed always gives the same text.
"""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Sequence
from pathlib import Path

from sdlora.data.choices import BRACES, parse_choice
from sdlora.errors import ConfigError
from sdlora.library.prompt_tags import holds_tag
from sdlora.text_files import UnreadableTextError, read_text

_WILDCARD = re.compile(r"__([\w./*-]+?)__")
_ODD_COUNT = re.compile(r"\{\s*(?:\d+\s+|\d*\s*-\s*\d*\s*)\$\$")
"""A count that isn't one: {2-$$, {-2$$, {2 $$."""
_COUNTED = re.compile(r"\{\d+(?:-\d+)?\$\$")
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x19\x1b-\x1f\x7f]")
"""Without the end mark of DOS files, 1a."""
_MOST_ROUNDS = 50
"""Files that name each other would never end."""


def has_choices(prompt: str) -> bool:
    """Whether a prompt leaves something to the seed."""
    return bool(_WILDCARD.search(prompt)) or any(parse_choice(match[1]) for match in BRACES.finditer(prompt))


def choose(prompt: str, seed: int, folders: Sequence[Path] = ()) -> str:
    """The prompt with every choice made by the seed. folders: where wildcard files (`name.txt`) lie.

    Raises ConfigError for a wildcard without a file, for one that can't be read, for files in a circle, and for braces
    that take more than there is in them.
    """
    odd = [match[0] for match in _ODD_COUNT.finditer(prompt) if not _COUNTED.match(match[0])]
    if odd:
        problems = [f"'{text}' is no count: write {{2$$red|green|blue}} or {{1-2$$red|green|blue}}" for text in odd]
        raise ConfigError("the prompt", problems)
    if not has_choices(prompt):
        return prompt
    generator = random.Random(seed)
    for _ in range(_MOST_ROUNDS):
        settled = _WILDCARD.sub(lambda match: _line_of(match[1], generator, folders), _settle(prompt, generator))
        if not has_choices(settled):
            return settled
        prompt = settled
    raise ConfigError("the prompt", [f"its wildcards never end: {prompt[:80]}"])


def _settle(prompt: str, generator: random.Random) -> str:
    """Choices from the inside out; braces around anything else stay text."""
    kept: list[str] = []
    too_few: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if choice := parse_choice(match[1]):
            if choice.low > (there := len(choice.options)):
                too_few.append(f"{match[0]}: takes {choice.low} of {there}; put a | between them, or take fewer")
            return choice.draw(generator)
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"  # out of the way of the brackets around it

    # The pattern takes no braces inside, so each round settles the innermost level.
    while (settled := BRACES.sub(replace, prompt)) != prompt:
        prompt = settled
    if too_few:
        raise ConfigError("the prompt", too_few)
    while (restored := re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], prompt)) != prompt:
        prompt = restored
    return prompt


def _line_of(name: str, generator: random.Random, folders: Sequence[Path]) -> str:
    # Sorted, or the order in which a disk lists files would decide what a seed means.
    found = sorted(
        path
        for folder in folders
        for path in folder.expanduser().rglob("*.txt")
        if fnmatch.fnmatchcase(path.relative_to(folder.expanduser()).with_suffix("").as_posix(), name)
    )
    if not found:
        where = ", ".join(str(folder) for folder in folders) or "wildcard_folders, which is empty"
        raise ConfigError("the prompt", [f"__{name}__: no file {name}.txt in {where}"])
    lines: list[str] = []
    for path in found:
        try:
            text = read_text(path)
        except OSError as error:
            reason = "it is a folder, not a text file" if path.is_dir() else error.strerror or error
            raise ConfigError("the prompt", [f"__{name}__: {path} can't be read: {reason}"]) from None
        except UnreadableTextError as error:
            raise ConfigError("the prompt", [f"__{name}__: {path} {error}"]) from None
        if _CONTROL.search(text):
            raise ConfigError("the prompt", [f"__{name}__: {path} is no text: it holds control characters"])
        lines += [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ConfigError("the prompt", [f"__{name}__: {found[0]} has no lines"])
    if tagged := next((line for line in lines if holds_tag(line)), None):
        problem = f"__{name}__: '{tagged}': an adapter can't be chosen by the seed; write its tag into the prompt"
        raise ConfigError("the prompt", [problem])
    return generator.choice(lines)
