"""Proves a written file: read back independently, and loaded by diffusers, it does what the live adapter does.

Three comparisons: every layer's update as `independent_reader` finds it in the file; every layer's update as diffusers'
own load_lora_weights puts it into a fresh pipeline; and the answers of that pipeline's UNet and text encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from sdlora.adapters.files.embeddings import is_bundled
from sdlora.adapters.live.attach import Adapter
from sdlora.adapters.live.independent_reader import StoredLayer, names_in_file, peft_name, stored_layers
from sdlora.errors import AdapterError
from sdlora.models.bundle import Bundle
from sdlora.models.progress_bars import no_progress_bars

_DELTA_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative error allowed for one layer's update: rounding of two factors to the file's number type."""
_PREDICTION_TOLERANCE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Error allowed in a prediction, relative to what the adapter changes in it."""
_LEAST_SHARE = 1e-3
"""Of the largest layer's update: below that a layer's relative error says nothing."""
_NOISE_FLOOR = 1e-5
"""Differences below this share of the prediction itself are arithmetic, not the adapter."""
_TINY_FP16 = 2.0**-24
# 128 px: the lowest level of the UNet still has 2x2 cells, and a CPU answers at once.
_LATENT_EDGE = 16
_TOKENS = 77


@dataclass(frozen=True)
class SelfTestReport:
    """What was compared and how far apart it was. Errors are relative; None is not tested, `untested` says why."""

    num_modules: int
    relative_error: float
    """Of all updates together."""
    max_relative_error: float
    """Of the worst layer; those whose update is next to nothing beside the others' don't count."""
    worst_module: str
    diffusers_error: float | None
    """Largest relative error of a layer's update as diffusers loaded it."""
    prediction_error: float | None
    """UNet prediction with the file in a fresh pipeline against the live updates, relative to the adapter's effect."""
    text_error: float | None
    """The same for the text encoders' states."""
    untested: tuple[str, ...]

    def summary(self) -> str:
        """The errors that were measured and what could not be tested, in one line for the log."""
        parts = [
            f"{self.num_modules} layers read back within {self.relative_error:.1e} of their updates "
            f"(worst: {self.max_relative_error:.1e} in {self.worst_module})"
        ]
        if self.prediction_error is not None:
            parts.append(f"prediction through diffusers within {self.prediction_error:.1e} of the adapter's effect")
        if self.text_error is not None:
            parts.append(f"text states within {self.text_error:.1e}")
        return "; ".join([*parts, *(f"not tested: {reason}" for reason in self.untested)])


def self_test(adapter: Adapter, path: Path, load_base: Callable[[], Bundle] | None = None) -> SelfTestReport:
    """Compare a file just written with the live adapter. Returns the errors, all within tolerance.

    load_base: gives a fresh bundle of the same base model in full precision (the live one may be quantised); without
    it only the file's contents are compared. The bundle's modules are changed by the test.
    Raises AdapterError naming the worst layer and its error.
    """
    in_file = load_file(path)
    tensors = {name: tensor for name, tensor in in_file.items() if not is_bundled(name)}
    dtype = _file_dtype(tensors)
    live = {(part, module): adapter.delta_weight(part, module) for part, module, _ in adapter.modules()}
    stored = stored_layers(adapter, tensors)
    errors = _compare_deltas(path, live, stored, dtype)
    if adapter.config.dora:
        _compare_magnitudes(adapter, tensors, path)
    reason = _why_not_diffusers(adapter, load_base, has_bundle=len(tensors) < len(in_file))
    if reason is not None or load_base is None:
        return SelfTestReport(len(live), *errors, None, None, None, (reason or "diffusers",))
    diffusers_error, prediction_error, text_error = _through_diffusers(load_base(), path, live, dtype)
    return SelfTestReport(len(live), *errors, diffusers_error, prediction_error, text_error, ())


def _why_not_diffusers(adapter: Adapter, load_base: Callable[[], Bundle] | None, *, has_bundle: bool) -> str | None:
    if has_bundle:
        return "loading through diffusers (it refuses bundled embeddings)"
    if adapter.algorithm != "lora":
        return f"loading through diffusers (it can't read {adapter.algorithm})"
    if adapter.config.dora:
        return "loading through diffusers (it ignores DoRA's magnitude)"
    return "loading through diffusers (no fresh base model given)" if load_base is None else None


def _compare_deltas(
    path: Path, live: Mapping[Any, Tensor], stored: Mapping[Any, StoredLayer], dtype: torch.dtype
) -> tuple[float, float, str]:
    """Relative error of all updates together, of the worst layer, and that layer's name.

    Raises AdapterError when a layer's is beyond rounding.
    """
    distances: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for key, expected in live.items():
        actual = stored[key].delta()
        reference = expected.double().cpu()
        if actual.numel() != reference.numel():
            raise AdapterError(f"self-test: {'.'.join(key)} has {actual.numel()} weights, not {reference.numel()}")
        distance = float((actual.reshape(reference.shape) - reference).norm())
        error = _relative(distance, float(reference.norm()))
        distances[".".join(key)], sizes[".".join(key)] = distance, float(reference.norm())
        allowed = _DELTA_TOLERANCE[dtype] * float(reference.norm())
        if dtype == torch.float16:
            # Values below 6e-5 lose digits in fp16: as much as a shift of all factors by its smallest step.
            allowed += 2 * float((stored[key].delta(_TINY_FP16) - actual).norm())
        # Not `distance > allowed`, which a NaN would pass.
        if not distance <= allowed:
            raise AdapterError(
                f"self-test: {path.name} does not hold what was trained: {'.'.join(key)} differs by {error:.2e} of its "
                f"update's size (allowed {_DELTA_TOLERANCE[dtype]:.0e})"
            )
    least = _LEAST_SHARE * max(sizes.values(), default=0.0)
    by_layer = {name: _relative(distances[name], size) for name, size in sizes.items() if size >= least}
    worst = max(by_layer, key=lambda name: by_layer[name], default="")
    return _relative(math.hypot(*distances.values()), math.hypot(*sizes.values())), by_layer.get(worst, 0.0), worst


def _compare_magnitudes(adapter: Adapter, tensors: Mapping[str, Tensor], path: Path) -> None:
    names = names_in_file(adapter)
    for weight in adapter.weights():
        if not weight.name.endswith(".magnitude"):
            continue
        kohya = f"{names[weight.part, weight.path]}.dora_scale"
        key = kohya if kohya in tensors else f"{peft_name(weight.part, weight.path)}.lora_magnitude_vector"
        actual, expected = tensors[key].double().flatten(), weight.parameter.detach().double().cpu().flatten()
        if _relative(float((actual - expected).norm()), float(expected.norm())) > _DELTA_TOLERANCE[tensors[key].dtype]:
            raise AdapterError(
                f"self-test: {path.name} holds another DoRA magnitude than was trained for {weight.path}"
            )


def _through_diffusers(
    bundle: Bundle, path: Path, live: Mapping[Any, Tensor], dtype: torch.dtype
) -> tuple[float, float, float | None]:
    """Errors of updates, UNet prediction and text states after diffusers' own load_lora_weights."""
    models: dict[str, nn.Module] = {"unet": bundle.unet}
    models |= dict(zip(("text_encoder", "text_encoder_2"), bundle.text_encoders, strict=False))
    for model in models.values():
        model.float().eval()
    base = {part: _outputs(part, model) for part, model in models.items()}
    # Added to the weights: what is expected then owes nothing to any adapter layer, neither PEFT's nor ours.
    with _merged(models, live):
        expected = {part: _outputs(part, model) for part, model in models.items()}
    _load_with_diffusers(bundle, path)
    diffusers_error = _compare_loaded(models, live, path, dtype)
    effects = {
        part: _effect_error(part, _outputs(part, model), expected[part], base[part], dtype)
        for part, model in models.items()
    }
    texts = [effects[part] for part in effects if part != "unet" and any(key[0] == part for key in live)]
    return diffusers_error, effects["unet"], max(texts) if texts else None


def _compare_loaded(
    models: Mapping[str, nn.Module], live: Mapping[Any, Tensor], path: Path, dtype: torch.dtype
) -> float:
    """Largest relative error of the updates in the freshly loaded layers; AdapterError when layers differ."""
    loaded: dict[Any, BaseTunerLayer] = {
        (part, name): module
        for part, model in models.items()
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    missing, surplus = sorted(live.keys() - loaded.keys()), sorted(loaded.keys() - live.keys())
    if missing or surplus:
        name = ".".join((missing or surplus)[0])
        raise AdapterError(
            f"self-test: diffusers loaded other layers than were trained ({len(missing)} missing, {len(surplus)} "
            f"surplus, first: {name})"
        )
    largest = 0.0
    for key, layer in loaded.items():
        delta = layer.get_delta_weight("self_test").detach().double().cpu()
        reference = live[key].double().cpu()
        error = _relative(float((delta - reference).norm()), float(reference.norm()))
        largest = max(largest, error)
        if error > 5 * _DELTA_TOLERANCE[dtype] and float(reference.abs().max()) > 1e-6:
            raise AdapterError(
                f"self-test: as diffusers loads {path.name}, {key[1]} differs by {error:.2e} of its update's size"
            )
    return largest


def _effect_error(part: str, actual: Tensor, expected: Tensor, base: Tensor, dtype: torch.dtype) -> float:
    distance, effect = float((actual - expected).norm()), float((expected - base).norm())
    floor = _NOISE_FLOOR * float(base.norm())
    error = distance / max(effect, floor)
    if not (distance <= floor or error <= _PREDICTION_TOLERANCE[dtype]):
        raise AdapterError(
            f"self-test: in a fresh diffusers pipeline the {part} answers otherwise than the trained model: off by "
            f"{error:.2e} of the adapter's effect (allowed {_PREDICTION_TOLERANCE[dtype]:.0e})"
        )
    return error


@contextmanager
def _merged(models: Mapping[str, nn.Module], live: Mapping[Any, Tensor]) -> Iterator[None]:
    """The live updates added to the fresh weights inside the `with` block; the weights are put back from copies."""
    kept: list[tuple[Tensor, Tensor]] = []
    for (part, path), delta in live.items():
        weight = models[part].get_submodule(path).weight
        assert isinstance(weight, Tensor)
        kept.append((weight.data, weight.data.clone()))
        weight.data += delta.to(weight.device).reshape(weight.shape)
    try:
        yield
    finally:
        for data, copy in kept:
            data.copy_(copy)


@torch.no_grad()
def _outputs(part: str, model: nn.Module) -> Tensor:
    """One prediction, or one caption's last states, for fixed random input."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    config: Any = model.config
    if part != "unet":
        # The highest number is CLIP's end of text, by which it finds where a caption ends: it may stand last only.
        tokens = torch.randint(0, config.vocab_size - 1, (1, _TOKENS), generator=generator)
        tokens[:, -1] = config.vocab_size - 1
        return model(tokens.to(device), output_hidden_states=True).hidden_states[-1].cpu()
    latents_BCHW = torch.randn(1, config.in_channels, _LATENT_EDGE, _LATENT_EDGE, generator=generator)
    text_BTD = torch.randn(1, _TOKENS, config.cross_attention_dim, generator=generator)
    extra: dict[str, Any] = {}
    if getattr(config, "addition_embed_type", None) == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        time_ids = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]], device=device)
        extra["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, width, generator=generator).to(device),
            "time_ids": time_ids,
        }
    return model(latents_BCHW.to(device), 500, text_BTD.to(device), **extra).sample.cpu()


def _load_with_diffusers(bundle: Bundle, path: Path) -> None:
    """load_lora_weights of a pipeline of the fresh modules, as a user of the file would; without its remarks."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns when a file has no text-encoder layers
    try:
        with no_progress_bars():
            _pipeline(bundle).load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="self_test")
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise AdapterError(f"self-test: diffusers can't load {path.name}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def _pipeline(bundle: Bundle) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    encoders, tokenizers = bundle.text_encoders, bundle.tokenizers
    parts: dict[str, Any] = {
        "vae": bundle.vae,
        "unet": bundle.unet,
        "text_encoder": encoders[0],
        "tokenizer": tokenizers[0],
        # Any scheduler will do: the pipeline is loaded into and never run.
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if bundle.family.name == "sdxl":
        return StableDiffusionXLPipeline(**parts, text_encoder_2=encoders[1], tokenizer_2=tokenizers[1])
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _relative(distance: float, size: float) -> float:
    if size > 0:
        return distance / size
    return 0.0 if distance == 0 else float("inf")


def _file_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    dtype = next(iter(tensors.values())).dtype
    if dtype not in _DELTA_TOLERANCE:
        raise AdapterError(f"self-test: the file holds {dtype}, not fp32, fp16 or bf16")
    return dtype
