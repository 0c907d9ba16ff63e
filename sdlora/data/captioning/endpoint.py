"""Captions from a server with OpenAI's chat interface: LM Studio, Ollama, vLLM, llama.cpp or a paid one.

Each image goes as a JPEG inside one request to `<endpoint>/chat/completions`; the answer's text is the caption.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from sdlora.config.captioning import CaptioningConfig
from sdlora.constants import MIB
from sdlora.errors import ModelError

_LONGEST_EDGE_PX = 1024
"""Larger pictures cost time and tokens; vision models see them at about this size."""
_TRIES = 4
_FIRST_WAIT_SECONDS = 1.0
_BUSY = (429, 500, 502, 503, 504)
_LARGEST_ANSWER_BYTES = MIB


class EndpointCaptioner:
    """Captions of a server; `batch_size` images are under way at once."""

    def __init__(self, config: CaptioningConfig) -> None:
        """Raises ModelError when the key's variable is named and not set."""
        assert config.endpoint is not None
        self.config = config
        self._address = f"{config.endpoint.rstrip('/')}/chat/completions"
        self._key = os.environ.get(config.key_variable, "")

    def __call__(self, images: Sequence[Image.Image], /) -> list[str]:
        """One caption an image. Raises ModelError that says what the server answered."""
        with ThreadPoolExecutor(self.config.batch_size) as threads:
            return list(threads.map(self._caption, images))

    def _caption(self, image: Image.Image) -> str:
        content = [
            {"type": "text", "text": self.config.prompt},
            {"type": "image_url", "image_url": {"url": _as_address(image)}},
        ]
        request = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.config.max_tokens,
            # The likeliest words: asked again, a server says the same, as far as its arithmetic allows.
            "temperature": 0,
        }
        answer = self._ask(request)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ModelError(
                f"{self._address} answered something else than a chat: {json.dumps(answer)[:200]}"
            ) from None
        if not isinstance(text, str):
            raise ModelError(f"{self._address} answered without text: {json.dumps(answer)[:200]}")
        return " ".join(text.split())

    def _ask(self, request: dict[str, Any]) -> Any:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        body = json.dumps(request).encode()
        for attempt in range(_TRIES):
            try:
                asked = urllib.request.Request(self._address, body, headers)
                with urllib.request.urlopen(asked, timeout=self.config.timeout_seconds) as answer:
                    return json.loads(answer.read(_LARGEST_ANSWER_BYTES))
            except urllib.error.HTTPError as error:
                if error.code not in _BUSY or attempt == _TRIES - 1:
                    raise ModelError(self._refusal(error)) from None
                time.sleep(_wait_seconds(error, attempt))
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", error) or type(error).__name__
                raise ModelError(
                    f"nothing answers at {self._address} ({reason}): start the server, or set captioning's endpoint to "
                    "its address, such as http://localhost:1234/v1 (LM Studio) or http://localhost:11434/v1 (Ollama)"
                ) from None
            except ValueError as error:
                raise ModelError(f"{self._address} answered no JSON: {error}") from None
        raise AssertionError("the last try returns or raises")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())
        hint = ""
        if error.code in (401, 403):
            state = "is set" if self._key else "is not set"
            hint = f" (the key is taken from ${self.config.key_variable}, which {state})"
        return (
            f"{self._address} refused the request for model '{self.config.model}' with {error.code}{hint}: {said[:300]}"
        )


def _as_address(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_LONGEST_EDGE_PX, _LONGEST_EDGE_PX), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _wait_seconds(error: urllib.error.HTTPError, attempt: int) -> float:
    try:
        return min(60.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return float(_FIRST_WAIT_SECONDS * 2**attempt)
