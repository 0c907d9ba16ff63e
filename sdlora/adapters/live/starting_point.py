"""Going on from an existing adapter file: its layers, ranks, scales and values, fitted to a loaded base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from sdlora.adapters.files.embeddings import Embedding, embeddings_beside, read_embedding
from sdlora.adapters.files.key_names import ALGORITHM_NAMES, TRAINABLE
from sdlora.adapters.files.kohya import Part, canonical, kohya_names
from sdlora.adapters.files.layer_sets import addressable
from sdlora.adapters.files.metadata import new_tokens_in
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights
from sdlora.adapters.live.layers import Selection, Target, layer_shape
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import FamilyName
from sdlora.errors import AdapterError, ConfigError


@dataclass(frozen=True)
class StartingPoint:
    """A file's adapter in terms of this model. `config` is the user's with algorithm, DoRA and scaling of the file."""

    config: AdapterConfig
    selection: Selection
    factors: Mapping[tuple[Part, str], Mapping[str, Tensor]]
    """Values by module, under the names that Adapter.state() uses (lora_A, lora_B, magnitude, hada_..., lokr_...)."""
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    """The new tokens that were trained with it, in the file or beside it, in small letters."""
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Those of the file."""


def starting_point(models: Mapping[Part, nn.Module], config: AdapterConfig, family: FamilyName) -> StartingPoint:
    """Read `config.start_from` and fit it to these models.

    Raises AdapterError when the file can't be read, is of another family, or holds layers or shapes the model hasn't;
    ConfigError when the text-encoder setting contradicts the file.
    """
    assert config.start_from is not None
    file = read(config.start_from)
    check_fit(file, config, family)
    modules = _placed(file, models, family)
    dora = has_dora(file)
    _check_shapes(file, modules, models, dora)
    notes = [*file.notes]
    if unused := file.unused_note():
        notes.append(f"{file.path.name}: {unused}")
    if file.vectors:
        notes.append(f"{file.path.name}: the updates of {len(file.vectors)} biases and norms are not trained, but lost")
    embeddings = embeddings_of(file)
    wanted = {token.casefold() for token in config.new_tokens}
    notes += [
        f"{file.path.name} brings the new token {token}, which stays behind: adapter.new_tokens does not name it"
        for token in dict.fromkeys([*map(str.casefold, new_tokens_in(file.metadata)), *embeddings])
        if token not in wanted
    ]
    if config.rslora:
        notes.append("rslora has no effect with start_from: every layer keeps the scale of the file")
    targets = tuple(Target(part, path, weights.rank, weights.scale) for (part, path), weights in modules.items())
    return StartingPoint(
        # The file's scales are exact for each layer, so rslora must not scale them once more.
        config.model_copy(update={"algorithm": TRAINABLE[file.algorithms[0]], "dora": dora, "rslora": False}),
        Selection(targets, tuple(notes)),
        {key: _own_names(weights) for key, weights in modules.items()},
        embeddings,
        file.path.name,
        file.metadata,
    )


def embeddings_of(file: AdapterFile) -> dict[str, Embedding]:
    """The new tokens in an adapter's file and beside it, in small letters."""
    return {
        **{token.casefold(): read_embedding(path) for token, path in embeddings_beside(file.path).items()},
        **{token.casefold(): embedding for token, embedding in file.embeddings.items()},
    }


def check_fit(file: AdapterFile, config: AdapterConfig, family: FamilyName) -> None:
    """What can be said of a file without the model: it can be trained on, in this family, with these settings.

    Raises AdapterError and ConfigError.
    """
    if file.family not in (None, family) and not file.family_is_guess:
        raise AdapterError(
            f"{file.path.name} was trained on {file.family}, this base model is {family}: they don't fit each other"
        )
    if not file.algorithms:
        raise AdapterError(f"{file.path.name} holds updates of biases and norms only, which can't be trained on")
    if len(file.algorithms) != 1:
        raise AdapterError(f"{file.path.name} mixes {' and '.join(file.algorithms)}; training needs one algorithm")
    if file.algorithms[0] not in TRAINABLE:
        raise AdapterError(
            f"{file.path.name} is {ALGORITHM_NAMES[file.algorithms[0]]}, which can't be trained here; sdlora mix "
            "--method svd makes it LoRA"
        )
    in_file = any(not name.startswith("lora_unet_") for name in file.modules)
    if in_file != config.text_encoder:
        holds, wanted = ("holds", "true") if in_file else ("holds no", "false")
        problem = f"start_from: {file.path.name} {holds} text-encoder layers; set adapter.text_encoder: {wanted}"
        raise ConfigError("adapter", [problem])
    algorithm, dora = TRAINABLE[file.algorithms[0]], has_dora(file)
    files.validate(config.beside_file(algorithm, dora=dora), f"adapter beside {file.path.name}", AdapterConfig)


def has_dora(file: AdapterFile) -> bool:
    """Whether any of its layers has a magnitude."""
    return any(weights.dora_scale is not None for weights in file.modules.values())


def _placed(
    file: AdapterFile, models: Mapping[Part, nn.Module], family: FamilyName
) -> dict[tuple[Part, str], ModuleWeights]:
    """The file's modules by part and path of this model."""
    known = kohya_names(
        [(part, path) for part in models for path, _ in models[part].named_modules() if addressable(part, path)], family
    )
    by_place = {known.get(canonical(name, family)): weights for name, weights in file.modules.items()}
    strange = [name for name in file.modules if canonical(name, family) not in known]
    if strange:
        raise AdapterError(
            f"{file.path.name}: {len(strange)} of {len(file.modules)} layers can't be trained on this {family} model, "
            f"first: {strange[0]}"
        )
    # In the model's order, which a new adapter has too: optimizer states and group names follow it.
    return {place: by_place[place] for place in known.values() if place in by_place}


def _check_shapes(
    file: AdapterFile,
    modules: Mapping[tuple[Part, str], ModuleWeights],
    models: Mapping[Part, nn.Module],
    dora: bool,
) -> None:
    problems: list[str] = []
    for (part, path), weights in modules.items():
        inputs, outputs, kernel = layer_shape(models[part].get_submodule(path))
        shape = weights.delta_shape
        assert shape is not None
        if shape[0] != outputs or shape.numel() != outputs * inputs * kernel:
            size = f"{shape[0]} x {shape.numel() // shape[0]}"
            problems.append(f"{path} changes {size} weights, the model has {outputs} x {inputs * kernel}")
        magnitude = weights.dora_scale
        if dora and (magnitude is None or magnitude.shape[0] != outputs or magnitude.numel() != outputs):
            problems.append(f"{path} has no DoRA magnitude for each output, the only kind that can be trained on")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise AdapterError(f"{file.path.name} doesn't fit this model: {'; '.join(problems[:3])}{more}")


def _own_names(weights: ModuleWeights) -> dict[str, Tensor]:
    names = dict(weights.factors)
    if weights.algorithm == "lora":
        plain = weights.without_tucker()
        names = {"lora_A": plain.factors["lora_down"], "lora_B": plain.factors["lora_up"]}
    if weights.dora_scale is not None:
        names["magnitude"] = weights.dora_scale
    return names
