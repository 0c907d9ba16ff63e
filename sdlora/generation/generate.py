"""Base model, weighted adapters and prompts to images.

    for generated in generate(GenerateConfig(prompt="a red fox", adapters=[UsedAdapter(file="ink.safetensors")])):
        generated.image.show()

A `Generator` keeps one base model loaded for many requests. Everything that can be wrong with a request is told before
a model is loaded. The same request gives the same bytes on the same machine, and an image's own `config` repeats it
alone (in bf16 on a processor with AMX, and for images that shared a pass, but for rounding).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.algebra.operands import idle_parts
from sdlora.adapters.files.embeddings import embeddings_beside
from sdlora.adapters.files.metadata import new_tokens_in
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.calls import KeptAdapters
from sdlora.config.files import validate
from sdlora.config.generate import ComputeConfig, GenerateConfig, UsedAdapter
from sdlora.config.given import Values, base_model_config, compute_config, generate_config
from sdlora.config.without_effect import in_generating
from sdlora.data.cache import default_cache_folder
from sdlora.errors import ConfigError
from sdlora.generation.generated import GeneratedImage, GenerationFacts, StepPreview
from sdlora.generation.request.compute import choose_device, choose_dtype
from sdlora.generation.request.prompt_warnings import prompt_warnings
from sdlora.generation.request.requests import check_rows, resolve, same_base, single_images
from sdlora.generation.sampling.adapted_base import AdaptedBase, AdapterSet
from sdlora.generation.sampling.batch_generator import BatchGenerator, OnStep
from sdlora.generation.sampling.denoising import CancelledError
from sdlora.generation.sampling.embeddings import ChosenEmbeddings, Source, choose_embeddings
from sdlora.generation.sampling.latent_colours import LatentColours
from sdlora.generation.sampling.pool import DEFAULT_POOL_BYTES, AdapterPool
from sdlora.models.bundle import Bundle, TextStates
from sdlora.models.detection import detect
from sdlora.models.frozen.attention import PlainAttention
from sdlora.models.frozen.engine import is_wide, to_channels_last
from sdlora.models.frozen.windows import use_plain_convolutions
from sdlora.models.host import tune_malloc
from sdlora.models.identity import file_hash
from sdlora.models.source import locate

_MODEL_HASH_LETTERS = 10
_ADAPTER_HASH_LETTERS = 12


def _never() -> bool:
    return False


def generate(
    config: GenerateConfig | Values | str,
    *,
    on_step: Callable[[StepPreview], None] | None = None,
    is_cancelled: Callable[[], bool] = _never,
) -> Iterator[GeneratedImage]:
    """Generate a request's images one after the other, with a model loaded for this call.

    config: also its prompt alone, or values: `generate({"prompt": "a fox", "adapters": ["ink.safetensors:0.8"]})`.
    Raises ConfigError listing every problem, before anything is loaded; ModelError or AdapterError for files whose
    content turns out damaged.
    """
    config = resolve(generate_config(config))
    return Generator(config.base_model, config.compute).generate(config, on_step=on_step, is_cancelled=is_cancelled)


class Generator:
    """One loaded base model with the adapters used last, ready for any number of requests.

    base_model: also its name alone, `Generator("builtin:emoji")`, or settings as in a YAML file; compute likewise.
    pool_bytes: memory for adapters that are kept (1 GiB). Raises ConfigError and ModelError.
    """

    def __init__(
        self,
        base_model: BaseModelConfig | Values | Path | str,
        compute: ComputeConfig | Values | None = None,
        *,
        pool_bytes: int | None = None,
    ) -> None:
        pool_bytes = validate({"pool_bytes": pool_bytes}, "Generator", KeptAdapters).pool_bytes
        base_model = base_model_config(base_model)
        self.compute = compute_config(compute)
        self.detection = detect(base_model)
        try:
            device = choose_device(self.compute.device)
        except ValueError as error:
            raise ConfigError("the request", [str(error)]) from None
        self.bundle = load_base(base_model, device=device, dtype=choose_dtype(base_model, self.compute, device))
        # Where the model's file doesn't tell, it was asked while it loaded.
        self.detection = replace(self.detection, prediction=self.bundle.schedule.prediction)
        self._tune(device)
        self._adapted = AdaptedBase(self.bundle)
        held_bytes = DEFAULT_POOL_BYTES if pool_bytes is None else pool_bytes
        self._pool = AdapterPool(self._adapted, held_bytes, self.bundle.schedule.prediction)
        self._batch_generator = BatchGenerator(self.bundle, self._adapted)
        self._colours = LatentColours(self.bundle)
        self._model_hash: str | None = None

    def _tune(self, device: torch.device) -> None:
        """Whatever makes steps faster; after loading, when what that freed is back with the system."""
        unet = self.bundle.unet
        if is_wide(unet):
            to_channels_last(unet)
            to_channels_last(self.bundle.vae.decoder)
        if device.type == "cpu":
            tune_malloc()
            if self.bundle.dtype == torch.bfloat16:
                unet.set_attn_processor(PlainAttention())
                use_plain_convolutions(unet)
        if self.compute.compile:
            # Only what repeats, compiled once each: the whole UNet in one piece would take many times as long.
            unet.compile_repeated_blocks()

    @property
    def adapter_bytes(self) -> int:
        """Memory that the adapters take which are kept for the next requests."""
        return self._pool.num_bytes

    def fits(self, config: GenerateConfig) -> bool:
        """Whether a request is for the model that is loaded, on this device and in this precision."""
        return not self._other_than_loaded(config)

    def generate(
        self,
        config: GenerateConfig | Values | str,
        *,
        on_step: Callable[[StepPreview], None] | None = None,
        is_cancelled: Callable[[], bool] = _never,
    ) -> Iterator[GeneratedImage]:
        """Generate a request's images, `batch_size` at a time. Ends early when cancelled, after what is finished.

        Raises ConfigError listing every problem at once, when called; AdapterError for a damaged adapter.
        """
        if not isinstance(config, GenerateConfig):  # what it doesn't say is as it was loaded
            values = {"prompt": config} if isinstance(config, str) else config
            if isinstance(values, Mapping):
                values = {"base_model": self.bundle.config, "compute": self.compute, **values}
            config = generate_config(values)
        return self._generate(single_images(self._resolved(config)), on_step, is_cancelled)

    def generate_rows(
        self,
        rows: Sequence[GenerateConfig],
        *,
        on_step: Callable[[StepPreview], None] | None = None,
        is_cancelled: Callable[[], bool] = _never,
    ) -> Iterator[GeneratedImage]:
        """Generate one image for each request, several in one UNet call, each with its own adapters and weights.

        Prompts, seeds, guidance, adapters and start images may differ; sizes, sampler and steps must not. `batch_size`
        of the first counts. Raises as `generate`.
        """
        resolved = [single_images(self._resolved(row).model_copy(update={"num_images": 1}))[0] for row in rows]
        if resolved:
            check_rows(resolved)
        return self._generate(resolved, on_step, is_cancelled)

    @torch.no_grad()
    def encode_texts(
        self, adapters: Sequence[UsedAdapter], texts: Sequence[str], *, max_tokens: int, weights: bool
    ) -> list[TextStates]:
        """Each text's states, on the CPU, with these adapters on the text encoders and the new tokens they bring.

        max_tokens and weights as in `Family.encode_text`. Raises AdapterError.
        """
        own = tuple(self._pool.get(used) for used in adapters)
        self.bundle.new_tokens = self._chosen(GenerateConfig(adapters=tuple(adapters)), texts).tokens
        self._adapted.use_for_text(own)
        try:
            encode = self.bundle.family.encode_text
            return [
                encode(self.bundle, [text], max_tokens=max_tokens, weights=weights).to("cpu", torch.float32)
                for text in texts
            ]
        finally:
            self._adapted.clear()

    @contextmanager
    def adapted(self, adapters: Sequence[UsedAdapter]) -> Iterator[Bundle]:
        """The loaded model with these adapters on its UNet inside the block, as images are generated with them."""
        own = tuple(self._pool.get(used) for used in adapters)
        if self._adapted.can_merge:
            self._adapted.merge(own)
        else:
            self._adapted.use([own], 1)
        try:
            yield self.bundle
        finally:
            self._adapted.clear()

    def _other_than_loaded(self, config: GenerateConfig) -> list[str]:
        """The settings of a request that another model or device would have to be loaded for."""
        loaded_for = ("device", "precision", "compile")
        other = [name for name in loaded_for if getattr(config.compute, name) != getattr(self.compute, name)]
        base = [] if same_base(config.base_model, self.bundle.config) else ["base_model"]
        return base + [f"compute.{name}" for name in other]

    def _resolved(self, config: GenerateConfig) -> GenerateConfig:
        if not self.fits(config):
            raise ConfigError(
                "the request",
                [
                    f"{name}: differs from what {self.bundle.source} was loaded with; make another Generator for it"
                    for name in self._other_than_loaded(config)
                ],
            )
        return resolve(config, self.detection)

    def _generate(
        self,
        rows: Sequence[GenerateConfig],
        on_step: Callable[[StepPreview], None] | None,
        is_cancelled: Callable[[], bool],
    ) -> Iterator[GeneratedImage]:
        embeddings = self._embeddings(rows)
        start = 0
        while start < len(rows) and not is_cancelled():
            own = embeddings[start]
            self.bundle.new_tokens = own.tokens
            alike = sum(1 for _ in takewhile(lambda one: one.signature == own.signature, embeddings[start:]))  # noqa: B023
            # texts of other lengths would be filled up to the longest, and the picture depend on its neighbours
            shape = self._batch_generator.shape_of_texts(rows[start])
            limit = rows[start : start + min(alike, rows[0].batch_size)]
            batch = list(takewhile(lambda row: self._batch_generator.shape_of_texts(row) == shape, limit))  # noqa: B023
            preview = None if on_step is None else self._previewing(on_step, start, len(rows))
            try:
                yield from self._generated(batch, embeddings[start : start + len(batch)], preview, is_cancelled)
            except CancelledError:
                return
            start += len(batch)

    def _embeddings(self, rows: Sequence[GenerateConfig]) -> list[ChosenEmbeddings]:
        """For each row the embeddings that its prompts name, of its folders and of its own adapters.

        Rows with other adapters have others: each checkpoint of a run brings those that were trained with it.
        """
        texts: dict[tuple[object, ...], list[str]] = {}
        chosen: dict[tuple[object, ...], ChosenEmbeddings] = {}
        keys = [(row.embedding_folders, tuple(used.file for used in row.adapters)) for row in rows]
        for key, row in zip(keys, rows, strict=True):
            texts.setdefault(key, []).extend([row.prompt, row.negative])
        for key, row in zip(keys, rows, strict=True):
            if key not in chosen:
                chosen[key] = self._chosen(row, texts[key])
        return [chosen[key] for key in keys]

    def _chosen(self, row: GenerateConfig, texts: Sequence[str]) -> ChosenEmbeddings:
        """The embeddings of a row's folders and adapters that the texts name."""
        found: dict[str, Source] = {}
        expected: dict[str, str] = {}
        whose: dict[str, str] = {}
        twice: dict[str, str] = {}
        for file in (self._pool.get(used).loaded.file for used in row.adapters):
            trained = new_tokens_in(file.metadata)
            beside = embeddings_beside(file.path) if trained else {}
            own: dict[str, Source] = {token.casefold(): path for token, path in beside.items()}
            own |= {name.casefold(): embedding for name, embedding in file.embeddings.items()}
            for name in own:
                if (before := whose.setdefault(name, file.path.name)) != file.path.name:
                    twice[name] = f"'{name}' comes with {before} and {file.path.name}: that of the last is used"
            found |= own
            expected |= {token.casefold(): file.path.name for token in trained}
        widths = [encoder.get_input_embeddings().weight.shape[1] for encoder in self.bundle.text_encoders]
        chosen = choose_embeddings(texts, row.embedding_folders, found, widths, expected)
        meant = (note for name, note in twice.items() if name in chosen.names)
        return replace(chosen, notes=(*meant, *chosen.notes))

    def _previewing(self, on_step: Callable[[StepPreview], None], index: int, num_images: int) -> OnStep:
        def tell(step: int, total_steps: int, clean: Callable[[], Tensor]) -> None:
            on_step(StepPreview(step, total_steps, index, num_images, lambda: self._colours.images(clean())))

        return tell

    def _generated(
        self,
        rows: Sequence[GenerateConfig],
        embeddings: Sequence[ChosenEmbeddings],
        on_step: OnStep | None,
        is_cancelled: Callable[[], bool],
    ) -> Iterator[GeneratedImage]:
        began = time.monotonic()
        known_notes = len(self.bundle.notes)
        self.bundle.clip_skip = rows[0].base_model.clip_skip
        sets: list[AdapterSet] = [tuple(self._pool.get(used) for used in row.adapters) for row in rows]
        merge = self._batch_generator.merges(rows[0], sets)
        pictures = self._batch_generator.images(rows, sets, merge, on_step, is_cancelled)
        seconds = (time.monotonic() - began) / len(rows)
        notes = self.bundle.notes[known_notes:]
        for row, own, chosen, picture in zip(rows, sets, embeddings, pictures, strict=True):
            # What was decided is kept: merged and live adapters differ in the last bits, and the config must repeat the
            # image.
            compute = row.compute.model_copy(update={"merge_adapters": merge})
            said = [text for adapter in own for text in adapter.loaded.warnings]
            for used, adapter in zip(row.adapters, own, strict=True):
                said += [
                    f"{adapter.loaded.file.path.name}: {note}" for note in idle_parts(used, adapter.loaded.layer_names)
                ]
            said += [
                *in_generating(row),
                *prompt_warnings(row, (*chosen.names, *chosen.unusable)),
                *chosen.notes,
                *notes,
                *([picture.warning] if picture.warning else []),
            ]
            yield GeneratedImage(
                picture.image,
                row.model_copy(update={"compute": compute}),
                self._facts(row, own, seconds),
                tuple(dict.fromkeys(said)),
            )

    def _facts(self, row: GenerateConfig, adapters: AdapterSet, seconds: float) -> GenerationFacts:
        source = locate(row.base_model.model)
        # Not when loading: reading gigabytes once more for a hash should not delay the first image.
        if source.kind == "file" and self._model_hash is None:
            assert source.path is not None
            self._model_hash = file_hash(source.path, default_cache_folder())[:_MODEL_HASH_LETTERS]
        hashes = {
            Path(used.file).stem: adapter.loaded.file.model_hash[:_ADAPTER_HASH_LETTERS]
            for used, adapter in zip(row.adapters, adapters, strict=True)
        }
        return GenerationFacts(
            model_name=source.path.stem if source.kind == "file" and source.path else source.name,
            model_hash=self._model_hash,
            adapter_hashes=hashes,
            family=self.bundle.family.name,
            prediction=self.bundle.schedule.prediction,
            seconds=seconds,
        )
