"""The tensor names of adapter files, sorted by layer, whoever wrote them.

kohya's sd-scripts and LyCORIS, diffusers with its old attention processors, PEFT, ComfyUI, OneTrainer, SimpleTuner,
ai-toolkit. Pure string maps: a library of a thousand files is described from their headers, without torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sdlora.adapters.files.foreign import algorithm_named, unknown_layer, unread_part
from sdlora.config.adapter import Algorithm

Format = Literal["kohya", "diffusers"]
"""The layouts that are written."""
FileAlgorithm = Literal["lora", "loha", "lokr", "full", "glora", "ia3", "oft"]
"""What a layer of a file may be: what can be trained here, and more. BOFT is counted as OFT."""

LORA_FACTORS = ("lora_down", "lora_up", "lora_mid")
LOHA_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR_FACTORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
GLORA_FACTORS = ("a1", "a2", "b1", "b2", "bm")
IA3_FACTORS = ("ia3", "ia3_l", "on_input")
OFT_FACTORS = ("oft_blocks", "rescale", "oft_R", "scaled_oft")
FACTORS: dict[FileAlgorithm, tuple[str, ...]] = {
    "lora": LORA_FACTORS,
    "lokr": LOKR_FACTORS,
    "loha": LOHA_FACTORS,
    "full": ("diff",),
    "glora": GLORA_FACTORS,
    "ia3": IA3_FACTORS,
    "oft": OFT_FACTORS,
}
ALGORITHM_NAMES: dict[FileAlgorithm, str] = {
    "lora": "LoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "full": "full weights",
    "glora": "GLoRA",
    "ia3": "IA3",
    "oft": "OFT",
}
_KIND_OF = {factor: algorithm for algorithm, factors in FACTORS.items() for factor in factors}
BESIDE = ("alpha", "scalar", "dora_scale", "magnitude", "lora_bias", "diff_b", "w_norm", "b_norm")
"""Tensors of a layer that go with any algorithm, or stand alone."""
TRAINABLE: dict[FileAlgorithm, Algorithm] = {"lora": "lora", "loha": "loha", "lokr": "lokr"}

_SPELLED = {
    "lora_A": "lora_down",
    "lora_B": "lora_up",
    "lora.down": "lora_down",
    "lora.up": "lora_up",
    "lora_magnitude_vector": "magnitude",
}
_BARE = (*LORA_FACTORS, *LOHA_FACTORS, *LOKR_FACTORS, *GLORA_FACTORS, "ia3_l", "on_input", *OFT_FACTORS)
_PACKED = r"scale_weight|weight_scale|scale_input|weight_format|absmax|quant_map|SCB|comfy_quant"
"""Ends of the names of tensors without which those of packed factors mean nothing."""
_KEY = re.compile(
    r"(?P<path>.+?)\.(?:"
    # PEFT keeps the adapter's own name between factor and `weight`
    r"(?P<peft>lora_A|lora_B|lora_down|lora_up|lora_magnitude_vector|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?"
    r"|oft_R|ia3_l)"
    rf"(?:\.(?!(?:weight|bias|{_PACKED})$)[\w-]+)?"
    rf"|(?P<plain>{'|'.join(re.escape(name) for name in (*_BARE, *_SPELLED, 'diff', *BESIDE))})"
    r")(?P<end>\.weight|\.bias)?"
)
_OLD_PROCESSOR = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(?=down|up)")
_OLD_TEXT = re.compile(r"(?<=\.self_attn\.)to_(q|k|v|out)$")
"""How diffusers called the projections of a text encoder before 0.17."""
_KOHYA = re.compile(r"(?:lora|lycoris|oft)_(unet|te1|te2|te)[._](.+)|lycoris_(.+)|diffusion_model_(.+)")
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "model.")
"""Levels that wrapping a model for training puts before its names."""
_DOTTED: tuple[tuple[str, str, str], ...] = (
    ("diffusion_model.", "unet", "comfyui"),
    ("text_encoders.clip_l.", "te", "comfyui"),
    ("text_encoders.clip_g.", "te2", "comfyui"),
    ("text_encoders.clip_h.", "te", "comfyui"),
    ("clip_l.", "te", "comfyui"),
    ("clip_g.", "te2", "comfyui"),
    ("clip_h.", "te", "comfyui"),
    ("conditioner.embedders.0.", "te1", "original"),
    ("conditioner.embedders.1.", "te2", "original"),
    ("cond_stage_model.", "te", "original"),
    ("text_encoder_2.", "te2", "diffusers"),
    ("text_encoder_1.", "te", "diffusers"),
    ("text_encoder.", "te", "diffusers"),
    ("unet.", "unet", "diffusers"),
)
_UNET_STARTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "conv_norm_out.")
_UNET_EMBEDDINGS = ("time_embedding.", "add_embedding.")
_LDM_STARTS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_TEXT_STARTS = ("text_model.", "encoder.layers.", "text_projection.", "final_layer_norm.")
_OPENCLIP = {"attn_out_proj": "self_attn_out_proj", "mlp_c_fc": "mlp_fc1", "mlp_c_proj": "mlp_fc2"}
_SCALE = re.compile(r"[._](?:lora_?)?(?:alpha|scale|scaling|multiplier)(?:\.weight)?$", re.IGNORECASE)
_RESBLOCK = re.compile(r"(?:model_)?transformer_resblocks_(\d+)_(.+)")


@dataclass(frozen=True)
class LayerKeys:
    """Which tensors of a file belong to which layer. Every name is in `layers` or in `unused`."""

    layout: str
    """Who names layers so: kohya, diffusers, peft, comfyui, original, or several of them."""
    layers: dict[str, dict[str, str]]
    """Layer by kohya-like name (in the file's own spelling of blocks) to factor name to the tensor's own name."""
    paths: dict[str, str] = field(default_factory=dict)
    """Dotted path of each layer inside its part, as the file spells it; PEFT's patterns are about these."""
    unused: dict[str, str] = field(default_factory=dict)
    """Names that mean no part of an adapter, with the reason."""

    @property
    def other_algorithm(self) -> str | None:
        """The algorithm, of those not read, that has a factor more on some layer: without it that is another update."""
        named = {key: what for key in self.unused if (what := algorithm_named([key]))}
        return next((w for key, w in named.items() if any(f"{path}." in key for path in self.paths.values())), None)

    @property
    def packed(self) -> str | None:
        """What is wrong with it where a tensor goes with factors in packed or scaled numbers: the end of a sentence."""
        marks = re.compile(rf"\.(?:{'|'.join(map(re.escape, (*_BARE, *_SPELLED, 'diff')))})\..*\b(?:{_PACKED})$")
        key = next((key for key in self.unused if marks.search(key)), None)
        words = "goes with some of its factors), which is not read: take it in fp16, bf16 or fp32"
        return None if key is None else f"is quantised ({key} {words}"

    @property
    def strange_scale(self) -> str | None:
        """A tensor that by its name scales a layer that is read, in a way that is not understood."""
        scales = [(key, f"{_SCALE.sub('', key)}.") for key in self.unused if _SCALE.search(key)]
        read = [key for layer in self.layers.values() for key in layer.values()] if scales else []
        return next((key for key, start in scales if any(one.startswith(start) for one in read)), None)


def by_layer(keys: Iterable[str]) -> LayerKeys:
    """Sort the tensor names of a file by layer."""
    keys = list(keys)
    # LyCORIS calls IA3's factor plainly `weight`; only `on_input` beside it tells it from a weight of the model.
    scaled = {key.removesuffix(".on_input") for key in keys if key.endswith(".on_input")}
    grouped: dict[str, dict[str, str]] = defaultdict(dict)
    layouts: dict[str, None] = {}
    paths: dict[str, str] = {}
    unused: dict[str, str] = {}
    sources: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for key in keys:
        split = _factor(key, scaled)
        place = None if split is None else _place(split[0])
        if split is None or place is None:
            unused[key] = unread_part(key) if split is None or split[1] not in _KIND_OF else unknown_layer(key)
            continue
        name, path, layout = place
        # Whole layers, as one's factors with the other's alpha would make a third.
        is_other = sources.setdefault(name, split[0]) != split[0]
        if split[1] in ("lora_down", "lora_up"):
            is_other |= spellings.setdefault(name, _spelling(key)) != _spelling(key)
        if is_other or split[1] in grouped[name]:
            unused[key] = f"its layer stands in the file twice, as {next(iter(grouped[name].values()))} too"
            continue
        grouped[name][split[1]] = key
        paths[name] = path
        layouts[layout] = None
    for name in [name for name, given in grouped.items() if given.keys() == {"alpha"}]:
        unused[grouped.pop(name)["alpha"]] = "an alpha without factors"
    return LayerKeys(" and ".join(layouts), dict(grouped), paths, unused)


def _spelling(key: str) -> str:
    """What the two factors of a layer have in common where one writer named them."""
    return re.sub(r"(?<=lora_)[AB](?=\.|$)|(?<=[._])(?:down|up)(?=\.|$)", lambda found: str(found[0] in "AB"), key)


def algorithm_of(factors: Collection[str]) -> FileAlgorithm | None:
    """What a layer is by the names of its factors; None for one of biases, norms or magnitudes only."""
    kinds = {_KIND_OF[name] for name in factors if name in _KIND_OF}
    return next((algorithm for algorithm in FACTORS if algorithm in kinds), None)


def _factor(key: str, scaled: Collection[str]) -> tuple[str, str] | None:
    """A key's path and the factor that it is of that path's layer."""
    if key.removesuffix(".weight") in scaled:
        return key.removesuffix(".weight"), "ia3"
    plain = re.sub(r"_lora\.(?=alpha$)", ".", key)
    plain = _OLD_PROCESSOR.sub(r".\1.lora.", plain)
    plain = re.sub(r"_lora\.(?=(?:down|up)(?:\.weight)?$)", ".lora.", plain)
    plain = plain.replace(".processor.", ".").replace(".lora_linear_layer.", ".lora.")
    match = _KEY.fullmatch(plain)
    if match is None:
        return None
    factor = match["peft"] or match["plain"]
    factor = _SPELLED.get(factor, factor)
    # Of LoRA's two biases PEFT trains the second's; a first one would have to go through B.
    if match["end"] == ".bias":
        return (match["path"], "lora_bias") if factor == "lora_up" else None
    return _OLD_TEXT.sub(r"\1_proj", match["path"]), factor


def _place(path: str) -> tuple[str, str, str] | None:
    """Kohya-like name, path inside the part, and layout; None when this is no part of a Stable Diffusion."""
    # A network that was wrapped itself (torch.compile, several processes) has the wrapper before kohya's names.
    match = _KOHYA.fullmatch(_unwrapped(path))
    if match:
        if match[1]:
            return _named(match[1], match[2], "kohya")
        # `lycoris_` and `diffusion_model_` stand before UNet and text encoder alike; the path itself tells which.
        flat = match[3] or match[4]
        return _named("te" if flat.startswith("text_model_") else "unet", flat, "kohya")
    inner = _unwrapped(path)
    layout = "peft" if "base_model.model." in path else ""
    for start, part, whose in _DOTTED:
        if inner.startswith(start):
            return _named(part, _unwrapped(inner.removeprefix(start)), layout or whose)
    dotted = f"{inner}."
    if dotted.startswith((*_UNET_STARTS, *_UNET_EMBEDDINGS)):
        return _named("unet", inner, layout or "diffusers")
    if dotted.startswith(_LDM_STARTS):
        return _named("unet", inner, layout or "original")
    if dotted.startswith(_TEXT_STARTS):
        return _named("te", inner, layout or "diffusers")
    return None


def _unwrapped(path: str) -> str:
    while start := next((wrapper for wrapper in _WRAPPERS if path.startswith(wrapper)), None):
        path = path.removeprefix(start)
    return path


def _named(part: str, path: str, layout: str) -> tuple[str, str, str]:
    path = path.removeprefix("transformer.") if path.startswith("transformer.text_model.") else path
    flat = path.replace(".", "_")
    if part != "unet" and (match := _RESBLOCK.fullmatch(flat)):
        flat = f"text_model_encoder_layers_{match[1]}_{_OPENCLIP.get(match[2], match[2])}"
    # the output projection is a list of two, whose second is a dropout: some leave its number out
    flat = f"{flat}_0" if flat.endswith("_to_out") else flat
    return f"lora_{part}_{flat}", path, layout
