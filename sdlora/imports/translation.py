"""A foreign settings file on its way to ours: what was understood, and what has no counterpart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdlora.config.adapter import REGEX_PREFIX
from sdlora.config.optimization import OWN_RATE, SCHEDULE_FREE
from sdlora.constants import LATENT_FACTOR

Convert = Callable[[Any], Any]
"""Gives the value in our terms; None leaves the setting at our default. Raises ValueError for what we don't have."""

OTHER_MODELS = (
    "flux", "sd3", "stablediffusion3", "sd35", "lumina", "chroma", "hunyuan", "anima", "qwen", "wan", "cascade",
    "kolors", "pixart", "sana", "auraflow", "hidream", "omnigen", "ltx", "cosmos", "zimage", "deepfloyd", "wuerstchen",
    "ernie", "kontext", "playground", "bria", "kandinsky", "longcat", "acestep", "heartmula", "refiner", "inpaint",
)  # fmt: skip
"""Words, without - and _, that name models of other architectures, or of other inputs."""
_OTHER_NAMES = re.compile(
    r"flux[._-]?[12]|stable-diffusion-3|sd3[._-]|sd3\.5|qwen-?image|\bwan-?2|z-image|lumina-image|hunyuan|hidream"
    r"|stable-cascade|kolors|pixart|auraflow|cosmos-|chroma1?-(?:hd|base)|lodestones/chroma|sana[._-]\d",
    re.IGNORECASE,
)
"""Names of base models that are of another architecture for certain."""
MAX_NORM = "optimization.max_weight_norm"
_SHORTEST = 64
"""Pixels; no picture of ours has a shorter edge."""
_EMPTY = ("", "none", "null")
_NOTHING: tuple[Any, ...] = (None, "", False, 0, "0", 0.0, "None", "none", [], {})


@dataclass
class Translation:
    """Values by our dotted names, and a sentence for each foreign setting that was not taken over."""

    values: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """What was taken over with another value than it had, and why."""
    assumed: list[str] = field(default_factory=list)
    """Values that the file leaves out, as they are by default there."""
    without_effect: list[str] = field(default_factory=list)
    """Names of settings that change nothing here, as they are about speed, the machine or a window."""
    captions: dict[str, str] = field(default_factory=dict)
    """Captions by image, for metadata files: a path, relative or absolute, with or without ending."""
    sources: dict[str, str] = field(default_factory=dict)
    """What a setting of ours is called in the file, to speak of it by that name."""

    def put(self, name: str, value: Any) -> None:
        """Give one of our settings a value; None leaves it as it is."""
        if value is not None:
            self.values[name] = value

    def change(self, name: str, value: Any, how: str) -> None:
        """Note a foreign setting that is taken over otherwise than it stands there."""
        self.changed.append(f"{name}={value}: {how}")

    def assume(self, defaults: Mapping[str, Any], given: Collection[str], prefix: str = "") -> None:
        """Note the other trainer's defaults that stand in for what isn't given."""
        self.assumed += [f"{prefix}{name}={value}" for name, value in defaults.items() if name not in given]

    def lose(self, name: str, value: Any, why: str = "no counterpart") -> None:
        """Note a foreign setting that is not taken over."""
        shown = str(value)
        self.lost.append(f"{name}={shown if len(shown) <= 80 else shown[:77] + '...'}: {why}")

    def pass_over(
        self, source: Mapping[str, Any], names: set[str], prefix: str = "", read_apart: Collection[str] = ()
    ) -> set[str]:
        """Note which of the names are switched on, without values as there are many; returns all names.

        read_apart: those whose value tells something all the same, and which are not noted.
        """
        on = [name for name, value in source.items() if name in names and name not in read_apart and _is_on(value)]
        self.without_effect += [prefix + name for name in on]
        return set(names)  # a copy: callers add to it, and `names` is a table that the next import reads

    def take(self, source: Mapping[str, Any], table: Mapping[str, tuple[str, Convert]], prefix: str = "") -> set[str]:
        """Take over each setting of the table (foreign name: our name, conversion); returns all names of the table.

        Where our name is empty, the conversion only refuses what has no counterpart.
        """
        for name in (name for name in table if name in source):
            ours, convert = table[name]
            try:
                value = convert(source[name])
                self.put(ours, value)
                if value is not None:
                    self.sources[ours] = prefix + name
                if convert in (count, epochs):
                    self.note_fractions(source, (name,), prefix)
            except (ValueError, TypeError) as error:
                self.lose(
                    prefix + name, source[name], str(error) if isinstance(error, ValueError) else "not understood"
                )
        return set(table)

    def note_fractions(self, source: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> None:
        """Note which of these numbers, of which only the whole part is taken, have another one."""
        for name in names:
            given = number(source.get(name))
            if given and given != int(given):
                taken = f"{int(given)} is taken" if int(given) else "it is left out"
                self.change(prefix + name, source[name], f"a whole number is wanted here, {taken}")

    def drop(self, name: str, why: str) -> None:
        """Take one of our settings back, if it was entered, and note the foreign one that it came from."""
        if name in self.values:
            self.lose(self.sources.get(name, name), self.values.pop(name), why)

    def join(self, other: Translation) -> None:
        """Add what another part of the file says, which wins where both say something."""
        self.values |= other.values
        self.sources |= other.sources
        self.lost += other.lost
        self.without_effect += other.without_effect
        self.changed += other.changed
        self.assumed += other.assumed

    def lose_rest(
        self, source: Mapping[str, Any], known: set[str], prefix: str = "", reasons: Mapping[str, str] | None = None
    ) -> None:
        """Note every other setting that is switched on. reasons: by name, where there is more to say."""
        for name, value in source.items():
            if name not in known and _is_on(value):
                self.lose(prefix + name, value, (reasons or {}).get(name, "no counterpart"))


def _is_on(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("false", "off", "no"):
        return False
    return not any(value is nothing or value == nothing for nothing in _NOTHING)


def same(value: Any) -> Any:
    """The value as it is, nothing for an empty one."""
    return None if value in ("", None) else value


def number(value: Any) -> float | None:
    """A number from a number or a text, None from an empty one. Raises ValueError for all else, and for infinity."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError("is no number")
    return found


def count(value: Any) -> int | None:
    """A whole number above 0; None from 0 or an empty text."""
    found = number(value)
    return (int(found) or None) if found else None


def epochs(value: Any) -> str | None:
    """A number of epochs as an interval of ours; none for 0 and what is empty."""
    number_of = count(value)
    return f"{number_of} epochs" if number_of else None


def some(value: Any) -> float | None:
    """A number above 0; None from 0 or an empty text."""
    found = number(value)
    return found or None


def alpha(value: Any, rank: int | None, default: float | None) -> float | None:
    """An alpha as trainers have it that take 0 for the rank; default where none is given."""
    given = number(value)
    return float(rank) if given == 0 and rank else default if given is None and rank else given or None


def switch(value: Any) -> bool | None:
    """True, or None for what is off. Raises ValueError for what is neither."""
    word = str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else value
    if word in ("true", "1", "1.0", "yes", "on"):
        return True
    if word in ("false", "0", "0.0", "no", "off", *_EMPTY, None):
        return None
    raise ValueError("is neither on nor off")


def legible(
    source: Mapping[str, Any], result: Translation, numbers: Iterable[str], switches: Iterable[str], prefix: str = ""
) -> dict[str, Any]:
    """The settings without those that should be numbers or switches and are not, which are noted."""
    found = dict(source)
    for names, read in ((numbers, number), (switches, switch)):
        for name in (name for name in names if name in found):
            try:
                read(found[name])
            except ValueError as error:
                result.lose(prefix + name, found.pop(name), str(error))
    return found


def switched_off(value: Any) -> bool | None:
    """False for a switch that is off; ours are on by default."""
    return None if switch(value) else False


def opposite(value: Any) -> bool | None:
    """False for a switch that is on, where theirs says "not"."""
    return False if switch(value) else None


def edges(value: Any) -> int | list[int]:
    """One edge in pixels, or several, from a number, a list or a text with commas."""
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        found = [int(part) for part in parts if str(part).strip()]
    except (TypeError, ValueError):
        raise ValueError("only whole numbers of pixels with commas between them are understood") from None
    return found[0] if len(found) == 1 else found


def put_edges(result: Translation, name: str, given: Any, ours: str, least: int = _SHORTEST) -> None:
    """Round the edges of a setting of ours, which were taken as they stand, to what images can have, and note it."""
    value = result.values.get(ours)
    every = [value] if isinstance(value, int) else list(value or ())
    near = list(dict.fromkeys(max(least, round(edge / LATENT_FACTOR) * LATENT_FACTOR) for edge in every))
    if near and near != every:
        shown = ", ".join(map(str, near))
        result.change(name, given, f"a multiple of {LATENT_FACTOR}, at least {least}, is needed: {shown}")
        result.put(ours, near if isinstance(value, list) and len(near) > 1 else near[0])


def one_of(**choices: str) -> Convert:
    """A conversion by table, from words in lower case to ours; other words have no counterpart."""

    def convert(value: Any) -> str | None:
        if value in ("", None):
            return None
        word = str(value).lower().replace("-", "_").replace("/", "_").replace(" ", "_")
        if word not in choices:
            raise ValueError("no counterpart")
        return choices[word]

    return convert


SCHEDULE = one_of(
    constant="constant",
    constant_with_warmup="constant",
    linear="linear",
    cosine="cosine",
    cosine_with_restarts="cosine_with_restarts",
    polynomial="polynomial",
    cosine_with_min_lr="cosine",
    warmup_stable_decay="wsd",
    inverse_sqrt="inverse_sqrt",
    piecewise_constant="piecewise",
    rex="rex",
    adafactor="constant",
)
PRECISION = one_of(
    no="fp32", float="fp32", fp32="fp32", float32="fp32", fp16="fp16", float16="fp16", bf16="bf16", bfloat16="bf16"
)


def caption_ending(value: Any) -> str | None:
    """The ending of caption files, with its dot; nothing for an empty one."""
    if value in ("", None):
        return None
    return value if str(value).startswith(".") else f".{value}"


def averaged(decay: float | None, every: int | None) -> float | None:
    """The decay after each step that is as slow as `decay` every so many steps."""
    return round(decay ** (1 / every), 6) if decay and every and every > 1 else decay


def reconcile(translation: Translation) -> None:
    """Fix what each side allows and the other doesn't; what has to go is noted.

    Raises ValueError for a base model whose name says that it is of another architecture.
    """
    values = translation.values
    _settle_name(translation)
    model = str(values.get("base_model.model", ""))
    if _OTHER_NAMES.search(model):
        raise ValueError(f"it trains {model}; only Stable Diffusion 1.x, 2.x and XL can be trained here")
    if values.get("optimization.optimizer") in OWN_RATE:
        for name in ("text_encoder_learning_rate", "text_encoder_2_learning_rate"):
            rate = values.get(f"optimization.{name}")
            if rate not in (None, 0, values.get("optimization.learning_rate")):
                optimizer = values["optimization.optimizer"]
                translation.drop(f"optimization.{name}", f"{optimizer} takes one learning rate for all parts")
    if not _has_masks(values):
        translation.drop("objective.prior_outside_mask", "has no effect without masks")
    optimizer = values.get("optimization.optimizer")
    if optimizer in SCHEDULE_FREE and values.get("optimization.schedule", "constant") != "constant":
        translation.drop("optimization.schedule", f"{optimizer} has none")
    if not str(values.get("adapter.layers")).startswith(("all+conv", REGEX_PREFIX)):
        for name in ("adapter.conv_rank", "adapter.conv_alpha"):
            values.pop(name, None)
    algorithm = values.get("adapter.algorithm", "lora")
    if algorithm != "lora":
        for name in ("adapter.rslora", "adapter.rank_dropout", "adapter.module_dropout", MAX_NORM):
            translation.drop(name, f"goes with LoRA only here, not {algorithm}")
    is_class = [folder.get("is_class") for folder in values.get("images.folders", ())]
    if "images.class_folder" in values or any(is_class):
        other = values.get("objective.prior_preservation", "class_images")
        if other != "class_images":
            translation.lose("objective.prior_preservation", other, "one kind at a time: class images are taken")
        values["objective.prior_preservation"] = "class_images"
    elif "objective.prior_preservation" not in values:
        values.pop("objective.prior_weight", None)
    if not values.get("adapter.text_encoder"):
        values.pop("optimization.text_encoder_learning_rate", None)
    if "optimization.steps" in values and "optimization.epochs" in values:
        steps = values.pop("optimization.steps")
        translation.change("steps", steps, f"epochs win over steps, as there: {values['optimization.epochs']} epochs")
    if "validation.folder" in values or "validation.fraction" in values:
        # Elsewhere held-out images are only looked at, and the file holds the last step.
        values.setdefault("outputs.finish", "last")
    _settle_buckets(translation)


def _settle_name(translation: Translation) -> None:
    given = translation.values.pop("name", None)
    if given is None:
        return
    name = re.sub(r"[^\w.+() -]+", "-", str(given)).strip(" .-")
    translation.put("name", name or None)
    if name != str(given):
        why = f"called {name} here" if name else "no name that a file can have"
        translation.change(translation.sources.get("name", "name"), given, f"{why}, as files are named after it")


def _has_masks(values: Mapping[str, Any]) -> bool:
    own = [folder.get("mask") for folder in values.get("images.folders", ())]
    return any(mask not in (None, "none") for mask in (values.get("images.mask"), *own))


def refuse_other_model(name: object) -> None:
    """Raise ValueError for a word that names another architecture than Stable Diffusion 1.x, 2.x and XL."""
    word = str(name).lower().replace("-", "").replace("_", "")
    other = next((each for each in OTHER_MODELS if each in word), None)
    if other:
        raise ValueError(f"it trains {name}; only Stable Diffusion 1.x, 2.x and XL can be trained here")


def _settle_buckets(translation: Translation) -> None:
    """Take back limits that would refuse the images' own resolutions; those of all folders count."""
    values = translation.values
    shared = values.get("images.resolution", 512)
    own = [folder.get("resolution", shared) for folder in values.get("images.folders", ())]
    if own and shared not in own:
        # No image has this one, but limits are held against it.
        values["images.resolution"] = own[0]
    each = [edge for one in own or [shared] for edge in (one if isinstance(one, list) else [one])]
    unfit = {
        "images.bucket_min": [edge for edge in each if values.get("images.bucket_min", 0) > edge],
        "images.bucket_max": [edge for edge in each if values.get("images.bucket_max", edge) < edge],
    }
    for name, edges in unfit.items():
        if not values.get("images.buckets", True):
            translation.drop(name, "has no effect without buckets")
        elif edges:
            translation.drop(name, f"has no effect at resolution {', '.join(map(str, sorted(set(edges))))}")
