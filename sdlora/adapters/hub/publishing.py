"""An adapter on the Hugging Face hub: its model card, and everything that goes up with it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from sdlora.adapters.files.embeddings import embeddings_beside
from sdlora.adapters.files.key_names import ALGORITHM_NAMES
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.adapters.hub.inspection import inspect
from sdlora.config.base_model import FamilyName
from sdlora.config.shipped import BUILTIN_PREFIX
from sdlora.errors import AdapterError, ModelError
from sdlora.models.hub import explained
from sdlora.runs.folder import RunFolder
from sdlora.runs.results import adapter_files, embedding_files, preview_images

_USUAL_BASES: dict[FamilyName, str] = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""To load an adapter on, where its own base is not on the hub."""
_FAMILIES: dict[FamilyName, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}
_PIPELINES: dict[FamilyName, str] = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_PICTURES = 8


@dataclass(frozen=True)
class Publication:
    """What goes to the hub: names there, and the files or bytes behind them. `card` is the README.md among them."""

    repository: str
    files: dict[str, Path]
    card: str
    base_model: str | None
    """On the hub, as the card names it; None where that isn't known."""


def prepare(
    source: Path, repository: str, *, base_model: str | None = None, license_name: str | None = None
) -> Publication:
    """Collect what `push` uploads. source: an adapter file, or a run's folder (its adapter and newest previews).

    The embeddings of new tokens that were trained with it go along. Raises AdapterError: a name that the hub doesn't
    take; no adapter there, or several; a file that can't be read or doesn't tell its family.
    """
    _check_name(repository)
    _check_license(license_name)
    path = _adapter_in(source)
    file = read(path)
    if file.family is None:
        raise AdapterError(f"{path.name} doesn't tell its Stable Diffusion family, so no model card can be written")
    files = {path.name: path}
    side_car = path.with_suffix(".json")
    if side_car.is_file():
        files[side_car.name] = side_car
    files |= {embedding.name: embedding for embedding in embeddings_beside(path).values()}
    # The newest previews of the adapter's run, else the picture beside the file.
    previews = preview_images(RunFolder(path.parent))
    newest = [preview.path for preview in previews if preview.step == previews[-1].step][:_PICTURES]
    beside = path.with_suffix(".png")
    pictures = newest or ([beside] if beside.is_file() else [])
    files |= {f"images/{picture.name}": picture for picture in pictures}
    base = base_model or file.metadata.get("ss_sd_model_name", "")
    chosen = license_name or file.metadata.get("modelspec.license") or None
    return Publication(repository, files, model_card(file, repository, base, chosen, list(files)), _hub_name(base))


def _check_name(repository: str) -> None:
    """Raise AdapterError for what can't be the name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError("no owner")
    except HFValidationError:
        raise AdapterError(
            f"'{repository}' is no name of a repository on the hub: it is OWNER/NAME, of letters, digits, '-', '_' and"
            " '.', with at most 96 characters"
        ) from None


def _check_license(name: str | None) -> None:
    """Raise AdapterError for what the hub's cards don't take as a licence."""
    if name is None or _LICENSE.fullmatch(name):
        return
    meant = re.sub(r"\s+", "-", name.strip()).lower()
    hint = f"; did you mean {meant}?" if _LICENSE.fullmatch(meant) else ""
    raise AdapterError(
        f"--license {name!r}: the hub names licences by short names such as mit, cc0-1.0, creativeml-openrail-m or "
        f"other{hint}"
    )


def model_card(
    file: AdapterFile, repository: str, base_model: str, license_name: str | None, names: Sequence[str]
) -> str:
    """README.md of an adapter's repository: what the hub's pages show, trigger words, use and training settings.

    base_model: what it was trained on: a name on the hub, another name, or "" where nobody knows. names: of all files
    of the repository, of which those under images/ are shown.
    """
    assert file.family is not None
    on_hub = _hub_name(base_model)
    facts = inspect(file)
    pictures = [name for name in names if name.startswith("images/")]
    family_tag = "stable-diffusion-xl" if file.family == "sdxl" else "stable-diffusion"
    header: dict[str, object] = {
        # Only what is known to be there: the hub would show anything else as a broken link, or under another's model.
        **({"base_model": on_hub, "base_model_relation": "adapter"} if on_hub else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "lora", "diffusers", "sdlora", family_tag],
    }
    if license_name:
        header["license"] = license_name
    if facts.trigger:
        header["instance_prompt"] = facts.trigger
    if pictures:
        prompt = facts.trigger or file.path.stem
        header["widget"] = [{"text": prompt, "output": {"url": picture}} for picture in pictures]
    name = file.metadata.get("modelspec.title") or file.path.stem
    kind = " and ".join(ALGORITHM_NAMES[algorithm] for algorithm in file.algorithms) + (" with DoRA" * facts.dora)
    lines = ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {name}", ""]
    trained_on = f", trained on `{base_model}`" if base_model else ""
    described = f"A {kind} adapter for {_FAMILIES[file.family]}{trained_on}."
    lines += [file.metadata.get("modelspec.description") or described, ""]
    if pictures:
        lines += ["<Gallery />", ""]
    if facts.trigger:
        lines += ["## Trigger words", "", f"Put `{facts.trigger}` into the prompt.", ""]
    lines += ["## Use", "", *_usage(file, repository, base_model, facts.trigger), ""]
    settings = {
        "rank": ", ".join(str(rank) for rank in facts.ranks),
        "alpha": ", ".join(facts.alphas),
        **facts.settings,
    }
    lines += ["## Settings", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in {"layers": str(facts.num_modules), **settings}.items()]
    lines += ["", f"Hash (AutoV3): `{facts.short_hash}`", ""]
    return "\n".join(lines)


def push(publication: Publication, *, private: bool = False) -> str:
    """Upload, creating the repository if there is none; returns its address. Raises ModelError when the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, str(path)) for name, path in publication.files.items()]
    operations.append(CommitOperationAdd("README.md", publication.card.encode()))
    api = HfApi()
    try:
        with explained(publication.repository, None):
            address = api.create_repo(publication.repository, private=private, exist_ok=True)
            # One commit for all files, so that nobody finds an adapter without its card.
            api.create_commit(publication.repository, operations, commit_message="Upload adapter with sdlora")
    except Exception as error:
        # No network shows as an OSError without a file, or as one of httpx's own.
        if not (isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("httpx")):
            raise
        raise ModelError(f"'{publication.repository}': the hub can't be reached ({error}): try again later") from error
    return str(address)


def _hub_name(base_model: str) -> str | None:
    return base_model if _HUB_NAME.fullmatch(base_model) and not base_model.startswith(BUILTIN_PREFIX) else None


def _usage(file: AdapterFile, repository: str, base_model: str, trigger: str) -> list[str]:
    assert file.family is not None
    if base_model.startswith(BUILTIN_PREFIX):
        words = shlex.join(["--prompt", trigger or "a picture", "--adapter", file.path.name])
        return [f"It fits sdlora's embedded model only: `sdlora generate --set base_model.model={base_model} {words}`"]
    on_hub = _hub_name(base_model)
    if file.algorithms != ("lora",):
        return [f"Load `{file.path.name}` in ComfyUI, AUTOMATIC1111 or a tool that reads LyCORIS files."]
    pipeline = _PIPELINES[file.family]
    return [
        "```python",
        f"from diffusers import {pipeline}",
        "",
        *([] if on_hub else [f"# Any {_FAMILIES[file.family]} model; best is the one it was trained on."]),
        f'pipeline = {pipeline}.from_pretrained("{on_hub or _USUAL_BASES[file.family]}")',
        f'pipeline.load_lora_weights("{repository}", weight_name="{file.path.name}")',
        *_loading_tokens(file, repository),
        f"image = pipeline({json.dumps(trigger or 'a picture', ensure_ascii=False)}).images[0]",
        "```",
        "",
        f"Or put `{file.path.name}` into the LoRA folder of AUTOMATIC1111, Forge, ComfyUI or InvokeAI.",
    ]


def _loading_tokens(file: AdapterFile, repository: str) -> list[str]:
    """Lines that load the embeddings beside an adapter with diffusers."""
    lines = []
    for token, path in embeddings_beside(file.path).items():
        source = f'"{repository}", weight_name="{path.name}", token={json.dumps(token, ensure_ascii=False)}'
        if file.family != "sdxl":
            lines.append(f"pipeline.load_textual_inversion({source})")
            continue
        lines += [
            f'vectors = load_file(hf_hub_download("{repository}", "{path.name}"))',
            f'pipeline.load_textual_inversion(vectors["clip_l"], token={json.dumps(token, ensure_ascii=False)}, '
            "text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)",
            f'pipeline.load_textual_inversion(vectors["clip_g"], token={json.dumps(token, ensure_ascii=False)}, '
            "text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2)",
        ]
    if lines and file.family == "sdxl":
        lines = ["from huggingface_hub import hf_hub_download", "from safetensors.torch import load_file", *lines]
    return lines


def _adapter_in(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise AdapterError(f"{source}: there is no such file or run folder")
    found = [file.path for file in adapter_files(RunFolder(source)) if file.step is None]
    if not found and embedding_files(RunFolder(source)):
        raise AdapterError(f"{source} holds new tokens alone and no adapter; only adapters can be put on the hub here")
    if len(found) != 1:
        raise AdapterError(f"{source} holds {len(found)} adapter files, not one; name the file itself")
    return found[0]
