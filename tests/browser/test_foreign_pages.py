"""Pages of somebody else's, open in the same browser: they read nothing of the server's and start nothing on it."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
from gradio_client import Client

from tests.support.documents import PROJECT

SECRET = "c0rrect-horse"

ATTACK = """async target => {
  const tried = {};
  const say = async (name, ask) => {
    try {
      const answer = await ask();
      const text = answer.type === 'opaque' ? '' : await answer.text();
      tried[name] = answer.type === 'opaque' ? 'opaque' : `${answer.status} ${text.slice(0, 200)}`;
    } catch (error) { tried[name] = 'blocked'; }
  };
  const call = JSON.stringify({data: ['demo.yaml', []]});
  const form = new FormData();
  form.append('files', new Blob(['x']), 'x.txt');
  await say('config', () => fetch(`${target}/config`));
  await say('config with cookies', () => fetch(`${target}/config`, {credentials: 'include'}));
  await say('config unseen', () => fetch(`${target}/config`, {mode: 'no-cors'}));
  await say('train', () => fetch(`${target}/gradio_api/call/train`,
    {method: 'POST', headers: {'Content-Type': 'application/json'}, body: call}));
  await say('train unseen', () => fetch(`${target}/gradio_api/call/train`,
    {method: 'POST', mode: 'no-cors', body: call}));
  await say('upload', () => fetch(`${target}/gradio_api/upload`, {method: 'POST', mode: 'no-cors', body: form}));
  tried.script = await new Promise(done => {
    const script = document.createElement('script');
    script.src = `${target}/config`;
    script.onload = () => done('loaded'); script.onerror = () => done('blocked');
    document.head.append(script);
  });
  tried.frame = await new Promise(done => {
    const frame = document.createElement('iframe');
    frame.src = target;
    frame.onload = () => {
      try { done(frame.contentDocument?.body.innerText ?? 'blocked'); } catch { done('blocked'); }
    };
    document.body.append(frame);
  });
  return tried;
}"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[int]:
    """The port of another server on this machine, with an empty page."""
    (tmp_path / "index.html").write_text("<!doctype html><title>elsewhere</title><body>elsewhere</body>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(scope="module")
def locked(browser: Any, start_server: Callable[..., Any]) -> Iterator[Any]:
    """A server that asks for a name and a password."""
    started = start_server(None, "--auth", f"me:{SECRET}")
    yield started
    started.close()


def runs_of(server: Any) -> list[str]:
    return [path.name for path in (server.root / "runs").glob("*")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "x.localhost", "evil.example"])
def test_a_page_elsewhere_reads_and_starts_nothing(browser: Any, server: Any, elsewhere: int, host: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{host}:{elsewhere}/")
    for target in (server.url, f"http://localhost:{server.port}", f"http://rebound.example:{server.port}"):
        tried = page.evaluate(ATTACK, target)
        got = {name: said for name, said in tried.items() if said not in ("blocked", "opaque", "")}
        assert got == {}, target
    context.close()
    assert runs_of(server) == []
    assert not list(server.root.parent.glob("*-uploads/**/x.txt"))


@pytest.mark.parametrize("name", ["rebound.example", "x.localhost", "localhost.", "[::ffff:127.0.0.1]"])
def test_a_name_that_leads_here_but_is_not_ours_is_refused(browser: Any, server: Any, name: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"http://{name}:{server.port}/")
    assert answer.status == 403
    assert "this server has no name" in page.content()
    context.close()


def test_a_link_from_elsewhere_opens_the_page(browser: Any, server: Any, elsewhere: int) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{elsewhere}/")
    page.evaluate("url => { location.href = url }", server.url)
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    context.close()


def test_programs_use_the_api_as_before(server: Any) -> None:
    client = Client(server.url, verbose=False)
    with pytest.raises(Exception, match="no-such-preset"):
        client.predict("no-such-preset.yaml", [], api_name="/train")


def test_with_a_login_a_person_gets_in_and_nobody_else(browser: Any, locked: Any) -> None:
    for path in ("/config", "/gradio_api/heartbeat/x", "/gradio_api/app_id", "/openapi.json", "/gradio_api/info", "/"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{locked.url}{path}", timeout=10)
    context = browser.new_context()
    page = context.new_page()
    page.goto(locked.url)
    page.fill("[name=username]", "me")
    page.fill("[name=password]", "wrong")
    page.click("button")
    assert "name or password is wrong" in page.inner_text("[role=alert]")
    page.fill("[name=username]", "me")
    page.fill("[name=password]", SECRET)
    page.click("button")
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Lax", False)
    context.close()

    # The container's health check, which knows no password.
    (line,) = re.findall(
        r"^HEALTHCHECK .*?CMD (.*)$", (PROJECT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    _, *command = json.loads(line.replace("7860", str(locked.port)))
    subprocess.run([sys.executable, *command], check=True, timeout=60)

    client = Client(locked.url, auth=("me", SECRET), verbose=False)
    with pytest.raises(Exception, match="no-such-preset"):
        client.predict("no-such-preset.yaml", [], api_name="/train")
    body = b"username=me&password=guess"
    statuses = []
    for _ in range(6):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{locked.url}/login", body), timeout=10)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
    assert statuses[:4] == [401] * 4
    assert statuses[-1] == 429
