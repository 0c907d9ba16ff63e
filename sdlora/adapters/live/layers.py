"""Which layers of a model get an adapter, and how large each one is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from sdlora.adapters.files.kohya import TEXT_MODEL, Part
from sdlora.adapters.files.layer_sets import TEXT_SETS, UNET_SETS, addressable
from sdlora.config.adapter import REGEX_PREFIX, AdapterConfig
from sdlora.errors import ConfigError

_TEXT_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
FULL_RANK = 100_000
"""Stands for a LoKr whose larger factor is whole, as in kohya's files."""


@dataclass(frozen=True)
class Target:
    """One layer of the UNet or a text encoder that gets an adapter, as `attach` needs to know it."""

    part: Part
    path: str
    """Dotted module path inside the part, as the model itself has it."""
    rank: int
    scale: float
    """What the product of the factors is multiplied by; from here on nobody needs alpha any more."""


@dataclass(frozen=True)
class Selection:
    """The chosen layers, and remarks worth telling the user."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()


def choose(
    models: Mapping[Part, nn.Module], config: AdapterConfig, text_layers: Mapping[Part, int] | None = None
) -> Selection:
    """The layers that `config` asks for, with rank and scale each, in the models' own order.

    models: the UNet, left out without config.unet, and the text encoders, left out without config.text_encoder.
    text_layers: how many layers of a text encoder, from the first, have a say; later ones could not learn and get no
    adapter.
    Raises ConfigError when a pattern matches nothing or no layer is left.
    """
    targets: list[Target] = []
    too_large: list[tuple[Target, int]] = []
    matched, counting = dict[str, None](), set[str]()
    blocks, idle = dict[str, None](), dict[str, None]()
    for part, model in models.items():
        for path, layer in model.named_modules():
            if not _is_chosen(part, path, config):
                continue
            if _is_idle(part, path, text_layers or {}):
                idle[block_of(part, path)] = None
                continue
            blocks[block_of(part, path)] = None
            inputs, outputs, kernel = layer_shape(layer)
            rank = config.conv_rank if config.conv_rank is not None and kernel > 1 else config.rank
            matching = [pattern for pattern in config.block_ranks if matches_block(pattern, part, path)]
            if matching:
                rank = config.block_ranks[matching[-1]]
                matched |= dict.fromkeys(matching)
                counting.add(matching[-1])
            if config.lokr_full and rank > 0:
                # All tools take the scale of a whole LoKr as 1, whatever alpha stands in its file.
                targets.append(Target(part, path, FULL_RANK, 1.0))
            elif rank > 0:
                targets.append(Target(part, path, rank, config.scale(rank, is_conv=kernel > 1)))
                # A matrix has no more rank than its shorter side; what goes beyond is trained and stored for nothing.
                if rank > min(inputs * kernel, outputs):
                    too_large.append((targets[-1], min(inputs * kernel, outputs)))
    problems = [
        f"block_ranks: '{pattern}' matches no chosen layer; blocks with chosen layers: {', '.join(blocks) or 'none'}"
        for pattern in config.block_ranks
        if pattern not in matched
    ]
    problems += [overruled("block_ranks", pattern) for pattern in matched if pattern not in counting]
    if config.unet and all(block.startswith("text_encoder") for block in blocks) and not problems:
        paths = (path for path, _ in models["unet"].named_modules() if addressable("unet", path))
        problems.append(
            f"layers: '{config.layers}' matches no layer of the UNet that other tools can address "
            f"(transformer blocks, resnets, samplers); for example {next(paths, '(this UNet has none)')}"
        )
    if not targets and not problems:
        problems.append("block_ranks: every layer is left out (rank 0), nothing remains to train")
    if problems:
        raise ConfigError("adapter", problems)
    notes: list[str] = []
    if idle:
        notes.append(f"no adapter on {', '.join(idle)}: the UNet takes its text from the layer before")
    if too_large:
        first, limit = too_large[0]
        notes.append(
            f"{len(too_large)} of {len(targets)} layers are smaller than their rank (first: {first.path}, rank "
            f"{first.rank}, full rank {limit}): the surplus costs memory and adds nothing"
        )
    if any(target.rank == 1 for target in targets):
        notes.append("rank 1 is scaled wrongly by stable-diffusion.cpp; use rank 2 or more for files that travel")
    return Selection(tuple(targets), tuple(notes))


def _is_idle(part: Part, path: str, text_layers: Mapping[Part, int]) -> bool:
    """Whether a layer of a text encoder comes after the one that the text states are taken from."""
    number = _TEXT_LAYER.match(path.removeprefix(TEXT_MODEL))
    return part in text_layers and number is not None and int(number[1]) >= text_layers[part]


def overruled(setting: str, pattern: str) -> str:
    """What is wrong with a block pattern whose layers are all matched by one that stands after it."""
    return f"{setting}: '{pattern}' has no effect: of patterns that match a layer the last one counts; put it last"


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


def _is_chosen(part: Part, path: str, config: AdapterConfig) -> bool:
    if not addressable(part, path):
        return False
    if part != "unet":
        wanted = TEXT_SETS[config.text_encoder_layers]
        return config.text_encoder and wanted.fullmatch(path.removeprefix(TEXT_MODEL)) is not None
    if not config.unet:
        return False
    if config.layers.startswith(REGEX_PREFIX):
        return re.search(config.layers.removeprefix(REGEX_PREFIX), path) is not None
    return UNET_SETS[config.layers].fullmatch(path) is not None
