"""Tags of a dataset: how often each is used, and which are misspellings of another."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from sdlora.config.images import CaptionsConfig
from sdlora.data.captions import joint, split_tags

_SHORTEST = 5
"""Shorter words differ by a letter too often without being misspelt (cat, car)."""
_LONGEST = 100
"""Letters of a tag that is compared with others: a sentence is no tag, and each letter costs a copy of it."""
_TIMES_RARER = 5


def tags_of(caption: str, config: CaptionsConfig) -> list[str]:
    """All tags of a caption, of all its lines."""
    return [tag for line in caption.splitlines() for tag in split_tags(line, config)]


def repeated_tags(caption: str, config: CaptionsConfig) -> list[str]:
    """The tags that one line of the caption has more than once; case doesn't matter."""
    repeated: dict[str, None] = {}
    for line in caption.splitlines():
        tags = split_tags(line, config)
        counts = Counter(tag.lower() for tag in tags)
        repeated |= {tag: None for tag in tags if counts[tag.lower()] > 1}
    return list(dict.fromkeys(tag.lower() for tag in repeated))


def rewrite_tags(caption: str, config: CaptionsConfig, change: Callable[[list[str]], list[str]]) -> str:
    """The caption with the tags of each line changed; a line whose tags stay as they are keeps every character."""
    lines = []
    for line in caption.splitlines(keepends=True):
        text, ending = line.rstrip("\r\n"), line[len(line.rstrip("\r\n")) :]
        tags = split_tags(text, config)
        changed = change(list(tags))
        lines.append(line if changed == tags else joint(config).join(changed) + ending)
    return "".join(lines)


def near_miss_spellings(captions: Sequence[str], config: CaptionsConfig) -> dict[str, str]:
    """Rare tags that look like a slip of a common one: misspelt tag to the right one.

    Two kinds: the same letters with other spaces, hyphens or underscores; and one letter added, left out, changed or
    two swapped, in a word of at least 5 letters of a tag at least 5 times rarer. Digits and a final s are meant.
    """
    counts = Counter(tag.lower() for caption in captions for tag in set(tags_of(caption, config)))
    spellings: dict[str, str] = {}
    by_letters: dict[str, list[str]] = defaultdict(list)
    for tag in counts:
        by_letters[re.sub(r"[\s_-]+", "", tag) or tag].append(tag)
    for same in by_letters.values():
        common = max(same, key=lambda tag: (counts[tag], tag))
        spellings |= {tag: common for tag in same if tag != common and counts[tag] < counts[common]}
    for rare, common in _one_letter_apart([tag for tag in counts if _SHORTEST <= len(tag) <= _LONGEST]):
        if counts[rare] * _TIMES_RARER <= counts[common] and rare not in spellings:
            spellings[rare] = common
    # No chains: a tag that is a slip itself is nothing to put others right by.
    return {tag: right for tag, right in spellings.items() if right not in spellings}


def _one_letter_apart(tags: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (both ways) that become equal by leaving out at most one letter of each, so the work is linear in tags."""
    by_deletion: dict[str, set[str]] = defaultdict(set)
    for tag in tags:
        for variant in {tag, *(tag[:at] + tag[at + 1 :] for at in range(len(tag)))}:
            by_deletion[variant].add(tag)
    pairs = {(first, second) for same in by_deletion.values() for first in same for second in same if first != second}
    return sorted(pair for pair in pairs if _may_be_a_slip(*pair))


def _may_be_a_slip(first: str, second: str) -> bool:
    """Whether the tags differ in one long word, and in more than a digit or a final s."""
    words = zip(first.split(), second.split(), strict=False)
    different = [pair for pair in words if pair[0] != pair[1]]
    if len(first.split()) != len(second.split()) or len(different) != 1:
        return False
    one, other = sorted(different[0], key=len)
    return len(one) >= _SHORTEST and other != f"{one}s" and re.sub(r"\D", "", one) == re.sub(r"\D", "", other)
