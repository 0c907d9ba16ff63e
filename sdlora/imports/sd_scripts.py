"""sd-scripts' training configurations (`--config_file`), LoRA_Easy_Training_Scripts' TOML, and the `ss_*` metadata that
sd-scripts and others write into a LoRA file: all three hold sd-scripts' own options, under one name or another.

What is missing there has sd-scripts' defaults, which differ from ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from sdlora.imports.kohya import from_gui
from sdlora.imports.previews import prompt_lines
from sdlora.imports.sd_scripts_data import OPTIONS, always_given, from_dataset_config, masks_of
from sdlora.imports.translation import OTHER_MODELS, Translation
from sdlora.text_files import parse_json, parse_toml

_DEFAULTS: dict[str, Any] = {
    "caption_extension": ".caption",
    "enable_bucket": False,
    "learning_rate": 2e-6,
    "lr_scheduler": "constant",
    "max_train_steps": 1600,
    "mixed_precision": "no",
    "network_alpha": 1,
    "network_dim": 4,
    "optimizer": "AdamW",
    "save_precision": "float",
    "train_batch_size": 1,
}
_GUI_NAMES = {
    "optimizer_type": "optimizer",
    "resolution": "max_resolution",
    "batch_size": "train_batch_size",
    "debiased_estimation": "debiased_estimation_loss",
}
"""Options that kohya_ss, whose names `from_gui` reads, calls otherwise."""

_METADATA_NAMES = {
    **_GUI_NAMES,
    "sd_model_name": "pretrained_model_name_or_path",
    "vae_name": "vae",
    "batch_size_per_device": "train_batch_size",
}
_FACTS = {
    "session_id", "training_started_at", "training_finished_at", "sd_model_hash", "new_sd_model_hash", "vae_hash",
    "new_vae_hash", "base_model_version", "steps", "epoch", "num_epochs", "num_train_images", "num_reg_images",
    "num_batches_per_epoch", "total_batch_size", "bucket_info", "tag_frequency", "dataset_dirs", "reg_dataset_dirs",
    "datasets", "sd_scripts_commit_hash", "ema_decay", "network_module", "network_args", "num_validation_images",
    "validate_every_n_epochs", "validate_every_n_steps", "validation_seed",
    "max_validation_steps",
}  # fmt: skip
"""What metadata tells beside options."""
_ARGUMENTS = ("network_args", "optimizer_args", "lr_scheduler_args")
_OF_DATA = {"resolution": "max_resolution", "batch_size": "train_batch_size"}
"""Options of a dataset file, and what kohya_ss calls the arguments that stand in for them."""
_FOLDERS = ("train_data_dir", "reg_data_dir")
_KINDS = {"lora": "LyCORIS/LoCon", "locon": "LyCORIS/LoCon", "loha": "LyCORIS/LoHa", "lokr": "LyCORIS/LoKr"}


_PLAIN_MODULES = ("lora", "kohya")
"""What makes a plain LoRA: sd-scripts' own module and LyCORIS'."""


def is_training_config(settings: Mapping[str, Any]) -> bool:
    """Whether a TOML holds options of the trainer, in sections or not, and not only data sets."""
    return bool({"network_module", "network_dim", "pretrained_model_name_or_path"} & flat(settings).keys())


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all sections in one place, however deep; sections are only for the reader there."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        # A table of arguments is a value, but LoRA_Easy_Training_Scripts has sections of these names with `args` in
        # them.
        is_section = isinstance(value, dict) and not (name in _ARGUMENTS and "args" not in value)
        if is_section:
            found |= flat(value)
        else:
            found[name] = value
    return found


def from_training_config(settings: Mapping[str, Any], read_beside: Callable[[str], str | None]) -> Translation:
    """A training configuration. read_beside: the text of a file that it names, None where there is none.

    Raises ValueError for models that are no Stable Diffusion.
    """
    given = flat(settings)
    notes = Translation()
    subsets = given.pop("subsets", None)  # of LoRA_Easy_Training_Scripts
    datasets: Mapping[str, Any] | None = {"datasets": [{"subsets": subsets}]} if subsets else None
    if "datasets" in given:
        datasets = {"general": settings.get("general", {}), "datasets": given.pop("datasets")}
    datasets = _dataset_file(given.pop("dataset_config", None), read_beside, notes) or datasets
    _read_prompt_file(given, read_beside, notes)
    if (share := given.pop("warmup_ratio", None)) not in (None, 0, "") and not given.get("lr_warmup_steps"):
        given["lr_warmup_steps"] = share  # of all steps, as LoRA_Easy_Training_Scripts writes it
    trains_text = given.pop("network_train_text_encoder", True)
    if trains_text in (False, "false", "False"):
        given["network_train_unet_only"] = True
    elif trains_text not in (True, "true", "True"):
        notes.lose("network_train_text_encoder", trains_text, "is neither on nor off")
    return _translated(given, _GUI_NAMES, notes, datasets)


def _read_prompt_file(given: dict[str, Any], read_beside: Callable[[str], str | None], notes: Translation) -> None:
    """Put the prompts of a file that `sample_prompts` names in its place, as lines."""
    file = given.get("sample_prompts")
    suffix = "" if isinstance(file, list) else PurePath(str(file or "").strip()).suffix.lower()
    if suffix not in (".txt", ".toml", ".json"):
        return
    text = read_beside(str(file).strip())
    given["sample_prompts"] = ""
    if text is None:
        notes.lose("sample_prompts", file, "no such file near it; previews.file takes one, previews.prompts its lines")
        return
    try:
        lines = text.splitlines() if suffix == ".txt" else prompt_lines(notes, "sample_prompts", text, suffix)
    except ValueError as error:
        notes.lose("sample_prompts", file, f"can't be read: {' '.join(str(error).split())}")
        return
    given["sample_prompts"] = "\n".join(lines)


def from_saved_window(settings: Mapping[str, Any], read_beside: Callable[[str], str | None]) -> Translation:
    """The settings that kohya_ss saves, with the data set of the TOML that they name, if any."""
    notes = Translation()
    given = dict(settings)
    _read_prompt_file(given, read_beside, notes)
    file = given.pop("dataset_config", None)
    datasets = _dataset_file(file, read_beside, notes)
    if file and not (given.get("max_train_epochs") or given.get("max_train_steps")):
        given |= {"epoch": None, "max_train_steps": _DEFAULTS["max_train_steps"]}
        notes.change("epoch", settings.get("epoch"), "has no effect there beside a dataset_config: 1600 steps")
    return _with_data(given, datasets, notes)


def _dataset_file(file: Any, read_beside: Callable[[str], str | None], notes: Translation) -> dict[str, Any] | None:
    text = read_beside(str(file)) if file else None
    if file and text is None:
        notes.lose("dataset_config", file, "no such file beside this one; set images.folder")
    return None if text is None else parse_toml(text)


def from_file_metadata(metadata: Mapping[str, str]) -> Translation:
    """What a LoRA file tells of its training. Folders are known by their names only, and are noted.

    Raises ValueError when it tells nothing, or of a model that is no Stable Diffusion.
    """
    told = {name.removeprefix("ss_"): value for name, value in metadata.items() if name.startswith("ss_")}
    told = {name: value for name, value in told.items() if value not in ("None", "")}
    if "network_dim" not in told or "learning_rate" not in told:
        raise ValueError("its metadata doesn't tell how it was trained (there are no ss_* entries of a training)")
    notes = Translation()
    version = told.get("base_model_version", "")
    given: dict[str, Any] = {name: value for name, value in told.items() if name not in _FACTS}
    if "sdxl" in version:
        given["sdxl"] = "True"
    elif "sd_v" not in version and version:
        raise ValueError(f"it was trained on {version}; only Stable Diffusion 1.x, 2.x and XL can be trained here")
    given["v_parameterization"] = "True" if version.endswith("_v") else ""
    given["network_module"] = told.get("network_module", "")
    given["network_args"] = parse_json(told.get("network_args", "{}"))
    given["max_resolution"] = given.pop("resolution", "").strip("()[]")
    called = re.fullmatch(r"([\w.]+?)(?:\((.*)\))?", str(given.get("optimizer", "")))
    if called:
        given["optimizer"] = called[1].rpartition(".")[2]
        # Commas within brackets, as in betas=(0.9, 0.99), part nothing.
        given["optimizer_args"] = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", called[2] or "") if part]
    folders = _json_object(told.get("dataset_dirs")), _json_object(told.get("reg_dataset_dirs"))
    for name, about in {**folders[0], **folders[1]}.items():
        repeats = about.get("n_repeats") if isinstance(about, dict) else None
        notes.lose("dataset_dirs", f"{name} ({repeats} repeats)", "its path isn't told; set images.folder")
    if not folders[0]:
        notes.lose("dataset_dirs", "", "the images' folder isn't told; set images.folder")
    if told.get("ema_decay"):
        notes.put("optimization.ema", float(told["ema_decay"]))
    given |= {"caption_extension": None, "save_precision": None}  # of which metadata tell nothing
    return _translated(given, _METADATA_NAMES, notes, None)


def _translated(
    given: Mapping[str, Any], names: Mapping[str, str], notes: Translation, datasets: Mapping[str, Any] | None
) -> Translation:
    gui = dict(_DEFAULTS)
    # The trained weights as they are: in fp32, but for these.
    for name, kind in (("full_fp16", "fp16"), ("full_bf16", "bf16")):
        if str(given.get(name)).lower() == "true":
            gui["save_precision"] = kind
    if given.get("max_train_epochs"):
        del gui["max_train_steps"]
    given_by_data = {_OF_DATA.get(name, name) for name in always_given(datasets)} if datasets else set()
    notes.assume(gui, {names.get(name, name) for name in given} | given_by_data)
    gui |= {names.get(name, name): value for name, value in given.items() if name not in _ARGUMENTS[:1]}
    for name, value in gui.items():
        if isinstance(value, str) and value in ("True", "False"):
            gui[name] = value == "True"
    arguments = _arguments(given.get("network_args"), notes)
    module = str(gui.pop("network_module", None) or "networks.lora")
    gui |= {name: value for name, value in arguments.items() if name not in ("algo", "algorithm")}
    if "lycoris" in module and (own := gui.pop("dropout", None)) is not None:
        gui["network_dropout"] = own  # which goes before the other one there
    gui["LoRA_type"] = _kind(module, arguments)
    if isinstance(gui.get("optimizer_args"), dict):
        gui["optimizer_args"] = [f"{name}={value}" for name, value in gui["optimizer_args"].items()]
    if isinstance(gui.get("max_resolution"), list):
        gui["max_resolution"] = ",".join(map(str, gui["max_resolution"]))
    if "preset" in gui:
        gui["LyCORIS_preset"] = gui.pop("preset")
    return _with_data(gui, datasets, notes)


def _with_data(gui: dict[str, Any], datasets: Mapping[str, Any] | None, notes: Translation) -> Translation:
    """Both files in our terms. The dataset's is asked first there, and the arguments for what it leaves out."""
    if datasets is None:
        result = from_gui(gui)
    else:
        options = {name: gui[name] for name in OPTIONS & gui.keys() if gui[name] not in ("", None)}
        options |= {ours: gui[name] for ours, name in _OF_DATA.items() if gui.get(name) not in ("", None)}
        data = from_dataset_config(datasets, options)
        moved = {*options, *_OF_DATA.values(), *_FOLDERS}
        for name in _FOLDERS:
            if gui.get(name) not in ("", None):
                notes.change(name, gui[name], "left out, as there: the dataset file names the folders")
        result = from_gui({name: value for name, value in gui.items() if name not in moved} | masks_of(datasets, gui))
        result.values.pop("images.mask", None)  # each subset says it for itself
        result.join(data)
    result.join(notes)
    return result


def _arguments(given: Any, notes: Translation) -> dict[str, Any]:
    """`network_args` as a mapping, from ["conv_dim=4", ...], "conv_dim=4 ..." or a mapping."""
    if isinstance(given, Mapping):
        return dict(given)
    words = [str(word) for word in (given if isinstance(given, list) else str(given or "").split())]
    for word in words:
        if "=" not in word:
            notes.lose("network_args", word, "not understood, arguments are name=value")
    return {name: value for name, equals, value in (word.partition("=") for word in words) if equals}


def _kind(module: str, arguments: Mapping[str, Any]) -> str:
    algorithm = str(arguments.get("algo", "")).lower()
    if "lycoris" in module or algorithm:
        return _KINDS.get(algorithm or "lora", f"LyCORIS/{algorithm}")
    if "loha" in module or "lokr" in module:
        return _KINDS["loha" if "loha" in module else "lokr"]
    other = next((name for name in OTHER_MODELS if name in module.lower().replace("_", "")), None)
    if other:
        return other
    if module.rpartition(".")[2] not in _PLAIN_MODULES:
        return module
    return "Kohya LoCon" if arguments.get("conv_dim") else "Standard"


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        found = parse_json(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
