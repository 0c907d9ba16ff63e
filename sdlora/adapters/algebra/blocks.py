"""Blocks of the model by the short names that block-weight lists use, and the weights that users give them.

BASE is the text encoders; IN00 to IN11, MID and OUT00 to OUT11 the UNet's blocks as the original code numbers them
(SDXL: to 08). Lists follow sd-scripts' `lbw` order; a list of 17 (SD 1.x, 2.x) or 12 (SDXL) values leaves out the
blocks without attention, which then keep their full weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from sdlora.adapters.files.kohya import to_ldm
from sdlora.config.base_model import FamilyName
from sdlora.config.mix import parse_adapter
from sdlora.errors import ConfigError

BASE = "BASE"
_MID = "MID"
_LIST_IS_FOR = {12: "SDXL", 17: "SD 1.x and 2.x", 20: "SDXL", 26: "SD 1.x and 2.x"}


def _span(side: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{side}{number:02}" for number in range(first, last + 1))


_WITHOUT_ATTENTION = {
    False: (*_span("IN", 0, 0), "IN03", "IN06", *_span("IN", 9, 11), *_span("OUT", 0, 2)),
    True: (*_span("IN", 0, 3), "IN06", *_span("OUT", 6, 8)),
}
# The names are those of the LoRA Block Weight extension.
_WEIGHTED: dict[bool, dict[str, tuple[str, ...]]] = {
    False: {
        "INS": _span("IN", 0, 4),
        "IND": _span("IN", 5, 11),
        "INALL": _span("IN", 0, 11),
        "MIDD": (*_span("IN", 5, 11), _MID, *_span("OUT", 0, 6)),
        "OUTD": _span("OUT", 0, 6),
        "OUTS": _span("OUT", 7, 11),
        "OUTALL": _span("OUT", 0, 11),
    },
    True: {
        "INS": _span("IN", 0, 5),
        "IND": _span("IN", 6, 8),
        "INALL": _span("IN", 0, 8),
        "MIDD": (*_span("IN", 6, 8), _MID, *_span("OUT", 0, 2)),
        "OUTD": _span("OUT", 0, 2),
        "OUTS": _span("OUT", 3, 8),
        "OUTALL": _span("OUT", 0, 8),
    },
}
NAMED_WEIGHTS = ("ALL", "NONE", *_WEIGHTED[False])


def block_names(family: FamilyName | None) -> tuple[str, ...]:
    """All blocks in the order of lists: BASE, IN, MID, OUT."""
    last = 8 if family == "sdxl" else 11
    return (BASE, *_span("IN", 0, last), _MID, *_span("OUT", 0, last))


def block_label(name: str) -> str:
    """The block of a module's kohya name, in either spelling; the module's part for what stands in no block."""
    kind, _, flat = name.removeprefix("lora_").partition("_")
    if kind.startswith("te"):
        return BASE
    flat = to_ldm(flat)
    match = re.match(r"(input|output)_blocks_(\d+)_", flat)
    if match:
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"
    return _MID if flat.startswith("middle_block_") else "UNET"


def in_order(blocks: Iterable[str], family: FamilyName | None) -> list[str]:
    """Block labels as lists have them; those that the family has not (or none is known) stand by number behind."""
    order = [*block_names(family), *block_names(None), "UNET"]
    return sorted(blocks, key=lambda block: (order.index(block) if block in order else len(order), block))


def block_weights(
    given: str | Sequence[float] | Mapping[str, float], family: FamilyName | None, source: str
) -> dict[str, float]:
    """Weight by block; blocks that aren't named have weight 1.

    given: a name (ALL, NONE, INS, IND, INALL, MIDD, OUTD, OUTS, OUTALL; the text encoder stays on in all but
    NONE), a list in sd-scripts' order of 12, 17, 20 or 26 numbers, or weights by block name.
    Raises ConfigError naming `source` for anything else.
    """
    is_sdxl = family == "sdxl"
    if isinstance(given, str):
        name = given.upper()
        if name not in NAMED_WEIGHTS:
            raise ConfigError(source, [f"blocks: no weights are called '{given}'; there is {', '.join(NAMED_WEIGHTS)}"])
        if name == "ALL":
            return {}
        chosen = _WEIGHTED[is_sdxl].get(name, ())
        return {block: float(block in chosen or (block == BASE and name != "NONE")) for block in block_names(family)}
    names = block_names(family)
    if isinstance(given, Mapping):
        unknown = [name for name in given if name.upper() not in names]
        if unknown:
            raise ConfigError(source, [f"blocks: there is no block {', '.join(unknown)}; blocks: {', '.join(names)}"])
        return {name.upper(): float(weight) for name, weight in given.items()}
    if len(given) not in _LIST_IS_FOR or (_LIST_IS_FOR[len(given)] == "SDXL") != is_sdxl:
        fitting = "12 or 20" if is_sdxl else "17 or 26"
        known = f", as lists for {_LIST_IS_FOR[len(given)]} have" if len(given) in _LIST_IS_FOR else ""
        raise ConfigError(source, [f"blocks: {len(given)} weights{known}; this adapter needs {fitting}"])
    if len(given) in (12, 17):
        names = tuple(name for name in names if name not in _WITHOUT_ATTENTION[is_sdxl])
    return {name: float(weight) for name, weight in zip(names, given, strict=True)}


def read_blocks(text: str, source: str, family: FamilyName | None = None) -> str | list[float] | dict[str, float]:
    """Block weights as a person types them: a name, numbers between commas, or names with weights.

    Raises ConfigError naming `source`; with a family, number and names of the blocks are checked too.
    """
    spelled = text.strip() or "ALL"
    listed = f"[{spelled}]" if "," in spelled and "=" not in spelled else spelled
    blocks = parse_adapter(f"x:{listed}" if "=" in spelled else f"x:blocks={listed}").blocks
    if family is not None or isinstance(blocks, str):
        block_weights(blocks, family, source)
    return blocks


def spell_blocks(blocks: str | Sequence[float] | dict[str, float]) -> str:
    """The inverse of `read_blocks`."""
    if isinstance(blocks, str):
        return blocks
    if isinstance(blocks, dict):
        return ",".join(f"{name}={weight:g}" for name, weight in blocks.items()) or "ALL"
    return ",".join(f"{weight:g}" for weight in blocks)
