"""The captioner that a name stands for.

Other packages add captioners through the entry point group `sdlora.captioners`. An entry point names a function that
takes the settings and gives the captioner:

    # pyproject.toml:  [project.entry-points."sdlora.captioners"]
    #                  colours = "my_package:colour_captioner"

    def colour_captioner(config: CaptioningConfig) -> Captioner:
        def describe(images: Sequence[Image.Image]) -> list[str]:
            return [f"mostly {name_of(image.resize((1, 1)).getpixel((0, 0)))}" for image in images]
        return describe
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.model import Captioner, CaptioningModel
from sdlora.errors import ModelError
from sdlora.models.hub import reach
from sdlora.models.source import is_hub_name

ENTRY_POINTS = "sdlora.captioners"
TAGGER_FILES = ("model.onnx", "selected_tags.csv")


def load_captioner(config: CaptioningConfig) -> Captioner:
    """The captioner that `config.model` names, its weights loaded.

    Raises ModelError when there is none, or none of a kind that captions here, MissingPackageError for a tagger without
    onnxruntime.
    """
    if config.endpoint is not None:
        from sdlora.data.captioning.endpoint import EndpointCaptioner

        return EndpointCaptioner(config)
    plugins = metadata.entry_points(group=ENTRY_POINTS)
    # Before folders and the hub: whoever installs a plug-in means its name.
    if config.model in plugins.names:
        return plugins[config.model].load()(config)
    place = _locate(config, sorted(plugins.names))
    model_file, tags_file = (place.file(name) for name in TAGGER_FILES)
    if model_file and tags_file:
        from sdlora.data.captioning.tagger import Tagger

        return Tagger(model_file, tags_file, config)
    description = place.file("config.json")
    if description is None and place.hub and place.hub.cached_only:
        place.hub.file("config.json")  # raises: the hub can't be reached
    kind = _model_type(description) if description else None
    from sdlora.data.captioning.describer import SENTENCE_MODELS, VisionCaptioner

    if kind not in SENTENCE_MODELS:
        found = f"it holds a model of type '{kind}'" if kind else "it lacks both"
        raise ModelError(
            f"{place.name} can't caption images: needed is a config.json of {', '.join(SENTENCE_MODELS)}, or "
            f"{' with '.join(TAGGER_FILES)} (WD14-style taggers); {found}."
        )
    return VisionCaptioner(place, config)


def _locate(config: CaptioningConfig, plugins: Sequence[str]) -> CaptioningModel:
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return CaptioningModel(config.model, folder=folder)
    if is_hub_name(config.model):
        return CaptioningModel(config.model, hub=reach(config.model, config.revision))
    known = f"plug-ins are: {', '.join(plugins)}" if plugins else "no plug-in is installed"
    raise ModelError(
        f"captioning model '{config.model}' was not found: it is no folder here and not a hub name (owner/name), such "
        f"as Salesforce/blip-image-captioning-base or SmilingWolf/wd-vit-tagger-v3; {known}."
    )


def _model_type(description: Path) -> str | None:
    try:
        values = json.loads(description.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{description} is not JSON: {error}") from None
    if not isinstance(values, dict):
        return None
    if values.get("model_type") == "florence2" and "auto_map" in values:
        raise ModelError(
            "this Florence-2 is published with code of its own, which is not run: take it in transformers' layout, "
            "such as florence-community/Florence-2-base or Florence-2-large-ft there"
        )
    return values.get("model_type")
