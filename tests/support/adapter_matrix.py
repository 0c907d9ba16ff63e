"""Which adapter files are read, found out by writing and reading them: docs/guides/adapter-files.md.

python -m tests.support.adapter_matrix     write the page anew
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from sdlora.adapters.files.foreign import model_of
from sdlora.adapters.files.layer_table import FAMILY_NAMES
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.resolution import FAMILY_TITLES
from sdlora.config.base_model import FamilyName
from sdlora.errors import AdapterError
from tests.support.foreign_adapters import ALGORITHMS, Algorithm, weight_of, write_foreign
from tests.support.foreign_layouts import LAYOUTS, Layout

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "adapter-files.md"
TOLERANCE = 1e-6
"""Largest relative error of an update against its formula: BOFT's reference is in fp32, all others come to 1e-15."""
_FOREIGN = {
    "lora_prior_unet_down_blocks_0_0_channelwise": "",
    "transformer.single_transformer_blocks.0.attn.to_q": "",
    "lora_unet_joint_blocks_0_x_block_attn_qkv": "",
    "diffusion_model.blocks.0.cross_attn.k": "",
    "transformer.transformer_blocks.0.img_mlp.net.2": "",
    "diffusion_model.context_refiner.0.attention.qkv": "",
    "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "",
}


@dataclass(frozen=True)
class Outcome:
    """What reading a file came to."""

    kind: str
    """read, assumed (and said), base (the update depends on the base weights), refused, wrong, or nothing written."""
    error: float = 0.0
    family: FamilyName | None = None
    notes: tuple[str, ...] = ()


@cache
def outcome(layout_name: str, algorithm_name: str, family: FamilyName) -> Outcome:
    """Write a file, read it, and compare every layer with the formula in float64."""
    with tempfile.TemporaryDirectory() as folder:
        return _outcome(Path(folder), LAYOUTS[layout_name], ALGORITHMS[algorithm_name], family)


def _outcome(folder: Path, layout: Layout, algorithm: Algorithm, family: FamilyName) -> Outcome:
    path, expected = write_foreign(folder, layout, algorithm, family)
    if not expected:
        return Outcome("nothing")
    try:
        file = read(path)
        said = file.family is None or any("taken as" in note for note in file.notes)
        if file.family != family and said:
            file = read(path, family)  # as --family does
    except AdapterError as error:
        return Outcome("refused", notes=(str(error),))
    generator = torch.Generator().manual_seed(3)
    largest, needs_base = 0.0, False
    complete = set(file.layer_names) == set(expected)
    for name, one in expected.items():
        if not complete:
            break
        if one.made.update is not None:
            own = file.modules[name]
            weight = weight_of(one.layer, generator)
            found = own.delta() if own.needs_base is None else own.delta_on(weight)
            wanted = one.made.update(weight)
            largest = max(largest, float((found.reshape(wanted.shape) - wanted).norm() / wanted.norm()))
            needs_base = needs_base or file.modules[name].needs_base is not None
        vector = file.vectors.get(name)
        for wanted_vector, part in ((one.made.vector_weight, "weight"), (one.made.vector_bias, "bias")):
            if wanted_vector is not None:
                given = None if vector is None else getattr(vector, part)
                largest = max(largest, 1.0 if given is None else float((given.double() - wanted_vector).abs().max()))
    if not complete:
        kind = "wrong"
    elif largest > TOLERANCE:
        kind = "assumed" if any("alpha 0" in note for note in file.notes) else "wrong"
    else:
        kind = "assumed" if any("alpha" in note for note in file.notes) else "base" if needs_base else "read"
    return Outcome(kind, largest, file.family, file.notes)


_SHOWN = {"read": "yes", "base": "base", "assumed": "said", "refused": "no", "nothing": "", "wrong": "WRONG"}


def algorithms_for(family: FamilyName) -> tuple[str, ...]:
    """All for one family; for the others some of each kind, as only names depend on the family."""
    return tuple(ALGORITHMS) if family == "sd1" else ("LoRA", "DoRA", "LoKr", "full", "OFT", "norms")


def page() -> str:
    """The page's text."""
    lines = [
        "# Adapter files of other tools",
        "",
        "Written by `python -m tests.support.adapter_matrix`, which makes a file of every kind, reads it, and compares",
        "every layer's update with the algorithm's formula in float64.",
        "",
        "- **yes**: read, with the strength that its writer gave it.",
        "- **said**: the file doesn't tell its scale (or tells an alpha of 0); what was taken is said.",
        "- **base**: read; the update depends on the base's weights, so `mix` and `extract` need `--base MODEL`;",
        "  `merge` and `generate` have it anyway.",
        "- empty: no tool writes such a file.",
        "",
        "A layer that the model's family doesn't have, and a tensor that is no part of an adapter, is never skipped in",
        "silence: every command says how many there are and why, and `sdlora inspect --json` lists them. A DoRA whose",
        "magnitude isn't understood is refused, as without it it would be another adapter.",
        "",
        "PyTorch's own files (`.pt`, `.ckpt`, `.bin`) are read, too, as plain tensors only: nothing in them is run.",
        "",
    ]
    for family in FAMILY_NAMES:
        names = algorithms_for(family)
        lines += [f"## {FAMILY_TITLES[family]}", "", f"| | {' | '.join(LAYOUTS)} |", f"|---|{'---|' * len(LAYOUTS)}"]
        for name in names:
            cells = [_SHOWN[outcome(layout, name, family).kind] for layout in LAYOUTS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", "The others are as above: they don't depend on the family.", ""] if family != "sd1" else [""]
    lines += ["## The layouts", "", "| layout | written by |", "|---|---|"]
    lines += [f"| {name} | {layout.who} |" for name, layout in LAYOUTS.items()]
    lines += ["", "## Refused, by its name", "", "| a file with layers such as | is |", "|---|---|"]
    lines += [f"| `{key}` | {model_of([key])} |" for key in _FOREIGN]
    lines += [
        "",
        "All other methods of PEFT (AdaLoRA, VeRA, BOFT, HRA, FourierFT, prompt tuning, ...) and T-LoRA are named and",
        "refused.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} is written")
