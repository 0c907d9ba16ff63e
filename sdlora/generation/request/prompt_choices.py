"""Prompts with a choice in them, settled by an image's seed: the grammar of the Dynamic Prompts extension.

    {red|green}           one of them                  {3::red|green}      red three times as often
    {2$$red|green|blue}   two of them, "red, blue"     {1-2$$ and $$a|b}   one or two, joined by " and "
    __colour__            a line of colour.txt         __animals/*__       a line of any file in animals

Choices nest, also in lines of files. The same seed always gives the same text.
"""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Sequence
from pathlib import Path

from sdlora.errors import ConfigError
from sdlora.text_files import UnreadableTextError, read_text

_CHOICE = re.compile(r"\{([^{}]*)\}")
_COUNT = re.compile(r"(\d+)(?:-(\d+))?\$\$(?:(.*?)\$\$)?(.*)", re.DOTALL)
_CHANCE = re.compile(r"\s*(\d+\.?\d*|\.\d+)::(.*)", re.DOTALL)
_WILDCARD = re.compile(r"__([\w./*-]+?)__")
_MOST_ROUNDS = 50
"""Files that name each other would never end."""


def has_choices(prompt: str) -> bool:
    """Whether a prompt leaves something to the seed."""
    return bool(_WILDCARD.search(prompt)) or any(_is_choice(match[1]) for match in _CHOICE.finditer(prompt))


def choose(prompt: str, seed: int, folders: Sequence[Path] = ()) -> str:
    """The prompt with every choice made by the seed. folders: where wildcard files (`name.txt`) lie.

    Raises ConfigError for a wildcard without a file, for one that can't be read, and for files in a circle.
    """
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

    def replace(match: re.Match[str]) -> str:
        if _is_choice(match[1]):
            return _picked(match[1], generator)
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"  # out of the way of the brackets around it

    # The pattern takes no braces inside, so each round settles the innermost level.
    while (settled := _CHOICE.sub(replace, prompt)) != prompt:
        prompt = settled
    while (restored := re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], prompt)) != prompt:
        prompt = restored
    return prompt


def _is_choice(inside: str) -> bool:
    return "|" in inside or _COUNT.fullmatch(inside) is not None


def _picked(inside: str, generator: random.Random) -> str:
    low = high = 1
    joint = ", "
    if match := _COUNT.fullmatch(inside):
        low, high = int(match[1]), int(match[2] or match[1])
        joint = match[3] if match[3] is not None else joint
        inside = match[4]
    options, chances = [], []
    for option in inside.split("|"):
        weighted = _CHANCE.fullmatch(option)
        options.append((weighted[2] if weighted else option).strip())
        chances.append(float(weighted[1]) if weighted else 1.0)
    picked: list[str] = []
    for _ in range(min(generator.randint(min(low, high), max(low, high)), len(options))):
        if not any(chances):
            break
        index = generator.choices(range(len(options)), chances)[0]
        picked.append(options[index])
        chances[index] = 0.0
    return joint.join(picked)


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
        except (OSError, UnreadableTextError) as error:
            raise ConfigError("the prompt", [f"__{name}__: {path} {error}"]) from None
        lines += [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ConfigError("the prompt", [f"__{name}__: {found[0]} has no lines"])
    return generator.choice(lines)
