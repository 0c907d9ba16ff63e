"""What `sdlora serve` offers: one base model, the folders its adapters come from, whom it answers and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import ComputeConfig
from sdlora.config.section import Section
from sdlora.constants import LARGEST_EDGE_PX


class ServedLimitsConfig(Section):
    images: int = Field(default=4, ge=1, le=64)
    """Most images of one request."""

    steps: int = Field(default=100, ge=1, le=500)
    """Most sampling steps of one request."""

    side_px: int = Field(default=2048, ge=64, le=LARGEST_EDGE_PX)
    """Longest side of an image."""

    waiting_images: int = Field(default=64, ge=1, le=100_000)
    """Images that may wait for their turn; a request beyond them is answered with 429 and the time to come again."""

    seconds: float = Field(default=300.0, gt=0.0, le=86_400.0)
    """Time for a request, waiting included; what takes longer is given up and answered with 504."""


class ServeConfig(Section):
    version: Literal[1] = 1
    """Version of this format."""

    base_model: BaseModelConfig = BaseModelConfig()
    """The model that is loaded once, for all requests."""

    name: str | None = Field(default=None, min_length=1)
    """What requests and answers call the model; by default its folder's or file's name."""

    adapter_folders: tuple[Path, ...] = ()
    """Folders, with what lies below them, whose adapters requests may name. No request reaches any other file."""

    embedding_folders: tuple[Path, ...] = ()
    """Folders with textual-inversion embeddings for prompts."""

    wildcard_folders: tuple[Path, ...] = ()
    """Folders with the text files behind `__file__` in prompts, one choice a line."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others reach needs key_file."""

    port: int = Field(default=8000, ge=1, le=65_535)
    """Port to listen on."""

    allow_hosts: tuple[str, ...] = ()
    """Other names the server may be called by, such as that of a proxy."""

    key_file: Path | None = None
    """Text file with API keys, one a line, at least 16 characters each; every request must bring one of them, as
    `Authorization: Bearer KEY`. Lines that begin with # are left out."""

    batch_size: int = Field(default=8, ge=1, le=64)
    """Images generated in one pass, whoever asked for them and with whatever adapters."""

    batch_wait_ms: float = Field(default=30.0, ge=0.0, le=10_000.0)
    """How long an image waits for others to join its pass, in milliseconds; 0 takes what is there."""

    adapter_gib: float = Field(default=1.0, ge=0.0, le=1024.0)
    """Memory for adapters that are kept between requests, in GiB; those used longest ago go first."""

    limits: ServedLimitsConfig = ServedLimitsConfig()
    compute: ComputeConfig = ComputeConfig()
