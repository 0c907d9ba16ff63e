"""What a captioner is, and where the model behind one lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from sdlora.models.hub import HubModel


class Captioner(Protocol):
    """Gives one caption for each image. Images are upright, in mode RGB, of any size."""

    def __call__(self, images: Sequence[Image.Image], /) -> list[str]:
        """One caption an image; "" where there is nothing to say."""


@dataclass(frozen=True)
class CaptioningModel:
    """A captioning model in a folder, or on the hub at one commit."""

    name: str
    folder: Path | None = None
    hub: HubModel | None = None

    @property
    def location(self) -> str:
        """What transformers' from_pretrained takes."""
        return self.name if self.folder is None else str(self.folder)

    @property
    def revision(self) -> str | None:
        """The commit of a hub model."""
        return self.hub.revision if self.hub else None

    def file(self, name: str) -> Path | None:
        """One of its files, downloaded or from the local cache; None when it has no such file."""
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        if self.hub and not self.hub.cached_only:
            return self.hub.file(name)
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None
