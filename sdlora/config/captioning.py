"""How images are captioned by a model: which model, what is kept of its words, and what happens to captions there."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from sdlora.config.section import Section

Existing = Literal["skip", "overwrite", "append", "prepend"]


class CaptioningConfig(Section):
    model: str = "Salesforce/blip-image-captioning-base"
    """Captioner: a hub name or a folder with BLIP, BLIP-2, GIT or Florence-2 (sentences) or a WD14-style ONNX tagger
    (tags), or the name of an installed plug-in. With an endpoint: the server's name for its model."""

    endpoint: str | None = None
    """Address of a server with OpenAI's interface (LM Studio, Ollama, vLLM), such as http://localhost:1234/v1."""

    prompt: str = "Describe this image in one sentence, for training an image generator. Give only the description."
    """Endpoint: what the model is asked about each image."""

    detail: Literal["short", "detailed", "paragraph"] = "detailed"
    """Florence-2: how much it says of an image; a paragraph wants a larger max_tokens."""

    key_variable: str = "OPENAI_API_KEY"
    """Endpoint: environment variable that holds the key, if the server wants one."""

    timeout_seconds: float = Field(default=120.0, gt=0)
    """Endpoint: longest wait for one answer."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    existing: Existing = "skip"
    """Captions that are there already: skip the image, overwrite them, append the new words or prepend them."""

    trigger: str | None = None
    """Word put in front of every caption that lacks it. Training with captions.trigger does so by itself."""

    prefix: str = ""
    """Text put in front of the model's words."""

    suffix: str = ""
    """Text put behind the model's words."""

    exclude: tuple[str, ...] = ()
    """Tags, or parts of a sentence between commas, that are left out; spaces and underscores are the same."""

    threshold: float = Field(default=0.35, ge=0.0, le=1.0)
    """Taggers: least probability of a tag."""

    character_threshold: float = Field(default=0.85, ge=0.0, le=1.0)
    """Taggers: least probability of a character's name."""

    rating_threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """Taggers: least probability of a rating (general, sensitive, ...); without it ratings are left out."""

    escape_brackets: bool = False
    """Taggers: write brackets as \\( and \\), as captions need that are trained with captions.weights on."""

    max_tokens: int = Field(default=40, ge=1, le=512)
    """Sentences and endpoint: greatest length in tokens."""

    beams: int = Field(default=3, ge=1, le=16)
    """Sentences: width of the beam search; 1 is fastest."""

    batch_size: int = Field(default=4, ge=1, le=256)
    """Images captioned at once; for an endpoint requests under way at once."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.match(r"https?://[^/\s]+", endpoint):
            raise ValueError(f"'{endpoint}' is no address; write one such as http://localhost:1234/v1")
        return endpoint
