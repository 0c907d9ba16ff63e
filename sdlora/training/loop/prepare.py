"""Everything a run needs before its first step: model, adapter, encoded images and captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.live.attach import Adapter, attach
from sdlora.config.train import TrainConfig
from sdlora.data.cache import Cache, default_cache_folder
from sdlora.events import EventStream
from sdlora.models.bundle import Bundle
from sdlora.models.frozen.engine import is_wide, speed_up, to_channels_last
from sdlora.models.host import tune_malloc
from sdlora.training.inputs.examples import BatchSource
from sdlora.training.inputs.images import RunImages
from sdlora.training.inputs.latents import LatentSource
from sdlora.training.inputs.preview_prompts import without_taken
from sdlora.training.inputs.texts import TextSource
from sdlora.training.loss.loss_function import LossFunction
from sdlora.training.optimization.precision import PrecisionContext
from sdlora.training.outputs.previews import Previews
from sdlora.training.outputs.validation import Validation
from sdlora.training.preflight.memory import MemoryPlan
from sdlora.training.preflight.remarks import cut_off, long_captions, remarks
from sdlora.training.preflight.speed import choose_speed
from sdlora.training.workers import Workers


@dataclass(frozen=True)
class Prepared:
    """Model, encoded data and loss function of a run, on its device, for the trainer and the previews."""

    bundle: Bundle
    adapter: Adapter
    batches: BatchSource
    loss_function: LossFunction
    validation: Validation | None
    previews: Previews


def prepare(config: TrainConfig, images: RunImages, events: EventStream, workers: Workers) -> Prepared:
    """Load the base model, attach the adapter, encode what can be encoded beforehand."""
    if config.optimization.threads:
        torch.set_num_threads(config.optimization.threads)
    for label, text in remarks(without_taken(config), images):
        if label == "warning":
            events.warn(text)
        else:
            events.notice(f"{label}: {text}")
    if counts := long_captions(config, images):
        events.warn(f"{len(counts)} captions over {config.captions.max_tokens} tokens{cut_off(counts)}")
    events.notice(f"loading {config.base_model.model}")
    bundle = load_base(config.resolved_base_model, device=workers.device)
    # Not before the model is loaded: the process would keep every buffer that reading the weights has freed.
    tune_malloc()
    if workers.device.type == "cpu" and is_wide(bundle.unet):
        to_channels_last(bundle.vae)  # encodes and decodes a tenth faster
    for note in bundle.notes:
        events.notice(note)
    cache = None
    if config.images.cache:
        cache = Cache(config.images.cache_folder or default_cache_folder(), on_damage=events.warn)
    latents = LatentSource(bundle, config.images, cache)
    latents.prepare(images.placed, events, workers=workers)
    # Held-out images are never mirrored, so that losses stay comparable.
    latents.prepare(images.bucketed_held_out, events, flips=False, workers=workers)
    texts = _texts(config, images, bundle, cache, events, workers)
    adapter = attach(bundle, config.adapter, seed=config.seed)
    for note in adapter.notes:
        events.notice(note)
    _speed_up(config, images, bundle, adapter, events)
    if config.optimization.gradient_checkpointing:
        _checkpoint_activations(bundle, adapter)
    # Previews decode with the VAE and encode prompts of their own, so with them nothing may leave.
    if not config.previews.prompts:
        _leave_device(bundle, vae=not latents.needs_vae, text_encoders=not texts.live)
    batches = BatchSource(images.placed, latents, batch_size=config.optimization.batch_size, seed=config.seed)
    validation = None
    if images.bucketed_held_out:
        # A context of its own: validation only casts, and the trainer's, which owns fp16's loss scale, is not made yet.
        precision = PrecisionContext(config.optimization.precision, workers.device)
        validation = Validation(images.bucketed_held_out, config, bundle, adapter, latents, texts, precision, workers)
    previews = Previews(config, bundle, adapter)
    for note in previews.notes:
        events.warn(f"previews.adapters: {note}")
    return Prepared(bundle, adapter, batches, LossFunction(config, bundle, adapter, texts), validation, previews)


def _speed_up(config: TrainConfig, images: RunImages, bundle: Bundle, adapter: Adapter, events: EventStream) -> None:
    """Exchange frozen layers for faster ones, as `optimization.speed` and the machine allow, and say so."""
    plan = MemoryPlan.of(config, images, bundle.unet, adapter.trainable_parameters)
    chosen = choose_speed(config.optimization, config.resolved_base_model, bundle.unet, plan, bundle.device)
    tell = events.warn if chosen.is_without_effect else events.notice
    tell(f"speed: {chosen.text}")
    is_half = config.optimization.precision != "fp32"
    # A dropout in half precision rounds its factor: plain has the one of fp32.
    if chosen.speed != "plain" or (is_half and config.adapter.dropout == 0):
        adapter.leave_casts_to_autocast()
    if chosen.speed != "plain":
        kept = adapter.base_layers() if adapter.reads_base_weights else ()
        speed_up(bundle.unet, chosen.speed, kept=kept)
        adapter.fuse()


def _texts(
    config: TrainConfig,
    images: RunImages,
    bundle: Bundle,
    cache: Cache | None,
    events: EventStream,
    workers: Workers,
) -> TextSource:
    """Text states from the cache where each caption has few forms and nothing that encodes it is trained, else live."""
    records = images.trained + images.held_out
    forms = [record.trained_captions() for record in records]
    is_trained = config.adapter.text_encoder or bool(config.adapter.new_tokens)
    live = is_trained or any(each is None for each in forms)
    texts = TextSource(bundle, config.captions, cache, live=live)
    # Held-out captions are never shuffled or dropped, so each has this one form only.
    known = [form for each in forms for form in each or ()] + [record.plain_caption() for record in images.held_out]
    if config.objective.prior_preservation == "base_prediction":
        known += [
            config.objective.prior_prompt or record.prior_caption() for record in images.trained if not record.is_class
        ]
    texts.prepare(known, events, workers)
    return texts


def _checkpoint_activations(bundle: Bundle, adapter: Adapter) -> None:
    """Recompute activations in the backward pass. PyTorch does so only in modules that are in training mode."""
    bundle.unet.enable_gradient_checkpointing()
    bundle.unet.train()
    for encoder in bundle.text_encoders:
        # Gradients pass through an encoder also on their way to the vectors of new tokens.
        if adapter.tokens is not None or any(parameter.requires_grad for parameter in encoder.parameters()):
            # The reentrant form lets no gradient through a block whose inputs need none.
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()
    adapter.train(True)


def _leave_device(bundle: Bundle, *, vae: bool, text_encoders: bool) -> None:
    """Move what the steps don't need off the card."""
    if bundle.device.type == "cpu":
        return
    if vae:
        bundle.vae.to("cpu")
    if text_encoders:
        for encoder in bundle.text_encoders:
            encoder.to("cpu")
    # PyTorch's allocator would keep what the two models took, and other programs on the card would not get it.
    if bundle.device.type == "cuda":
        torch.cuda.empty_cache()
