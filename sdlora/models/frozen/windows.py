"""Convolutions as matrix products over windows, where that is faster: one copy of the weight, in channels_last.

torch's convolutions bring the weight into an order of their own at every call, which for images of few positions costs
more than the convolution (bf16, 1,280 channels, 4 x 4: 9.2 ms against 3.6 as a matrix product; the gradient of its
input 17 against 6, with 2,560 channels 55 against 8). For large images the windows cost more than that.

Shapes: B images, C channels, O output channels, H and W height and width, k kernel edge.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

_MOST_POSITIONS = 64
"""Positions of an output, up to which a convolution is faster as a matrix product, whatever the batch."""
_MOST_POSITIONS_BACKWARD = 256
"""The same for the gradient of its input."""


class PlainConvolution(nn.Conv2d):
    """A convolution that is a matrix product where that is faster; its weight has its channels innermost."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The same convolution as a matrix product over windows."""
        # Of two number types autocast chooses one, which it does for torch's own convolution alone.
        if inputs.dtype != self.weight.dtype or not self.weight.is_contiguous(memory_format=torch.channels_last):
            return super().forward(inputs)
        if not torch.is_grad_enabled() or not (inputs.requires_grad or self.weight.requires_grad):
            return self.output(inputs)
        if self.weight.requires_grad:
            return super().forward(inputs)
        outputs: Tensor = _OverWindows.apply(inputs, self)
        return outputs

    def output(self, inputs: Tensor) -> Tensor:
        """The convolution."""
        edge, (rows, columns) = self.kernel_size[0], self._padding
        height, width = (
            (inputs.shape[axis] + 2 * padding - edge) // self.stride[axis - 2] + 1
            for axis, padding in ((2, rows), (3, columns))
        )
        if height * width > _MOST_POSITIONS:
            return super().forward(inputs)
        padded_BHWC = functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
        patches_BHWCkk = padded_BHWC.unfold(1, edge, self.stride[0]).unfold(2, edge, self.stride[1])
        windows = patches_BHWCkk.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
        outputs = functional.linear(windows, self._matrix, self.bias)
        return outputs.view(len(inputs), height, width, -1).permute(0, 3, 1, 2)

    def input_gradient(self, input_shape: torch.Size, gradient_BOHW: Tensor) -> Tensor:
        """The gradient with respect to the layer's input."""
        batch, _, height, width = gradient_BOHW.shape
        if height * width > _MOST_POSITIONS_BACKWARD:
            return conv2d_input(
                input_shape, self.weight, gradient_BOHW, self.stride, self.padding, self.dilation, self.groups
            )
        edge, (rows, columns), (down, right) = self.kernel_size[0], self._padding, self.stride
        to_windows = gradient_BOHW.permute(0, 2, 3, 1).flatten(0, 2) @ self._matrix
        to_windows_BHWkkC = to_windows.view(batch, height, width, edge, edge, -1)
        size = (input_shape[2] + 2 * rows, input_shape[3] + 2 * columns)
        to_padded_BHWC = to_windows.new_zeros(batch, *size, to_windows_BHWkkC.shape[-1])
        for row in range(edge):
            for column in range(edge):
                # What each window took from its place, back to that place.
                into = to_padded_BHWC[:, row : row + height * down : down, column : column + width * right : right]
                into += to_windows_BHWkkC[:, :, :, row, column]
        inner = to_padded_BHWC[:, rows : size[0] - rows, columns : size[1] - columns]
        return inner.permute(0, 3, 1, 2)

    @property
    def _padding(self) -> tuple[int, int]:
        return int(self.padding[0]), int(self.padding[1])

    @property
    def _matrix(self) -> Tensor:
        """The weight as it lies in memory, [O, k k C]."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)


class _OverWindows(torch.autograd.Function):
    """Nothing is kept for the backward pass: the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: PlainConvolution) -> Tensor:
        ctx.layer, ctx.input_shape = layer, inputs.shape
        return layer.output(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.input_gradient(ctx.input_shape, output_gradient), None


def use_plain_convolutions(unet: nn.Module) -> None:
    """Give the UNet's frozen convolutions `PlainConvolution`'s passes; weights stay the same tensors."""
    for layer in unet.modules():
        # This very class alone: quantised and adapted layers have a forward of their own.
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1):
            # The module stays the same object, with its hooks and its place in the model.
            layer.__class__ = PlainConvolution
