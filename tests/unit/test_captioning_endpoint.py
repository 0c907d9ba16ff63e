"""Captions from a server with OpenAI's interface, against a real one on this machine."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.run import caption_folder
from sdlora.errors import ConfigError, ModelError
from tests.support.dataset_pictures import picture


class Server(http.server.ThreadingHTTPServer):
    """Names an image's size; `answers` are given before that."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[tuple[int, bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({**asked, "path": self.path})
        self.server.keys.append(self.headers.get("Authorization"))
        status, body = self.server.answers.pop(0) if self.server.answers else (200, self._described(asked))
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _described(self, asked: dict[str, Any]) -> bytes:
        address = asked["messages"][0]["content"][1]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        text = f" a {image.format}\n of {image.width}x{image.height} "
        return json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.shutdown()


def configured(server: Server, **more: Any) -> CaptioningConfig:
    return CaptioningConfig(model="llava", endpoint=server.endpoint, prompt="What is it?", **more)


def test_each_image_is_asked_about_and_the_words_come_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    captioner = load_captioner(configured(server, key_variable="MY_KEY", max_tokens=77))
    images = [Image.new("RGB", (60, 40)), Image.new("RGBA", (3000, 1500))]
    assert captioner(images) == ["a JPEG of 60x40", "a JPEG of 1024x512"]
    asked = server.requests[0]
    assert (asked["path"], asked["model"], asked["max_tokens"]) == ("/v1/chat/completions", "llava", 77)
    assert asked["messages"][0]["content"][0]["text"] == "What is it?"
    assert set(server.keys) == {"Bearer secret"}


def test_no_key_is_sent_where_none_is_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    load_captioner(configured(server))([picture(1)])
    assert server.keys == [None]


def test_a_folder_is_captioned(server: Server, tmp_path: Path) -> None:
    picture(1, (64, 48)).save(tmp_path / "a.png")
    caption_folder(tmp_path, configured(server, trigger="ohwx"))
    assert (tmp_path / "a.txt").read_text().strip() == "ohwx, a JPEG of 64x48"


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.answers = [(503, b"loading"), (429, b"slow down")]
    assert load_captioner(configured(server))([Image.new("RGB", (8, 8))]) == ["a JPEG of 8x8"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, b"model 'llava' not found"), r"refused the request for model 'llava' with 404: model 'llava' not found"),
        ((401, b"no"), r"with 401 \(the key is taken from \$OPENAI_API_KEY, which is not set\)"),
        ((200, b"<html>"), "answered no JSON"),
        ((200, b'{"object": "list"}'), "answered something else than a chat"),
        ((200, b'{"choices": [{"message": {"content": null}}]}'), "answered without text"),
    ],
)
def test_what_the_server_refuses_is_said(
    server: Server, answer: tuple[int, bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.answers = [answer]
    with pytest.raises(ModelError, match=words):
        load_captioner(configured(server))([picture(1)])


def test_a_server_that_is_not_there_is_named() -> None:
    captioner = load_captioner(CaptioningConfig(model="llava", endpoint="http://127.0.0.1:9/v1"))
    with pytest.raises(ModelError, match=r"nothing answers at http://127\.0\.0\.1:9/v1/chat/completions.*LM Studio"):
        captioner([picture(1)])


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="'localhost:1234' is no address"):
        files.validate({"endpoint": "localhost:1234"}, "the command line", CaptioningConfig)
