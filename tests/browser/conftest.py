"""A real server and a real browser for the tests of the page, both without a way to the outside.

`pytest tests/browser --throttled` gives them a slow machine: the browser's CPU six times slower, each answer of the
server late by up to 0.8 s, drawn from a seed. Where other work slows it already, `--throttle-cpu 2` asks for less.
`server` is `python -m webui` with a folder of its own, one a test
file; `start_server` starts others. `page` is a fresh browser window on it. Without a browser the tests are skipped,
except where CI=true: there its absence fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browsing import settle

PROJECT = Path(__file__).parents[2]
SLOW_SERVER = Path(__file__).parent / "slow_webui.py"
GUARD = Path(__file__).parent / "guard"
"""Holds a sitecustomize.py that refuses, and notes, every look-up of another machine."""
BROWSERS = ("chromium-headless-shell", "chromium")
"""The first is the same engine without a browser's own windows around it: a load takes a quarter less."""
START_SECONDS = 120
FAILED = pytest.StashKey[bool]()
WAIT_MILLISECONDS = 120_000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--throttled", action="store_true", help="page tests: a slow browser, late answers of the server")
    parser.addoption("--throttle-seed", default="1", help="seed of the delays")
    parser.addoption("--throttle-cpu", type=float, default=6, help="how many times slower the browser's CPU is")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a busy machine of CI a page test that fails is tried once more, and the summary names it as RERUN.

    Elsewhere it isn't: a race that shows once in a hundred runs is a fault to be found.
    """
    if os.environ.get("CI") == "true":
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """End the servers and windows of the file with a test that failed: its second try starts without its leftovers."""
    module = item.getparent(pytest.Module)
    if item.stash.get(FAILED, False) and item.get_closest_marker("flaky") and module and module.parent:
        item.session._setupstate.teardown_exact(module.parent)


@dataclass
class Server:
    """`python -m webui` in a process group of its own."""

    root: Path
    port: int
    arguments: tuple[str, ...] = ()
    delays_seed: str | None = None
    """Seed of the delays before its answers, None for none."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.root.parent / f"{self.root.name}-server.log"

    @property
    def look_ups(self) -> list[str]:
        """Names of other machines that the server, or a process it started, tried to reach."""
        path = self._guard_log
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    @property
    def _guard_log(self) -> Path:
        return self.root.parent / f"{self.root.name}-look-ups.txt"

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(GUARD), str(PROJECT)]),
            "SDLORA_TEST_LOOK_UPS": str(self._guard_log),
            "SDLORA_CACHE": str(self.root.parent / f"{self.root.name}-cache"),
            "GRADIO_TEMP_DIR": str(self.root.parent / f"{self.root.name}-uploads"),
        }
        program = ["-m", "webui"] if self.delays_seed is None else [str(SLOW_SERVER), self.delays_seed]
        command = [sys.executable, *program, "--root", str(self.root), "--port", str(self.port), "--no-browser"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=PROJECT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{self.log.read_text(encoding='utf-8')[-4000:]}")
            time.sleep(0.2)

    def interrupt(self) -> int:
        """What Ctrl-C does: SIGINT to the whole group; returns the exit code. Detached runs are in other groups."""
        if self.process is None:
            return 0
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def restart(self) -> None:
        """Stop it, then start it again on the same port with the same folder."""
        self.interrupt()
        self.start()

    def close(self) -> None:
        """End it whatever it does."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.interrupt()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401  # it asks for a login
        except OSError:
            return False


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium from the PATH or Debian's place, without a window at best, else Playwright's own."""
    found = [shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/bin") for name in BROWSERS]
    executable = next(filter(None, found), None)
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return _without_browser("the package 'playwright' is not installed")
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(
                executable_path=executable,
                # names under .example lead here, as a name server of somebody else's might have it
                args=[
                    "--no-sandbox",
                    "--disable-dev-shm-usage",
                    "--disable-gpu",
                    "--host-resolver-rules=MAP *.example 127.0.0.1",
                ],
            )
        except Error as error:
            return _without_browser(f"Chromium can't be started: {error}")
        yield chromium
        chromium.close()


def _without_browser(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"the page can't be tested: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")  # not for the session: servers and image workers left over slow the tests behind them
def start_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Server]]:
    """Starts a server: `start_server(root=None, *arguments)`; all are ended with the file."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    servers: list[Server] = []

    def start(root: Path | None = None, *arguments: str) -> Server:
        seed = request.config.getoption("--throttle-seed") if request.config.getoption("--throttled") else None
        server = Server(root or tmp_path_factory.mktemp("webui") / "root", free_port(), arguments, seed)
        server.root.mkdir(parents=True, exist_ok=True)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def server(browser: Any, start_server: Callable[..., Server]) -> Iterator[Server]:
    """A server with an empty folder, shared by the tests of one file."""
    started = start_server()
    yield started
    started.close()


@pytest.fixture
def new_page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens windows: `new_page(server, path="/", **context options)`. `page.elsewhere` lists requests to other hosts
    (all refused), `page.complaints` the errors of its scripts."""
    with _windows(browser, request.config) as opener:
        yield opener


@pytest.fixture(scope="module")
def lasting_page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """The same for windows that stay open to the end of the file: a load takes longer than many a test."""
    with _windows(browser, request.config) as opener:
        yield opener


@contextmanager
def _windows(browser: Any, config: pytest.Config) -> Iterator[Callable[..., Any]]:
    contexts: list[Any] = []

    def open_page(server: Server, path: str = "/", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        elsewhere: list[str] = []

        def refuse_others(route: Any) -> None:
            if route.request.url.startswith((server.url, "data:", "blob:")):
                route.continue_()
            else:
                elsewhere.append(route.request.url)
                route.abort()

        context.route("**/*", refuse_others)
        page = context.new_page()
        if config.getoption("--throttled"):
            slowed = context.new_cdp_session(page)
            slowed.send("Emulation.setCPUThrottlingRate", {"rate": config.getoption("--throttle-cpu")})
        page.elsewhere, page.complaints = elsewhere, []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(WAIT_MILLISECONDS)
        page.goto(f"{server.url}{path}")
        page.wait_for_selector("body[data-ready]")  # never networkidle: the page polls for ever
        settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(server: Server, new_page: Callable[..., Any]) -> Any:
    """A window of 1280x900 on the server's page."""
    return new_page(server)
