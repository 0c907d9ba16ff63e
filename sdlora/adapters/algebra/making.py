"""Adapters and models made out of adapters, from inputs by name to a written file with its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sdlora.adapters.algebra.base_weights import BaseWeights, open_base
from sdlora.adapters.algebra.derived import Provenance, derived_facts, input_facts, operand_facts, write_made
from sdlora.adapters.algebra.extract import Ranks, extract
from sdlora.adapters.algebra.merge import Merged, base_notes, check_fits, merge, refuse_place
from sdlora.adapters.algebra.mix import Mixed, OnProgress, mix
from sdlora.adapters.algebra.operands import ASKED_BY_PERSON, Operand, common_family, load_operands, with_family
from sdlora.adapters.algebra.resize import resize
from sdlora.adapters.files.container import refuse_overwriting, refuse_target
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.adapters.files.writing import Export
from sdlora.config.base_model import BaseModelConfig, FamilyName, Precision
from sdlora.config.calls import ExtractAdapter, MergeAdapters, ResizeAdapter, WrittenFile
from sdlora.config.files import validate
from sdlora.config.given import Values, mix_config
from sdlora.config.mix import MixConfig, MixedAdapter
from sdlora.errors import AdapterError
from sdlora.models.detection import detect
from sdlora.models.dtypes import DTYPES
from sdlora.words import count, first_few


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
    config = mix_config(config)
    written = validate({"target": target, "force": force}, "mix_adapters", WrittenFile)
    target, force = written.target, written.force
    refuse_target(target, force)
    base = None if config.base_model is None else open_base(config.base_model)
    operands = _fitting_operands(config, base)
    result = mix(operands, config, base.weight if base else None, on_progress)
    if base is not None:
        lacking = [name for name in result.modules if name not in base.places]
        told = [f"{base.path.name} has not {count(len(lacking), 'layer')} of the mix: {first_few(lacking)}"]
        result = replace(result, notes=(*result.notes, *base_notes(base, operands), *(told if lacking else [])))
    # Provenance tells only what shaped the result: a seed that nothing drew from would pretend it did.
    unspoken = {"adapters", "precision", "family"} | (set() if config.method.startswith("dare") else {"seed"})
    settings = config.model_dump(mode="json", exclude_none=True, exclude=unspoken)
    if config.method in ("concat", "linear", "svd"):
        settings.pop("density")
    facts = derived_facts(target, [operand.file for operand in operands], result.family)
    provenance = Provenance("mix", [operand_facts(one) for one in operands], settings, result.relative_error)
    return Made(result, write_made(target, result, facts, provenance, precision=config.precision, force=force))


def _fitting_operands(config: MixConfig, base: BaseWeights | None) -> list[Operand]:
    """The adapters of a mix, for its base model if it has one. Raises AdapterError for such as don't fit it."""
    family = None if config.family == "auto" else config.family
    if base is None:
        return load_operands(config.adapters, family)
    if family not in (None, base.family):
        raise AdapterError(f"{base.path.name} is {base.family}, but the family asked for is {family}; leave one away")
    # A person's word overrules what files tell; a base model's only where they don't.
    operands = load_operands(config.adapters, base.family, base.path.name if family is None else ASKED_BY_PERSON)
    check_fits(base, operands)
    return operands


def open_fitting_base(model: str, files: Sequence[AdapterFile]) -> tuple[BaseWeights, list[AdapterFile]]:
    """A base model, and the adapters with its layers' names. Raises AdapterError for such as don't fit it."""
    base = open_base(model)
    family = common_family(files, base.family, base.path.name)
    files = [with_family(file, family) for file in files]
    check_fits(base, [Operand(file) for file in files])
    return base, files


def merge_adapters(
    base: Path | str,
    adapters: Sequence[MixedAdapter | Path | str] | MixedAdapter | Path | str,
    target: Path | str,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Merged:
    """Bake adapters into a base model, see `merge.merge`. Raises what that and `open_base` raise, and ConfigError.

    adapters: one or several, also as the command line spells them:
    `merge_adapters("sd15.safetensors", ["ink.safetensors:0.8"], "new.safetensors")`.
    """
    given = {"base": base, "adapters": adapters, "target": target, "force": force}
    asked = validate(given, "merge_adapters", MergeAdapters)
    target, force = asked.target, asked.force
    refuse_overwriting(target, force)
    model = open_base(asked.base)
    refuse_place(model, target, force)
    operands = load_operands(asked.adapters, model.family, model.path.name)
    return merge(model, operands, target, force=force, on_progress=on_progress)


def extract_adapter(
    tuned: Path | str,
    base: Path | str,
    target: Path | str,
    ranks: Ranks | int | None = None,
    *,
    precision: Precision = "fp16",
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Made:
    """The difference of two models as a new adapter file, see `sdlora.adapters.algebra.extract.extract`.

    ranks: one for all layers, or `Ranks` with that of convolutions or an energy; by default 32.
    For example `extract_adapter("tuned.safetensors", "sd15.safetensors", "tuned-lora.safetensors", 8)`.
    Raises ConfigError listing every problem, beside what that raises.
    """
    sizes = asdict(ranks) if isinstance(ranks, Ranks) else {"rank": ranks}
    if sizes.get("energy") is not None and sizes["rank"] == Ranks.rank:
        sizes["rank"] = None  # the default, which nobody asked for
    given = {"tuned": tuned, "base": base, "target": target, "precision": precision, "force": force}
    asked = validate({**given, **sizes}, "extract_adapter", ExtractAdapter)
    tuned, base, target, precision, force = asked.tuned, asked.base, asked.target, asked.precision, asked.force
    refuse_target(target, force)
    by_rank = Ranks.rank if asked.rank is None else asked.rank
    ranks = Ranks(by_rank if asked.energy is None else None, asked.conv_rank, asked.energy)
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
    Raises ConfigError listing every problem, such as rank and energy together, beside what that raises.
    """
    given = {"source": source, "target": target, "rank": rank, "energy": energy, "precision": precision}
    asked = validate({**given, "family": family, "force": force}, "resize_adapter", ResizeAdapter)
    target, rank, energy, family, force = asked.target, asked.rank, asked.energy, asked.family, asked.force
    refuse_target(target, force)
    file = read(asked.source, family)
    file = with_family(file, common_family([file], family))
    result = resize(file, rank=rank, energy=energy, on_progress=on_progress)
    settings = {"rank": rank} if rank is not None else {"energy": energy}
    provenance = Provenance("resize", [input_facts(file)], settings, result.relative_error)
    facts = derived_facts(target, [file], result.family)
    own = asked.precision or precision_of(file)
    return Made(result, write_made(target, result, facts, provenance, precision=own, force=force, kept=file))


def precision_of(file: AdapterFile) -> Precision:
    """Number type of a file's factors; fp32 where they have several or another one."""
    dtypes = {tensor.dtype for weights in file.modules.values() for tensor in weights.factors.values()}
    by_dtype: dict[torch.dtype, Precision] = {dtype: name for name, dtype in DTYPES.items()}
    return by_dtype.get(dtypes.pop(), "fp32") if len(dtypes) == 1 else "fp32"
