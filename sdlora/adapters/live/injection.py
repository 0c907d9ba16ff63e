"""PEFT's part of the work: adapter layers of the right kind and size at exactly the chosen places, in fp32."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.lora.dora import DoraConv2dLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdlora.adapters.files.key_names import LOHA_FACTORS, LOKR_FACTORS
from sdlora.adapters.live.layers import Target
from sdlora.config.adapter import AdapterConfig

ADAPTER_NAME = "default"


def inject(model: nn.Module, targets: Sequence[Target], config: AdapterConfig) -> None:
    """Wrap the targets of one model, all with fp32 weights, leaving its output as it is."""
    with _plain_convolutions(model, targets):
        inject_adapter_in_model(_peft_config(targets, config), model, adapter_name=ADAPTER_NAME)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert layers.keys() == {target.path for target in targets}
    for layer in layers.values():
        if config.algorithm == "loha":
            _start_like_lycoris(layer)
        if config.dora and config.algorithm == "lora":
            _reset_magnitude(layer)
        elif config.dora:
            _decompose(layer)
        if config.rank_dropout or config.module_dropout:
            # On A's output, where the ranks are an axis: PEFT's LoRA can drop inputs only.
            layer.lora_A[ADAPTER_NAME].register_forward_hook(_RankDropout(config.rank_dropout, config.module_dropout))
        for parameter in trained_weights(layer, config).values():
            # bf16 has 8 bits: a step of a thousandth of a weight would be rounded away, again and again.
            parameter.data = parameter.data.float()


@torch.no_grad()
def take_over(layer: BaseTunerLayer, factors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Give a freshly injected layer the factors of a file; LoHa's and LoKr's may be cut otherwise than PEFT would."""
    if config.algorithm == "lora":
        for name, parameter in trained_weights(layer, config).items():
            parameter.copy_(factors[name].reshape(parameter.shape))
        return
    device = next(iter(trained_weights(layer, config).values())).device
    for name in LOHA_FACTORS if config.algorithm == "loha" else LOKR_FACTORS:
        own: nn.ParameterDict = getattr(layer, name)
        if name in factors:
            # A new parameter, since the file's factors may be cut otherwise and so have other shapes.
            own[ADAPTER_NAME] = nn.Parameter(factors[name].float().to(device))
        elif ADAPTER_NAME in own:
            del own[ADAPTER_NAME]
    if config.dora:
        magnitude: nn.Parameter = layer.dora_magnitude[ADAPTER_NAME]
        magnitude.copy_(factors["magnitude"].reshape(magnitude.shape))


def trained_weights(layer: BaseTunerLayer, config: AdapterConfig) -> dict[str, nn.Parameter]:
    """The layer's own trainable tensors by a short name."""
    if config.algorithm == "lora":
        weights = {name: getattr(layer, name)[ADAPTER_NAME].weight for name in ("lora_A", "lora_B")}
        if config.dora:
            weights["magnitude"] = layer.lora_magnitude_vector[ADAPTER_NAME].weight
        return weights
    names = LOHA_FACTORS if config.algorithm == "loha" else LOKR_FACTORS
    weights = {name: getattr(layer, name)[ADAPTER_NAME] for name in names if ADAPTER_NAME in getattr(layer, name)}
    return weights | ({"magnitude": layer.dora_magnitude[ADAPTER_NAME]} if config.dora else {})


@contextmanager
def _plain_convolutions(model: nn.Module, targets: Sequence[Target]) -> Iterator[None]:
    """Plain convolutions of the same form stand in for quantised ones while PEFT injects.

    PEFT makes the adapter's own convolution of the base layer's class, which a quantised class is not meant for.
    The stand-ins' weights are one zero, expanded: they cost no memory.
    """
    kept: dict[str, nn.Conv2d] = {}
    for target in targets:
        layer = model.get_submodule(target.path)
        if isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d:
            kept[target.path] = layer
            form = ("kernel_size", "stride", "padding", "groups")
            geometry: dict[str, Any] = {name: getattr(layer, name) for name in form}
            with torch.device("meta"):
                plain = nn.Conv2d(layer.in_channels, layer.out_channels, bias=False, **geometry)
            zero = torch.zeros(1, dtype=layer.weight.dtype, device=layer.weight.device)
            plain.weight = nn.Parameter(zero.expand(plain.weight.shape), requires_grad=False)
            model.set_submodule(target.path, plain)
    yield
    for path, layer in kept.items():
        model.get_submodule(path).base_layer = layer


@dataclass(frozen=True)
class _RankDropout:
    """Leaves out ranks, or all of a layer's update, while training; what is kept of the ranks is scaled up.

    As sd-scripts' rank_dropout and module_dropout. Draws come from torch's global generator, like PEFT's own dropout,
    which the trainer seeds for every batch.
    """

    ranks: float
    modules: float

    def __call__(self, down: nn.Module, _: object, low_rank: Tensor) -> Tensor | None:
        if not down.training:
            return None
        kept = torch.ones((), device=low_rank.device, dtype=low_rank.dtype)
        if self.modules:
            kept = (torch.rand((), device=low_rank.device) >= self.modules).to(low_rank.dtype)
        if self.ranks:
            at = 1 if isinstance(down, nn.Conv2d) else low_rank.ndim - 1  # where the ranks are
            # One draw for each image and rank, the same at all its positions.
            shape = [size if place in (0, at) else 1 for place, size in enumerate(low_rank.shape)]
            mask = (torch.rand(shape, device=low_rank.device) >= self.ranks).to(low_rank.dtype)
            kept = kept * mask / (1.0 - self.ranks)
        return low_rank * kept


def _peft_config(targets: Sequence[Target], config: AdapterConfig) -> LoraConfig | LoHaConfig | LoKrConfig:
    # PEFT takes one rank and alpha for all, and patterns for the layers that differ. It tries every pattern on every
    # module, so a pattern a module would be slow: here it is one for all that share a value.
    rank = Counter(target.rank for target in targets).most_common(1)[0][0]
    alpha = Counter(_alpha(target) for target in targets).most_common(1)[0][0]
    ranks: dict[int, list[str]] = defaultdict(list)
    alphas: dict[float, list[str]] = defaultdict(list)
    for target in targets:
        if target.rank != rank:
            ranks[target.rank].append(re.escape(target.path))
        if _alpha(target) != alpha:
            alphas[_alpha(target)].append(re.escape(target.path))
    layout = {
        "target_modules": [target.path for target in targets],
        # PEFT lets any path stand before a pattern; the ^ forbids that, so layers of the same ending keep apart.
        "rank_pattern": {f"^(?:{'|'.join(paths)})": value for value, paths in ranks.items()},
        "alpha_pattern": {f"^(?:{'|'.join(paths)})": value for value, paths in alphas.items()},
    }
    if config.algorithm == "lora":
        return LoraConfig(r=rank, lora_alpha=alpha, use_dora=config.dora, lora_dropout=config.dropout, **layout)
    # rank_dropout is the only dropout that PEFT has for LoHa and LoKr.
    if config.algorithm == "loha":
        return LoHaConfig(
            r=rank, alpha=alpha, rank_dropout=config.dropout, use_effective_conv2d=config.tucker, **layout
        )
    return LoKrConfig(
        r=rank,
        alpha=alpha,
        rank_dropout=config.dropout,
        decompose_factor=config.lokr_factor,
        decompose_both=config.lokr_decompose_both,
        use_effective_conv2d=config.tucker,
        init_weights="lycoris",
        **layout,
    )


def _alpha(target: Target) -> float:
    """What PEFT divides by the rank again: rsLoRA's scale needs no switch of PEFT's."""
    return target.scale * target.rank


class _PreciseDoraConv2d(DoraConv2dLayer):
    """PEFT's DoRA for convolutions with norms in fp32: its own take them in bf16 under autocast, 0.4 % off."""

    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """Norm of each output's weights, [1, out, 1, 1]."""
        return _norms(weight.float() + scaling * lora_weight.float()).view(1, -1, 1, 1)


@torch.no_grad()
def _start_like_lycoris(layer: BaseTunerLayer) -> None:
    """LyCORIS' first values of a LoHa: PEFT's are so small that rates of LyCORIS' recipes would train far less.

    Half of them normal with std 1 (right factors) and 0.1 (left factors and Tucker cores), one left factor 0.
    """
    for name in LOHA_FACTORS:
        own: nn.ParameterDict = getattr(layer, name)
        if ADAPTER_NAME in own:
            std = {"hada_w2_a": 0.0, "hada_w1_b": 1.0, "hada_w2_b": 1.0}.get(name, 0.1)
            own[ADAPTER_NAME].normal_(0.0, std)


def _decompose(layer: BaseTunerLayer) -> None:
    """DoRA for a LoHa or LoKr layer, which PEFT has for LoRA only: m (W + dW) / ||W + dW||, as LyCORIS does it.

    The layer's own answer (W + dW) x + b is scaled by output, which is the same and leaves the layer's arithmetic to
    PEFT. As in the paper (Liu et al. 2024, section 4.3) no gradient goes through the norm.
    """
    weight = layer.get_base_layer().weight.float()
    shape = (-1, *[1] * (weight.ndim - 1))
    layer.dora_magnitude = nn.ParameterDict({ADAPTER_NAME: nn.Parameter(_norms(weight).reshape(shape).detach())})
    layer.register_forward_hook(_rescale)


def _rescale(layer: nn.Module, _: object, output: Tensor) -> Tensor:
    assert isinstance(layer, BaseTunerLayer)
    # A merged layer holds the update in its weight: scaling its answer would count it twice.
    if layer.disable_adapters or layer.merged:
        return output
    base = layer.get_base_layer()
    magnitude: Tensor = layer.dora_magnitude[ADAPTER_NAME]
    with torch.no_grad():
        norms = _norms(base.weight.float() + layer.get_delta_weight(ADAPTER_NAME).float())
    shape = (1, -1, 1, 1) if isinstance(base, nn.Conv2d) else (-1,)
    surplus = (magnitude.flatten() / norms - 1).reshape(shape).to(output.dtype)  # 0 at the start: no output bit changes
    plain = output if base.bias is None else output - base.bias.reshape(shape).to(output.dtype)
    return output + surplus * plain


def _norms(weight: Tensor) -> Tensor:
    """Norm of each output's weights, [out]."""
    return weight.flatten(1).norm(dim=1)


@torch.no_grad()
def _reset_magnitude(layer: BaseTunerLayer) -> None:
    """Norms of the base weight in fp32: PEFT rounds them to the base's number type, which moves the first output."""
    weight = layer.get_base_layer().weight.float()
    if weight.ndim == 4:
        layer.lora_magnitude_vector[ADAPTER_NAME] = _PreciseDoraConv2d(fan_in_fan_out=False)
    magnitude = layer.lora_magnitude_vector[ADAPTER_NAME]
    magnitude.weight = nn.Parameter(magnitude.get_weight_norm(weight, torch.zeros_like(weight), 1.0))
