"""What a run leaves behind: the adapter file, checkpoints, previews, validation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sdlora.config.base_model import Precision
from sdlora.config.generate import Sampler
from sdlora.config.interval import Interval, IntervalOrAuto
from sdlora.config.mix import MixedAdapter
from sdlora.config.preview_prompts import PreviewPrompt, parse_preview, read_preview_file
from sdlora.config.section import Section
from sdlora.constants import LARGEST_EDGE_PX, LATENT_FACTOR


class ValidationConfig(Section):
    folder: Path | None = None
    """Folder with held-out images; overrules fraction."""

    fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images held out, at least one when above 0."""

    every: Interval = 100
    """Steps between validations, or epochs as in `1 epoch`; step 0 and the last are always measured."""

    timesteps: tuple[int, ...] = (100, 300, 500, 700, 900)
    """Fixed timesteps at which the loss is measured, each with fixed noise."""

    @field_validator("timesteps")
    @classmethod
    def _are_timesteps(cls, timesteps: tuple[int, ...]) -> tuple[int, ...]:
        if not timesteps or not all(0 <= each <= 999 for each in timesteps):
            raise ValueError(f"must be one or more whole numbers from 0 to 999; got {list(timesteps)}")
        return timesteps


class PreviewsConfig(Section):
    prompts: tuple[str, ...] = ()
    """Prompts generated with fixed seeds before training and every so often. A prompt may end with options of its own,
    as sd-scripts writes them: --n negative, --w and --h size, --d seed, --l guidance, --s steps, --ss sampler, --am
    weight of the adapter."""

    file: Path | None = None
    """Instead: a file of such lines (.txt), or sd-scripts' .toml or .json prompt file."""

    from_captions: int = Field(default=0, ge=0, le=16)
    """Without prompts: take so many of the training captions, spread over the images, as they are trained."""

    adapters: tuple[MixedAdapter, ...] = ()
    """Other adapters that the previews are generated with, too, such as a style beside the character that is trained:
    `style.safetensors:0.6`, or file, weight, unet, text_encoder and blocks as in a mix."""

    base_model: str | None = None
    """Generate the previews with this model of the same family instead of the one that is trained, such as the
    fine-tune that the adapter is for. It is loaded anew for each set of previews, beside the other one."""

    negative: str = ""
    """Negative prompt."""

    every: Interval = 0
    """Steps between previews, or epochs as in `1 epoch`; 0 generates before the first and after the last step only."""

    steps: int = Field(default=25, ge=1, le=200)
    """Sampling steps."""

    guidance: float = Field(default=7.0, ge=0, le=30)
    """Classifier-free guidance scale."""

    width_px: int | None = Field(default=None, ge=64, le=LARGEST_EDGE_PX, multiple_of=LATENT_FACTOR)
    """Width; by default the first training resolution."""

    height_px: int | None = Field(default=None, ge=64, le=LARGEST_EDGE_PX, multiple_of=LATENT_FACTOR)
    """Height; by default the first training resolution."""

    sampler: Sampler = "DPM++ 2M"
    """Sampler, by the names that other tools use."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the first prompt; the others count up."""

    @property
    def parsed(self) -> tuple[PreviewPrompt, ...]:
        """The prompts with their options."""
        return tuple(parse_preview(line) for line in self.prompts)

    @model_validator(mode="after")
    def _check(self) -> PreviewsConfig:
        problems = ["file: previews.prompts is set too; use one of them"] if self.file and self.prompts else []
        if self.base_model is not None and not self.base_model.strip():
            problems.append("base_model: is empty; name a folder, a file or a hub name, or leave it out")
        for number, line in enumerate(self.prompts):
            try:
                parse_preview(line)
            except ValueError as error:
                problems.append(f"prompts.{number}: {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def with_file_read(self) -> PreviewsConfig:
        """The same settings with the file's lines among the prompts. Raises ValueError that names what is wrong."""
        if self.file is None:
            return self
        lines = read_preview_file(self.file)
        for line in lines:
            try:
                parse_preview(line)
            except ValueError as error:
                raise ValueError(f"{self.file}: '{line}': {error}") from None
        return self.model_copy(update={"prompts": tuple(lines), "file": None})


class OutputsConfig(Section):
    folder: Path = Path("runs")
    """Folder that holds one folder a run."""

    format: Literal["kohya", "diffusers"] = "kohya"
    """Key names of the adapter file; kohya loads in every tool, diffusers in diffusers."""

    precision: Precision = "fp16"
    """Number type of the adapter file."""

    bundle_embeddings: bool = False
    """Put the embeddings of adapter.new_tokens into the adapter file, too, as AUTOMATIC1111 reads them; diffusers
    refuses such a file. They always lie beside it as name_emb.safetensors."""

    checkpoint_every: IntervalOrAuto = "auto"
    """Steps between checkpoints, or epochs as in `1 epoch`; auto saves at every tenth of the run and every ten minutes
    at the latest, 0 at the end only."""

    checkpoint_names: Literal["step", "epoch"] = "step"
    """How the adapter files of checkpoints are called: name-step_000500, or with the epoch as sd-scripts has it,
    name-000005."""

    keep_every: Interval = 0
    """Keep the checkpoint at each multiple of this for good, beside the newest ones; 0 keeps no others."""

    keep_checkpoints: int = Field(default=3, ge=1)
    """Newest checkpoints kept; the best by validation is kept besides."""

    metadata: Literal["full", "private"] = "full"
    """private leaves folders and captions out of the file's metadata."""

    author: str = ""
    """Author named in the file's metadata."""

    description: str = ""
    """Description in the file's metadata and side-car."""

    finish: Literal["best", "last"] = "best"
    """Whose weights the finished file holds: best takes the step that predicts the held-out images best, where there
    are some and it predicts them better than the base model; otherwise, and with last, those of the last step."""

    self_test: bool = True
    """Load the finished file into a fresh pipeline and compare it with the trained model."""

    tensorboard: bool = False
    """Write TensorBoard logs into the run folder."""

    wandb: bool = False
    """Log to Weights & Biases (key from WANDB_API_KEY or `wandb login`); WANDB_MODE=offline writes into the run."""

    wandb_project: str = "sdlora"
    """Project there."""

    on_finish: str | None = None
    """Command to run when the run has ended in any way, such as `python evaluate.py`; for runs begun on the command
    line. It finds SDLORA_OUTCOME (completed, stopped or failed), SDLORA_RUN, SDLORA_ADAPTER, SDLORA_STEP and
    SDLORA_MESSAGE in its environment."""

    webhook: str | None = None
    """Address that is told by POST how the run ended, as JSON: outcome, name, run, adapter, step, seconds, message, and
    a sentence as `text` and `content`, as Slack and Discord want it."""

    @field_validator("on_finish")
    @classmethod
    def _is_command(cls, command: str | None) -> str | None:
        try:
            words = None if command is None else shlex.split(command)
        except ValueError as error:
            raise ValueError(f"'{command}' is no command: {error}") from None
        if words == []:
            raise ValueError("is empty; give a command or null")
        return command

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None and not re.match(r"https?://[^/\s]+", address):
            raise ValueError(f"'{address}' is no address; write one such as https://example.org/hook")
        return address
