"""Which family an adapter file is for, and which layer of that family each of its names means.

Shapes decide, where the layers have the widths of a published model; then which family has layers of these names at
all; then metadata; spelling last. Needs no torch: shapes come from tensors or from a file's header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from sdlora.adapters.files.kohya import canonical
from sdlora.adapters.files.layer_table import FAMILY_NAMES, layers, possible_layers
from sdlora.config.base_model import FamilyName
from sdlora.words import count, first_few

FAMILY_TITLES: dict[FamilyName, str] = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}
_ALIKE = "alike: taken as"
_BASE = "ss_base_model_version"
_OTHER_MODEL = re.compile(
    r"(?:stable-diffusion-3|stable-cascade|sd3|flux|chroma|pixart|hunyuan|lumina|auraflow|qwen|wan|z-?image|anima)",
    re.IGNORECASE,
)
_LDM = re.compile(r"lora_unet_(?:input_blocks|middle_block|output_blocks)_")
_PROJECTION = re.compile(r"lora_unet_(?:.*_)?proj_(?:in|out)")
_TEXT_WIDTHS: dict[int | None, FamilyName] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_SECOND_WIDTHS = {1280, 5120}
"""Inputs of the layers of SDXL's second text encoder, which no other one has."""


class Shaped(Protocol):
    """A tensor, or what a file's header tells of it."""

    @property
    def shape(self) -> Sequence[int]:
        """Length along every axis."""


Given = Mapping[str, Mapping[str, Shaped]]
"""Factors by layer (kohya name in either spelling) and factor name."""


@dataclass(frozen=True)
class Resolution:
    """A file's layers in terms of a family."""

    family: FamilyName | None
    names: dict[str, str]
    """The file's names of layers that exist, to the names that this package writes."""
    strange: tuple[str, ...]
    """Names that no layer of any model of the family's build has."""
    notes: tuple[str, ...]
    is_guess: bool = False
    """Whether other families fit as well, so that a base model's or a person's word goes before it."""


def resolve(given: Given, metadata: Mapping[str, str], layout: str, family: FamilyName | None = None) -> Resolution:
    """What the layers of a file are. family: overrules what the file tells."""
    called = _with_second_encoder(given)
    told, notes = _told_family({called[name]: factors for name, factors in given.items()}, metadata, layout)
    is_guess = any(_ALIKE in note for note in notes)
    if (other := _OTHER_MODEL.match(metadata.get("modelspec.architecture") or metadata.get(_BASE, ""))) is not None:
        notes = [f"its metadata say {other.string}, but its layers are those of Stable Diffusion", *notes]
    if family is not None:
        is_guess = False
        notes = [f"taken as {family} as asked, though it looks like {told}"] if told not in (None, family) else []
        told = family
    names: dict[str, str] = {}
    strange: list[str] = []
    for name in given:
        own = canonical(called[name], told)
        families = FAMILY_NAMES if told is None else (told,)
        if any(canonical(own, each) in possible_layers(each) for each in families):
            names[name] = own
        else:
            strange.append(name)
    if told is not None:
        notes += _misfits({names[name]: given[name] for name in names}, told)
    return Resolution(told, names, tuple(strange), tuple(notes), is_guess)


def _with_second_encoder(given: Given) -> dict[str, str]:
    """The names; PEFT's files of one text encoder don't say which, but the second's width is its own."""
    told = any(name.startswith("lora_te2_") for name in given)
    called = {name: name for name in given}
    for name, factors in given.items():
        if not told and name.startswith("lora_te_") and _size(factors)[1] in _SECOND_WIDTHS:
            called[name] = f"lora_te2_{name.removeprefix('lora_te_')}"
    return called


def _told_family(given: Given, metadata: Mapping[str, str], layout: str) -> tuple[FamilyName | None, list[str]]:
    """The family, None where several are as likely, and what is to be said about it."""
    by_size = _most({family: _num_fitting(given, family) for family in FAMILY_NAMES}) or _by_text_width(given)
    possible = by_size or list(FAMILY_NAMES)
    named = {family: sum(canonical(name, family) in layers(family) for name in given) for family in possible}
    possible = _most(named) or possible
    if len(possible) > 1 and (family := _by_projection(given)) is not None:
        possible = [each for each in possible if each in (family, "sdxl")]
    said = _by_metadata(metadata)
    # Shapes go before metadata, which is edited by hand or carried over from other files; widths are not.
    if said is not None:
        if said in possible:
            return said, []
        if len(possible) == 1:
            why = "the shapes of its layers are" if by_size else "its layers are"
            return possible[0], [f"its metadata say {said}, but {why} those of {possible[0]}: taken as {possible[0]}"]
    if len(possible) == 1:
        return possible[0], []
    guess, notes = _by_spelling(given, possible, layout)
    if said is not None:
        notes = [f"its metadata say {said}, but its layers are those of {' and '.join(possible)}", *notes]
    return guess, notes


def _most(counts: Mapping[FamilyName, int]) -> list[FamilyName]:
    """The families with the largest count, none when all are 0."""
    most = max(counts.values())
    return [family for family, count in counts.items() if count == most] if most else []


def _num_fitting(given: Given, family: FamilyName) -> int:
    """Layers whose size is that of the family's layer of their name."""
    return sum(_fits(name, factors, family) is True for name, factors in given.items())


def _fits(name: str, factors: Mapping[str, Shaped], family: FamilyName) -> bool | None:
    """Whether a layer's size is that of the family's layer of its name; None where nothing tells."""
    layer, (rows, columns) = layers(family).get(canonical(name, family)), _size(factors)
    told = [(rows, layer.rows), (columns, layer.columns)] if layer is not None else []
    known = [(own, wanted) for own, wanted in told if own is not None]
    return all(own == wanted for own, wanted in known) if known else None


def _misfits(given: Given, family: FamilyName) -> list[str]:
    """What to say about layers of other sizes than the family's, in a file whose other layers have them."""
    fits = {
        name: _fits(name, factors, family) for name, factors in given.items() if not _is_norm(name, family, factors)
    }
    misfits = [name for name, each in fits.items() if each is False]
    # A model of other widths has hardly a layer that fits, and then none of them tells anything.
    if not misfits or 2 * len(misfits) >= sum(each is not None for each in fits.values()):
        return []
    layer, size = layers(family)[canonical(misfits[0], family)], _size(given[misfits[0]])
    rows, columns = ("?" if each is None else each for each in size)
    return [
        f"{count(len(misfits), 'layer')} of other sizes than {family}'s, so that its models can't take the file:"
        f" {first_few(misfits)} ({misfits[0]} changes {rows} x {columns} weights, {family} has"
        f" {layer.rows} x {layer.columns})"
    ]


def _is_norm(name: str, family: FamilyName, factors: Mapping[str, Shaped]) -> bool:
    """Whether a product stands where the family has a norm: whoever reads the tensors leaves it out."""
    layer = layers(family).get(canonical(name, family))
    return layer is not None and layer.kind == "norm" and _size(factors)[1] not in (1, None)


def _by_text_width(given: Given) -> list[FamilyName]:
    """By the inputs of cross-attention, for models of other widths than the published ones."""
    for name, factors in given.items():
        width = _size(factors)[1]
        if name.endswith(("_attn2_to_k", "_attn2_to_v")) and width in _TEXT_WIDTHS:
            return [_TEXT_WIDTHS[width]]
    return []


def _by_projection(given: Given) -> FamilyName | None:
    """SD 1.x projects with 1x1 convolutions, SD 2.x with linear layers."""
    for name, factors in given.items():
        if _PROJECTION.fullmatch(name) and "lora_down" in factors:
            return "sd1" if len(factors["lora_down"].shape) == 4 else "sd2"
    return None


def _by_metadata(metadata: Mapping[str, str]) -> FamilyName | None:
    version = metadata.get(_BASE, "")
    architecture = metadata.get("modelspec.architecture", "")
    starts: tuple[tuple[str, str, FamilyName], ...] = (
        ("sdxl", "stable-diffusion-xl", "sdxl"),
        ("sd_v2", "stable-diffusion-v2", "sd2"),
        ("sd_v1", "stable-diffusion-v1", "sd1"),
        ("sd_1", "stable-diffusion-1", "sd1"),  # as ai-toolkit spells it
    )
    for version_start, architecture_start, family in starts:
        if version.startswith(version_start) or architecture.startswith(architecture_start):
            return family
    return "sd2" if metadata.get("ss_v2") == "True" else None


def _by_spelling(given: Given, possible: Sequence[FamilyName], layout: str) -> tuple[FamilyName | None, list[str]]:
    """By the habits of tools: only SDXL's trainers write LDM names, or lora_te1_; a guess, which is said."""
    families = " and ".join(possible)
    # SD 1.x and 2.x have one text encoder, whose prefix has no number.
    first_only = "kohya" in layout and any(name.startswith("lora_te_") for name in given)
    if "sdxl" in possible and any(_LDM.match(name) for name in given) and "kohya" in layout and not first_only:
        return "sdxl", [f"its layers fit {families} {_ALIKE} sdxl for the names of its blocks"]
    if "sdxl" in possible and any(name.startswith("lora_te1_") for name in given):
        return "sdxl", [f"its layers fit {families} {_ALIKE} sdxl for the prefix lora_te1_"]
    if "sd1" in possible and first_only and all(name.startswith("lora_te_") for name in given):
        return "sd1", [f"its layers fit {families} {_ALIKE} sd1 for the prefix lora_te_"]
    return None, []


def _size(factors: Mapping[str, Shaped]) -> tuple[int | None, int | None]:
    """Rows and columns of a layer's weight as a matrix, as far as the factors tell."""
    shape = {name: tuple(factor.shape) for name, factor in factors.items()}
    try:
        if "lora_down" in shape and "lora_up" in shape:
            return shape["lora_up"][0], prod(shape["lora_down"][1:]) * _kernel(shape, "lora_mid")
        if "hada_w1_a" in shape and "hada_w1_b" in shape:
            tucker = "hada_t1" in shape
            return shape["hada_w1_a"][int(tucker)], shape["hada_w1_b"][1] * _kernel(shape, "hada_t1")
        if any(name.startswith("lokr_") for name in shape):
            first, second = _half(shape, "lokr_w1"), _half(shape, "lokr_w2")
            return first[0] * second[0], first[1] * second[1]
        if "diff" in shape:
            return shape["diff"][0], prod(shape["diff"][1:])
        if "w_norm" in shape:
            return shape["w_norm"][0], 1
        if "b1" in shape and "b2" in shape:
            return shape["b1"][0], prod(shape["b2"][1:])
        if "oft_blocks" in shape:
            return shape["oft_blocks"][-3] * shape["oft_blocks"][-2], None
        if "oft_R" in shape:
            # oft_R holds the n(n-1)/2 values above the diagonal of each skew-symmetric block: solved for n.
            return None, shape["oft_R"][0] * round((1 + (1 + 8 * shape["oft_R"][1]) ** 0.5) / 2)
    except (IndexError, KeyError):  # no layer: whoever reads the tensors says so
        pass
    return None, None


def _kernel(shape: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Kernel elements of a Tucker decomposition's core, 1 without one."""
    return prod(shape[name][2:]) if name in shape else 1


def _half(shape: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    """Rows and columns of one factor of a Kronecker product."""
    if name in shape:
        return shape[name][0], prod(shape[name][1:])
    rows, columns = shape[f"{name}_a"], shape[f"{name}_b"]
    tucker = "lokr_t2" in shape and name == "lokr_w2"
    return rows[int(tucker)], prod(columns[1:]) * (_kernel(shape, "lokr_t2") if tucker else 1)
