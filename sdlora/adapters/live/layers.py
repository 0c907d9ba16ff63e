"""Which layers of a model get an adapter, and how large each one is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from sdlora.adapters.files.kohya import TEXT_MODEL, Part
from sdlora.adapters.files.layer_sets import TEXT_SETS, UNET_SETS, addressable
from sdlora.config.adapter import REGEX_PREFIX, AdapterConfig
from sdlora.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """One layer that gets an adapter. The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank))."""

    part: Part
    path: str
    """Dotted module path inside the part, as the model itself has it."""
    rank: int
    alpha: float


@dataclass(frozen=True)
class Selection:
    """The chosen layers, and remarks worth telling the user."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()


def choose(models: Mapping[Part, nn.Module], config: AdapterConfig) -> Selection:
    """The layers that `config` asks for, with rank and alpha each, in the models' own order.

    models: the UNet, and the text encoders if there are any; these are left out unless config.text_encoder.
    Raises ConfigError when a pattern matches nothing or no layer is left.
    """
    chosen = [(part, path) for part in models for path in _chosen_paths(part, models[part], config)]
    problems = _unmatched_patterns(config.block_ranks, chosen)
    if not any(part == "unet" for part, _ in chosen) and not problems:
        problems.append(
            f"layers: '{config.layers}' matches no layer of the UNet that other tools can address "
            f"(transformer blocks, resnets, samplers); for example {_example(models)}"
        )
    if problems:
        raise ConfigError("adapter", problems)
    targets = [_sized(part, path, models[part].get_submodule(path), config) for part, path in chosen]
    kept = tuple(target for target in targets if target is not None)
    if not kept:
        raise ConfigError("adapter", ["block_ranks: every layer is left out (rank 0), nothing remains to train"])
    return Selection(kept, _rank_notes(kept, models))


def matches_block(pattern: str, part: Part, path: str) -> bool:
    """Whether a block pattern means this module: a prefix at a dot (down_blocks.1), or with wildcards (*.attn2.*).

    A text encoder's layers are named with the part in front, `text_encoder.encoder.layers.0`; the UNet's may be.
    """
    path = path.removeprefix(TEXT_MODEL)
    names = (path, f"unet.{path}") if part == "unet" else (f"{part}.{path}", f"{part}.{TEXT_MODEL}{path}")
    return any(name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) for name in names)


def block_of(part: Part, path: str) -> str:
    """Block that a module belongs to: down_blocks.0, mid_block, up_blocks.3, text_encoder.encoder.layers.11."""
    path = path.removeprefix(TEXT_MODEL)
    if part != "unet":
        return ".".join([part, *path.split(".")[:3]])
    return ".".join(path.split(".")[: 1 if path.startswith("mid_block") else 2])


def layer_shape(layer: nn.Module) -> tuple[int, int, int]:
    """Inputs, outputs and kernel elements (1 for linear layers) of a linear layer or convolution, quantised or not."""
    if isinstance(getattr(layer, "in_features", None), int):
        return int(layer.in_features), int(layer.out_features), 1  # type: ignore[arg-type]
    height, width = layer.kernel_size  # type: ignore[misc]
    return int(layer.in_channels), int(layer.out_channels), int(height) * int(width)  # type: ignore[arg-type]


def _chosen_paths(part: Part, model: nn.Module, config: AdapterConfig) -> list[str]:
    paths = [path for path, _ in model.named_modules() if addressable(part, path)]
    if part != "unet":
        if not config.text_encoder:
            return []
        pattern = TEXT_SETS[config.text_encoder_layers]
        return [path for path in paths if pattern.fullmatch(path.removeprefix(TEXT_MODEL))]
    if config.layers.startswith(REGEX_PREFIX):
        regex = re.compile(config.layers.removeprefix(REGEX_PREFIX))
        return [path for path in paths if regex.search(path)]
    return [path for path in paths if UNET_SETS[config.layers].fullmatch(path)]


def _sized(part: Part, path: str, layer: nn.Module, config: AdapterConfig) -> Target | None:
    """The target with its rank and alpha; None when a block pattern leaves it out. The last matching pattern wins."""
    is_conv = layer_shape(layer)[2] > 1
    rank = config.resolved_conv_rank if is_conv else config.rank
    alpha = config.resolved_conv_alpha if is_conv else config.resolved_alpha
    ratio = alpha / rank
    for pattern, block_rank in config.block_ranks.items():
        if matches_block(pattern, part, path):
            rank, alpha = block_rank, ratio * block_rank
    return Target(part, path, rank, alpha) if rank > 0 else None


def _unmatched_patterns(patterns: Iterable[str], chosen: Sequence[tuple[Part, str]]) -> list[str]:
    blocks = list(Counter(block_of(part, path) for part, path in chosen))
    return [
        f"block_ranks: '{pattern}' matches no chosen layer; blocks with chosen layers: {', '.join(blocks) or 'none'}"
        for pattern in patterns
        if not any(matches_block(pattern, part, path) for part, path in chosen)
    ]


def _rank_notes(targets: Sequence[Target], models: Mapping[Part, nn.Module]) -> tuple[str, ...]:
    notes: list[str] = []
    too_large = []
    for target in targets:
        inputs, outputs, kernel = layer_shape(models[target.part].get_submodule(target.path))
        if target.rank > min(inputs * kernel, outputs):
            too_large.append((target, min(inputs * kernel, outputs)))
    if too_large:
        first, limit = too_large[0]
        notes.append(
            f"{len(too_large)} of {len(targets)} layers are smaller than their rank (first: {first.path}, rank "
            f"{first.rank}, full rank {limit}): the surplus costs memory and adds nothing"
        )
    if any(target.rank == 1 for target in targets):
        notes.append("rank 1 is scaled wrongly by stable-diffusion.cpp; use rank 2 or more for files that travel")
    return tuple(notes)


def _example(models: Mapping[Part, nn.Module]) -> str:
    paths = (path for path, _ in models["unet"].named_modules() if addressable("unet", path))
    return next(paths, "(this UNet has none)")
