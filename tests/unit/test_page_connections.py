"""Connections whose other end keeps the server waiting, at a real uvicorn with an application of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("gradio")

import uvicorn

from sdlora.serving import connections

UPLOAD = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads all of a request and says whose it is; at /slow only after a while, at /large with 64 MiB."""
    if scope["type"] != "http":
        return
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    text = b"x" * 2**26 if scope["path"] == "/large" else f"{scope['client'][0]} {scope['scheme']}".encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(text)).encode())]}
    )
    await send({"type": "http.response.body", "body": text})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that loses patience in a quarter of a second, with places for sixteen."""
    for name, seconds in (("HEAD_SECONDS", 0.25), ("SILENT_SECONDS", 0.25), ("LOOK_SECONDS", 0.05)):
        monkeypatch.setattr(connections, name, seconds)
    monkeypatch.setattr(connections, "_most", lambda: 16)
    with serving() as port:
        yield port


@contextlib.contextmanager
def serving(proxies: Sequence[str] = ()) -> Iterator[int]:
    server = uvicorn.Server(connections.configured(application, "127.0.0.1", 0, proxies))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.force_exit = server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def connect(port: int) -> Iterator[Callable[[bytes], socket.socket]]:
    opened: list[socket.socket] = []

    def connecting(sent: bytes) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        opened[-1].sendall(sent)
        return opened[-1]

    yield connecting
    for one in opened:
        one.close()


def answered(port: int, path: str = "/", body: bytes | None = None, **headers: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST" if body else "GET", path, body, headers)
    return connection.getresponse().read().decode()


def is_ended(connection: socket.socket) -> bool:
    """Waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", UPLOAD, UPLOAD + b"x" * 10], ids=["none", "head", "body", "part"]
)
def test_a_connection_that_falls_silent_is_ended(connect: Callable[[bytes], socket.socket], sent: bytes) -> None:
    assert is_ended(connect(sent))


def test_an_answer_that_nobody_takes_is_ended(
    connect: Callable[[bytes], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    end = connections.PatientProtocol._end
    monkeypatch.setattr(connections.PatientProtocol, "_end", lambda connection: (end(connection), ended.set()))
    connection = connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    assert ended.wait(30)
    taken = 0
    with contextlib.suppress(ConnectionError):
        while content := connection.recv(2**20):
            taken += len(content)
    assert taken < 2**26


def test_what_comes_slowly_but_comes_is_taken(
    connect: Callable[[bytes], socket.socket], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.8)
    connection = connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    for _ in range(10):
        time.sleep(0.1)
        connection.sendall(b"x")
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    assert answered(port, "/slow", b"whole") == "127.0.0.1 http", "it is the server that takes its time"


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nX: ", UPLOAD], ids=["head", "body"])
def test_more_half_requests_than_there_are_places_leave_one_for_a_whole_one(
    connect: Callable[[bytes], socket.socket], port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    for name in ("HEAD_SECONDS", "SILENT_SECONDS"):
        monkeypatch.setattr(connections, name, 600.0)
    held = [connect(sent) for _ in range(40)]
    assert answered(port) == "127.0.0.1 http"
    assert is_ended(held[0]), "the one that has kept silent the longest went first"


FORWARDED = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("proxies", "told"), [([], "127.0.0.1 http"), (["10.0.0.0/8"], "127.0.0.1 http"), (["127.0.0.1"], "1.2.3.4 https")]
)
def test_whose_request_it_is_is_believed_of_named_proxies_only(proxies: list[str], told: str) -> None:
    with serving(proxies) as port:
        assert answered(port, **FORWARDED) == told
