"""Checks what is to be served, then serves it until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from sdlora.config.generate import GenerateConfig
from sdlora.config.serve import ServeConfig
from sdlora.errors import ConfigError, MissingPackageError, ModelError, SdloraError
from sdlora.library.names import list_adapters
from sdlora.models.detection import Detection, detect
from sdlora.serving.addresses import as_url, is_local, why_not
from sdlora.text_files import UnreadableTextError, read_text

log = logging.getLogger("sdlora.serving")

_PACKAGES = ("uvicorn", "starlette", "prometheus_client")
_SHORTEST_KEY = 16
_GRACE_SECONDS = 60
"""Time for what is asked already when the server is stopped; then it is given up."""


def serve(served: ServeConfig, tell: Callable[[str], None]) -> None:
    """Serve until stopped (Ctrl-C, SIGTERM): what is asked already is answered first.

    tell: given lines for whoever started it. Raises ConfigError listing every problem and MissingPackageError before
    anything is loaded, ModelError when the model can't be loaded.
    """
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingPackageError("sdlora serve", package.replace("_", "-"), "serve")
    keys, detection = check(served)
    import uvicorn

    from sdlora.constants import GIB
    from sdlora.generation.generate import Generator
    from sdlora.serving.app import Guard, Server
    from sdlora.serving.batches import Batches
    from sdlora.serving.connections import configured
    from sdlora.serving.figures import Figures
    from sdlora.serving.foreign import known_hosts

    name, figures = model_name(served), Figures()

    def load() -> Generator:
        return Generator(served.base_model, served.compute, pool_bytes=round(served.adapter_gib * GIB))

    batches = Batches(served, load, figures.count_batch)
    figures.watch(batches)
    app = Server(served, name, detection, batches, figures).app()
    guarded = Guard(app, known_hosts(served.host, served.allow_hosts), keys)
    config = configured(guarded, served.host, served.port)
    config.timeout_graceful_shutdown = _GRACE_SECONDS
    config.lifespan = "off"  # it has nothing to begin or end, and tells a second Ctrl-C as a traceback
    server = uvicorn.Server(config)

    async def run() -> None:
        async def watch() -> None:
            while batches.generator is None and batches.failure is None:
                await asyncio.sleep(0.05)
            if batches.failure is None:
                tell(f"{name} is loaded: ready for requests")
            else:
                server.should_exit = True

        watching = asyncio.create_task(watch())
        await server.serve()
        watching.cancel()

    tell(f"{name} at {as_url(served.host, served.port)}/v1 (loading)")
    batches.start()
    try:
        asyncio.run(run())
    finally:
        batches.stop()
    if isinstance(batches.failure, SdloraError):
        raise batches.failure
    if batches.failure is not None:
        raise ModelError(f"{served.base_model.model} could not be loaded: {batches.failure}") from batches.failure


def check(served: ServeConfig) -> tuple[list[str], Detection]:
    """The keys to ask for, and what the model is. Raises ConfigError listing every problem."""
    problems: list[str] = []
    keys: list[str] = []
    if served.key_file is not None:
        keys = _keys(served.key_file, problems)
    elif not is_local(served.host):
        problems.append(f"host: {served.host} opens the server to others: set key_file (--key-file)")
    if problem := why_not(served.host, served.port):
        problems.append(problem)
    try:
        list_adapters(served.adapter_folders)
    except ConfigError as error:
        problems += error.problems
    for name in ("embedding_folders", "wildcard_folders"):
        problems += [f"{name}: {folder}: no such folder" for folder in getattr(served, name) if not folder.is_dir()]
    if (steps := GenerateConfig.model_fields["steps"].default) > served.limits.steps:
        problems.append(f"limits.steps: at least {steps}, which a request has that doesn't say how many")
    if served.compute.merge_adapters is True:
        problems.append("compute.merge_adapters: images of one pass have adapters of their own; leave it at auto")
    detection = None
    try:
        detection = detect(served.base_model)
    except SdloraError as error:
        problems += error.problems if isinstance(error, ConfigError) else [f"base_model: {error}"]
    if detection is not None and detection.native_resolution > served.limits.side_px:
        problems.append(f"limits.side_px: at least {detection.native_resolution}, the model's own size")
    if problems or detection is None:
        raise ConfigError("what is to be served", problems)
    return keys, detection


def model_name(served: ServeConfig) -> str:
    """What the model is called in requests and answers."""
    if served.name is not None:
        return served.name
    model = served.base_model.model
    return Path(model).stem if Path(model).suffix in (".safetensors", ".ckpt") else Path(model).name or model


def _keys(path: Path, problems: list[str]) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except OSError as error:
        problems.append(f"key_file: {path} can't be read: {error.strerror or error}")
        return []
    except UnreadableTextError as error:
        problems.append(f"key_file: {path} {error}")
        return []
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        problems.append(f"key_file: {path} holds no key; write one a line")
    if short := sum(len(key) < _SHORTEST_KEY for key in keys):
        problems.append(f"key_file: {short} of {len(keys)} keys in {path} are shorter than {_SHORTEST_KEY} characters")
    if any(not key.isascii() or " " in key for key in keys):
        problems.append(f"key_file: a key in {path} holds spaces or letters that no header carries")
    return keys
