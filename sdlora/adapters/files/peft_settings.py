"""The scale of a PEFT adapter, told beside its tensors: by adapter_config.json, or an entry of diffusers' header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch

from sdlora.adapters.files.hub_files import PEFT_CONFIG, PEFT_FILES
from sdlora.adapters.files.weights import ModuleWeights
from sdlora.errors import AdapterError
from sdlora.text_files import parse_json, read_text

_READ = ("LORA", "LOHA", "LOKR", "OFT", "IA3")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take the adapter out of the base weights: without the changed base it is another adapter."""
_OTHER_FORMULAS = {
    "use_qalora": "QALoRA, which averages inputs",
    "use_bdlora": "BD-LoRA, whose factors are of blocks",
    "alora_invocation_tokens": "aLoRA, which acts behind certain tokens only",
    "kasa_config": "KaSA, which takes small parts out of the base's weights",
    "arrow_config": "Arrow, which chooses among adapters",
    "layer_replication": "for a model whose layers were repeated (layer_replication)",
}
"""Settings of PEFT's LoRA with which its factors are not simply multiplied."""
_NO_SCALE: dict[str, Any] = {}


@dataclass(frozen=True)
class PeftSettings:
    """Settings by part; of adapter_config.json the same for all."""

    by_part: Mapping[str, Mapping[str, Any]]
    source: str
    """Where they stand, for messages; empty when there are none."""

    @property
    def use_dora(self) -> bool:
        """Whether any part was trained as DoRA."""
        return any(own.get("use_dora") for own in self.by_part.values())

    def rank(self, part: str, path: str) -> int | None:
        """The rank that a layer has by these settings; None where they tell none."""
        settings = self.by_part.get(part, self.by_part.get("", _NO_SCALE))
        rank = _by_pattern(settings.get("rank_pattern"), path, settings.get("r"))
        return rank if isinstance(rank, int) and rank > 0 else None

    def scaled(self, part: str, path: str, weights: ModuleWeights) -> ModuleWeights:
        """A layer with the alpha that these settings give it; unchanged when it has one, or they tell none.

        path: dotted, inside the part, as the file spells it.
        """
        settings = self.by_part.get(part, self.by_part.get("", _NO_SCALE))
        alpha = settings.get("lora_alpha", settings.get("alpha"))
        alpha = _by_pattern(settings.get("alpha_pattern"), path, alpha)
        if isinstance(alpha, str) or (isinstance(alpha, float) and not isfinite(alpha)):
            kind = "the text " if isinstance(alpha, str) else ""
            raise AdapterError(f"{self.source}: an alpha is {kind}{alpha!r}; make it a number, as PEFT writes it")
        if weights.alpha is not None or not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
            return weights
        if weights.algorithm == "lora":
            # the tensors tell the rank, whatever rank_pattern says
            # Our scale is alpha / rank, so rsLoRA's alpha / sqrt(rank) becomes alpha * sqrt(rank).
            return replace(weights, alpha=alpha * sqrt(weights.rank) if settings.get("use_rslora") else float(alpha))
        rank = _by_pattern(settings.get("rank_pattern"), path, settings.get("r"))
        if weights.algorithm not in ("loha", "lokr") or not isinstance(rank, int) or rank < 1:
            return weights
        if not weights.is_full_lokr:
            # PEFT divides by the r of its settings, from which the inner size of a file's factors may differ.
            return replace(weights, alpha=alpha / rank * weights.rank)
        # PEFT scales this one too, LyCORIS and all others don't: so it goes into a factor
        first = weights.factors["lokr_w1"]
        scaled = (first.double() * (alpha / rank)).to(first.dtype if alpha == rank else torch.float32)
        return replace(weights, factors={**weights.factors, "lokr_w1": scaled})


def peft_settings(path: Path, metadata: Mapping[str, str], layout: str) -> PeftSettings:
    """The settings of a file: of the neighbour for PEFT's layout or file name, else of diffusers' header entry.

    Raises AdapterError for algorithms and beginnings that make it another adapter than its tensors look like.
    """
    beside = path.parent / PEFT_CONFIG
    if ("peft" in layout or path.name in PEFT_FILES) and beside.is_file():
        return PeftSettings({"": _checked(_settings(beside), path)}, PEFT_CONFIG)
    try:
        declared = parse_json(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        declared = {}
    by_part: dict[str, dict[str, Any]] = {}
    for key, value in declared.items() if isinstance(declared, dict) else ():
        part, _, name = key.partition(".")
        by_part.setdefault(part, {})[name] = value
    return PeftSettings({part: _checked(own, path) for part, own in by_part.items()}, "its header" if by_part else "")


def refuse_unread_peft(path: Path) -> None:
    """Raise AdapterError where the settings beside a file that PEFT saved name a method that isn't read.

    By its tensors alone it might look like another: prompt tuning like an embedding, AdaLoRA like LoRA.
    """
    beside = path.parent / PEFT_CONFIG
    if path.name in PEFT_FILES and beside.is_file():
        try:
            config = _settings(beside)
        except AdapterError:
            return  # whoever needs the scale says that there is none
        _refuse_unread(config, path)


def _refuse_unread(config: Mapping[str, Any], path: Path) -> None:
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind not in _READ:
        raise AdapterError(f"{path.name} is PEFT's {kind}, which is not read; {', '.join(_READ)} are")


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: not valid JSON, so the adapter's scale isn't known: {error}") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: holds no settings, so the adapter's scale isn't known")
    return content


def _checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    _refuse_unread(config, path)
    kind = str(config.get("peft_type", "LORA")).upper()
    for setting, what in _OTHER_FORMULAS.items() if kind == "LORA" else ():
        if config.get(setting):
            raise AdapterError(f"{path.name} is {what}: that is not read")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{path.name} was begun by {begun}, which takes the adapter out of the base's weights: on the plain base "
            "it is another adapter. Save it converted (PEFT: path_initial_model_for_weight_conversion)"
        )
    if kind == "OFT" and (config.get("coft") or config.get("use_cayley_neumann") is False):
        raise AdapterError(f"{path.name} is OFT with coft or without the Cayley-Neumann series, which is not read")
    if kind == "OFT" and config.get("num_cayley_neumann_terms", 5) != 5:
        raise AdapterError(f"{path.name} is OFT with another number of Cayley-Neumann terms than 5, which is not read")
    return config


def _by_pattern(patterns: Any, path: str, otherwise: Any) -> Any:
    """PEFT's rule: the first pattern that is the path or its end, from a dot on."""
    if not isinstance(patterns, dict):
        return otherwise
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error:
            continue
    return otherwise
