r"""Prompts that change while an image is made, and prompts that are combined, in AUTOMATIC1111's grammar. No torch.

    [cat:dog:0.5]   cat for the first half of the steps, then dog      [cat:dog:12]   the change after step 12
    [dog:0.5]       dog from half on                                   [cat::0.5]     cat until half
    [cat|dog]       cat and dog in turn, a step each                   \[ \] \( \) \: \|  the character itself
    a cat AND a dog :1.2    each predicted by itself, the second with weight 1.2 (Liu et al. 2022)

A number with a point is a share of the steps, one without is a step. These forms nest. `[word]` and `[a:b]` without a
number at the end are no schedules: they stay as they are, for `sdlora.models.prompts` to weigh.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sdlora.errors import ConfigError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
_AND = re.compile(r"\bAND\b")
_DEEPEST = 50
"""Brackets inside brackets; a prompt of deeper ones is none that somebody wrote."""
_WEIGHTED = re.compile(r"(?s)(.*?)(?:\s*:\s*([+-]?(?:\d+\.?\d*|\.\d+)))?\s*")


@dataclass(frozen=True)
class SubPrompt:
    """One of the prompts joined by AND, with its weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class _Change:
    before: _Sequence
    after: _Sequence
    number: float
    is_share: bool


@dataclass(frozen=True)
class _Turns:
    options: tuple[_Sequence, ...]


_Node = str | _Change | _Turns
_Sequence = tuple[_Node, ...]


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of an image, step by step."""

    prompts: tuple[tuple[SubPrompt, ...], ...]
    """One entry a step, the first step's first; equal neighbours are the same object."""

    @property
    def distinct(self) -> tuple[tuple[SubPrompt, ...], ...]:
        """Every different set of prompts, once."""
        return tuple(dict.fromkeys(self.prompts))

    @property
    def num_prompts(self) -> int:
        """Prompts joined by AND; the same at every step."""
        return len(self.prompts[0])

    def at(self, index: int, total: int) -> tuple[SubPrompt, ...]:
        """The prompts of step `index` (from 0) of `total`, which may differ from the schedule's own number."""
        return self.prompts[min(index * len(self.prompts) // total, len(self.prompts) - 1)]


def schedule(prompt: str, steps: int, *, combine: bool = True) -> PromptSchedule:
    """The prompts for each of `steps` steps. combine: read AND; off leaves it a word, as in negative prompts.

    Raises ConfigError for brackets nested deeper than anybody means.
    """
    parts = _split_and(prompt) if combine else [SubPrompt(prompt)]
    parsed = [(_parse(part.text), part.weight) for part in parts]
    known: dict[tuple[SubPrompt, ...], tuple[SubPrompt, ...]] = {}
    prompts = []
    for step in range(1, steps + 1):
        now = tuple(SubPrompt(_text(nodes, step, steps), weight) for nodes, weight in parsed)
        prompts.append(known.setdefault(now, now))
    return PromptSchedule(tuple(prompts))


def _split_and(prompt: str) -> list[SubPrompt]:
    pieces = _AND.split(prompt)
    if len(pieces) == 1:
        return [SubPrompt(prompt)]
    parts = []
    for piece in pieces:
        match = _WEIGHTED.fullmatch(piece)
        assert match is not None
        parts.append(SubPrompt(match[1].strip(), float(match[2]) if match[2] else 1.0))
    return parts


def _text(nodes: _Sequence, step: int, steps: int) -> str:
    """The text at a step, counted from 1."""
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, _Turns):
            parts.append(_text(node.options[(step - 1) % len(node.options)], step, steps))
        else:
            # Rounded down, as the web UI does.
            changes_after = int(node.number * steps) if node.is_share else int(node.number)
            parts.append(_text(node.before if step <= changes_after else node.after, step, steps))
    return "".join(parts)


def _parse(prompt: str) -> _Sequence:
    nodes, _ = _parse_until(prompt, 0, "", 0)
    return nodes


def _parse_until(text: str, start: int, stops: str, depth: int) -> tuple[_Sequence, int]:
    """Nodes up to a character of `stops` outside all brackets, and that character's position (or the end)."""
    nodes: list[_Node] = []
    plain: list[str] = []
    round_depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\" and position + 1 < len(text):
            # Kept with its backslash: the grammar of weights reads the text after this one and must see it as escaped.
            plain.append(text[position : position + 2])
            position += 2
            continue
        if round_depth == 0 and character in stops:
            break
        if character == "[":
            bracket, position = _parse_bracket(text, position, depth + 1)
            if isinstance(bracket, tuple):  # no schedule: its parts go on as they are
                nodes.append("".join(plain))
                nodes += bracket
                plain = []
            else:
                nodes += ["".join(plain), bracket]
                plain = []
            continue
        # A colon or bar inside (round:1.2) brackets belongs to the weight or the text there.
        round_depth = max(0, round_depth + (character == "(") - (character == ")"))
        plain.append(character)
        position += 1
    nodes.append("".join(plain))
    return _compact(nodes), position


def _parse_bracket(text: str, start: int, depth: int) -> tuple[_Change | _Turns | _Sequence, int]:
    """What the bracket at `start` is, and the position behind it. An unclosed one is text."""
    if depth > _DEEPEST:
        raise ConfigError("the prompt", [f"more than {_DEEPEST} brackets are open at once: {text[start : start + 20]}"])
    parts: list[_Sequence] = []
    separators: list[str] = []
    position = start + 1
    while True:
        nodes, position = _parse_until(text, position, "]:|", depth)
        parts.append(nodes)
        if position >= len(text):
            return _as_written(parts, separators, closed=False), position
        if text[position] == "]":
            position += 1
            break
        separators.append(text[position])
        position += 1
    if separators and set(separators) == {"|"}:
        return _Turns(tuple(parts)), position
    number = _number_of(parts[-1])
    if separators and set(separators) == {":"} and len(parts) in (2, 3) and number is not None:
        before: _Sequence = parts[0] if len(parts) == 3 else ()
        return _Change(before, parts[-2], *number), position
    return _as_written(parts, separators, closed=True), position


def _number_of(nodes: _Sequence) -> tuple[float, bool] | None:
    if len(nodes) != 1 or not isinstance(nodes[0], str) or not (match := _NUMBER.fullmatch(nodes[0])):
        return None
    return float(match[1]), "." in match[1]


def _as_written(parts: Sequence[_Sequence], separators: Sequence[str], *, closed: bool) -> _Sequence:
    nodes: list[_Node] = ["["]
    for index, part in enumerate(parts):
        nodes += [separators[index - 1], *part] if index else part
    return _compact([*nodes, "]"] if closed else nodes)


def _compact(nodes: Sequence[_Node]) -> _Sequence:
    compact: list[_Node] = []
    for node in nodes:
        last = compact[-1] if compact else None
        if isinstance(node, str) and isinstance(last, str):
            compact[-1] = last + node
        elif node != "":
            compact.append(node)
    return tuple(compact)
