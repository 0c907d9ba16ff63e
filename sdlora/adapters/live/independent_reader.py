"""A second reader of adapter files, for the self-test alone. It shares no code with `reading`, `writing` and `kohya`.

A round trip through the same code would hide a name or a scale that is wrong in both directions. This reader follows
the kohya convention from the other end: it walks the model's blocks in the order in which the original code numbers
them, and looks each trained layer up in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora.adapters.live.attach import Adapter
from sdlora.errors import AdapterError


def stored_layers(adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], StoredLayer]:
    """Every live layer's entry in the file. Raises AdapterError for missing and for surplus keys."""
    names = names_in_file(adapter)
    if not any(key.startswith("lora_") for key in tensors):
        names = {key: peft_name(*key) for key in names}
    stored: dict[tuple[str, str], StoredLayer] = {}
    by_layer, surplus = _by_layer(tensors, set(names.values()))
    for key, name in names.items():
        own = by_layer.get(name)
        if own is None:
            raise AdapterError(f"self-test: the file has no entry {name} for the trained layer {'.'.join(key)}")
        stored[key] = StoredLayer(own)
    # Surplus keys count too: a loader that reads them would add what was never trained.
    if surplus:
        raise AdapterError(f"self-test: {len(surplus)} entries belong to no trained layer, first: {min(surplus)}")
    return stored


def _by_layer(tensors: Mapping[str, Tensor], names: set[str]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The tensors by layer and the rest of their key, and the keys that are no layer's."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    surplus: list[str] = []
    for key, tensor in tensors.items():
        name = key
        while name and name not in names:
            name = name.rpartition(".")[0]
        if name and name != key:
            by_layer.setdefault(name, {})[key[len(name) + 1 :]] = tensor
        else:
            surplus.append(key)
    return by_layer, surplus


@dataclass(frozen=True)
class StoredLayer:
    """One layer's tensors as the file has them, by the part of the key behind the layer's name."""

    tensors: Mapping[str, Tensor]

    def delta(self, shift: float = 0.0) -> Tensor:
        """The update in float64, every factor moved by `shift`."""
        t = {
            name: tensor.double() + (0.0 if name == "alpha" else shift)
            for name, tensor in self.tensors.items()
            if "magnitude" not in name and name != "dora_scale"
        }
        if "lora_A.weight" in t:
            down, up = t["lora_A.weight"], t["lora_B.weight"]
            return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
        alpha = float(t["alpha"])
        if "lora_down.weight" in t:
            down, up = t["lora_down.weight"], t["lora_up.weight"]
            return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:]) * (alpha / down.shape[0])
        if "hada_w1_a" in t:
            return (
                _low_rank(t, "hada_w1", "hada_t1") * _low_rank(t, "hada_w2", "hada_t2") * (alpha / len(t["hada_w1_b"]))
            )
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        second = t["lokr_w2"].flatten(1) if "lokr_w2" in t else _low_rank(t, "lokr_w2", "lokr_t2")
        ranks = [len(t[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in t]
        return torch.kron(first, second) * (alpha / ranks[0] if ranks else 1.0)


def _low_rank(t: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """a @ b, or with a core tensor [r,r,k,k] between them the Tucker form, flattened to [out, in*k*k]."""
    if core not in t:
        return t[f"{name}_a"] @ t[f"{name}_b"]
    return torch.einsum("po,pqxy,qi->oixy", t[f"{name}_a"], t[core], t[f"{name}_b"]).flatten(1)


def names_in_file(adapter: Adapter) -> dict[tuple[str, str], str]:
    encoder = {"sd1": ("lora_te", ""), "sd2": ("lora_te", ""), "sdxl": ("lora_te1", "lora_te2")}[adapter.family]
    prefixes = {"text_encoder": encoder[0], "text_encoder_2": encoder[1]}
    original = dict(_original_names(adapter.models["unet"])) if adapter.family == "sdxl" else {}
    names: dict[tuple[str, str], str] = {}
    for part, path, _ in adapter.modules():
        if part == "unet":
            # Compared with a dot behind, or resnets.1 would also be found in resnets.10.
            block = next((start for start in original if f"{path}.".startswith(f"{start}.")), None)
            spelled = path if block is None else original[block] + _inside(path.removeprefix(block))
            names[part, path] = "lora_unet_" + spelled.replace(".", "_")
        else:
            spelled = path if path.startswith("text_model.") else f"text_model.{path}"
            names[part, path] = f"{prefixes[part]}_{spelled.replace('.', '_')}"
    return names


def _original_names(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """(diffusers block path, original one), counting blocks in the order in which the original code builds them."""
    number = 1  # input_blocks.0 is conv_in
    for i, block in enumerate(unet.get_submodule("down_blocks").children()):
        for j, _ in enumerate(block.get_submodule("resnets").children()):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if getattr(block, "downsamplers", None) is not None:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = 0
    for i, block in enumerate(unet.get_submodule("up_blocks").children()):
        # An upsampler stands behind the attention where its block has one, else right behind the resnet.
        slots = 2 if getattr(block, "attentions", None) is not None else 1
        for j, _ in enumerate(block.get_submodule("resnets").children()):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1"
            number += 1
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{number - 1}.{slots}"


def _inside(rest: str) -> str:
    """Names inside a resnet in the original spelling; those inside transformer blocks are the same in both."""
    spelled = {
        ".conv1": ".in_layers.2",
        ".conv2": ".out_layers.3",
        ".time_emb_proj": ".emb_layers.1",
        ".conv_shortcut": ".skip_connection",
    }
    return spelled.get(rest, rest)


def peft_name(part: str, path: str) -> str:
    inside = path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"
    return f"{part}.{inside}"
