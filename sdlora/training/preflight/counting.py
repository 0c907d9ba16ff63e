"""Which layers an adapter goes to and how many values it trains, by the layers' shapes; nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import nn

from sdlora.adapters.algebra.loaded_base import base_adapter_notes
from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.kohya import PARTS, Part
from sdlora.adapters.files.reading import read
from sdlora.adapters.live.layers import Selection, choose, layer_shape
from sdlora.adapters.live.starting_point import starting_point
from sdlora.config.base_model import FamilyName
from sdlora.config.train import TrainConfig
from sdlora.models.components import TextEncoder
from sdlora.models.detection import detect
from sdlora.models.families import FAMILIES
from sdlora.models.layout import family_layout, family_text_encoders, text_encoder_layouts, unet_layout


@dataclass(frozen=True)
class Layouts:
    """A base model's parts on torch's meta device. text_encoders: none where the adapter leaves them alone."""

    family: FamilyName
    unet: UNet2DConditionModel
    text_encoders: Sequence[TextEncoder] = ()

    @classmethod
    def of(cls, config: TrainConfig, family: FamilyName | None = None) -> Layouts:
        """Of the run's base model; family: of a family's own models instead, which need not be there.

        Raises ModelError when the model isn't there.
        """
        has_text = config.adapter.text_encoder
        if family is not None:
            return cls(family, family_layout(family), family_text_encoders(family) if has_text else ())
        base = config.base_model
        detection = detect(config.resolved_base_model)
        encoders = text_encoder_layouts(base, detection) if has_text else ()
        return cls(detection.family, unet_layout(base, detection), encoders)

    @property
    def models(self) -> dict[Part, nn.Module]:
        """The parts by name."""
        return dict(zip(PARTS, [self.unet, *self.text_encoders], strict=False))


def chosen_layers(config: TrainConfig, layouts: Layouts) -> Selection:
    """The layers that a new adapter goes to. Raises ConfigError as `choose` does."""
    text_layers: Mapping[Part, int] = {}
    if layouts.text_encoders:
        layers = FAMILIES[layouts.family].text_layers(layouts.text_encoders, config.base_model.clip_skip)
        text_layers = dict(zip(PARTS[1:], layers, strict=False))
    return choose(layouts.models, config.adapter, text_layers)


def base_notes(config: TrainConfig) -> list[str]:
    """What loading the base will say of its adapters, by shapes alone. Raises AdapterError for such as don't fit it."""
    base = config.base_model
    if not base.adapters:
        return []
    detection = detect(config.resolved_base_model)
    models = [unet_layout(base, detection), *text_encoder_layouts(base, detection)]
    return base_adapter_notes(base, detection.family, models)


def start_notes(config: TrainConfig) -> Sequence[str]:
    """The same of the adapter to start from. Raises AdapterError and ConfigError."""
    if config.adapter.start_from is None:
        return ()
    layouts = Layouts.of(config)
    return starting_point(layouts.models, config.adapter, layouts.family).selection.notes


def trained_values(config: TrainConfig, layouts: Layouts) -> int:
    """Trained values of the adapter: A and B of each layer, for LoHa two of each; LoKr has fewer.

    With start_from those of its file.
    """
    adapter = config.adapter
    if not adapter.rank:
        return 0
    if adapter.start_from is not None:
        modules = read(local_file(adapter.start_from)).modules.values()
        return sum(tensor.numel() for weights in modules for tensor in weights.factors.values())
    models, total = layouts.models, 0
    for target in chosen_layers(config, layouts).targets:
        inputs, outputs, kernel = layer_shape(models[target.part].get_submodule(target.path))
        total += target.rank * (inputs * kernel + outputs)
    return total * (2 if adapter.algorithm == "loha" else 1)
