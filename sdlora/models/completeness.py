"""Whether all parts of a base model are there that a run or an image needs, before the first of them is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdlora.config.base_model import BaseModelConfig, FamilyName
from sdlora.errors import ModelError
from sdlora.models.headers import Header, read_header
from sdlora.models.hub import model_file
from sdlora.models.recognition import VAE_PREFIX
from sdlora.models.source import Source, locate
from sdlora.text_files import parse_json, read_text

_LATENT_CHANNELS = 4
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_WEIGHTS = ("model", "diffusion_pytorch_model", "pytorch_model")
"""What transformers and diffusers call the weights of a part, before a variant's name."""
_VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))


def check_parts(config: BaseModelConfig, family: FamilyName) -> None:
    """Raise ModelError, listing all parts that are missing or can't be what they should: by names, configs and headers.

    What lies on the hub is left to its loader.
    """
    source = locate(config.model)
    if source.kind != "builtin" and (problems := [*_of_model(source, config, family)]):
        raise ModelError("; ".join(problems))


def check_vae(name: str) -> None:
    """The same of base_model.vae, be it on the hub."""
    if problems := [*_of_vae(name)]:
        raise ModelError("; ".join(problems))


def _of_model(source: Source, config: BaseModelConfig, family: FamilyName) -> Iterator[str]:
    if source.path is None:
        return
    if source.kind == "file":
        if config.vae is None and not read_header(source.path).has(VAE_PREFIX):
            yield f"{source.name}: holds no VAE; give one as base_model.vae"
        return
    second = family == "sdxl"
    for part in ("text_encoder", *(["text_encoder_2"] if second else []), "unet"):
        yield from _of_weights(source.name, source.path / part, config.variant)
    for part in ("tokenizer", *(["tokenizer_2"] if second else [])):
        folder = source.path / part
        if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
            yield f"{source.name}/{part}: has no vocabulary (vocab.json and merges.txt, or tokenizer.json)"
    if config.vae is None:
        yield from _of_weights(source.name, source.path / "vae", config.variant)
        yield from _of_config(f"{source.name}/vae", source.path / "vae" / "config.json")


def _of_weights(model: str, folder: Path, variant: str | None) -> Iterator[str]:
    where = f"{model}/{folder.name}"
    if not (folder / "config.json").is_file():
        yield f"{where}: can't be loaded: {'has no config.json' if folder.is_dir() else 'there is no such folder'}"
        return
    files = [path for ending in ("safetensors", "bin") for path in folder.glob(f"*.{ending}")]
    stems = {_SHARD.sub("", path.stem) for path in files}
    wanted = {f"{name}.{variant}" if variant else name for name in _WEIGHTS}
    if not stems & wanted:
        split = [stem.partition(".") for stem in stems]
        variants = sorted({rest for name, _, rest in split if rest and name in _WEIGHTS})
        told = f" (it has the variant {', '.join(variants)}: set base_model.variant)" if variants else ""
        yield f"{where}: can't be loaded{told}: holds no weights{f' of the variant {variant}' if variant else ''}"


def _of_vae(name: str) -> Iterator[str]:
    """What is wrong with base_model.vae."""
    source = locate(name)
    if source.kind == "file":
        assert source.path is not None
        yield from _of_latents(name, read_header(source.path))
        return
    for place in ("config.json", "vae/config.json"):
        if (path := model_file(source, place, None)) is not None:
            yield from _of_config(name, path)
            return
    yield f"{name}: holds no VAE: neither config.json nor vae/config.json is there"


def _of_latents(where: str, header: Header) -> Iterator[str]:
    """Of a VAE in a file: whether it is one, for latents of Stable Diffusion."""
    shapes = {name.removeprefix(VAE_PREFIX): shape for name, shape in header.shapes.items()}
    if "encoder.conv_in.weight" not in shapes:
        yield f"{where}: holds no VAE of Stable Diffusion, which base_model.vae must be"
    elif (shape := shapes.get("decoder.conv_in.weight", ())) and shape[1:2] not in ((), (_LATENT_CHANNELS,)):
        yield _other_latents(where, shape[1])


def _of_config(where: str, path: Path) -> Iterator[str]:
    """The same of one in a folder, by its config.json."""
    if not path.is_file():
        return
    try:
        content: Any = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        yield f"{where}: its config.json is not valid JSON: {error}"
        return
    told = content if isinstance(content, dict) else {}
    if (kind := told.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        yield f"{where}: is of the kind {kind}, not AutoencoderKL, which base_model.vae must be"
    elif (channels := told.get("latent_channels", _LATENT_CHANNELS)) != _LATENT_CHANNELS:
        yield _other_latents(where, channels)


def _other_latents(where: str, channels: int) -> str:
    return (
        f"{where}: is a VAE for latents of {channels} channels, such as Flux and Stable Diffusion 3 have; those of "
        f"Stable Diffusion 1.x, 2.x and SDXL have {_LATENT_CHANNELS}"
    )
