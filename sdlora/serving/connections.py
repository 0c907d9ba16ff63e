"""Connections whose other end keeps the server waiting: closed after a while, and the longest first when many are open.

uvicorn waits for ever for the rest of a request, and a process may have so many files open and no more: a thousand
half requests, and neither a page is answered nor a file written. So each connection is looked at every few seconds, and
beyond a number of them a new one takes the place of the one that has kept silent the longest.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""For the whole head of a request, from its first byte or from the connection on."""
SILENT_SECONDS = 60.0
"""Without a byte of a request's body, or without one of an answer being taken. A whole upload may take as long as it
likes."""
LOOK_SECONDS = 5.0
MOST_CONNECTIONS = 512


class PatientProtocol(H11Protocol):
    """A connection as uvicorn has it, and its end where nothing comes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the new one first, if there are too many."""
        super().connection_made(transport)
        self._heard = self._begun = self.loop.time()
        self._untaken = (-1, 0.0)
        """Bytes of an answer that wait to be taken, and since when it is as many."""
        self._next_look = self.loop.call_later(LOOK_SECONDS, self._look)
        if len(self.connections) > _most():
            # One whose request is whole is the server's to answer; the new one only goes where all others are.
            waiting = (one for one in self.connections if isinstance(one, PatientProtocol) and one._is_waiting)
            min(waiting, key=lambda one: one._heard, default=self)._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and the time."""
        now = self.loop.time()
        if not self._has_request and self.timeout_keep_alive_task is not None:
            self._begun = now  # the first byte of a further request
        self._heard = now
        super().data_received(data)

    @property
    def _has_request(self) -> bool:
        """Whether there is a head that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_waiting(self) -> bool:
        """Whether it is the other end's turn to send."""
        # While reading is paused it may have sent long ago, and the application has not taken it yet.
        return not self._has_request or (self.cycle.more_body and not self.flow.read_paused)

    def _look(self) -> None:
        now = self.loop.time()
        left = self.transport.get_write_buffer_size() if self.flow.write_paused else -1
        if left != self._untaken[0]:
            self._untaken = (left, now)
        # Between two requests uvicorn's own, shorter time runs.
        is_head = not self._has_request and self.timeout_keep_alive_task is None
        if (
            (is_head and now - self._begun > HEAD_SECONDS)
            or (self._has_request and self._is_waiting and now - self._heard > SILENT_SECONDS)
            or (left >= 0 and now - self._untaken[1] > SILENT_SECONDS)
        ):
            self._end()
        else:
            self._next_look = self.loop.call_later(LOOK_SECONDS, self._look)

    def _end(self) -> None:
        # At once, not only when it is lost: of many that come in one go, each makes room of its own.
        self.connections.discard(self)
        # Not `close`: that would first wait until what was sent is taken.
        self.transport.abort()


def _most() -> int:
    """How many connections there may be, of the files that the system lets the process have open a quarter.

    Each may bring a second one, as an upload does, and half is left for what the page itself reads and writes.
    """
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if limit == resource.RLIM_INFINITY else max(16, min(MOST_CONNECTIONS, limit // 4))


def configured(application: Any, host: str, port: int, proxies: Sequence[str] = ()) -> uvicorn.Config:
    """How the page is served. proxies: addresses and networks that are believed about whose requests they pass on."""
    return uvicorn.Config(
        application,
        host=host,
        port=port,
        log_level="warning",
        # Gradio speaks plain HTTP (server-sent events), so nothing has a use for WebSockets.
        ws="none",
        http=PatientProtocol,
        # So many are taken from the system in one go, before any of them can be closed.
        backlog=64,
        # By default uvicorn believes everyone on this machine about whose request it is.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
    )
