"""What all tests share: the tiers, a cache of their own, models built once a session, the command line.

`python -m pytest -m fast` is the tier to run all the time: everything in unit/, parity/ and regression/ that starts no
process and isn't marked slow. The rest trains, generates, starts processes or opens a browser.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from sdlora import file_memory

TESTS = Path(__file__).parent
FAST_FOLDERS = ("unit", "parity", "regression")
SLOWEST_FIRST = "browser"
"""Its files are given to the workers first, the fast tier's last, so that no worker ends with a long one alone."""
STARTS_A_PROCESS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec"}

_running: list[pytest.Item] = []


def pytest_configure() -> None:
    """Workers side by side get their share of the processor, or torch's threads would wait for each other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))
    if workers:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    # bitsandbytes wraps functions in torch.compile as it loads, for which torch loads a compiler that no test uses: a
    # second of each process.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Of all that torch, diffusers and Gradio make as they load nothing is garbage, and looking for some there time and
    # again took a quarter of the suite's time.
    gc.set_threshold(50_000, 20, 50)
    sys.addaudithook(_refuse_processes)


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: no collection need walk through it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the fast tier, and put the longest files first."""
    for item in items:
        if _folder(item) in FAST_FOLDERS and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)
    items.sort(key=lambda item: (item.get_closest_marker("fast") is not None, _folder(item) != SLOWEST_FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Remember which test runs."""
    _running[:] = [item]
    try:
        return (yield)
    finally:
        _running.clear()


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


def _refuse_processes(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a fast test that starts a process: it belongs to the slow ones. Python's own `platform` asks `uname`."""
    if event not in STARTS_A_PROCESS or "uname" in arguments[:1]:
        return
    if _running and _running[0].get_closest_marker("fast") is not None:
        raise AssertionError(f"{_running[0].nodeid} starts a process {arguments[:1]}: mark it slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--width", choices=("tiny", "true"), default="tiny", help="width of random base models")
    parser.addoption("--write-golden", action="store_true", help="write golden values instead of comparing with them")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old from the beginning. No test can date one back: of its two times one can't be set."""
    monkeypatch.setattr(file_memory, "_SETTLED_SECONDS", -math.inf)


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of SD 1.5's topology, much narrower, as a diffusers folder."""
    from tests.support.tiny_models import build

    return build("sd1", tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="session")
def shallow_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with fewer levels and layers, for tests of runs, which don't care how many there are."""
    from tests.support.tiny_models import build

    return build("sd1", tmp_path_factory.mktemp("models") / "sd1-shallow", shallow=True)


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for SD 2.x's v-prediction model."""
    from tests.support.tiny_models import build

    return build("sd2", tmp_path_factory.mktemp("models") / "sd2", prediction="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for SDXL."""
    from tests.support.tiny_models import build

    return build("sdxl", tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session")
def tiny_files(tiny_sd1: Path, tiny_sd2: Path, tiny_sdxl: Path) -> dict[str, Path]:
    """The three random models as single files in the original layout, by family."""
    from tests.support.tiny_models import save_single_file

    folders = (tiny_sd1, tiny_sd2, tiny_sdxl)
    return {folder.name: save_single_file(folder, folder.with_suffix(".safetensors")) for folder in folders}


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small captioned pictures of three shapes."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(10):
        size = [(96, 96), (128, 80), (80, 128)][index % 3]
        image = Image.new("RGB", size, (20 * index, 60, 255 - 20 * index))
        ImageDraw.Draw(image).ellipse((10, 10, 30 + 4 * index, 60), fill="white")
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"shape {index}, white, on blue, (bright:1.2)", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    output: str
    errors: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs `sdlora ARGUMENTS` in this process, through the same door as the shell."""
    from sdlora.__main__ import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sdlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        printed = capsys.readouterr()
        return Outcome(int(exit_info.value.code or 0), printed.out, printed.err)

    return run
