"""Adapters and models made out of adapters, from inputs by name to a written file with its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdlora.adapters.algebra.base_weights import open_base
from sdlora.adapters.algebra.derived import Provenance, derived_facts, input_facts, operand_facts, write_made
from sdlora.adapters.algebra.extract import Ranks, extract
from sdlora.adapters.algebra.merge import Merged, merge
from sdlora.adapters.algebra.mix import Mixed, OnProgress, mix
from sdlora.adapters.algebra.operands import common_family, load_operands, with_family
from sdlora.adapters.algebra.resize import resize
from sdlora.adapters.files.container import refuse_overwriting
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.adapters.files.writing import Export
from sdlora.config.base_model import BaseModelConfig, FamilyName, Precision
from sdlora.config.given import Values, mix_config
from sdlora.config.mix import MixConfig, MixedAdapter, parse_adapter
from sdlora.models.detection import detect
from sdlora.models.dtypes import DTYPES


@dataclass(frozen=True)
class Made:
    """A new adapter file: its layers with their errors, and the file."""

    result: Mixed
    export: Export


def mix_adapters(
    config: MixConfig | Values, target: Path | str, *, force: bool = False, on_progress: OnProgress | None = None
) -> Made:
    """Mix adapters into a new file in kohya's layout, see `sdlora.adapters.algebra.mix.mix`.

    config: also values, as in `mix_adapters({"adapters": ["ink.safetensors:0.8"]}, "new.safetensors")`.
    Raises AdapterError and ConfigError as that does, and when `target` exists and not `force`.
    """
    config, target = mix_config(config), Path(target)
    refuse_overwriting(target, force)
    operands = load_operands(config.adapters, None if config.family == "auto" else config.family)
    base = open_base(config.base_model) if config.base_model is not None else None
    result = mix(operands, config, base.weight if base else None, on_progress)
    # Provenance tells only what shaped the result: a seed that nothing drew from would pretend it did.
    unspoken = {"adapters", "precision", "family"} | (set() if config.method.startswith("dare") else {"seed"})
    settings = config.model_dump(mode="json", exclude_none=True, exclude=unspoken)
    if config.method in ("concat", "linear", "svd"):
        settings.pop("density")
    facts = derived_facts(target, [operand.file for operand in operands], result.family)
    provenance = Provenance("mix", [operand_facts(one) for one in operands], settings, result.relative_error)
    return Made(result, write_made(target, result, facts, provenance, precision=config.precision, force=force))


def merge_adapters(
    base: Path | str,
    adapters: Sequence[MixedAdapter | str],
    target: Path | str,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Merged:
    """Bake adapters into a base model, see `merge.merge`. Raises what that and `open_base` raise.

    adapters: also as the command line spells them:
    `merge_adapters("sd15.safetensors", ["ink.safetensors:0.8"], "new.safetensors")`.
    """
    base, target = str(base), Path(target)
    wanted = [parse_adapter(one) if isinstance(one, str) else one for one in adapters]
    refuse_overwriting(target, force)
    model = open_base(base)
    operands = load_operands(wanted, model.family, model.path.name)
    return merge(model, operands, target, force=force, on_progress=on_progress)


def extract_adapter(
    tuned: Path | str,
    base: Path | str,
    target: Path | str,
    ranks: Ranks | None = None,
    *,
    precision: Precision = "fp16",
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Made:
    """The difference of two models as a new adapter file, see `sdlora.adapters.algebra.extract.extract`.

    For example `extract_adapter("tuned.safetensors", "sd15.safetensors", "tuned-lora.safetensors")`.
    """
    tuned, base, target = str(tuned), str(base), Path(target)
    refuse_overwriting(target, force)
    ranks = ranks or Ranks()
    tuned_model, base_model = open_base(tuned), open_base(base)
    result = extract(tuned_model, base_model, ranks, on_progress=on_progress)
    detection = detect(BaseModelConfig(model=tuned))
    edge = detection.native_resolution
    facts = TrainingFacts(target.stem, result.family, prediction=detection.prediction, resolution=(edge, edge))
    settings = {"rank": ranks.rank, "conv_rank": ranks.conv_rank, "energy": ranks.energy}
    told = {name: value for name, value in settings.items() if value is not None}
    provenance = Provenance("extract", [tuned_model.facts()], told, result.relative_error, base_model.facts())
    return Made(result, write_made(target, result, facts, provenance, precision=precision, force=force))


def resize_adapter(
    source: Path | str,
    target: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    precision: Precision | None = None,
    family: FamilyName | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Made:
    """An adapter of another rank as a new file, see `resize.resize`; precision: by default its own.

    For example `resize_adapter("ink.safetensors", "ink-8.safetensors", rank=8)`.
    """
    target = Path(target)
    refuse_overwriting(target, force)
    file = read(source, family)
    file = with_family(file, common_family([file], family))
    result = resize(file, rank=rank, energy=energy, on_progress=on_progress)
    settings = {"rank": rank} if rank is not None else {"energy": energy}
    provenance = Provenance("resize", [input_facts(file)], settings, result.relative_error)
    facts = derived_facts(target, [file], result.family)
    own = precision or precision_of(file)
    return Made(result, write_made(target, result, facts, provenance, precision=own, force=force, kept=file))


def precision_of(file: AdapterFile) -> Precision:
    """Number type of a file's factors; fp32 where they have several or another one."""
    dtypes = {tensor.dtype for weights in file.modules.values() for tensor in weights.factors.values()}
    by_dtype: dict[torch.dtype, Precision] = {dtype: name for name, dtype in DTYPES.items()}
    return by_dtype.get(dtypes.pop(), "fp32") if len(dtypes) == 1 else "fp32"
