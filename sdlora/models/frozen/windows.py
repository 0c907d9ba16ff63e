"""Convolutions as matrix products over windows, where that is faster: one copy of the weight, in channels_last.

torch's convolutions bring the weight into an order of their own at every call, which for images of a few positions
costs more than the convolution (1,280 channels, 4 x 4: 8.4 ms against 3.5 as a matrix product).

Shapes: B images, C channels, O output channels, H and W height and width, k kernel edge.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_MOST_POSITIONS = 64
"""Positions of an output, up to which a convolution is faster as a matrix product, whatever the batch."""


class PlainConvolution(nn.Conv2d):
    """A convolution that is a matrix product where that is faster; its weight has its channels innermost."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The same convolution as a matrix product over windows."""
        weight_OCkk, edge = self.weight, self.kernel_size[0]
        height, width = (
            (inputs.shape[axis] + 2 * int(self.padding[axis - 2]) - edge) // self.stride[axis - 2] + 1
            for axis in (2, 3)
        )
        in_order = weight_OCkk.is_contiguous(memory_format=torch.channels_last)
        if height * width > _MOST_POSITIONS or not in_order:
            return super().forward(inputs)
        rows, columns = int(self.padding[0]), int(self.padding[1])
        padded_BHWC = functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
        patches_BHWCkk = padded_BHWC.unfold(1, edge, self.stride[0]).unfold(2, edge, self.stride[1])
        windows = patches_BHWCkk.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
        outputs = functional.linear(windows, weight_OCkk.permute(0, 2, 3, 1).flatten(1), self.bias)
        return outputs.view(len(inputs), height, width, -1).permute(0, 3, 1, 2)


def use_plain_convolutions(unet: nn.Module) -> None:
    """Give the UNet's 3x3 convolutions `PlainConvolution`'s forward; weights stay the same tensors."""
    for layer in unet.modules():
        # This very class alone: quantised and adapted layers have a forward of their own.
        if type(layer) is nn.Conv2d and layer.kernel_size == (3, 3) and layer.groups == 1:
            # The module stays the same object, with its hooks and its place in the model.
            layer.__class__ = PlainConvolution
