"""Rebuild the embedded base model by stages: `python -m tests.recipe STAGE --work FOLDER`.

Run by hand, never by tests or users. Every stage resumes where a killed run stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdlora.models.builtin import BUILTIN_MODELS

STAGES = ("data", "tokenizer", "vae", "latents", "decoder", "unet", "export", "evaluate")
DEFAULT_STEPS = {"vae": 6100, "decoder": 500, "unet": 3300}


def main() -> None:
    """Run one stage. Heavy imports happen only in the stage that needs them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder for images, latents and checkpoints")
    parser.add_argument("--icons", type=Path, help="data: the folder node_modules/@iconify-json")
    parser.add_argument("--workers", type=int, default=2, help="vae, decoder, unet: processes, one core each")
    parser.add_argument("--steps", type=int, help="vae, decoder, unet: steps in all, earlier sittings included")
    parser.add_argument(
        "--model", type=Path, default=BUILTIN_MODELS["builtin:emoji"], help="export, evaluate: the folder"
    )
    parser.add_argument("--sheet", type=Path, help="evaluate: where the contact sheet goes")
    parser.add_argument("--every", type=int, default=1, help="evaluate: use each nth name only")
    arguments = parser.parse_args()
    if arguments.stage == "data" and arguments.icons is None:
        parser.error("data needs --icons")
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Dispatch to the stage's module."""
    work, stage = arguments.work, arguments.stage
    steps = arguments.steps or DEFAULT_STEPS.get(stage, 0)
    if stage == "data":
        from .data import rasterise

        rasterise(arguments.icons, work)
    elif stage == "tokenizer":
        from .tokenizer import train_tokenizer

        train_tokenizer(work)
    elif stage == "vae":
        from .vae import train_autoencoder

        train_autoencoder(work, arguments.workers, steps)
    elif stage == "latents":
        from .latents import cache_latents
        from .workers import keep_freed_memory

        keep_freed_memory()
        cache_latents(work)
    elif stage == "decoder":
        from .decoder import train_decoder

        train_decoder(work, arguments.workers, steps)
    elif stage == "unet":
        from .unet import train_unet

        train_unet(work, arguments.workers, steps)
    elif stage == "export":
        from .export import export

        export(work, arguments.model)
    else:
        from .evaluate import evaluate
        from .workers import keep_freed_memory

        keep_freed_memory()
        evaluate(work, arguments.model, arguments.sheet, arguments.every)


if __name__ == "__main__":
    main()
