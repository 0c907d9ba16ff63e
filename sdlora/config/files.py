"""YAML files and `--set` values to a TrainConfig and back, with errors in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from pydantic import BaseModel, ValidationError

from sdlora import text_files
from sdlora.config import schema
from sdlora.config.section import NO_TEXT, is_text
from sdlora.config.shipped import presets_folder
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.text_files import UnreadableTextError, read_text
from sdlora.words import as_typed

Config = TypeVar("Config", bound=BaseModel)

_PATH_SUFFIXES = (".yaml", ".yml")
EXCLUSIVE = (("optimization.steps", "optimization.epochs"), ("images.folder", "images.folders"))
"""Settings of which one is given, not both."""


def find(preset: str | Path) -> Path:
    """The file behind a preset name or path: the path itself, else a shipped preset of that name.

    Raises ConfigError that lists what there is.
    """
    if not isinstance(preset, str | PathLike):
        raise ConfigError("the preset", [f"must be a preset's name or a file, got {type(preset).__name__}"])
    path = Path(preset).expanduser()
    if path.is_file():
        return path
    names = [path.name] if path.suffix in _PATH_SUFFIXES else [path.name + suffix for suffix in _PATH_SUFFIXES]
    if path.parent == Path():
        for name in names:
            if (presets_folder() / name).is_file():
                return presets_folder() / name
    known = [file.name for file in shipped_presets()]
    near = difflib.get_close_matches(path.name, [*known, *(name.removesuffix(".yaml") for name in known)], n=1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        str(preset), [f"no such file, and no preset of that name; {meant}presets are: {', '.join(known)}"]
    )


def shipped_presets() -> list[Path]:
    """The files of all presets that come with the package, sorted by name."""
    return sorted(file for file in presets_folder().glob("*.yaml"))


def purpose(preset: Path) -> str:
    """What a preset is for: the first line of its header comment."""
    for line in lines_of(preset):
        if line.startswith("#"):
            return line.lstrip("# ").removeprefix("Purpose:").strip()
    return ""


def lines_of(preset: Path) -> list[str]:
    """A preset's lines; none of one that can't be read, which is told when it is loaded."""
    try:
        return read_text(preset).splitlines()
    except (OSError, UnreadableTextError):
        return []


def load(preset: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The checked configuration from a preset or file and `section.name=value` overrides.

    Raises ConfigError listing every problem at once.
    """
    values: dict[str, Any] = {}
    source = "the command line"
    if preset is not None:
        source = str(preset)
        values = read_preset(find(preset))
    override(values, overrides, source)
    # Two settings may clash of which only one stands in the file.
    clashing = f"{source} with the settings given beside it" if preset is not None and overrides else source
    return with_files_read(validate(values, clashing))


def read_preset(path: Path, *, built_on: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain values of a preset, on top of those of the one that it names as `preset:`, if it does.

    A name is looked up beside the file first, then among the shipped presets. Raises ConfigError.
    """
    if path.resolve() in built_on:
        raise ConfigError(str(path), ["preset: the files build on each other in a circle"])
    values = {} if path.suffix.lower() == ".toml" else _settings_in(path)
    if path.suffix.lower() == ".toml" or _is_of_another_trainer(values, path):
        raise ConfigError(str(path), [_taken_over(path)])
    return on_preset(values, str(path), path.parent, built_on=(*built_on, path.resolve()))


def _settings_in(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except ConfigError as error:
        if path.suffix.lower() != ".json":
            raise
        # A list, or broken off: whose file it is can't be told.
        raise ConfigError(str(path), [*error.problems, _taken_over(path)]) from None


def _taken_over(path: Path) -> str:
    return f"settings of another trainer are taken over by `{as_typed('sdlora', 'dataset', 'import', path)}`"


def _is_of_another_trainer(values: Mapping[str, Any], path: Path) -> bool:
    """Whether plain values are another trainer's: a JSON file without any section of ours, or ai-toolkit's job."""
    if path.suffix.lower() != ".json":
        return {"job", "config"} <= values.keys()
    ours = {"preset", *TrainConfig.model_fields}
    sections = any(isinstance(value, dict) and name in ours for name, value in values.items())
    return not sections and not values.keys() <= ours


def on_preset(
    values: Mapping[str, Any], source: str, folder: Path, *, built_on: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Plain values on top of those of the preset that they name as `preset`, if they do; it may lie in `folder`."""
    own = dict(values)
    base = own.pop("preset", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError(source, [f"preset: must be a preset's name or a file, got {base!r}"])
    beside = folder / base
    below = read_preset(beside if beside.is_file() else find(base), built_on=built_on)
    return schema.joined(without_rivals(below, schema.dotted_names(own)), own)


def load_foreign(preset: str, folder: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration that a program elsewhere asks for: a preset's name, shipped or in `folder`, or YAML text.

    No other file is read: an error would tell what stands in it. Raises ConfigError listing every problem.
    """
    values = parse_yaml(preset, "the preset") if "\n" in preset or ": " in preset else {"preset": preset}
    base = values.pop("preset", None)
    if base is not None:
        name = str(base).removesuffix(".yaml")
        places = [place / f"{name}.yaml" for place in (folder, presets_folder())]
        found = [path for path in places if Path(name).name == name and path.is_file()]
        if not found:
            known = ", ".join(file.stem for file in (*folder.glob("*.yaml"), *shipped_presets()))
            raise ConfigError(
                str(base) or "the preset", [f"no preset of that name, and files are not read here; there is: {known}"]
            )
        values = schema.joined(without_rivals(read_preset(found[0]), schema.dotted_names(values)), values)
    override(values, overrides, "the preset")
    return with_files_read(validate(values, "the preset"))


def without_rivals(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values without those that exclude a setting in `names`: whoever asks for epochs asks for no steps."""
    for pair in EXCLUSIVE:
        for wanted, rival in (pair, pair[::-1]):
            section, _, name = rival.partition(".")
            if wanted in names and rival not in names and isinstance(values.get(section), dict):
                values[section].pop(name, None)
    return values


def with_files_read(config: TrainConfig) -> TrainConfig:
    """The configuration with what its settings name as files inside it, so that a run keeps what it began with.

    Raises ConfigError for a file that can't be read or understood.
    """
    try:
        return config.model_copy(update={"previews": config.previews.with_file_read()})
    except ValueError as error:
        raise ConfigError("previews.file", [str(error)]) from None


def override(
    values: dict[str, Any], overrides: Sequence[str], source: str, kind: type[BaseModel] = TrainConfig
) -> None:
    """Put `section.name=value` texts into plain values, in place. Raises ConfigError listing those that can't be read.

    source: what is at fault then. kind: whose settings they are.
    """
    problems: list[str] = []
    given: list[tuple[str, str, Any]] = []
    is_list = isinstance(overrides, Iterable) and not isinstance(overrides, str | Mapping)
    if not is_list or not all(isinstance(text, str) for text in overrides):
        raise ConfigError(source, ["overrides must be a list of texts, such as ['optimization.steps=100']"])
    for text in overrides:
        try:
            given += [(text, name, value) for name, value in _read_override(text, kind)]
        except ValueError as error:
            problems.append(f"--set {text if is_text(text) else ascii(text)}: {error}")
    without_rivals(values, [name for _, name, _ in given])
    for text, name, value in given:
        try:
            schema.put(values, name, value, kind)
        except ValueError as error:
            problems.append(f"--set {text}: {error}")
    if problems:
        raise ConfigError(source, problems)


@overload
def validate(values: Mapping[str, Any], source: str) -> TrainConfig: ...


@overload
def validate(values: Mapping[str, Any], source: str, kind: type[Config]) -> Config: ...


def validate(values: Mapping[str, Any], source: str, kind: type[BaseModel] = TrainConfig) -> BaseModel:
    """Check plain values as a YAML file holds them. Raises ConfigError listing every problem at once."""
    if not isinstance(values, Mapping):
        raise ConfigError(source, [f"must be settings by name, such as {{name: value}}; got {type(values).__name__}"])
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # A union reports one error a branch; the first one of each setting says what is wrong, the rest would repeat
        # it: all but what may stand in place of a word such as auto.
        by_setting: dict[str, list[str]] = {}
        words_only: dict[str, Any] = {}
        lists: set[str] = set()
        for item in error.errors():
            location = ".".join(str(part) for part in item["loc"] if not _is_union_branch(part))
            if (word := words_only.pop(location, None)) is not None:
                by_setting[location] = _or_the_word(by_setting[location], _in_words(item, location, kind), word)
            elif location not in by_setting:
                by_setting[location] = _in_words(item, location, kind)
                if item["type"] == "literal_error":
                    words_only[location] = item
            elif item["type"] in ("tuple_type", "list_type"):
                lists.add(location)
            outer, _, place = location.rpartition(".")
            # A list was given, where one number may stand, too: what is wrong is one of its values.
            if place.isdecimal() and by_setting.get(outer, [""])[0].startswith(f"{outer}: {_WHOLE_NUMBER}; got"):
                del by_setting[outer]
        for location in lists:
            by_setting[location] = [
                text.replace(f": {_WHOLE_NUMBER};", f": {_WHOLE_NUMBER} or a list of them, such as [512, 768];")
                for text in by_setting[location]
            ]
        problems = [problem for several in by_setting.values() for problem in several]
        raise ConfigError(source, problems) from None


def command_of(section: type[BaseModel]) -> str:
    """The word for the command whose settings these are, as `sdlora explain` puts it before them: `evaluate`."""
    return section.__name__.removesuffix("Config").lower()


def dump(config: TrainConfig, *, only_changes: bool = False) -> str:
    """The configuration as YAML that `load` reads back; only_changes leaves defaults out."""
    values = config.model_dump(mode="json", exclude_defaults=only_changes)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file. Raises ConfigError when it can't be read or holds no settings."""
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(str(path), [f"can't be read: {error.strerror or error}"]) from None
    except UnreadableTextError as error:
        raise ConfigError(str(path), [str(error)]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The plain values in YAML text. Raises ConfigError, naming the source, when it holds no settings."""
    try:
        values = text_files.parse_yaml(text)
    except ValueError as error:
        hint = ""
        if "escape" in str(error) or "hexdecimal" in str(error):  # the two readers' words for it
            hint = "; a backslash in double quotes is an escape: write Windows paths with / or in 'single quotes'"
        raise ConfigError(source, [f"not valid YAML: {error}{hint}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(source, [f"must hold settings (name: value), holds a {type(values).__name__}"])
    return values


def _read_override(text: str, kind: type[BaseModel]) -> list[tuple[str, Any]]:
    """The settings in one `section.name=value`, several where the value is a section's. Raises ValueError."""
    if not is_text(text):
        raise ValueError(NO_TEXT)
    name, equals, raw = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ValueError("write it as section.name=value")
    if raw.strip() == "None":
        raise ValueError("nothing is null here, or 'None' in two pairs of quotes if that is the word")
    # The command line and a file take the same spellings: 1e-4, [a, b], true.
    settings = list(schema.single(name, text_files.parse_yaml_value(raw) if raw else "", kind))
    if not settings:
        raise ValueError("sets nothing")
    return settings


def _in_words(item: Any, location: str, kind: type[BaseModel]) -> list[str]:
    """One pydantic error as our own sentences (a validator's message may hold several)."""
    if item["type"] == "extra_forbidden" and str(item["loc"][-1]).isdecimal():
        return [f"{location}: {_PLAIN_WORDS['invalid_key']}"]
    if item["type"] == "extra_forbidden":
        return [f"{location}: unknown setting{_suggestion(item['loc'], kind)}"]
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        return [_locate(location, part) for part in message.splitlines()]
    shown = repr(item["input"])
    # A whole list of prompts in an error would hide what the error is.
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if item["type"] == "string_pattern_mismatch" and (setting := schema.find(kind, location)) is not None:
        return [f"{location}: {shown} is not of the form that is wanted: {setting.description}"]
    if item["type"] == "literal_error":
        return [f"{location}: must be {item['ctx']['expected']}; got {shown}{_choice_meant(item)}"]
    message = _PLAIN_WORDS.get(item["type"]) or item["msg"].replace("Input should be", "must be")
    return [f"{location}: {message[0].lower()}{message[1:]}; got {shown}"]


def _or_the_word(wants_word: list[str], wants_other: list[str], word: Any) -> list[str]:
    """What a setting must be that takes a word or something else, such as `auto` or a number."""
    before, wanted, rest = wants_other[0].partition(": must ")
    if len(wants_other) > 1 or not wanted:
        return wants_word
    return [f"{before}: must be {word['ctx']['expected']} or {rest.removeprefix('be ')}"]


_WHOLE_NUMBER = "must be a whole number"
_PLAIN_WORDS = {
    "tuple_type": "must be a list, such as [one, two]",
    "list_type": "must be a list, such as [one, two]",
    "dict_type": "must be names with values, such as {name: value}",
    "model_type": "must be a section of settings, such as {name: value}",
    "string_type": "must be text; quotes make text of a number or a word like true",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_type": "must be a number, with a point and no comma",
    "float_parsing": "must be a number, with a point and no comma",
    "path_type": "must be a path; quotes make text of a number",
    "invalid_key": "is no name; a comma parts settings here: write 1000, not 1,000, and a list in brackets, [512, 768]",
    "too_short": "must not be empty",
}
"""What pydantic says in the words of Python, which a preset's author need not know."""


def _choice_meant(item: Any) -> str:
    """Which of the choices in an error was meant, if it is one but for its spelling."""
    choices = [choice.strip("' ") for choice in re.split(r", | or ", item["ctx"]["expected"])]
    by_spelling = {_plainly(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plainly(str(item["input"])), by_spelling, n=1, cutoff=0.75)
    if not near:
        return ""
    meant = by_spelling[near[0]]
    return "; write it without quotes" if meant == item["input"] else f"; did you mean '{meant}'?"


def _plainly(text: str) -> str:
    """A choice without what differs between programs: capitals, underscores, the prefix k_, dpmpp for DPM++."""
    return re.sub(r"[\s_-]+", " ", text.lower()).removeprefix("k ").replace("dpmpp", "dpm++")


def _locate(location: str, message: str) -> str:
    """Put the section in front: `rank: too low` of adapter becomes `adapter.rank: too low`."""
    if not location:
        return message
    return f"{location}.{message}" if re.match(r"[\w.]+[:/]", message) else f"{location}: {message}"


def _is_union_branch(part: Any) -> bool:
    """Whether pydantic put this part into the location to name a union's branch, not a setting."""
    return isinstance(part, str) and (
        part in {"int", "float", "str", "bool", "path", "none", "Range"} or "[" in part or part.startswith("tuple")
    )


def _suggestion(location: Sequence[Any], kind: type[BaseModel]) -> str:
    if location[0] == command_of(kind) and kind is not TrainConfig:
        return "; `sdlora explain` puts it before each setting of this command, where it is left out"
    known = [setting.name for setting in schema.settings(kind)]
    *section, last = (str(part) for part in location)
    siblings = schema.names_at(kind, section)
    same_name = [name for name in known if name.split(".")[-1] == last]
    # Without a section the very name says more than one much like it: model is base_model.model, not base_model.
    near = [] if same_name and not section else difflib.get_close_matches(last, sorted(siblings), n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    # By their own names: a long section in common would make any two alike.
    by_last: dict[str, str] = {}
    for name in known:
        by_last.setdefault(name.split(".")[-1], name)
    near = same_name[:1] or [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    if near:
        return f"; did you mean '{near[0]}'?"
    if kind is TrainConfig:
        return f"; `sdlora explain {last}` knows other programs' names, `sdlora explain` lists all settings"
    return f"; there is: {', '.join(siblings)}" if siblings else ""
