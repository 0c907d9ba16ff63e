"""The page's documented API for programs: `gradio_client.Client(url).predict(..., api_name="/train")`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import GenerateConfig
from sdlora.config import fields, files
from sdlora.errors import ConfigError, RunError
from sdlora.launch import exports, queue, runs
from sdlora.launch.runs import RunHandle
from sdlora.library import mixes
from sdlora.library.rows import check_family, from_used
from webui.context import Context, handler
from webui.generate.request import FIELDS, read_request

_LOOK_SECONDS = 0.2


def add_run_endpoints(context: Context) -> None:
    """Offer train, status and stop. Call it inside the page's Blocks."""
    runs_folder = context.workspace.runs

    def train(preset: str, overrides: list[str]) -> str:
        """Queue a run of a preset with `section.name=value` overrides; returns its name.

        preset: the name of a shipped preset or of one of yours, or settings as YAML text. It starts at once if nothing
        else trains.
        """
        return queue.submit(files.load_foreign(preset, context.workspace.presets, overrides), runs_folder).name

    def status(run: str) -> dict[str, Any]:
        """How a run stands: status, step, total_steps, loss, steps_per_second, eta_seconds, last_error, adapter."""
        state = _find(runs_folder, run).state()
        return {
            "run": run,
            "status": state.status,
            "step": state.step,
            "total_steps": state.total_steps,
            "loss": state.loss,
            "steps_per_second": state.steps_per_second,
            "eta_seconds": state.eta_seconds,
            "last_error": state.last_error,
            "adapter": state.adapter,
        }

    def stop(run: str) -> str:
        """Ask a run to save and stop after its current step; returns its name."""
        _find(runs_folder, run).stop()
        return run

    for function in (train, status, stop):
        _offer(function)


def add_image_endpoints(context: Context) -> None:
    """Offer mix and generate. Call it inside the page's Blocks."""
    services = context.services

    def mix(
        adapters: list[str], name: str, method: str = "concat", rank: int = 0, energy: float = 0.0
    ) -> dict[str, Any]:
        """Mix adapters into a new file of the library and wait for it; returns its path and what `sdlora mix` said.

        adapters: as on the command line, `NAME:0.8` or `FILE:unet=0.6,te=0.3,blocks=OUTD`, by library name or path.
        name: of the new file. method: concat, svd, linear, ties, dare or dare-ties; all but concat and linear need a
        rank or a share of energy (0 is "not given").
        """
        rows = from_used(mixes.find_operands(adapters, services.scan()))
        target = mixes.new_file(name, context.workspace.adapters, ".safetensors")
        family = check_family(rows, services.adapters)
        settings = {"method": method, "rank": rank or None, "energy": energy or None, "family": family}
        job = exports.start_mix(mixes.mix_config(rows, settings), target, context.workspace.jobs)
        while (state := job.state()).is_active:
            time.sleep(_LOOK_SECONDS)
        if state.status != "finished":
            raise RunError(f"{target.name} was not written: {state.error or state.status}")
        services.scan()
        # a key called "path" would make clients fetch the file
        return {"adapter": str(target), "output": exports.outcome(job)}

    def generate(prompt: str, adapters: list[str], settings: dict[str, Any]) -> dict[str, Any]:
        """Generate images and wait for them; returns their paths, seeds and warnings.

        adapters: as for mix, with an empty list none; those in use on the page don't count. settings: any of a
        request by dotted name, such as {"steps": 20, "seed": 1, "num_images": 2, "base_model.model": "builtin:emoji"}.
        """
        config = read_request(
            services,
            {**fields.show_all(GenerateConfig(), FIELDS), **settings, "prompt": prompt},
            rows=from_used(mixes.find_operands(adapters, services.scan())),
        )
        number = services.images.submit(config)
        while not (request := services.images.get(number)).is_over:
            time.sleep(_LOOK_SECONDS)
        if request.status != "finished":
            raise RunError(request.error or f"the request was {request.status}")
        return {
            "images": [str(path) for path in request.images],
            "seeds": list(request.seeds),
            "warnings": list(request.warnings),
        }

    for function in (mix, generate):
        _offer(function)


def _offer(function: Callable[..., Any]) -> None:
    # With the page's limit of one, a call that waits minutes for its images would hold up every other.
    gr.api(handler(function), api_name=function.__name__, concurrency_limit=None)


def _find(runs_folder: Path, name: str) -> RunHandle:
    """The run of this name, which can't lead out of the folder of runs."""
    is_name = isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")
    if not is_name or "\0" in name or len(name.encode()) > 255:
        raise ConfigError("the run's name", [f"'{str(name)[:60]}' is no name of a run: give the folder's name alone"])
    return runs.find(runs_folder / name)
