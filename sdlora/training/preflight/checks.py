"""Everything that can be found wrong with a run in seconds, before a model is loaded or a folder made."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from sdlora import disk
from sdlora.adapters.algebra.operands import load_operands
from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.key_names import TRAINABLE
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.adapters.live.starting_point import embeddings_of, has_dora
from sdlora.adapters.live.trained_tokens import other_length
from sdlora.config import files
from sdlora.config.adapter import REGEX_PREFIX
from sdlora.config.generate import Sampler, sampler_problem
from sdlora.config.section import is_text
from sdlora.config.train import TrainConfig
from sdlora.data.cache import default_cache_folder
from sdlora.data.captions import protected_tags
from sdlora.errors import AdapterError, ConfigError, MissingPackageError, SdloraError
from sdlora.generation.request.prompt_schedule import schedule
from sdlora.models.completeness import check_parts, check_vae
from sdlora.models.detection import Detection, detect
from sdlora.models.layout import text_encoder_layouts
from sdlora.models.text import check_clip_skip
from sdlora.text_files import UnreadableTextError
from sdlora.training.inputs.images import RunImages, find_images
from sdlora.training.optimization import optimizers
from sdlora.training.optimization.parameter_groups import check_blocks
from sdlora.training.preflight.counting import Layouts, base_notes, chosen_layers, start_notes
from sdlora.training.preflight.new_tokens import check_tokens, vector_counts
from sdlora.training.workers import check_device


def check(config: TrainConfig) -> RunImages:
    """The run's images, if the run can begin.

    Raises the SdloraError of what is wrong (optimizer, missing packages, adapter to start from, base model, images), or
    a ConfigError that lists several.
    """
    found: list[RunImages] = []
    checks: tuple[Callable[[], object], ...] = (
        lambda: _check_folders(config),
        lambda: check_device(config.optimization.device),
        lambda: optimizers.check(config.optimization),
        lambda: _check_packages(config),
        lambda: _check_start(config),
        lambda: _check_vae(config),
        lambda: _check_tags(config),
        lambda: _check_previews(config),
        lambda: _check_base(config),
        lambda: _check_layers(config),
        lambda: found.append(find_images(config)),
        # The last one, as it needs the images; where they can't be read, that is what is told.
        lambda: check_tokens(config, found[0]) if found else None,
    )
    # All of them, not the first: whoever starts a run of hours should fix everything in one go.
    errors: list[SdloraError] = []
    for one in checks:
        try:
            one()
        except SdloraError as error:
            if str(error) not in map(str, errors):  # two may have asked for the same file
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError("this run", [str(error) for error in errors])
    return found[0]


def _check_folders(config: TrainConfig) -> None:
    """The run's folder and the cache's can be made and written to."""
    cache = (config.images.cache_folder or default_cache_folder()) if config.images.cache else None
    named = {"outputs.folder": config.outputs.folder / config.name, "images.cache_folder": cache}
    problems = [
        f"{setting}: {reason}"
        for setting, folder in named.items()
        if folder is not None and (reason := disk.why_not_writable(folder))
    ]
    if not is_text(str(config.outputs.folder.resolve())):
        problems.append(
            "outputs.folder: its path isn't UTF-8, as safetensors wants it: rename the folder, or set another"
        )
    if problems:
        raise ConfigError("this run", problems)


def _check_packages(config: TrainConfig) -> None:
    if config.base_model.quantization.startswith("nf4") and find_spec("bitsandbytes") is None:
        raise MissingPackageError(f"base_model.quantization={config.base_model.quantization}", "bitsandbytes", "8bit")
    if config.outputs.tensorboard and find_spec("tensorboard") is None:
        raise MissingPackageError("outputs.tensorboard", "tensorboard", "tensorboard")
    if config.outputs.wandb and find_spec("wandb") is None:
        raise MissingPackageError("outputs.wandb", "wandb", "wandb")
    if config.outputs.on_finish is not None:
        program = shlex.split(config.outputs.on_finish)[0]
        if shutil.which(program) is None:
            raise ConfigError("outputs.on_finish", [f"there is no program '{program}' here; give its path"])


def _check_vae(config: TrainConfig) -> None:
    if config.base_model.vae is not None:
        check_vae(config.base_model.vae)


def _check_previews(config: TrainConfig) -> None:
    problems = []
    texts = {"previews.negative": config.previews.negative}
    for number, one in enumerate(config.previews.parsed):
        texts[f"previews.prompts.{number}"] = one.prompt
        texts[f"previews.prompts.{number}, its negative"] = one.negative or ""
    for name, text in texts.items():
        try:
            schedule(text, 1)
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError("this run", problems)


def _check_tags(config: TrainConfig) -> None:
    try:
        protected_tags(config.captions)
    except OSError as error:
        raise ConfigError("captions.protected_tags", [f"{error.filename} can't be read: {error.strerror}"]) from None
    except UnreadableTextError as error:
        raise ConfigError("captions.protected_tags", [f"{config.captions.protected_tags} {error}"]) from None


def _check_base(config: TrainConfig) -> None:
    detection = detect(config.resolved_base_model)
    check_parts(config.base_model, detection.family)
    pictured = _detect_preview_base(config, detection)
    problems = [
        f"{setting}: {problem}"
        for setting, sampler in _preview_samplers(config)
        if (problem := sampler_problem(sampler, pictured.prediction))
    ]
    if config.images.inpaint_mask != "strokes" and not detection.is_inpainting:
        problems.append(
            f"images.inpaint_mask={config.images.inpaint_mask} has no effect: {config.base_model.model} is no "
            "inpainting model (its UNet takes 4 channels, not 9); leave the setting out"
        )
    if problems:
        raise ConfigError("this run", problems)
    try:
        base_notes(config)
    except AdapterError as error:
        raise ConfigError("base_model.adapters", [str(error).removeprefix("base_model.adapters: ")]) from None
    try:
        load_operands(config.previews.adapters, detection.family, "base_model.model")
    except SdloraError as error:
        raise ConfigError("previews.adapters", [str(error)]) from None


def _detect_preview_base(config: TrainConfig, trained: Detection) -> Detection:
    """What the previews are generated with. Raises ConfigError for a model that is missing or of another family."""
    name = config.previews.base_model
    if name is None:
        return trained
    try:
        found = detect(config.preview_base_model)
        check_parts(config.preview_base_model, found.family)
    except SdloraError as error:
        raise ConfigError("previews.base_model", [str(error)]) from None
    if found.family != trained.family:
        problem = (
            f"{name} is of family {found.family}, {config.base_model.model} of {trained.family}: no adapter fits both"
        )
        raise ConfigError("previews.base_model", [problem])
    return found


def _check_layers(config: TrainConfig) -> None:
    """The layers, blocks and text-encoder layer that are named are there, by the shapes of the model alone."""
    if config.base_model.clip_skip > 1:
        encoders = text_encoder_layouts(config.base_model, detect(config.resolved_base_model))
        check_clip_skip(config.base_model.clip_skip, encoders[0].config.num_hidden_layers)
    adapter = config.adapter
    patterns = adapter.block_ranks or config.optimization.block_learning_rates
    # A layer set fits every model; only names can be wrong.
    is_sure = not patterns and not adapter.layers.startswith(REGEX_PREFIX)
    if is_sure or not adapter.rank or adapter.start_from is not None:
        return
    targets = chosen_layers(config, Layouts.of(config)).targets
    check_blocks(config.optimization, [(target.part, target.path) for target in targets])


def _preview_samplers(config: TrainConfig) -> Iterator[tuple[str, Sampler]]:
    """The samplers that the run's previews are generated with, and where they are set."""
    previews = config.previews.parsed
    if config.previews.from_captions or any(one.sampler is None for one in previews):
        yield "previews.sampler", config.previews.sampler
    for one in previews:
        if one.sampler is not None:
            yield "previews.prompts", one.sampler


def _check_start(config: TrainConfig) -> None:
    """A file on the hub is fetched here, so that a wrong name or a missing network shows before a model is loaded."""
    start = config.adapter.start_from
    if start is None:
        return
    path = local_file(start)
    if not path.is_file():
        raise ConfigError("adapter.start_from", [f"no such file: {start}"])
    try:
        detect(config.resolved_base_model)
    except SdloraError:  # told by the check of the base model
        read(path)
        return
    start_notes(config)
    file = read(path)
    told = config.adapter.beside_file(TRAINABLE[file.algorithms[0]], dora=has_dora(file))
    files.validate({**config.model_dump(), "adapter": told}, f"beside adapter.start_from={path.name}")
    _check_token_lengths(config, file)


def _check_token_lengths(config: TrainConfig, file: AdapterFile) -> None:
    trained = embeddings_of(file) if config.adapter.new_tokens else {}
    problems = [
        other_length(token, length, wanted)
        for token, wanted in (vector_counts(config) if trained else {}).items()
        if (embedding := trained.get(token.casefold())) is not None
        and (length := len(next(iter(embedding.vectors.values())))) != wanted
    ]
    if problems:
        raise ConfigError("adapter.start_from", problems)
