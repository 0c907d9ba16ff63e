"""How many operations a training step is made of: on a card, a small step takes as long as starting them does."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdlora.adapters.live.attach import attach
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.events import EventStream
from sdlora.models.loading import load
from sdlora.training.loop.prepare import prepare
from sdlora.training.loop.trainer import Trainer
from sdlora.training.preflight.checks import check
from sdlora.training.workers import Workers


class Counted(TorchDispatchMode):
    """Inside, every operation that torch carries out is counted, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.by_name[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("layers", "most_operations", "most_copies"),
    [
        (["adapter.layers=attention"], 7700, 540),
        (["adapter.layers=all+conv", "adapter.text_encoder=true"], 14600, 1450),
    ],
)
def test_a_step_has_no_more_operations_than_it_had(
    layers: list[str], most_operations: int, most_copies: int, tiny_sd1: Path, tiny_images: Path
) -> None:
    config = files.load(
        overrides=[
            f"base_model.model={tiny_sd1}", f"images.folder={tiny_images}", "images.resolution=64",
            "images.cache=false", "validation.fraction=0", "adapter.rank=4", "optimization.precision=bf16",
            "optimization.device=cpu", "optimization.speed=plain", "optimization.steps=2", *layers,
        ]
    )  # fmt: skip
    images = check(config)
    events, workers = EventStream([]), Workers("cpu")
    made = prepare(config, images, events, workers)
    trainer = Trainer(config, 2, made.adapter, made.batches, made.loss_function, events, workers)
    counted = Counted()
    with ExitStack() as counting:

        def after_step() -> Literal["go on"]:
            if trainer.progress.step == 1:  # the second one is counted, as the first makes the optimizer's state
                counting.enter_context(counted)
            return "go on"

        trainer.run(after_step)
    copies = counted.by_name["copy_"] + counted.by_name["_to_copy"]
    assert counted.by_name.total() <= most_operations
    assert copies <= most_copies
    # Where a card would be waited for: the loss and the gradients' norm, and once more with a trained text encoder.
    assert counted.by_name["_local_scalar_dense"] <= 3


def test_casts_that_are_left_to_autocast_change_no_bit(tiny_sd1: Path) -> None:
    bundle = load(BaseModelConfig(model=str(tiny_sd1)), dtype=torch.bfloat16)
    adapter = attach(bundle, AdapterConfig(rank=4, layers="all+conv"))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters:
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    noisy_BCHW = torch.randn(1, 4, 8, 8, generator=generator)
    states_BTD = torch.randn(1, 77, bundle.unet.config.cross_attention_dim, generator=generator)

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            predicted_BCHW = bundle.unet(noisy_BCHW.bfloat16(), 500, states_BTD.bfloat16(), return_dict=False)[0]
        return list(torch.autograd.grad(predicted_BCHW.float().square().mean(), adapter.parameters))

    cast_by_peft = gradients()
    adapter.leave_casts_to_autocast()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(), cast_by_peft, strict=True))
    assert any(gradient.any() for gradient in cast_by_peft)
