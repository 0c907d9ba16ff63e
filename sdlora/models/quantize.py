"""Frozen linear and convolution weights in int8 or 4 bits.

Each quantised layer is an nn.Linear or nn.Conv2d whose weight is kept packed and unpacked for each use, so adapters
(PEFT's LoRA, DoRA, LoHa, LoKr) wrap it as they wrap the plain layer, and its forward and input gradient are those of
the unpacked weight. bitsandbytes packs and unpacks 4 bits; its own layers are not used: it has none for convolutions,
and on a CPU with AVX512-BF16 its 4-bit layer re-packs itself in a pass without gradients into a form that passes no
gradient on, so that a preview would silently stop training.

int8        one scale per output row, as the weights of LLM.int8 (Dettmers et al. 2022)
nf4         4-bit NormalFloat in blocks of 64 values, one fp32 scale each (QLoRA, Dettmers et al. 2023)
nf4-double  the scales themselves in 8 bits

Shapes: B images, I and O inputs and outputs, C channels, H and W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from sdlora.config.base_model import Quantization
from sdlora.constants import MIB
from sdlora.errors import MissingPackageError
from sdlora.models.frozen.packed import PackedLayer
from sdlora.models.host import forget_mapped, return_freed

# A small part of the weights, through which all of the signal passes: saving here costs most.
_SPARED = ("conv_in", "conv_out", "time_embedding", "add_embedding")
_BLOCK = 64
# bitsandbytes' own block for 8-bit scales, which an unpacked state must name again.
_SCALE_BLOCK = 256
_RETURNED_BYTES = 32 * MIB


def quantize_(unet: nn.Module, kind: Quantization, device: torch.device | str = "cpu") -> nn.Module:
    """Replace the UNet's linear and Conv2d layers by quantised ones, in place, one at a time.

    device: where each layer is packed and left; a card packs in no time what takes a CPU core a minute for SD 1.5.
    The first and last convolution, the time (and size) embedding and all norms keep their number type. Raises
    MissingPackageError for nf4 without bitsandbytes.
    """
    if kind == "none":
        return unet
    if kind != "int8":
        _bitsandbytes()  # told before any work is done
    # By name: a list of the layers would keep all plain weights until the last one is packed.
    names = [name for name, _ in unet.named_modules() if name.split(".")[0] not in _SPARED]
    freed_bytes = 0
    for name in names:
        layer = unet.get_submodule(name)
        if isinstance(layer, QuantizedLayer) or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        weight = layer.weight.detach()  # `to` leaves this one where it is
        layer.to(device)
        parent, _, attribute = name.rpartition(".")
        packed = QuantizedLinear(layer, kind) if isinstance(layer, nn.Linear) else QuantizedConv2d(layer, kind)
        setattr(unet.get_submodule(parent), attribute, packed)
        forget_mapped([weight])
        freed_bytes += weight.nbytes
        del weight, layer
        # Time and again, or plain weights and packed ones are both there in the end; each costs a walk through memory.
        if freed_bytes >= _RETURNED_BYTES:
            return_freed()
            freed_bytes = 0
    return_freed()
    return unet


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights as they are held: packed ones, their scales, and those left as they were."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def parameter_count(module: nn.Module) -> int:
    """Number of weights, quantised ones counted as what they stand for."""
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLayer | PackedLayer)]
    packed = sum(layer.weight_shape.numel() for layer in layers)
    return packed + sum(parameter.numel() for parameter in module.parameters())


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingPackageError("base_model.quantization", "bitsandbytes", "8bit") from error
    return bitsandbytes


@cache
def _scale_code(device: torch.device) -> Tensor:
    """The 256 values that 8-bit scales stand for."""
    code: Tensor = _bitsandbytes().functional.create_dynamic_map().to(device)
    return code


def _flat_shape(shape: torch.Size) -> tuple[int, int]:
    """Rows of a block each: bitsandbytes' fast CPU kernel takes no odd last dimension, such as a 3x3 kernel's."""
    number = shape.numel()
    return (number // _BLOCK, _BLOCK) if number % _BLOCK == 0 else (1, number)


class QuantizedLayer(nn.Module, ABC):
    """What quantised layers share: packed buffers, and `weight` as the unpacked tensor.

    Scales are kept as their raw bits in integer buffers, so that `module.to(dtype)` can't round them.
    """

    weight_shape: torch.Size
    compute_dtype: torch.dtype
    packed: Tensor
    scale_bits: Tensor
    small_scales: Tensor
    offset_bits: Tensor

    def _pack(self, layer: nn.Linear | nn.Conv2d, kind: Quantization) -> None:
        weight = layer.weight.detach()
        self.kind = kind
        self.weight_shape = weight.shape
        self.compute_dtype = weight.dtype
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.register_parameter("bias", bias)
        self.train(layer.training)
        if kind == "int8":
            rows_OI = weight.reshape(len(weight), -1).float()
            # A row of zeros has no largest value: dividing by tiny leaves zeros, dividing by 0 would not.
            scale_O = rows_OI.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            packed_OI = (rows_OI / scale_O[:, None]).round().to(torch.int8)
            self.register_buffer("packed", packed_OI)
            self.register_buffer("scale_bits", scale_O.view(torch.int32))
        else:
            self._pack_nf4(weight, double=kind == "nf4-double")

    def _pack_nf4(self, weight: Tensor, *, double: bool) -> None:
        packed, state = _bitsandbytes().functional.quantize_4bit(
            weight.reshape(_flat_shape(weight.shape)), blocksize=_BLOCK, compress_statistics=double, quant_type="nf4"
        )
        self.register_buffer("packed", packed)
        if not double:
            self.register_buffer("scale_bits", state.absmax.float().view(torch.int32))
            return
        self.register_buffer("small_scales", state.absmax)
        self.register_buffer("scale_bits", state.state2.absmax.float().view(torch.int32))
        self.register_buffer("offset_bits", state.offset.float().reshape(1).view(torch.int32))

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight in its own shape, in `dtype`."""
        scale = self.scale_bits.view(torch.float32)
        if self.kind == "int8":
            return self.packed.to(dtype).mul_(scale[:, None]).view(self.weight_shape)
        library = _bitsandbytes().functional
        if self.kind == "nf4-double":
            code = _scale_code(self.packed.device)
            state = library.QuantState(absmax=scale, code=code, blocksize=_SCALE_BLOCK, dtype=torch.float32)
            scale = library.dequantize_blockwise(self.small_scales, state) + self.offset_bits.view(torch.float32)
        state = library.QuantState(
            absmax=scale, shape=_flat_shape(self.weight_shape), blocksize=_BLOCK, quant_type="nf4", dtype=dtype
        )
        flat: Tensor = library.dequantize_4bit(self.packed, state)
        return flat.view(self.weight_shape)

    @property
    def weight(self) -> Tensor:
        """The unpacked weight, a new tensor each time: changing it changes nothing."""
        return self.unpacked(self.compute_dtype)

    @abstractmethod
    def apply_weight(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's operation with a given weight."""

    @abstractmethod
    def input_gradient(self, input_shape: torch.Size, weight: Tensor, output_gradient: Tensor) -> Tensor:
        """The gradient with respect to the layer's input."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output; the weight is unpacked here and again in the backward pass, never kept between."""
        outputs: Tensor = _Unpacking.apply(inputs, self)
        return outputs


class _Unpacking(torch.autograd.Function):
    """A layer's operation that remembers the packed layer, not the unpacked weight."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantizedLayer) -> Tensor:
        ctx.layer, ctx.input_shape, ctx.input_dtype = layer, inputs.shape, inputs.dtype
        kind = inputs.device.type
        # Autocast does not reach into an autograd.Function, so its number type is taken over by hand.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        bias: Any = layer.bias
        bias = None if bias is None else bias.to(dtype)
        outputs: Tensor = layer.apply_weight(inputs.to(dtype), layer.unpacked(dtype), bias)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.unpacked(output_gradient.dtype)
        return ctx.layer.input_gradient(ctx.input_shape, weight, output_gradient).to(ctx.input_dtype), None


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc, override]
    """A frozen nn.Linear with a packed weight."""

    def __init__(self, layer: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._pack(layer, kind)

    def apply_weight(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """inputs @ weight.T + bias."""
        return functional.linear(inputs, weight, bias)

    def input_gradient(self, input_shape: torch.Size, weight: Tensor, output_gradient: Tensor) -> Tensor:
        """The gradient of the inputs: output_gradient @ weight."""
        return output_gradient @ weight


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc, override]
    """A frozen nn.Conv2d (zero padding) with a packed weight."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """PEFT makes an adapter's own small convolutions by `type(base_layer)(channels, rank, ...)`: plain ones."""
        if arguments and not isinstance(arguments[0], nn.Module):
            return nn.Conv2d(*arguments, **options)
        return super().__new__(cls)

    def __init__(self, layer: nn.Conv2d, kind: Quantization) -> None:
        nn.Module.__init__(self)
        assert layer.padding_mode == "zeros", "diffusers' UNets pad with zeros only"
        for name in (*self.__constants__, "transposed", "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(layer, name))
        self._pack(layer, kind)

    def apply_weight(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with the unpacked weight."""
        return functional.conv2d(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(self, input_shape: torch.Size, weight: Tensor, output_gradient: Tensor) -> Tensor:
        """The gradient of the inputs: the transposed convolution with the unpacked weight."""
        return conv2d_input(input_shape, weight, output_gradient, self.stride, self.padding, self.dilation, self.groups)
