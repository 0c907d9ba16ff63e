"""A run's folder on disk: what lies where, and requests to a running trainer."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar, get_args

from sdlora import atomic
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig, bare_token
from sdlora.config.base_model import MergedAdapter
from sdlora.config.mix import MixedAdapter
from sdlora.config.outputs import OutputsConfig
from sdlora.config.shipped import BUILTIN_PREFIX
from sdlora.config.train import TrainConfig
from sdlora.disk import is_file
from sdlora.errors import ConfigError

Named = TypeVar("Named", MergedAdapter, MixedAdapter)
Request = Literal["stop", "save", "preview"]
_ACCEPT = "accept_changes"
_PICTURES = "pictures"
REQUESTS: tuple[Request, ...] = get_args(Request)
FAILED_SELF_TEST = ".failed-self-test"
"""Ending of a finished adapter that did not hold what was trained; it gets no other name."""
_STEP = re.compile(r"step_(\d{6,})")
_PACKAGES = ("sdlora", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Creating the object touches nothing."""

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration: `sdlora train --preset` with it trains the same."""
        return self.path / "config.yaml"

    @property
    def kept_config(self) -> Path:
        """The configuration as sdlora wrote it last: what a file cut off or edited meanwhile is compared with."""
        return self.path / ".config.yaml"

    @property
    def history(self) -> Path:
        """Former configurations, one a change of settings (see `runs.changes`)."""
        return self.path / "config.history"

    @property
    def images(self) -> Path:
        """What images and captions were when the run began."""
        return self.path / "images.json"

    @property
    def environment(self) -> Path:
        """Versions of the packages and the machine, for whoever repeats the run."""
        return self.path / "environment.json"

    @property
    def events(self) -> Path:
        """Everything that happened, one event a line."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """What the terminal showed, without progress bars."""
        return self.path / "log.txt"

    @property
    def process(self) -> Path:
        """Which process trains here, or did last."""
        return self.path / "process.json"

    @property
    def launcher(self) -> Path:
        """Which launcher (torchrun's, say) started the processes that began this run together."""
        return self.path / "launcher.json"

    @property
    def lock(self) -> Path:
        """Locked by the process that trains here."""
        return self.path / ".training.lock"

    @property
    def evaluation(self) -> Path:
        """What `sdlora evaluate` makes: images, features and the newest report."""
        return self.path / "evaluation"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint: step_000500."""
        return self.path / "checkpoints"

    @property
    def requests(self) -> Path:
        """Files that ask the running trainer for something."""
        return self.path / "requests"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.checkpoints / step_name(step)

    def previews(self, step: int) -> Path:
        """Folder of the previews generated after `step` steps."""
        return self.path / "previews" / step_name(step)

    @property
    def finishing(self) -> Path:
        """Where the finished adapter and its side-cars lie until they are proved."""
        return self.path / ".finishing"

    def adapter(self, name: str) -> Path:
        """Where the finished adapter file is written."""
        return self.path / f"{name}.safetensors"

    def result(self, config: TrainConfig) -> Path:
        """Where the file lies that the run is for."""
        return result_file(self.adapter(config.name), config.adapter)

    def ask(self, request: Request) -> None:
        """Ask the trainer of this run, which looks between steps, to stop, save or generate previews."""
        self.requests.mkdir(parents=True, exist_ok=True)
        (self.requests / request).touch()

    @property
    def asked_pictures(self) -> Path:
        """Where the pictures lie that a person asked the running trainer for: step_000120-01.png."""
        return self.path / "asked"

    def next_asked_picture(self, step: int) -> Path:
        """A name among them that is free."""
        names = (self.asked_pictures / f"{step_name(step)}-{number:02d}.png" for number in itertools.count(1))
        return next(path for path in names if not path.exists())

    def ask_for_pictures(self, prompts: Sequence[str]) -> None:
        """Ask the trainer of this run to draw these prompts, written as in `previews.prompts`, between two steps."""
        wanted = self.requests / _PICTURES
        wanted.mkdir(parents=True, exist_ok=True)
        atomic.write_text(wanted / f"{time.time_ns()}.json", json.dumps(list(prompts)))

    def take_asked_prompts(self) -> list[str]:
        """The prompts asked for since the last call, oldest first."""
        taken: list[str] = []
        for path in sorted((self.requests / _PICTURES).glob("*.json")):
            with suppress(OSError, ValueError, TypeError):  # else written by no sdlora
                taken += [str(prompt) for prompt in json.loads(path.read_text(encoding="utf-8"))]
            path.unlink(missing_ok=True)
        return taken

    def take_requests(self, wanted: Sequence[Request] = REQUESTS) -> set[Request]:
        """The requests made since the last call; they are answered by taking them."""
        taken: set[Request] = set()
        for request in wanted:
            try:
                # Removing is taking: a request that is made again meanwhile is a new file and is not lost.
                (self.requests / request).unlink()
            except FileNotFoundError:
                continue
            taken.add(request)
        return taken

    def accept_changes(self) -> None:
        """Have the next process take images and captions as it finds them."""
        self.requests.mkdir(parents=True, exist_ok=True)
        (self.requests / _ACCEPT).touch()

    def takes_changes_accepted(self) -> bool:
        """Whether that was asked for, which is answered by asking."""
        try:
            (self.requests / _ACCEPT).unlink()
        except FileNotFoundError:
            return False
        return True

    def discard_requests(self, made_before: float) -> None:
        """Forget requests made before a time in seconds since the epoch: they were meant for an earlier process."""
        for path in (*(self.requests / request for request in REQUESTS), *(self.requests / _PICTURES).glob("*.json")):
            try:
                if path.stat().st_mtime < made_before:
                    path.unlink()
            except FileNotFoundError:
                continue


def embedding_files(adapter: Path, tokens: Collection[str]) -> dict[str, Path]:
    """Where the embeddings of new tokens lie beside an adapter's file: `name_emb`, of several `name_emb-ohwx`."""
    names = {token: f"_emb-{bare_token(token)}" if len(tokens) > 1 else "_emb" for token in tokens}
    return {token: adapter.with_name(f"{adapter.stem}{name}.safetensors") for token, name in names.items()}


def result_file(adapter: Path, config: AdapterConfig) -> Path:
    """The file that stands for what was trained: the adapter's; without layers the (first) embedding's."""
    return adapter if config.rank else next(iter(embedding_files(adapter, config.new_tokens).values()))


def step_name(step: int) -> str:
    """What files and folders of a step are called: step_000500."""
    return f"step_{step:06d}"


def by_step(folder: Path) -> dict[int, Path]:
    """The folders inside that belong to a step, in the order of the steps."""
    inside = folder.iterdir() if folder.is_dir() else ()
    found = {int(match[1]): path for path in inside if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items()))


def create(config: TrainConfig) -> RunFolder:
    """Make the folder of a new run, `<name>` or `<name>-2`, `<name>-3`, ... and write its configuration."""
    config.outputs.folder.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(atomic.create_folder(config.outputs.folder / re.sub(r"\s+", "_", config.name)).resolve())
    for inner in (folder.checkpoints, folder.requests):
        inner.mkdir()
    atomic.write_json(folder.environment, _environment(), indent=2)
    text = files.dump(with_absolute_paths(config))
    atomic.write_text(folder.kept_config, text)
    # Last: whoever lists runs takes a folder with a configuration for one.
    atomic.write_text(folder.config, text)
    return folder


def write_config(folder: RunFolder, config: TrainConfig) -> None:
    """Replace a run's configuration, and the copy that it is compared with."""
    text = files.dump(config)
    atomic.write_text(folder.config, text)
    atomic.write_text(folder.kept_config, text)


def find(path: Path) -> RunFolder:
    """The run in a folder. Raises ConfigError when there is none."""
    folder = RunFolder(path.expanduser().resolve())
    if folder.config.is_file():
        return folder
    if folder.path.is_dir():
        inside = [each.name for each in _runs_in(folder.path)]
        named = f"; it holds runs: {', '.join(inside[:5])}" + (", ..." if len(inside) > 5 else "") if inside else ""
        raise ConfigError(str(path), [f"not a run folder: it has no {folder.config.name}{named}"])
    if folder.path.is_file():
        raise ConfigError(str(path), ["not a run folder but a file: give the folder of the run"])
    raise ConfigError(str(path), [f"not a run folder: there is no such folder; {run_meant(path)}"])


def run_meant(path: Path) -> str:
    """What to say of a folder that isn't there: the run that may be meant by it, or how runs are listed."""
    meant = _run_like(path)
    return f"did you mean {meant}?" if meant else "`sdlora runs` lists the runs"


def _run_like(path: Path) -> Path | None:
    """A run of that name, or almost of that name, beside `path` or where runs lie by default."""
    path = path.expanduser()
    places = list(dict.fromkeys((OutputsConfig().folder, path.parent)))
    runs = {place: {run.name: run for run in _runs_in(place)} for place in places}
    for names in runs.values():
        if path.name in names:
            return names[path.name]
    for names in runs.values():
        if near := difflib.get_close_matches(path.name, names, n=1):
            return names[near[0]]
    return None


def _runs_in(folder: Path) -> list[Path]:
    with suppress(OSError):  # a folder that must not be listed
        return [each for each in sorted(folder.iterdir()) if is_file(RunFolder(each).config)]
    return []


def open_run(path: Path) -> tuple[RunFolder, TrainConfig]:
    """An existing run and its configuration. Raises ConfigError when there is none, or one that was damaged."""
    folder = find(path)
    return folder, files.load(folder.config)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same configuration, independent of the folder it was started from."""
    images, adapter, validation, outputs = config.images, config.adapter, config.validation, config.outputs
    base, captions, previews = config.base_model, config.captions, config.previews
    tags = captions.protected_tags
    tags = tags.expanduser().absolute() if isinstance(tags, Path) else tags
    plain = images.folder if isinstance(images.folder, tuple) else (images.folder,) if images.folder else ()
    return config.model_copy(
        update={
            "images": images.model_copy(
                update={
                    "folder": tuple(_absolute_folder(folder) for folder in plain) or None,
                    "folders": tuple(
                        source.model_copy(update={"folder": _absolute_folder(source.folder)})
                        for source in images.folders
                    ),
                    "class_folder": images.class_folder and _absolute_folder(images.class_folder),
                    "cache_folder": images.cache_folder and images.cache_folder.resolve(),
                }
            ),
            "adapter": adapter.model_copy(update={"start_from": adapter.start_from and _absolute(adapter.start_from)}),
            "validation": validation.model_copy(
                update={"folder": validation.folder and _absolute_folder(validation.folder)}
            ),
            "outputs": outputs.model_copy(update={"folder": outputs.folder.resolve()}),
            "base_model": base.model_copy(
                update={
                    "model": _absolute(base.model),
                    "vae": base.vae and _absolute(base.vae),
                    "adapters": _absolute_files(base.adapters),
                }
            ),
            "captions": captions.model_copy(update={"protected_tags": tags}),
            "previews": previews.model_copy(
                update={
                    "adapters": _absolute_files(previews.adapters),
                    "base_model": previews.base_model and _absolute(previews.base_model),
                }
            ),
        }
    )


def _absolute_folder(folder: Path) -> Path:
    # A sample set is found by its name on every machine, wherever sdlora lies there. Links stay: `10_cat` tells repeats
    # and a caption, whatever the folder is called that it leads to.
    return folder if str(folder).startswith(BUILTIN_PREFIX) else folder.expanduser().absolute()


def _absolute_files(adapters: Sequence[Named]) -> tuple[Named, ...]:
    return tuple(one.model_copy(update={"file": _absolute(one.file)}) for one in adapters)


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    # A name on the hub or of a built-in model is no path, and stays as it is. So do links: the hub's cache keeps files
    # without their endings, which tell what they are.
    return str(path.absolute()) if path.exists() else name


def _environment() -> dict[str, object]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
    }
