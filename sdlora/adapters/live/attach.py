"""Puts trainable adapter layers (PEFT's) into a loaded base model, and hands out what training needs of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdlora.adapters.files.kohya import PARTS, Part
from sdlora.adapters.files.metadata import prediction_note
from sdlora.adapters.files.weights import ModuleWeights
from sdlora.adapters.live.fused import fuse
from sdlora.adapters.live.injection import ADAPTER_NAME, inject, take_over, trained_weights
from sdlora.adapters.live.layers import Selection, Target, block_of, choose
from sdlora.adapters.live.starting_point import starting_point
from sdlora.adapters.live.trained_tokens import TrainedTokens, start_tokens
from sdlora.config.adapter import AdapterConfig, Algorithm
from sdlora.config.base_model import FamilyName
from sdlora.errors import AdapterError
from sdlora.models.bundle import Bundle
from sdlora.models.quantize import parameter_count


@dataclass(frozen=True)
class Weight:
    """One trainable tensor, where it belongs in the model, and whether it is LoRA's B."""

    name: str
    part: Part
    path: str
    block: str
    parameter: nn.Parameter
    is_B: bool
    """The factor that starts at zero and that LoRA+ gives a higher learning rate (LoRA only)."""
    is_token: bool = False
    """Whether it holds the vectors of a new token, and so belongs to no layer."""


@dataclass(frozen=True)
class _Module:
    target: Target
    layer: BaseTunerLayer
    weights: Mapping[str, nn.Parameter]


class Adapter:
    """A live adapter: PEFT layers inside a bundle's UNet and text encoders, all their weights in fp32.

    models: the base model's UNet and text encoders; `parts` are those of them that hold adapter layers.
    notes: remarks worth telling the user. tokens: new tokens that are trained with the layers, or alone.
    """

    def __init__(
        self,
        models: Mapping[Part, nn.Module],
        targets: Sequence[Target],
        config: AdapterConfig,
        family: FamilyName,
        notes: Sequence[str] = (),
        tokens: TrainedTokens | None = None,
    ) -> None:
        self.config = config
        self.tokens = tokens
        self.family = family
        self.notes = tuple(notes)
        self.models = dict(models)
        self.parts = {part: models[part] for part in PARTS if any(target.part == part for target in targets)}
        self._modules: dict[tuple[Part, str], _Module] = {}
        for target in targets:
            layer = self.parts[target.part].get_submodule(target.path)
            assert isinstance(layer, BaseTunerLayer)
            self._modules[target.part, target.path] = _Module(target, layer, trained_weights(layer, config))
        self._weights = [
            Weight(f"{part}.{path}.{name}", part, path, block_of(part, path), parameter, name == "lora_B")
            for (part, path), module in self._modules.items()
            for name, parameter in module.weights.items()
        ]
        self._weights += _token_weights(tokens)

    @property
    def algorithm(self) -> Algorithm:
        """The form of the updates, the same in all layers."""
        return self.config.algorithm

    @property
    def targets(self) -> tuple[Target, ...]:
        """The adapted layers with rank and scale."""
        return tuple(module.target for module in self._modules.values())

    def modules(self) -> Iterator[tuple[Part, str, BaseTunerLayer]]:
        """Every adapted layer: part, module path inside the part, PEFT layer."""
        for (part, path), module in self._modules.items():
            yield part, path, module.layer

    def weights(self) -> list[Weight]:
        """Every trainable tensor with its part, path and block."""
        return list(self._weights)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors, in the order of `weights()`."""
        return [weight.parameter for weight in self._weights]

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values, for the summary and the events."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def total_parameters(self) -> int:
        """Number of all values of UNet and text encoders, frozen and trained, packed ones counted unpacked."""
        return sum(parameter_count(model) for model in self.models.values())

    def state(self) -> dict[str, Tensor]:
        """A copy of all trained values by name, for checkpoints and moving averages."""
        return {weight.name: weight.parameter.detach().clone() for weight in self._weights}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over values from `state()`, in place. Raises AdapterError if names or shapes differ."""
        own = {weight.name: weight.parameter for weight in self._weights}
        differing = sorted(own.keys() ^ state.keys())
        differing += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if differing:
            raise AdapterError(
                f"these adapter weights belong to other settings: {len(differing)} of {len(own)} tensors differ in "
                f"name or shape, the first is {differing[0]}. Resume with the settings the run began with, and the "
                "version of sdlora; or begin a new run from its newest adapter file (adapter.start_from)."
            )
        for name, parameter in own.items():
            # In place: the optimizer and the moving average hold these very tensors.
            parameter.copy_(state[name])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare base model inside the `with` block, for base predictions; new tokens are their init words."""
        for module in self._modules.values():
            # PEFT also takes requires_grad from the weights here; enabling gives it back.
            module.layer.enable_adapters(False)
        try:
            with ExitStack() as stack:
                if self.tokens is not None:
                    own = {token.casefold(): vectors for token, vectors in self.tokens.start.items()}
                    stack.enter_context(self.tokens.words.standing_for(own))
                yield
        finally:
            for module in self._modules.values():
                module.layer.enable_adapters(True)

    def set_scale(self, scale: float) -> None:
        """Multiply the updates of all layers by `scale` from now on (1 is as trained); files always hold scale 1.

        New tokens are words, which no tool scales.
        """
        for module in self._modules.values():
            # PEFT multiplies alpha / rank anew each time, so two calls don't multiply up.
            module.layer.set_scale(ADAPTER_NAME, scale)

    def leave_casts_to_autocast(self) -> None:
        """Give inputs to the adapter's layers as they are: for use under autocast alone, in half precision.

        PEFT casts them to the weights' fp32 first, which autocast takes back at once: the same bits, two copies more.
        """
        if not self.reads_base_weights:
            for module in self._modules.values():
                module.layer.cast_input_dtype_enabled = False

    def fuse(self) -> None:
        """Have layers calculate base and update in one operation where that can be done: in bf16, on a processor."""
        fuse(module.layer for module in self._modules.values())

    @property
    def reads_base_weights(self) -> bool:
        """Whether the update is reckoned from the base's weights (DoRA), or made in their shape (LoHa, LoKr)."""
        return self.algorithm != "lora" or self.config.dora

    def base_layers(self) -> list[nn.Module]:
        """The base model's own layers beneath the adapter's."""
        return [module.layer.get_base_layer() for module in self._modules.values()]

    def train(self, mode: bool = True) -> None:
        """Switch the adapter's dropout on (training) or off (validation, previews)."""
        for module in self._modules.values():
            module.layer.train(mode)

    @torch.no_grad()
    def delta_weight(self, part: Part, path: str) -> Tensor:
        """The live update of one layer as PEFT applies it, fp32, in the shape of the layer's weight."""
        return self._modules[part, path].layer.get_delta_weight(ADAPTER_NAME).float()

    def module_weights(self) -> dict[tuple[Part, str], ModuleWeights]:
        """The update of every layer in factored form, sharing memory with the trained values."""
        factored: dict[tuple[Part, str], ModuleWeights] = {}
        for place, module in self._modules.items():
            values = {name: parameter.detach() for name, parameter in module.weights.items()}
            scale, alpha = module.target.scale, module.target.scale * module.target.rank
            magnitude = values.pop("magnitude", None)
            if magnitude is not None and self.algorithm == "lora":  # PEFT keeps it flat, files [out,1] or [out,1,1,1]
                magnitude = magnitude.reshape(-1, *[1] * (values["lora_B"].ndim - 1))
            if self.algorithm == "lora":
                values = {"lora_down": values["lora_A"], "lora_up": values["lora_B"]}
            weights = ModuleWeights(self.algorithm, values, alpha, magnitude)
            if weights.is_full_lokr:  # PEFT scales these too; every file format takes their scale as 1
                weights = ModuleWeights("lokr", {**values, "lokr_w1": values["lokr_w1"] * scale}, None, magnitude)
            factored[place] = weights
        return factored

    @torch.no_grad()
    def limit_norms(self, limit: float) -> float:
        """Scale every layer's update down to a Frobenius norm of `limit`, both factors alike; returns the largest norm.

        LoRA only. |B A|^2 = sum (B'B * A A'), from the factors' Gram matrices, without making B A itself.
        """
        norms = []
        for module in self._modules.values():
            down, up = (module.weights[name].flatten(1) for name in ("lora_A", "lora_B"))
            # Rounding can leave a sum of squares just below 0, whose root would be NaN.
            squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
            norms.append(module.target.scale * squared.sqrt())
            # The square root on each of both factors: their product then has the ratio, and A and B keep their
            # balance. On the device, where asking for each norm would be to wait for it: 1 changes no bit.
            ratio = (limit / norms[-1].clamp(min=limit)).sqrt()
            for name in ("lora_A", "lora_B"):
                module.weights[name].mul_(ratio)
        return torch.stack(norms).max().item() if norms else 0.0

    def dead_modules(self) -> list[str]:
        """Layers whose every weight has no gradient or a zero one; ask between backward and zero_grad."""
        return [
            f"{part}.{path}"
            for (part, path), module in self._modules.items()
            if all(weight.grad is None or not weight.grad.any() for weight in module.weights.values())
        ]

    def has_nonfinite(self) -> bool:
        """Whether any trained value is NaN or infinite."""
        return not all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters)


def attach(bundle: Bundle, config: AdapterConfig, *, seed: int = 0) -> Adapter:
    """Inject a new adapter into the bundle's UNet (and text encoders) and freeze everything else of them.

    New tokens of `config` become words of the bundle.

    The model's output is unchanged until training begins, or is that of `config.start_from`. Trained weights are fp32
    whatever the base is. seed: of the random factor's first values.
    Raises ConfigError (no such layer or block), AdapterError (start_from doesn't fit; there is an adapter already).
    """
    models = adapted_models(bundle)
    if any(isinstance(module, BaseTunerLayer) for model in models.values() for module in model.modules()):
        raise AdapterError("this model already has adapter layers; load the base model afresh")
    family: FamilyName = bundle.family.name
    start = starting_point(models, config, family) if config.start_from is not None else None
    config = start.config if start else config
    chosen = start.selection if start is not None else None
    if chosen is None:
        layers = bundle.family.text_layers(bundle.text_encoders, bundle.clip_skip)
        text_layers = dict(zip(PARTS[1:], layers, strict=False))
        chosen = choose(models, config, text_layers) if config.rank else Selection(())
    for model in models.values():
        # Everything first; PEFT then makes its own new layers trainable.
        model.requires_grad_(False)
    # PEFT draws A from torch's global generator: seeded for this block alone, the run's own draws stay as they are.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, model in models.items():
            targets = [target for target in chosen.targets if target.part == part]
            if targets:
                inject(model, targets, config)
    if start is not None:
        for (part, path), factors in start.factors.items():
            take_over(models[part].get_submodule(path), factors, config)
    tokens = None
    if config.new_tokens:
        tokens = start_tokens(bundle, config.new_tokens, seed=seed, trained=start.embeddings if start else None)
    notes = chosen.notes
    if start is not None:
        other = prediction_note(start.name, start.metadata, "this base model", bundle.schedule.prediction)
        notes = (*notes, *([other] if other else []))
    return Adapter(models, chosen.targets, config, family, notes, tokens)


def adapted_models(bundle: Bundle) -> dict[Part, nn.Module]:
    """The parts of a base model that can hold adapter layers, by name."""
    encoders: list[nn.Module] = list(bundle.text_encoders)
    return dict(zip(PARTS, [bundle.unet, *encoders], strict=False))


def _token_weights(tokens: TrainedTokens | None) -> list[Weight]:
    """The vectors of new tokens among the trainable tensors: text_encoder.new_tokens.<ohwx>."""
    return [
        Weight(f"{part}.new_tokens.{token}", part, f"new_tokens.{token}", "new_tokens", parameter, False, is_token=True)
        for token, parameters in (tokens.vectors if tokens else {}).items()
        for part, parameter in zip(PARTS[1:], parameters, strict=False)
    ]
