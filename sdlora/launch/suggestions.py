"""Settings suggested for a folder of pictures, worked out in a process of its own: the page itself loads no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from sdlora.config.presets import Subject
from sdlora.errors import RunError
from sdlora.launch.jobs import start_job
from sdlora.training.preflight.suggestion import Suggestion


def suggest(
    folder: str, subject: Subject, *, base: str | None, memory_gib: float | None, trigger: str | None, jobs: Path
) -> Suggestion:
    """What `sdlora.suggest` tells; waits for it. Raises RunError with its words where it tells nothing.

    jobs: the folder that takes the process's files while it works.
    """
    given = {"base": base, "memory": None if memory_gib is None else f"{memory_gib:g}", "trigger": trigger}
    # In one word: a value that begins with a dash would be taken for an option.
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    job = start_job(["suggest", f"--for={subject}", "--json", *options, "--", folder], jobs)
    try:
        state = job.wait()
        if state.status != "finished":
            raise RunError(state.error or f"the look at the pictures was {state.status}")
        told = job.result()
    finally:
        job.cancel()
        job.delete()
    return TypeAdapter(Suggestion).validate_python(told)
