"""A base model's layers by kohya name, whatever layout it lies in: where each weight stands, each read singly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.kohya import PARTS, TEXT_PROJECTION, Part, from_ldm, kohya_name, prefix, to_ldm
from sdlora.adapters.files.tensor_files import TensorFile
from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.errors import ModelError
from sdlora.models.detection import detect
from sdlora.models.headers import file_tensor_hash
from sdlora.models.hub import explained
from sdlora.models.recognition import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_TEXT_2_PREFIX,
    SDXL_TEXT_PREFIX,
    UNET_PREFIX,
)
from sdlora.models.source import locate

_WEIGHT = ".weight"
_TEXT_PREFIXES: dict[FamilyName, tuple[str, ...]] = {
    "sd1": (SD1_TEXT_PREFIX,),
    "sd2": (SD2_TEXT_PREFIX,),
    "sdxl": (SDXL_TEXT_PREFIX, SDXL_TEXT_2_PREFIX),
}
# Single files of SD 2.x and SDXL have OpenCLIP's names, folders those of transformers.
_OPENCLIP = re.compile(
    r"transformer\.resblocks\.(\d+)\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_(?:fc|proj)\.weight)"
)
_OPENCLIP_ENDS = {
    "attn.out_proj.weight": "self_attn.out_proj",
    "mlp.c_fc.weight": "mlp.fc1",
    "mlp.c_proj.weight": "mlp.fc2",
}
_OPENCLIP_VECTOR = re.compile(
    r"transformer\.resblocks\.(\d+)\.(attn\.out_proj|mlp\.c_fc|mlp\.c_proj|ln_1|ln_2)\.(weight|bias)"
)
_OPENCLIP_LAYERS = {
    "attn.out_proj": "self_attn_out_proj",
    "mlp.c_fc": "mlp_fc1",
    "mlp.c_proj": "mlp_fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OPENCLIP_QKV_BIAS = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_bias")
VectorPlace = tuple[str, Literal["weight", "bias"]]
"""A layer by kohya name, and which of its vectors: a norm's weight, or the bias."""
_HUB_FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
# Twins of the same weights: each would double the download.
_HUB_NOT = ["*.fp16.safetensors", "*non_ema*", "*flax*", "*onnx*", "*openvino*"]


@dataclass(frozen=True)
class TensorSlice:
    """Where a layer's weight lies: a tensor of a file, or some of its rows (OpenCLIP keeps q, k and v in one)."""

    file: TensorFile
    tensor: str
    rows: slice
    transposed: bool = False
    """OpenCLIP keeps the output projection so."""

    def of(self, tensor: Tensor) -> Tensor:
        """This layer's part of the whole tensor, as a view."""
        return (tensor.T if self.transposed else tensor)[self.rows]

    def read(self) -> Tensor:
        """The weight, in the file's number type."""
        return self.of(self.file.read(self.tensor))

    @property
    def shape(self) -> torch.Size:
        """Shape of these rows of the tensor."""
        whole = self.file.shape(self.tensor)
        whole = whole[::-1] if self.transposed else whole
        start, stop, _ = self.rows.indices(whole[0])
        return torch.Size((stop - start, *whole[1:]))


@dataclass(frozen=True)
class BaseWeights:
    """A base model as its layers' weights. `path` is its folder or file."""

    path: Path
    family: FamilyName
    is_folder: bool
    places: dict[str, TensorSlice]
    """By kohya name as this package writes it."""
    vectors: dict[VectorPlace, TensorSlice]
    """Biases, and the weights of norms."""
    prediction: Prediction | None = None
    """What it predicts; None where its files don't tell."""
    others: dict[str, TensorSlice] = field(default_factory=dict)
    """What no adapter changes (token embeddings, in one file the VAE), by the name that its own layout has for it."""

    def facts(self) -> dict[str, Any]:
        """For provenance: the model's name, and the hash of each weight file's tensors."""
        folder = self.path if self.is_folder else self.path.parent
        files = sorted({place.file.path for place in self.places.values()})
        return {
            "file": self.path.name,
            "hashes": {path.relative_to(folder).as_posix(): file_tensor_hash(path) for path in files},
        }

    def weight(self, name: str) -> Tensor:
        """A layer's weight. Raises ModelError when the model has no such layer."""
        if name not in self.places:
            raise ModelError(f"{self.path.name} has no layer {name}")
        return self.places[name].read()


def open_base(model: str) -> BaseWeights:
    """A model's layers: a diffusers folder, a single .safetensors file, `builtin:...` or a hub name (downloaded).

    hf://owner/name is a hub name too, hf://owner/name/file.safetensors a file there.

    Raises ModelError: not found, no Stable Diffusion model, weights not in safetensors.
    """
    if model.startswith("hf://"):
        named = model.removeprefix("hf://")
        model = named if named.count("/") == 1 else str(local_file(model))
    config = BaseModelConfig(model=model)
    found = detect(config)
    family, prediction = found.family, found.prediction if found.prediction_told else None
    source = locate(model)
    path = _downloaded(model) if source.path is None else source.path
    if path.is_file():
        file = TensorFile(path)
        places, vectors = dict(_places_in_file(file, family)), dict(_vectors_in(file, family))
        return BaseWeights(path, family, False, places, vectors, prediction, _others([("", file)], places, vectors))
    places = dict(_places_in_folder(path, family))
    if not places:
        raise ModelError(f"{path} holds no .safetensors weights; convert the model to safetensors first")
    vectors = {
        place: TensorSlice(file, tensor, slice(None))
        for part, file in _full_precision_last(path)
        for place, tensor in vector_names(file, part, family).items()
    }
    others = _others(_full_precision_last(path), places, vectors)
    return BaseWeights(path, family, True, places, vectors, prediction, others)


def _others(
    files: Iterable[tuple[str, TensorFile]],
    places: Mapping[str, TensorSlice],
    vectors: Mapping[VectorPlace, TensorSlice],
) -> dict[str, TensorSlice]:
    """Weights that are in neither; not a moving average's copies, which no tool generates by."""
    known = {place.tensor for place in (*places.values(), *vectors.values())}
    return {
        f"{part}.{name}" if part else name: TensorSlice(file, name, slice(None))
        for part, file in files
        for name in file.names()
        if name not in known and name.endswith((_WEIGHT, ".bias", "_embedding")) and not name.startswith("model_ema.")
    }


def weight_files(folder: Path) -> Iterator[tuple[Part, Path]]:
    """The weight files of a diffusers folder's UNet and text encoders, whatever their variant."""
    for part in PARTS:
        for file in sorted((folder / part).glob("*.safetensors")):
            yield part, file


def layer_names(file: TensorFile, part: Part, family: FamilyName) -> dict[str, str]:
    """Tensor of a diffusers weight file by the kohya name of its layer."""
    return {
        kohya_name(part, tensor.removesuffix(_WEIGHT), family): tensor
        for tensor in file.names()
        if tensor.endswith(_WEIGHT) and len(file.shape(tensor)) in (2, 4)
    }


def vector_names(file: TensorFile, part: Part, family: FamilyName) -> dict[VectorPlace, str]:
    """The same for biases and the weights of norms."""
    found: dict[VectorPlace, str] = {}
    for tensor in file.names():
        path, _, kind = tensor.rpartition(".")
        if len(file.shape(tensor)) == 1 and kind in ("weight", "bias"):
            found[kohya_name(part, path, family), "weight" if kind == "weight" else "bias"] = tensor
    return found


def _full_precision_last(folder: Path) -> Iterator[tuple[Part, TensorFile]]:
    """The weight files, variants (.fp16) first, so that the full-precision weights of a layer win."""
    # A variant's name has a dot more; of two files with one layer the later one is taken.
    for part, path in sorted(weight_files(folder), key=lambda item: -item[1].name.count(".")):
        yield part, TensorFile(path)


def _places_in_folder(folder: Path, family: FamilyName) -> Iterator[tuple[str, TensorSlice]]:
    for part, file in _full_precision_last(folder):
        for name, tensor in layer_names(file, part, family).items():
            yield name, TensorSlice(file, tensor, slice(None))


def _places_in_file(file: TensorFile, family: FamilyName) -> Iterator[tuple[str, TensorSlice]]:
    prefixes = _TEXT_PREFIXES[family]
    for tensor in file.names():
        if len(file.shape(tensor)) not in (2, 4):
            continue
        if tensor.startswith(UNET_PREFIX) and tensor.endswith(_WEIGHT):
            flat = from_ldm(tensor.removeprefix(UNET_PREFIX).removesuffix(_WEIGHT).replace(".", "_"))
            yield f"lora_unet_{to_ldm(flat) if family == 'sdxl' else flat}", TensorSlice(file, tensor, slice(None))
        for part, start in zip(PARTS[1:], prefixes, strict=False):
            if tensor.startswith(start):
                yield from _text_places(file, tensor, tensor.removeprefix(start), part, family)


def _text_places(
    file: TensorFile, tensor: str, inside: str, part: Part, family: FamilyName
) -> Iterator[tuple[str, TensorSlice]]:
    match = _OPENCLIP.fullmatch(inside)
    if match is None:
        if inside == TEXT_PROJECTION:
            yield kohya_name(part, TEXT_PROJECTION, family), TensorSlice(file, tensor, slice(None), transposed=True)
        if inside.endswith(_WEIGHT) and ".encoder.layers." in f".{inside}":
            yield kohya_name(part, inside.removesuffix(_WEIGHT), family), TensorSlice(file, tensor, slice(None))
        return
    start = f"{prefix(part, family)}_text_model_encoder_layers_{match[1]}_"
    if match[2] in _OPENCLIP_ENDS:
        yield start + _OPENCLIP_ENDS[match[2]].replace(".", "_"), TensorSlice(file, tensor, slice(None))
        return
    # OpenCLIP keeps q, k and v in one matrix, one below the other.
    width = file.shape(tensor)[0] // 3
    for index, letter in enumerate("qkv"):
        yield f"{start}self_attn_{letter}_proj", TensorSlice(file, tensor, slice(index * width, (index + 1) * width))


def _vectors_in(file: TensorFile, family: FamilyName) -> Iterator[tuple[VectorPlace, TensorSlice]]:
    for tensor in file.names():
        path, _, ending = tensor.rpartition(".")
        if len(file.shape(tensor)) != 1:
            continue
        kind: Literal["weight", "bias"] = "weight" if ending == "weight" else "bias"
        whole = TensorSlice(file, tensor, slice(None))
        if tensor.startswith(UNET_PREFIX) and ending in ("weight", "bias"):
            flat = from_ldm(path.removeprefix(UNET_PREFIX).replace(".", "_"))
            yield (f"lora_unet_{to_ldm(flat) if family == 'sdxl' else flat}", kind), whole
        for part, start in zip(PARTS[1:], _TEXT_PREFIXES[family], strict=False):
            if tensor.startswith(start):
                yield from _text_vectors(whole, tensor.removeprefix(start), part, family)


def _text_vectors(
    whole: TensorSlice, inside: str, part: Part, family: FamilyName
) -> Iterator[tuple[VectorPlace, TensorSlice]]:
    path, _, ending = inside.rpartition(".")
    kind: Literal["weight", "bias"] = "weight" if ending == "weight" else "bias"
    start = f"{prefix(part, family)}_text_model_"
    if match := _OPENCLIP_VECTOR.fullmatch(inside):
        yield (f"{start}encoder_layers_{match[1]}_{_OPENCLIP_LAYERS[match[2]]}", kind), whole
    elif match := _OPENCLIP_QKV_BIAS.fullmatch(inside):
        width = whole.shape[0] // 3
        for index, letter in enumerate("qkv"):
            rows = slice(index * width, (index + 1) * width)
            place = f"{start}encoder_layers_{match[1]}_self_attn_{letter}_proj"
            yield (place, "bias"), TensorSlice(whole.file, whole.tensor, rows)
    elif path == "ln_final":
        yield (f"{start}final_layer_norm", kind), whole
    elif ending in ("weight", "bias") and ("encoder.layers." in path or path.endswith("final_layer_norm")):
        yield (kohya_name(part, path, family), kind), whole


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    with explained(name, None):
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_NOT))
