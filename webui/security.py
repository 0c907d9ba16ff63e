"""Who may talk to the page: an ASGI layer around everything the server answers.

Without it any web page that a person visits could drive sdlora on their machine; see `sdlora.serving.foreign` for how
such a request is told. With a login, only who has given name and password is let in.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import http.cookies
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect

from sdlora.serving.foreign import why_foreign
from webui.templating import macros

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("webui")

COOKIE = "sdlora-session"
_SESSION_SECONDS = 30 * 86400
_FREE_TRIES, _FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 5, 60.0, 3600.0
_MOST_ADDRESSES = 10_000
_LARGEST_LOGIN_BYTES = 4096
_PAGE_PATHS = ("/", "/login")
_RUNS_SCRIPTS = (b"text/html", b"image/svg+xml", b"application/xhtml+xml", b"text/xml", b"application/xml")
_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio's page is made of inline scripts and styles, and its components are built with Function().
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)


# Sent with every answer, those to refused requests too: no sniffing, framing or reading by other origins.
_PROTECTIVE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", _POLICY.encode()),
)


@dataclass
class Login:
    """One name and password, the sessions that gave them, and how often each address failed to."""

    user: str
    password: str
    # Not the wall clock: setting the machine's time must neither end sessions nor cut a wait short.
    clock: Callable[[], float] = time.monotonic
    _sessions: dict[str, float] = field(default_factory=dict)
    """Token to the time it ends."""
    _failures: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Address to the number of failures and the time from which it may try again."""

    def accepts(self, user: str, password: str) -> bool:
        """Whether both are right, in a time that tells nothing about how nearly."""
        # Both are always compared: an answer that came sooner for a wrong name would tell which names are right.
        right = [hmac.compare_digest(a.encode(), b.encode()) for a, b in ((user, self.user), (password, self.password))]
        return all(right)

    def wait_seconds(self, address: str) -> float:
        """How long an address must wait before its next try: nothing for five failures, then doubling from a minute."""
        _, until = self._failures.get(address, (0, 0.0))
        return max(0.0, until - self.clock())

    def failed(self, address: str) -> None:
        """Count a failure of an address."""
        count = self._failures.get(address, (0, 0.0))[0] + 1
        rounds = count // _FREE_TRIES
        wait = 0.0 if count % _FREE_TRIES else min(_FIRST_WAIT_SECONDS * 2 ** (rounds - 1), _LONGEST_WAIT_SECONDS)
        # Taken out and put in again, an address is the newest; the oldest are those that the bound below forgets.
        self._failures.pop(address, None)
        self._failures[address] = (count, self.clock() + wait)
        # One entry an address that ever failed would let whoever has many addresses fill the memory.
        while len(self._failures) > _MOST_ADDRESSES:
            self._failures.pop(next(iter(self._failures)))

    def begin(self, address: str) -> str:
        """A new session's token for whoever gave the password; the address's failures are forgotten."""
        self._failures.pop(address, None)
        now = self.clock()
        self._sessions = {token: end for token, end in self._sessions.items() if end > now}
        token = secrets.token_urlsafe(32)
        self._sessions[token] = now + _SESSION_SECONDS
        return token

    def knows(self, token: str) -> bool:
        """Whether a session of this token is under way."""
        return self._sessions.get(token, 0.0) > self.clock()

    def end(self, token: str) -> None:
        """Forget a session."""
        self._sessions.pop(token, None)


class Guard:
    """Passes on what comes from this page or from no page at all; with a login, from those who are logged in."""

    def __init__(
        self, app: App, knows_host: Callable[[str], bool], login: Login | None = None, *, has_proxy: bool = False
    ) -> None:
        """has_proxy: whether the server takes a client's address from what a proxy says."""
        self._app = app
        self._knows_host = knows_host
        self._login = login
        self._tells_of_proxy = not has_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks anything else; a closed connection is the answer
        # Header names arrive in any case, their values as bytes that HTTP reads as Latin-1.
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_page = scope["method"] == "GET" and scope["path"] in _PAGE_PATHS
        if problem := why_foreign(headers, self._knows_host, is_page=is_page):
            await _answer(send, 403, {"error": problem})
        elif self._login is None or not await self._checked(self._login, scope, headers, receive, send):
            try:
                await self._app(scope, receive, _with_headers(send, scope["path"]))
            except ClientDisconnect:
                # A browser that is closed during an upload is no fault, for which uvicorn would take it.
                log.info("%s was broken off by the other end", scope["path"])

    async def _checked(
        self, login: Login, scope: Scope, headers: dict[bytes, str], receive: Receive, send: Send
    ) -> bool:
        """Answer what has to do with logging in; False when the request goes on."""
        token = _cookie(headers.get(b"cookie", ""))
        address = place_of((scope.get("client") or ("?", 0))[0])
        path, method = scope["path"], scope["method"]
        if path == "/login" and method == "POST":
            await self._log_in(login, scope, headers, address, receive, send)
            return True
        if path in ("/logout", "/gradio_api/logout"):
            login.end(token)
            await _answer(send, 303, {}, [(b"location", b"/"), (b"set-cookie", _set_cookie("", scope, headers))])
            return True
        if login.knows(token) or self._basic(login, address, headers):
            return False
        if method == "GET" and "text/html" in headers.get(b"accept", ""):
            await _answer_html(send, 401, macros("login.html").page(message=""))
        else:
            # The words of Gradio's own server, which its client reads.
            await _answer(send, 401, {"error": "log in first", "detail": "Not authenticated"})
        return True

    async def _log_in(
        self, login: Login, scope: Scope, headers: dict[bytes, str], address: str, receive: Receive, send: Send
    ) -> None:
        wants_page = "text/html" in headers.get(b"accept", "")
        values = parse_qs((await _body(receive)).decode("utf-8", "replace"), keep_blank_values=True)
        # Not before the body is there: of tries sent half and ended together each would find nothing to wait for.
        if (wait := login.wait_seconds(address)) > 0:
            message = f"too many tries; wait {round(wait)} seconds"
            extra = [(b"retry-after", str(round(wait)).encode())]
            if wants_page:
                await _answer_html(send, 429, macros("login.html").page(message=message), extra)
            else:
                await _answer(send, 429, {"error": message}, extra)
            return
        user, password = (values.get(name, [""])[0] for name in ("username", "password"))
        if not login.accepts(user, password):
            login.failed(address)
            if self._tells_of_proxy and b"x-forwarded-for" in headers:
                self._tells_of_proxy = False
                log.warning(
                    "Logins come by a proxy at %s, so one person's wrong passwords keep everybody waiting. Start with "
                    "--proxy %s to have each counted by its own address.", address, address,
                )  # fmt: skip
            message = "name or password is wrong"
            if wants_page:
                await _answer_html(send, 401, macros("login.html").page(message=message))
            else:
                await _answer(send, 401, {"error": message})
            return
        cookie = (b"set-cookie", _set_cookie(login.begin(address), scope, headers))
        if wants_page:
            await _answer(send, 303, {}, [(b"location", b"/"), cookie])
        else:
            # What Gradio's own login answers, for clients written for that.
            await _answer(send, 200, {"success": True}, [cookie])

    def _basic(self, login: Login, address: str, headers: dict[bytes, str]) -> bool:
        """Whether the request carries name and password itself (curl --user)."""
        kind, _, value = headers.get(b"authorization", "").partition(" ")
        if kind.lower() != "basic" or login.wait_seconds(address) > 0:
            return False
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        if login.accepts(user, password):
            return True
        login.failed(address)
        return False


def place_of(address: str) -> str:
    """What an address's failures are counted under: itself, or its network where one customer is given a whole one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found.packed[:8] + bytes(8), 64)))


def _cookie(header: str) -> str:
    try:
        found = http.cookies.SimpleCookie(header).get(COOKIE)
    except http.cookies.CookieError:
        return ""
    return found.value if found else ""


def _set_cookie(token: str, scope: Scope, headers: dict[bytes, str]) -> bytes:
    # A Secure cookie over plain http would never come back, and nobody could log in. The header is believed from
    # anybody: who lies here gets a cookie that doesn't work.
    is_secure = scope.get("scheme") == "https" or headers.get(b"x-forwarded-proto") == "https"
    seconds = _SESSION_SECONDS if token else 0
    text = f"{COOKIE}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax" + ("; Secure" if is_secure else "")
    return text.encode()


def _with_headers(send: Send, path: str) -> Send:
    """Answers go out with what keeps browsers from reading or running them elsewhere; failures in words."""
    has_failed = False

    async def sending(message: MutableMapping[str, Any]) -> None:
        nonlocal has_failed
        if message["type"] == "http.response.start":
            has_failed = message["status"] == 500 and b"json" not in dict(message["headers"]).get(b"content-type", b"")
            if has_failed:
                # An exception's answer is "Internal Server Error" as plain text, which no program reads.
                await _answer(send, 500, {"error": "That did not work. Details are in the server's log."})
                return
            kept = [
                # Gradio's own headers let other origins read answers; its content policy would stand beside ours.
                (name, value)
                for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-") and name.lower() != b"content-security-policy"
            ]
            kind = next((value for name, value in kept if name.lower() == b"content-type"), b"")
            if "/file=" in path and kind.partition(b";")[0].strip().lower() in _RUNS_SCRIPTS:
                # Shown as a page of this origin, a picture or report somebody gave would run its scripts here.
                kept = [(name, value) for name, value in kept if name.lower() != b"content-disposition"]
                kept.append((b"content-disposition", b"attachment"))
            message = {**message, "headers": [*kept, *_PROTECTIVE]}
        if not has_failed:
            await send(message)

    return sending


async def _body(receive: Receive) -> bytes:
    # Whoever sends this isn't logged in yet, so the size is bounded; a longer form counts as an empty one.
    content = b""
    while len(content) <= _LARGEST_LOGIN_BYTES:
        message = await receive()
        content += message.get("body", b"")
        if not message.get("more_body"):
            return content
    return b""


async def _answer(send: Send, status: int, content: object, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
    await _send(send, status, b"application/json", json.dumps(content).encode(), extra)


async def _answer_html(send: Send, status: int, text: str, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
    await _send(send, status, b"text/html; charset=utf-8", text.encode(), extra)


async def _send(send: Send, status: int, kind: bytes, body: bytes, extra: Iterable[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *extra, *_PROTECTIVE]})
    await send({"type": "http.response.body", "body": body})
