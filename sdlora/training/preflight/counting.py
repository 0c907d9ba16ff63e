"""How many values an adapter trains, by the shapes of the layers it goes to; nothing is loaded."""

from __future__ import annotations

from diffusers import UNet2DConditionModel

from sdlora.adapters.live.layers import choose, layer_shape
from sdlora.config.adapter import AdapterConfig


def trained_values(adapter: AdapterConfig, unet: UNet2DConditionModel) -> int:
    """Trained values of the UNet's adapter: A and B of each layer, for LoHa two of each; LoKr has fewer.

    unet: its layout is enough, on torch's meta device.
    """
    if not adapter.rank:
        return 0
    total = 0
    for target in choose({"unet": unet}, adapter.model_copy(update={"text_encoder": False})).targets:
        inputs, outputs, kernel = layer_shape(unet.get_submodule(target.path))
        total += target.rank * (inputs * kernel + outputs)
    return total * (2 if adapter.algorithm == "loha" else 1)
