"""Adapter files as other tools write them: every algorithm, with the update that the formula gives.

Layers have the widths of the published models, so that a file looks like a real one; there are few of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.files.layer_table import Layer, layers
from sdlora.config.base_model import FamilyName
from tests.support.foreign_layouts import Layout

RANK, ALPHA = 4, 2.0


@dataclass(frozen=True)
class Made:
    """One layer's tensors by factor (kohya's words), and what they do to a weight W."""

    factors: dict[str, Tensor]
    update: Callable[[Tensor], Tensor] | None
    """dW [out, in*k*k] in float64 for the weight as a matrix; None when only vectors change."""
    vector_weight: Tensor | None = None
    vector_bias: Tensor | None = None
    settings: dict[str, object] = field(default_factory=dict)
    """What adapter_config.json says of it."""


Algorithm = Callable[[Layer, torch.Generator], Made | None]


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) / 8


def _conv(layer: Layer) -> tuple[int, ...]:
    """Kernel of a layer's weight; empty for linear ones."""
    if layer.kind != "convolution":
        return ()
    edge = 1 if layer.path.endswith(("conv_shortcut", "proj_in", "proj_out")) else 3
    return (edge, edge)


def _inputs(layer: Layer) -> int:
    kernel = _conv(layer)
    return layer.columns // (kernel[0] ** 2 if kernel else 1)


def weight_of(layer: Layer, generator: torch.Generator) -> Tensor:
    """A random weight for a layer, in float64."""
    return torch.randn((layer.rows, _inputs(layer), *_conv(layer)), generator=generator, dtype=torch.float64)


def lora(layer: Layer, generator: torch.Generator, alpha: float | None = ALPHA) -> Made:
    """Low rank (Hu et al. 2021): B A alpha / r."""
    kernel = _conv(layer)
    down = _random(generator, RANK, _inputs(layer), *kernel)
    up = _random(generator, layer.rows, RANK, *[1] * len(kernel))
    factors = {"lora_down": down, "lora_up": up}
    scale = 1.0
    if alpha is not None:
        factors["alpha"] = torch.tensor(alpha)
        scale = alpha / RANK if alpha else 1.0
    product = up.double().flatten(1) @ down.double().flatten(1) * scale
    return Made(factors, lambda _: product, settings={"peft_type": "LORA", "r": RANK, "lora_alpha": alpha})


def without_alpha(layer: Layer, generator: torch.Generator) -> Made:
    """LoRA whose file doesn't tell a scale: taken as 1."""
    return lora(layer, generator, None)


def alpha_zero(layer: Layer, generator: torch.Generator) -> Made:
    """An alpha of 0, which kohya's tools and LyCORIS take for the rank."""
    return lora(layer, generator, 0.0)


def lora_bias(layer: Layer, generator: torch.Generator) -> Made:
    """LoRA with a bias of its second factor (PEFT's lora_bias)."""
    made = lora(layer, generator)
    bias = _random(generator, layer.rows)
    return Made({**made.factors, "lora_bias": bias}, made.update, None, bias.double() * ALPHA / RANK, made.settings)


def tucker(layer: Layer, generator: torch.Generator) -> Made | None:
    """LoCon with a core tensor."""
    kernel = _conv(layer)
    if not kernel:
        return None
    down, up = _random(generator, RANK, _inputs(layer), 1, 1), _random(generator, layer.rows, RANK, 1, 1)
    mid = _random(generator, RANK, RANK, *kernel)
    factors = {"lora_down": down, "lora_up": up, "lora_mid": mid, "alpha": torch.tensor(ALPHA)}
    product = torch.einsum("or,rsxy,si->oixy", up[:, :, 0, 0].double(), mid.double(), down[:, :, 0, 0].double())
    return Made(factors, lambda _: product.flatten(1) * ALPHA / RANK)


def dora(layer: Layer, generator: torch.Generator, axis: str = "out", name: str = "dora_scale") -> Made:
    """Magnitude and direction (Liu et al. 2024)."""
    made = lora(layer, generator)
    kernel, inputs = _conv(layer), _inputs(layer)
    length = layer.rows if axis == "out" else inputs
    magnitude = torch.rand(length, generator=generator) + 1
    shape = (length, 1) if axis == "out" else (1, length)

    def update(weight: Tensor) -> Tensor:
        assert made.update is not None
        base = weight.flatten(1)
        tuned = base + made.update(weight)
        if axis == "out":
            return magnitude.double()[:, None] * tuned / tuned.norm(dim=1, keepdim=True) - base
        split = tuned.reshape(layer.rows, inputs, -1)
        norm = split.square().sum(dim=(0, 2)).sqrt()
        return (split * (magnitude.double() / norm)[None, :, None]).reshape(base.shape) - base

    stored = magnitude if name == "magnitude" else magnitude.reshape(*shape, *[1] * len(kernel))
    return Made({**made.factors, name: stored}, update, settings={**made.settings, "use_dora": True})


def dora_by_input(layer: Layer, generator: torch.Generator) -> Made:
    """DoRA of old LyCORIS, a magnitude for each input."""
    return dora(layer, generator, "in")


def magnitude(layer: Layer, generator: torch.Generator) -> Made:
    """DoRA as ai-toolkit and PEFT keep it: a vector."""
    return dora(layer, generator, "out", "magnitude")


def loha(layer: Layer, generator: torch.Generator) -> Made:
    """Hadamard product of two low-rank matrices (FedPara)."""
    a, c = _random(generator, layer.rows, RANK), _random(generator, layer.rows, RANK)
    b, d = _random(generator, RANK, layer.columns), _random(generator, RANK, layer.columns)
    factors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(ALPHA)}
    product = (a.double() @ b.double()) * (c.double() @ d.double()) * ALPHA / RANK
    return Made(factors, lambda _: product, settings={"peft_type": "LOHA", "r": RANK, "alpha": ALPHA})


def loha_tucker(layer: Layer, generator: torch.Generator) -> Made | None:
    """The same of a convolution with core tensors."""
    kernel = _conv(layer)
    if not kernel:
        return None
    factors: dict[str, Tensor] = {"alpha": torch.tensor(ALPHA)}
    halves = []
    for number in (1, 2):
        core, a = _random(generator, RANK, RANK, *kernel), _random(generator, RANK, layer.rows)
        b = _random(generator, RANK, _inputs(layer))
        factors |= {f"hada_t{number}": core, f"hada_w{number}_a": a, f"hada_w{number}_b": b}
        halves.append(torch.einsum("rsxy,ro,si->oixy", core.double(), a.double(), b.double()))
    product = halves[0] * halves[1] * ALPHA / RANK
    return Made(factors, lambda _: product.flatten(1))


def lokr(layer: Layer, generator: torch.Generator, *, first_low: bool = False, second_low: bool = True) -> Made:
    """Kronecker product; alpha counts where a factor is of low rank."""
    kernel, inputs = _conv(layer), _inputs(layer)
    rows, columns = layer.rows // 4, inputs // 4
    factors: dict[str, Tensor] = {"alpha": torch.tensor(ALPHA)}
    if first_low:
        factors |= {"lokr_w1_a": _random(generator, 4, RANK), "lokr_w1_b": _random(generator, RANK, 4)}
        first = factors["lokr_w1_a"].double() @ factors["lokr_w1_b"].double()
    else:
        factors["lokr_w1"] = _random(generator, 4, 4)
        first = factors["lokr_w1"].double()
    if second_low:
        wide = columns * (kernel[0] ** 2 if kernel else 1)
        factors |= {"lokr_w2_a": _random(generator, rows, RANK), "lokr_w2_b": _random(generator, RANK, wide)}
        second = (factors["lokr_w2_a"].double() @ factors["lokr_w2_b"].double()).reshape(rows, columns, *kernel)
    else:
        factors["lokr_w2"] = _random(generator, rows, columns, *kernel)
        second = factors["lokr_w2"].double()
    scale = ALPHA / RANK if first_low or second_low else 1.0
    product = torch.einsum("ab,cd...->acbd...", first, second).reshape(layer.rows, -1) * scale
    return Made(factors, lambda _: product, settings={"peft_type": "LOKR", "r": RANK, "alpha": ALPHA})


def lokr_full(layer: Layer, generator: torch.Generator) -> Made:
    """Both factors whole: alpha has no effect (in PEFT it has)."""
    return lokr(layer, generator, second_low=False)


def lokr_double(layer: Layer, generator: torch.Generator) -> Made:
    """Both factors of low rank."""
    return lokr(layer, generator, first_low=True)


def full(layer: Layer, generator: torch.Generator) -> Made:
    """The whole update, and that of the bias (LyCORIS full, ComfyUI's .diff)."""
    diff = _random(generator, layer.rows, _inputs(layer), *_conv(layer))
    bias = _random(generator, layer.rows)
    return Made({"diff": diff, "diff_b": bias}, lambda _: diff.double().flatten(1), None, bias.double())


def glora(layer: Layer, generator: torch.Generator) -> Made:
    """W a1 a2 + b1 b2 (Chavan et al. 2023)."""
    kernel, inputs = _conv(layer), _inputs(layer)
    ones = [1] * len(kernel)
    factors = {
        "a1": _random(generator, inputs, RANK, *ones),
        "a2": _random(generator, RANK, inputs, *ones),
        "b1": _random(generator, layer.rows, RANK, *ones),
        "b2": _random(generator, RANK, inputs, *kernel),
        "alpha": torch.tensor(ALPHA),
    }

    def update(weight: Tensor) -> Tensor:
        inner = factors["a1"].double().flatten(1) @ factors["a2"].double().flatten(1)
        own = (weight.reshape(layer.rows, inputs, -1).transpose(1, 2) @ inner).transpose(1, 2).reshape(layer.rows, -1)
        return (own + factors["b1"].double().flatten(1) @ factors["b2"].double().flatten(1)) * ALPHA / RANK

    return Made(factors, update)


def ia3(layer: Layer, generator: torch.Generator, *, on_input: bool = False) -> Made:
    """Outputs or inputs scaled (Liu et al. 2022), as LyCORIS keeps it."""
    kernel, length = _conv(layer), _inputs(layer) if on_input else layer.rows
    vector = _random(generator, length)
    stored = vector.reshape(1, -1, 1, 1) if kernel else vector

    def update(weight: Tensor) -> Tensor:
        scale = vector.double()
        axes = (1, -1) if on_input else (-1, 1)
        return (weight * scale.reshape(*axes, *[1] * len(kernel))).flatten(1)

    return Made({"ia3": stored, "on_input": torch.tensor(int(on_input))}, update)


def ia3_on_input(layer: Layer, generator: torch.Generator) -> Made:
    """The same for inputs."""
    return ia3(layer, generator, on_input=True)


def oft(layer: Layer, generator: torch.Generator, *, constraint: float = 0.0, rescale: bool = False) -> Made:
    """Outputs turned block by block (Qiu et al. 2023), as LyCORIS and kohya's oft keep it."""
    size = 8
    blocks = _random(generator, layer.rows // size, size, size)
    factors = {"oft_blocks": blocks, "alpha": torch.tensor(constraint)}
    if rescale:
        factors["rescale"] = _random(generator, layer.rows, *[1] * (1 + len(_conv(layer)))) + 1
    skew = blocks.double() - blocks.double().transpose(1, 2)
    bound = constraint * layer.rows
    if 0 < bound < float(skew.norm()):
        skew = skew * bound / skew.norm()
    unit = torch.eye(size, dtype=torch.float64)
    turns = [(unit + one) @ torch.linalg.inv(unit - one) for one in skew]

    def update(weight: Tensor) -> Tensor:
        parts = weight.flatten(1).split(size)
        turned = torch.cat([turn.T @ part for turn, part in zip(turns, parts, strict=True)])
        return (factors["rescale"].double().reshape(-1, 1) if rescale else 1) * turned - weight.flatten(1)

    return Made(factors, update)


def oft_bounded(layer: Layer, generator: torch.Generator) -> Made:
    """The same with COFT's bound."""
    return oft(layer, generator, constraint=1e-3)


def oft_rescaled(layer: Layer, generator: torch.Generator) -> Made:
    """The same with a scale for each output."""
    return oft(layer, generator, rescale=True)


def boft(layer: Layer, generator: torch.Generator) -> Made:
    """Butterfly of turned blocks (Liu et al. 2024), by LyCORIS' own function."""
    from lycoris.functional.boft import diff_weight

    blocks = _random(generator, 3, layer.rows // 8, 8, 8)

    def update(weight: Tensor) -> Tensor:
        return diff_weight(weight.float(), blocks, None).double().flatten(1)

    return Made({"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, update)


def oft_of_inputs(layer: Layer, generator: torch.Generator) -> Made:
    """Inputs turned, by five terms of the Cayley transform's series: OneTrainer and PEFT."""
    size = 4
    upper = _random(generator, layer.columns // size, size * (size - 1) // 2)
    skew = torch.zeros(len(upper), size, size, dtype=torch.float64)
    position = 0
    for row in range(size):
        for column in range(row + 1, size):
            skew[:, row, column], skew[:, column, row] = upper[:, position].double(), -upper[:, position].double()
            position += 1
    series = [torch.linalg.matrix_power(skew, power) for power in range(5)]
    turns = series[0] + 2 * series[1] + 2 * series[2] + 2 * series[3] + series[4]

    def update(weight: Tensor) -> Tensor:
        parts = zip(weight.flatten(1).split(size, dim=1), turns, strict=True)
        return torch.cat([part @ turn.T for part, turn in parts], dim=1) - weight.flatten(1)

    return Made(
        {"oft_R": upper},
        update,
        settings={"peft_type": "OFT", "r": 0, "oft_block_size": size},
    )


def norm(layer: Layer, generator: torch.Generator) -> Made:
    """Weight and bias of a norm."""
    weight, bias = _random(generator, layer.rows), _random(generator, layer.rows)
    return Made({"w_norm": weight, "b_norm": bias}, None, weight.double(), bias.double())


ALGORITHMS: dict[str, Algorithm] = {
    "LoRA": lora,
    "LoRA, no alpha": without_alpha,
    "LoRA, alpha 0": alpha_zero,
    "LoRA with bias": lora_bias,
    "LoRA, Tucker": tucker,
    "DoRA": dora,
    "DoRA by input": dora_by_input,
    "DoRA vector": magnitude,
    "LoHa": loha,
    "LoHa, Tucker": loha_tucker,
    "LoKr": lokr,
    "LoKr, whole": lokr_full,
    "LoKr, both low": lokr_double,
    "full": full,
    "GLoRA": glora,
    "IA3": ia3,
    "IA3 on inputs": ia3_on_input,
    "OFT": oft,
    "OFT, bounded": oft_bounded,
    "OFT, rescaled": oft_rescaled,
    "BOFT": boft,
    "OFT of inputs": oft_of_inputs,
    "norms": norm,
}

_ENDS = {
    "unet": ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "conv_in"),
    "text_encoder": ("text_model.encoder.layers.3.self_attn.q_proj",),
    "text_encoder_2": ("text_model.encoder.layers.30.self_attn.v_proj",),
}
_NORMS = {
    "unet": ("down_blocks.1.attentions.0.transformer_blocks.0.norm1", "down_blocks.1.resnets.0.norm1"),
    "text_encoder": ("text_model.encoder.layers.3.layer_norm1",),
    "text_encoder_2": ("text_model.encoder.layers.30.layer_norm2",),
}


def _scaled(made: Made) -> Made:
    """PEFT scales a LoKr of two whole factors, too."""
    update = made.update
    assert update is not None
    return Made(made.factors, lambda weight: update(weight) * ALPHA / RANK, settings=made.settings)


@dataclass(frozen=True)
class Expected:
    """A layer of a made file, and what the formulas say of it."""

    layer: Layer
    made: Made


def write_foreign(
    folder: Path, layout: Layout, algorithm: Algorithm, family: FamilyName, *, dtype: torch.dtype = torch.float32
) -> tuple[Path, dict[str, Expected]]:
    """A file of a layout and an algorithm, and by own kohya name what its layers are; empty when there is none."""
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Expected] = {}
    settings: dict[str, object] = {}
    ends = _NORMS if algorithm is norm else _ENDS
    for name, layer in layers(family).items():
        if layer.path not in ends[layer.part]:
            continue
        place = layout.place(layer.part, layer.path, family)
        made = None if place is None else algorithm(layer, generator)
        if place is None or made is None or (layout.has_config and (not made.settings or algorithm is alpha_zero)):
            continue
        if layout.has_config and algorithm is lokr_full:
            made = _scaled(made)
        stored = dict(made.factors)
        if layout.has_config:
            stored.pop("alpha", None)
            settings = made.settings
        tensors |= {
            f"{place}.{layout.factors.get(factor, factor)}": tensor.to(
                dtype if tensor.is_floating_point() else tensor.dtype
            )
            for factor, tensor in stored.items()
        }
        expected[name] = Expected(layer, made)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("adapter_model.safetensors" if layout.has_config else "foreign.safetensors")
    if tensors:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    if layout.has_config and settings:
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path, expected
