"""Models on the Hugging Face hub: reached once a process, pinned to one commit, with its failures in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sdlora.errors import ModelError
from sdlora.models.source import Source

_PATIENCE_SECONDS = 10


@dataclass(frozen=True)
class HubModel:
    """A hub model at one commit. cached_only: the hub can't be reached, so only the local cache is read."""

    name: str
    revision: str | None
    cached_only: bool

    def file(self, filename: str) -> Path | None:
        """A file of the model, downloaded or from the local cache; None when the model has no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with explained(self.name, self.revision):
            try:
                return Path(
                    hf_hub_download(self.name, filename, revision=self.revision, local_files_only=self.cached_only)
                )
            except EntryNotFoundError:
                # Offline, "no such file" may also mean "never downloaded": the index tells whether the model is here at
                # all.
                if self.cached_only and not self._is_cached():
                    raise
                return None

    def _is_cached(self) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.name, "model_index.json", revision=self.revision), str)


@cache
def reach(name: str, revision: str | None) -> HubModel:
    """Ask the hub for the model's newest commit, so that no file is asked about again.

    Honours HF_HUB_OFFLINE; without a network the cache is used, at once and not after a row of attempts for each file.
    Raises ModelError when the hub answers that there is no such model or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with explained(name, revision):
        try:
            return HubModel(name, HfApi().model_info(name, revision=revision, timeout=_PATIENCE_SECONDS).sha, False)
        except HfHubHTTPError:
            raise
        except Exception as error:
            # No network shows as an OSError, or as one of httpx's own; anything else is a fault that must be seen.
            if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
                raise
            return HubModel(name, revision, True)


def model_file(source: Source, filename: str, revision: str | None) -> Path | None:
    """A file of a diffusers folder or hub model, None when there is no such file. Raises ModelError as `reach` does."""
    if source.path is None:
        return reach(source.name, revision).file(filename)
    path = source.path / filename
    return path if path.is_file() else None


@contextmanager
def explained(name: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into a ModelError that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"hub model '{name}' asks for consent: accept its terms on its page at huggingface.co, then run "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"hub model '{name}' doesn't exist, or is private: check the name, or run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"hub model '{name}' has no revision '{revision}'") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"hub model '{name}' is not in the local cache and the hub can't be reached (offline, or HF_HUB_OFFLINE is "
            "set): connect once, or give a folder or a .safetensors file"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(f"hub model '{name}': {error}") from error
    except OfflineModeIsEnabled as error:
        raise ModelError(f"'{name}': the hub isn't asked while HF_HUB_OFFLINE is set: unset it") from error
