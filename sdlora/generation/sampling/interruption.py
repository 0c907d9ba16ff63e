"""Giving up in the middle of a step: a large picture's single pass through the UNet may take minutes on a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from sdlora.generation.sampling.denoising import CancelledError

_PARTS = (Attention, BasicTransformerBlock, ResnetBlock2D)


@contextmanager
def interruptible(models: Sequence[nn.Module], is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """Inside the block `is_cancelled` is asked before each part of the models, too; CancelledError leaves the pass."""

    def look(part: nn.Module, inputs: object) -> None:
        if is_cancelled():
            raise CancelledError

    parts = [part for model in models for part in model.modules() if isinstance(part, _PARTS)]
    hooks = [part.register_forward_pre_hook(look) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
