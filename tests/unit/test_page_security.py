"""Who may talk to the page: hosts, origins, logins, and the headers answers go out with. No Gradio needed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import MutableMapping
from typing import Any

import pytest

from sdlora.serving.foreign import known_hosts
from webui.security import COOKIE, Guard, Login, place_of

OWN = {"host": "127.0.0.1:7860"}


async def application(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Answers everything; a path that ends in .svg or .html with that type, with CORS headers as Gradio's."""
    kind = {"svg": b"image/svg+xml", "html": b"text/html; charset=utf-8"}.get(
        scope["path"].rpartition(".")[2], b"text/plain"
    )
    headers = [(b"content-type", kind), (b"access-control-allow-origin", b"*"), (b"content-disposition", b"inline")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"inside"})


class Answer:
    """What came back."""

    def __init__(self, messages: list[MutableMapping[str, Any]]) -> None:
        start, body = messages
        self.status: int = start["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        self.text: str = body["body"].decode()


def ask(
    guard: Guard,
    path: str = "/",
    method: str = "GET",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    client: str = "127.0.0.1",
) -> Answer:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    given = {**OWN, **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "client": (client, 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items() if value],
    }
    # Nothing waits here, so no event loop is needed (and the browser tests have one running in this thread).
    with contextlib.suppress(StopIteration):
        guard(scope, receive, send).send(None)
    return Answer(sent)


LOCAL = Guard(application, known_hosts("127.0.0.1"))


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "[::1]:7860", "localhost"])
def test_the_names_of_this_machine_are_answered(host: str) -> None:
    assert ask(LOCAL, headers={"host": host}).text == "inside"


@pytest.mark.parametrize(
    "host",
    ["x.localhost:7860", "localhost.:7860", "[::ffff:127.0.0.1]:7860", "evil.example", "evil.example:7860",
     "127.1:7860", "2130706433", "0.0.0.0:7860", "127.0.0.1.nip.io", "a@127.0.0.1",
     "127.0.0.1:7860/x", "127.0.0.1:port", "[::1", ""],
)  # fmt: skip
def test_names_that_are_not_this_servers_are_refused(host: str) -> None:
    answer = ask(LOCAL, headers={"host": host})
    assert answer.status == 403
    assert "--allow-host" in answer.text


def test_another_name_can_be_allowed() -> None:
    guard = Guard(application, known_hosts("127.0.0.1", ["lora.example"]))
    assert ask(guard, headers={"host": "lora.example"}).status == 200
    assert ask(guard, headers={"host": "other.example"}).status == 403


def test_on_an_open_address_plain_addresses_are_answered_and_foreign_names_are_not() -> None:
    guard = Guard(application, known_hosts("0.0.0.0"))
    assert [ask(guard, headers={"host": host}).status for host in ("192.168.1.7:7860", "[fe80::1]:7860")] == [200, 200]
    assert [ask(guard, headers={"host": host}).status for host in ("rebound.example", "[::ffff:1.2.3.4]")] == [403, 403]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7860", "file://",
     "http://127.0.0.1:7860.evil.example", "http://[::1", "http://[x]"]
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_requests_of_other_pages_are_refused(origin: str, method: str) -> None:
    assert ask(LOCAL, "/config", method, headers={"origin": origin}).status == 403


def test_requests_of_this_page_and_of_programs_are_answered() -> None:
    assert ask(LOCAL, "/gradio_api/call/train", "POST", headers={"origin": "http://127.0.0.1:7860"}).status == 200
    assert ask(LOCAL, "/gradio_api/call/train", "POST").status == 200
    assert ask(LOCAL, "/", headers={"origin": "https://127.0.0.1:7860"}).status == 200, "behind a proxy with TLS"


@pytest.mark.parametrize(
    ("path", "fetch", "status"),
    [
        ("/", ("cross-site", "navigate", "document"), 200),
        ("/", ("none", "navigate", "document"), 200),
        ("/config", ("same-origin", "cors", "empty"), 200),
        ("/config", ("cross-site", "no-cors", "empty"), 403),
        ("/config", ("same-site", "cors", "empty"), 403),
        ("/config", ("cross-site", "navigate", "document"), 403),
        ("/", ("cross-site", "navigate", "iframe"), 403),
        ("/gradio_api/file=x.png", ("cross-site", "no-cors", "image"), 403),
    ],
)
def test_what_a_browser_says_of_its_site_counts(path: str, fetch: tuple[str, str, str], status: int) -> None:
    names = ("sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")
    assert ask(LOCAL, path, headers=dict(zip(names, fetch, strict=True))).status == status


def test_answers_allow_no_other_page_and_are_what_they_say_they_are() -> None:
    headers = ask(LOCAL).headers
    assert "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert "default-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "disposition"), [("a.html", "attachment"), ("a.svg", "attachment"), ("a.png", "inline")]
)
def test_files_that_could_run_scripts_are_downloaded_not_shown(path: str, disposition: str) -> None:
    assert ask(LOCAL, f"/gradio_api/file=/outputs/{path}").headers["content-disposition"] == disposition
    assert ask(LOCAL, "/index.html").headers["content-disposition"] == "inline"


class Clock:
    """A clock that goes when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> Guard:
    return Guard(application, known_hosts("127.0.0.1"), Login("me", "sécret", clock))


def log_in(guard: Guard, password: str = "s%C3%A9cret", **more: Any) -> Answer:
    return ask(guard, "/login", "POST", f"username=me&password={password}".encode(), **more)


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/gradio_api/heartbeat/x", "/app_id", "/gradio_api/app_id", "/openapi.json", "/gradio_api/info",
     "/gradio_api/cancel", "/gradio_api/file=x", "/theme.css", "/static/x.js", "/logout2"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_answered_before_the_login(guard: Guard, path: str, method: str) -> None:
    answer = ask(guard, path, method)
    assert (answer.status, "inside" in answer.text) == (401, False)


def test_a_visitor_gets_the_login_page_and_then_the_page(guard: Guard) -> None:
    page = ask(guard, headers={"accept": "text/html"})
    assert page.status == 401
    assert '<form method="post" action="login">' in page.text
    answer = log_in(guard, headers={"accept": "text/html"})
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Lax"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie
    token = cookie.partition(";")[0]
    assert ask(guard, "/config", headers={"cookie": token}).text == "inside"
    assert ask(guard, "/logout", headers={"cookie": token}).status == 303
    assert ask(guard, "/config", headers={"cookie": token}).status == 401


def test_the_cookie_is_secure_behind_https(guard: Guard) -> None:
    assert "; Secure" in log_in(guard, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]


def test_programs_log_in_by_form_or_with_each_request(guard: Guard) -> None:
    answer = log_in(guard)
    assert (answer.status, answer.text) == (200, '{"success": true}')
    basic = base64.b64encode("me:sécret".encode()).decode()
    assert ask(guard, "/config", headers={"authorization": f"Basic {basic}"}).status == 200
    assert ask(guard, "/config", headers={"authorization": "Basic !"}).status == 401
    assert ask(guard, "/config", headers={"cookie": f"{COOKIE}=made-up"}).status == 401


def test_five_wrong_tries_make_an_address_wait_longer_and_longer(guard: Guard, clock: Clock) -> None:
    def five() -> list[int]:
        return [log_in(guard, "wrong").status for _ in range(5)]

    assert five() == [401] * 5
    refused = log_in(guard)
    assert (refused.status, refused.headers["retry-after"]) == (429, "60")
    basic = base64.b64encode("me:sécret".encode()).decode()
    assert ask(guard, "/config", headers={"authorization": f"Basic {basic}"}).status == 401
    assert log_in(guard, client="10.0.0.9").status == 200, "others are not kept out"
    clock.now += 61
    assert five() == [401] * 5
    assert log_in(guard).headers["retry-after"] == "120"
    clock.now += 121
    assert log_in(guard).status == 200


def test_tries_sent_half_and_ended_together_are_counted_one_by_one(guard: Guard) -> None:
    """Each begins before any has failed, and its body comes after."""
    answers: list[int] = []

    async def attempt() -> None:
        async def receive() -> MutableMapping[str, Any]:
            await all_have_begun.wait()
            return {"type": "http.request", "body": b"username=me&password=guess", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": "/login", "scheme": "http", "client": ("127.0.0.1", 1)}
        await guard({**scope, "headers": [(b"host", b"127.0.0.1:7860")]}, receive, send)

    async def together() -> None:
        tries = [asyncio.ensure_future(attempt()) for _ in range(20)]
        await asyncio.sleep(0)
        all_have_begun.set()
        await asyncio.gather(*tries)

    all_have_begun = asyncio.Event()
    # In a thread of its own: where browser tests ran before, Playwright's loop runs in this one.
    thread = threading.Thread(target=lambda: asyncio.run(together()))
    thread.start()
    thread.join()
    assert sorted(answers) == [401] * 5 + [429] * 15


def test_one_network_of_ipv6_addresses_counts_as_one(guard: Guard) -> None:
    answers = [log_in(guard, "wrong", client=f"2001:db8::{number:x}") for number in range(6)]
    assert [answer.status for answer in answers] == [401] * 5 + [429]
    assert log_in(guard, client="2001:db8:0:1::1").status == 200
    assert [place_of(address) for address in ("::ffff:10.0.0.9", "fe80::1%eth0", "?")] == ["10.0.0.9", "fe80::/64", "?"]


def test_logins_by_a_proxy_that_nobody_named_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(application, known_hosts("127.0.0.1"), Login("me", "x"))
    for number in range(2):
        log_in(guard, "wrong", headers={"x-forwarded-for": f"1.2.3.{number}"})
    assert caplog.text.count("--proxy 127.0.0.1") == 1


def test_a_session_ends_after_thirty_days(guard: Guard, clock: Clock) -> None:
    token = log_in(guard).headers["set-cookie"].partition(";")[0]
    clock.now += 31 * 86400
    assert ask(guard, "/config", headers={"cookie": token}).status == 401


def test_a_login_that_never_ends_is_cut_off(guard: Guard) -> None:
    assert ask(guard, "/login", "POST", b"username=" + b"x" * 10_000).status == 401
