"""Frozen convolutions and linear layers whose weights are held in oneDNN's own order, once for each direction.

oneDNN, which calculates for torch on processors, brings a weight into an order of its own at every call. For a weight
that never changes that is work for nothing, and on the small images inside a UNet it costs more than the convolution
itself (bf16, 1,280 channels, 4 x 4: 7 ms against 2). Here it is done once: in one order for the output, in another for
the input's gradient, which is the transposed convolution. The plain weight is let go, so a layer takes twice its bytes.

Outputs and gradients are those of torch's layers (convolutions in channels_last) to the last bit, but for 1x1
convolutions, and with AMX gradients of strided ones, which sum in another order. There is no gradient for the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ops = torch.ops.mkldnn
_NO_FUSION: tuple[str, list[Any], str] = ("none", [], "")
"""oneDNN can apply an activation to a result at once; there is none here."""
_POSITIONS = 8
"""Height and width that an order is chosen for; it fits every size, and was as fast at 4 to 64 as one of its own."""


class PackedLayer(nn.Module, ABC):
    """What packed layers share. The tensors are no parameters: in this order nothing but oneDNN can read them."""

    weight_shape: torch.Size
    to_output: Tensor
    to_input: Tensor
    dtype: torch.dtype

    def _pack(self, layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> None:
        weight = layer.weight.detach().to(dtype)
        self.dtype, self.weight_shape = dtype, weight.shape
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        self.register_parameter("bias", bias)
        self.train(layer.training)
        self.to_output, self.to_input = self._orders(weight)

    @property
    def weight(self) -> Tensor:
        """The weight in its usual order, a new tensor each time: changing it changes nothing."""
        return self.to_output.to_dense().view(self.weight_shape)

    @abstractmethod
    def _orders(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight in oneDNN's order for the output, and for the input's gradient."""

    @abstractmethod
    def output(self, inputs: Tensor) -> Tensor:
        """The layer's output, for inputs of its number type."""

    @abstractmethod
    def input_gradient(self, input_shape: torch.Size, output_gradient: Tensor) -> Tensor:
        """The gradient with respect to the layer's input."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output, in the number type it was packed in."""
        outputs: Tensor = _Packed.apply(inputs, self)
        return outputs


class _Packed(torch.autograd.Function):
    """A packed layer's operation: nothing is kept for the backward pass, whose weight lies ready."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: PackedLayer) -> Tensor:
        ctx.layer, ctx.input_shape, ctx.input_dtype = layer, inputs.shape, inputs.dtype
        # Autocast does not reach into an autograd.Function, nor knows these operations.
        return layer.output(inputs.to(layer.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        layer: PackedLayer = ctx.layer
        return layer.input_gradient(ctx.input_shape, output_gradient.to(layer.dtype)).to(ctx.input_dtype), None


class PackedConv2d(PackedLayer, nn.Conv2d):  # type: ignore[misc, override]
    """A frozen nn.Conv2d (zero padding, one group)."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        for name in (*self.__constants__, "transposed", "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(layer, name))
        self._pack(layer, dtype)

    def _orders(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        stride, padding, dilation = self.stride, self.padding, self.dilation
        size = [1, self.in_channels, _POSITIONS, _POSITIONS]
        to_output = _ops._reorder_convolution_weight(weight, padding, stride, dilation, self.groups, size)
        size = [1, self.out_channels, _POSITIONS, _POSITIONS]
        to_input = _ops._reorder_convolution_transpose_weight(
            weight, padding, (0, 0), stride, dilation, self.groups, size
        )
        return to_output, to_input

    def output(self, inputs: Tensor) -> Tensor:
        """The convolution, in channels_last whatever the inputs are in."""
        return _ops._convolution_pointwise(
            inputs.contiguous(memory_format=torch.channels_last),
            self.to_output, self.bias, self.padding, self.stride, self.dilation, self.groups, *_NO_FUSION,
        )  # fmt: skip

    def input_gradient(self, input_shape: torch.Size, output_gradient: Tensor) -> Tensor:
        """The transposed convolution of the output's gradient."""
        # A stride leaves open how many rows and columns went in: inputs of 15 and 16 both come out as 8.
        beyond = [
            size - ((small - 1) * stride - 2 * int(padding) + dilation * (kernel - 1) + 1)
            for size, small, stride, padding, dilation, kernel in zip(
                input_shape[2:], output_gradient.shape[2:],
                self.stride, self.padding, self.dilation, self.kernel_size, strict=True,
            )
        ]  # fmt: skip
        return _ops._convolution_transpose_pointwise(
            output_gradient.contiguous(memory_format=torch.channels_last),
            self.to_input, None, self.padding, beyond, self.stride, self.dilation, self.groups, *_NO_FUSION,
        )  # fmt: skip


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc, override]
    """A frozen nn.Linear."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._pack(layer, dtype)

    def _orders(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _ops._reorder_linear_weight(weight), _ops._reorder_linear_weight(weight.t().contiguous())

    def output(self, inputs: Tensor) -> Tensor:
        """inputs @ weight.T + bias."""
        return _ops._linear_pointwise(inputs, self.to_output, self.bias, *_NO_FUSION)

    def input_gradient(self, input_shape: torch.Size, output_gradient: Tensor) -> Tensor:
        """output_gradient @ weight."""
        return _ops._linear_pointwise(output_gradient, self.to_input, None, *_NO_FUSION)


class PackedPointwise(PackedConv2d):
    """A frozen 1x1 nn.Conv2d of stride 1, as a linear layer at every position.

    oneDNN's order for a 1x1 convolution fits images of one size only; at others it takes a hundred times as long.
    """

    def _orders(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        weight_OI = weight.flatten(1)
        return _ops._reorder_linear_weight(weight_OI), _ops._reorder_linear_weight(weight_OI.t().contiguous())

    def output(self, inputs: Tensor) -> Tensor:
        """The convolution, in channels_last."""
        outputs: Tensor = _ops._linear_pointwise(inputs.permute(0, 2, 3, 1), self.to_output, self.bias, *_NO_FUSION)
        return outputs.permute(0, 3, 1, 2)

    def input_gradient(self, input_shape: torch.Size, output_gradient: Tensor) -> Tensor:
        """The transposed weight at every position."""
        gradient: Tensor = _ops._linear_pointwise(output_gradient.permute(0, 2, 3, 1), self.to_input, None, *_NO_FUSION)
        return gradient.permute(0, 3, 1, 2)


def packed(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> PackedLayer:
    """The same layer packed, calculating in dtype."""
    if isinstance(layer, nn.Linear):
        return PackedLinear(layer, dtype)
    return (PackedPointwise if layer.kernel_size == (1, 1) else PackedConv2d)(layer, dtype)
