"""A model in the diffusers layout, from a folder or from the hub, through diffusers' and transformers' own loaders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.config.base_model import FamilyName
from sdlora.errors import ModelError
from sdlora.file_memory import Stamp, stamp_of
from sdlora.models.components import TextEncoder, check_complete
from sdlora.models.host import forget_mapped
from sdlora.models.hub import HubModel, explained, model_file, reach
from sdlora.models.progress_bars import no_progress_bars
from sdlora.models.recognition import refuse_quantised_file
from sdlora.models.source import Source, weight_files

Model = TypeVar("Model")

_SMALLEST_VOCABULARY = 256  # one entry a byte


class DiffusersModel:
    """The parts of a diffusers folder or hub model."""

    def __init__(self, source: Source, family: FamilyName, revision: str | None, variant: str | None) -> None:
        self._source = source
        self._family: FamilyName = family
        self._hub = reach(source.name, revision) if source.path is None else None
        self._revision = revision
        self._variant = variant

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet. Raises ModelError when weights are missing, left over or of the wrong shape."""
        return self._load(UNet2DConditionModel, "unet", torch_dtype=dtype)

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """The VAE of the folder `vae`."""
        return self._load(AutoencoderKL, "vae", torch_dtype=dtype)

    def text_encoders(self, dtype: torch.dtype) -> list[TextEncoder]:
        """The text encoder, for SDXL both."""
        encoders: list[TextEncoder] = [self._load(CLIPTextModel, "text_encoder", dtype=dtype)]
        if self._family == "sdxl":
            encoders.append(self._load(CLIPTextModelWithProjection, "text_encoder_2", dtype=dtype))
        return encoders

    def tokenizers(self) -> list[CLIPTokenizer]:
        """The model's own tokenizers. Raises ModelError when one is missing or has no vocabulary."""
        names = ("tokenizer", "tokenizer_2") if self._family == "sdxl" else ("tokenizer",)
        return [self._tokenizer(name) for name in names]

    def scheduler_config(self) -> Mapping[str, Any]:
        """scheduler/scheduler_config.json; empty when there is none."""
        path = model_file(self._source, "scheduler/scheduler_config.json", self._revision)
        if path is None:
            return {}
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def _load(self, kind: type[Model], part: str, **dtype: torch.dtype) -> Model:
        where = f"{self._source.name}/{part}"
        self._refuse_quantised(part)
        return load_pretrained(
            kind, self._source.location, where, self._hub, subfolder=part, variant=self._variant, **dtype
        )

    def _refuse_quantised(self, part: str) -> None:
        """Raise ModelError for packed weights of a hub model; those of a folder were looked at in detecting it."""
        ending = f".{self._variant}" if self._variant else ""
        for start in ("model", "diffusion_pytorch_model") if self._hub is not None else ():
            # Nothing is downloaded twice: the loader takes this file out of the cache.
            if (path := model_file(self._source, f"{part}/{start}{ending}.safetensors", self._revision)) is not None:
                refuse_quantised_file(path)

    def _tokenizer(self, part: str) -> CLIPTokenizer:
        where = f"{self._source.name}/{part}"
        with explained(self._source.name, None):
            try:
                tokenizer = self._read_tokenizer(part)
            except (OSError, ValueError) as error:
                raise ModelError(f"{where}: can't be read: {error}") from error
        if len(tokenizer) < _SMALLEST_VOCABULARY:  # transformers makes an empty one when there are no files
            raise ModelError(f"{where}: has no vocabulary (vocab.json and merges.txt, or tokenizer.json)")
        return tokenizer

    def _read_tokenizer(self, part: str) -> CLIPTokenizer:
        location = self._source.location
        if self._hub is not None:
            return CLIPTokenizer.from_pretrained(location, subfolder=part, **_hub_options(self._hub))
        files = sorted((Path(location) / part).glob("*"))
        return _tokenizer_of(location, part, tuple((file.name, stamp_of(file)) for file in files))


@lru_cache(maxsize=4)
def _tokenizer_of(location: str, part: str, _files: tuple[tuple[str, Stamp | None], ...]) -> CLIPTokenizer:
    """Kept, as reading 49,408 entries takes as long as many a small model; nothing here changes a tokenizer."""
    return CLIPTokenizer.from_pretrained(location, subfolder=part)


def load_vae_folder(source: Source, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE from a folder or the hub, whether its config.json lies at the top or under vae/."""
    hub = reach(source.name, None) if source.path is None else None
    subfolder = "vae" if model_file(source, "config.json", None) is None else ""
    for path in weight_files(source.path / subfolder, None) if source.path is not None else ():
        refuse_quantised_file(path)
    return load_pretrained(AutoencoderKL, source.location, source.name, hub, subfolder=subfolder, torch_dtype=dtype)


def load_pretrained(kind: type[Model], location: str, where: str, hub: HubModel | None, **options: Any) -> Model:
    """`kind.from_pretrained`, every weight accounted for. Raises ModelError instead of what it raises."""
    quiet = no_progress_bars() if hub is None else nullcontext()
    with quiet, explained(location, None), _ForgettingCasts():
        try:
            model, info = kind.from_pretrained(  # type: ignore[attr-defined]
                location, output_loading_info=True, **_hub_options(hub), **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            hint = _variant_hint(location, options)
            raise ModelError(f"{where}: can't be loaded{hint}: {error}") from error
    # position_ids: older files hold these numbers 0 to 76, newer models make them
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith("position_ids")]
    check_complete(where, info["missing_keys"], unexpected)
    if info["mismatched_keys"]:
        raise ModelError(f"{where}: {len(info['mismatched_keys'])} weights have another shape than the config says")
    loaded: Model = model
    return loaded


class _ForgettingCasts(TorchFunctionMode):
    """Inside, pages of mapped files are let go when their weight has been cast to another number type.

    diffusers keeps a file mapped until the last of its weights is cast: without this an fp32 file's pages would be in
    memory beside the whole model.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        if function is Tensor.to and result.dtype != arguments[0].dtype:
            forget_mapped([arguments[0]])
        return result


def _hub_options(hub: HubModel | None) -> dict[str, Any]:
    return {} if hub is None else {"revision": hub.revision, "local_files_only": hub.cached_only}


def _variant_hint(location: str, options: Mapping[str, Any]) -> str:
    """Which variants the folder has, when the one asked for isn't there."""
    folder = Path(location) / options.get("subfolder", "")
    files = [file.name.split(".") for file in folder.glob("*.safetensors")]
    variants = sorted({parts[1] for parts in files if len(parts) == 3})
    if variants and options.get("variant") not in variants:
        return f" (it has the variant {', '.join(variants)}: set base_model.variant)"
    return ""
