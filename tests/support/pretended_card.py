"""A card that isn't there: training steps and sampling on a device of which torch only keeps the books.

`python -m tests.support.pretended_card` runs the cases below and prints as JSON what went wrong in each, and where
the program waited for the card. Shapes, number types and devices are those of a real card, values there are none
(FakeTensorMode), so a tensor on the wrong device is found as on a card, and so is every question that can only be
answered when all work before it is done.

In a process of its own, since a device can't be unregistered.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

import sdlora
from sdlora.adapters.live.attach import Adapter
from sdlora.config import files
from sdlora.config.generate import GenerateConfig
from sdlora.events import EventStream
from sdlora.generation.sampling import passes
from sdlora.generation.sampling.adapted_base import AdaptedBase
from sdlora.generation.sampling.batch_generator import BatchGenerator
from sdlora.generation.sampling.passes import Passes
from sdlora.models.bundle import Bundle
from sdlora.training.loop.prepare import Prepared, prepare
from sdlora.training.loop.trainer import Trainer
from sdlora.training.loss.loss_function import LossFunction
from sdlora.training.preflight.checks import check
from sdlora.training.workers import Workers
from tests.support.tiny_models import build

CARD = torch.device("privateuseone:0")
_SCALAR = torch.ops.aten._local_scalar_dense.default
_FEW_LAYERS = "adapter.layers=regex:mid_block.*(to_q|conv1)"
TRAINING: dict[str, tuple[str, tuple[str, ...]]] = {
    "objective": (
        "sd1",
        (
            "images.mask=file", "objective.prior_outside_mask=0.5", "objective.weighting=min_snr",
            "objective.loss=huber", "objective.huber_schedule=snr", "objective.noise_offset=0.1",
            "objective.multires_noise_iterations=3", "objective.input_perturbation=0.1",
            "objective.timestep_spacing=even", "optimization.max_weight_norm=1", "optimization.ema=0.9",
        ),
    ),
    "prior": (
        "sd1",
        (
            "captions.trigger=ohwx", "objective.prior_preservation=base_prediction", "adapter.dora=true",
            "optimization.gradient_checkpointing=true", "adapter.text_encoder=true",
        ),
    ),
    "fp16": (
        "sd2",
        ("adapter.algorithm=loha", "objective.weighting=debiased", "optimization.precision=fp16"),
    ),
    "sdxl": ("sdxl", ("adapter.text_encoder=true", "adapter.algorithm=lokr", "adapter.dora=true")),
    "live": (
        "inpainting",
        (
            "images.random_crop=true", "captions.shuffle_tags=true", "optimization.precondition=true",
            "adapter.rank_dropout=0.3", "adapter.new_tokens={<tok>: {init: red fox, vectors: 2}}",
            "captions.trigger=<tok>",
        ),
    ),
}  # fmt: skip
SAMPLING: dict[str, tuple[str, dict[str, Any]]] = {
    "sampling": ("sd1", {"sampler": "DPM++ 2M Karras", "negative": "blurry", "guidance_rescale": 0.5}),
    "sampling sdxl": ("sdxl", {"sampler": "Euler a", "prompt": "a (house:1.2) AND a tree"}),
}


class PretendedCard(TorchDispatchMode):
    """Inside, tensors on CARD have no values; `waits` counts where the program asked for one."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()

    @contextmanager
    def used(self) -> Iterator[None]:
        """With everything that it takes."""
        with ExitStack() as modes:
            for mode in (self.fake, self, _TensorsFromLists()):
                modes.enter_context(mode)
            yield

    def put(self, *modules: nn.Module) -> None:
        """Exchange all tensors of these modules for ones on the card, as `to` can't for such tensors."""
        for module in (part for whole in modules for part in whole.modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CARD)
                    module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CARD)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is _SCALAR and isinstance(asked := arguments[0], FakeTensor):
            if asked.device == CARD:
                self.waits[_who_asks()] += 1
                return 0.5
            if asked.constant is None:
                return 1.0  # a tensor on the processor, whose value it would know
            return asked.constant.item()
        return function(*tree_map(self._without_value, arguments), **tree_map(self._without_value, options or {}))

    def _without_value(self, value: Any) -> Any:
        """Torch calculates with known values at once, which on the card it couldn't."""
        if isinstance(value, FakeTensor):
            value.constant = None
        elif isinstance(value, Tensor):
            return self.fake.from_tensor(value)
        return value


class _TensorsFromLists(TorchFunctionMode):
    """Makes `torch.tensor([...], device=CARD)` on the processor first, as torch has nothing that fills the card."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if function is torch.tensor and torch.device(options.get("device") or "cpu").type == CARD.type:
            return function(*arguments, **{**options, "device": "cpu"}).to(CARD)
        return function(*arguments, **options)


def _who_asks() -> str:
    """The package's own function that led to a question."""
    own = str(Path(sdlora.__file__).parent)
    frame = next(frame for frame in reversed(traceback.extract_stack()) if frame.filename.startswith(own))
    return f"{Path(frame.filename).stem}.{frame.name}"


def register() -> None:
    """Make CARD a device that torch knows, with autocast, which casts nothing there."""
    torch.utils.backend_registration._setup_privateuseone_for_python_backend("card")
    torch.card.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    register.library = library  # type: ignore[attr-defined]


def train(model: Path, pictures: Path, settings: tuple[str, ...]) -> Counter[str]:
    """A step and a validation on the card after everything before them on the processor; returns the step's waits."""
    config = files.load(
        overrides=[
            f"base_model.model={model}", f"images.folder={pictures}", "images.resolution=64", "images.cache=false",
            _FEW_LAYERS, "adapter.rank=4", "optimization.batch_size=2", "optimization.precision=bf16",
            "optimization.device=cpu", "optimization.optimizer=adamw", "optimization.steps=1000",
            "validation.fraction=0.25", *settings,
        ]
    )  # fmt: skip
    events, workers = EventStream([]), Workers("cpu")
    made = prepare(config, check(config), events, workers)
    card = PretendedCard()
    _put_on(card, made.bundle)
    workers.device = CARD
    with card.used():
        trainer = _trainer(config, made, events, workers)
        trainer._step()
        waits = Counter(card.waits)
        with trainer.evaluating():
            assert made.validation is not None
            made.validation.loss()
    return waits


def _trainer(config: Any, made: Prepared, events: EventStream, workers: Workers) -> Trainer:
    """The trainer of a run whose model has come to the card since."""
    adapter = Adapter(
        made.adapter.models, made.adapter.targets, config.adapter, made.bundle.family.name, tokens=made.adapter.tokens
    )
    loss_function = LossFunction(config, made.bundle, adapter, made.loss_function._texts)
    return Trainer(config, 1000, adapter, made.batches, loss_function, events, workers)


def sample(model: Path, settings: dict[str, Any]) -> Counter[str]:
    """Latents of two images on the card; returns the waits. Decoded they are, but pictures need values."""
    request = GenerateConfig(
        base_model={"model": str(model)}, width_px=64, height_px=64, steps=2,
        **{"prompt": "a house", **settings},
    )  # fmt: skip
    bundle = sdlora.Generator(request.base_model).bundle
    card = PretendedCard()
    _put_on(card, bundle)
    with ExitStack() as patches:
        patches.enter_context(patch.object(Passes, "picture", lambda *_: Image.new("RGB", (64, 64))))
        # A scheduler works out its timesteps with NumPy before anything is on the card.
        patches.enter_context(patch.object(passes, "make_scheduler", _with_values(passes.make_scheduler)))
        patches.enter_context(card.used())
        generator = BatchGenerator(bundle, AdaptedBase(bundle))
        generator._generated([request, request], [(), ()], [None, None], False, None, lambda: False)
    return Counter(card.waits)


def _with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    def calculated(sampler: Any, schedule: Any, steps: int, device: Any) -> Any:
        with _disable_current_modes():
            return function(sampler, schedule, steps, "cpu")

    return calculated


def _put_on(card: PretendedCard, bundle: Bundle) -> None:
    with card.fake:
        card.put(bundle.unet, bundle.vae, *bundle.text_encoders)


def _pictures(folder: Path) -> Path:
    folder.mkdir()
    for index in range(4):
        path = folder / f"{index}.png"
        Image.new("RGB", (64, 64), (60 * index, 90, 120)).save(path)
        Image.new("L", (64, 64), 128).save(path.with_name(f"{index}-masklabel.png"))
        path.with_suffix(".txt").write_text("ohwx, a small house, by the sea", encoding="utf-8")
    return folder


def main() -> None:
    """Run all cases and print what came of them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    register()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        # A dozen layers of a kind lie nowhere else and ask for nothing else than one, and their books take longer.
        models = {"sd1": build("sd1", root / "sd1", shallow=True), "sdxl": build("sdxl", root / "sdxl", shallow=True)}
        models["sd2"] = build("sd2", root / "sd2", prediction="v_prediction", shallow=True)
        models["inpainting"] = build("sd1", root / "inpainting", inpainting=True, shallow=True)
        pictures = _pictures(root / "pictures")
        for name, (family, settings) in TRAINING.items():
            found[name] = _tried(lambda: train(models[family], pictures, settings))  # noqa: B023 - called at once
        for name, (family, request) in SAMPLING.items():
            found[name] = _tried(lambda: sample(models[family], request))  # noqa: B023
    print(json.dumps(found))


def _tried(run: Any) -> dict[str, Any]:
    try:
        return {"waits": run(), "error": None}
    except Exception:
        return {"waits": {}, "error": traceback.format_exc()[-3000:]}


if __name__ == "__main__":
    main()
