"""The Python that README and the guides show runs as it stands there, in a folder with the files they speak of.

Only the demo is made shorter: two steps instead of twenty, and smaller pictures.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import adapter_files, emoji_adapters
from tests.support.documents import PAGES, blocks

SNIPPETS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"), 1)
    if "gradio_client" not in text  # tests/browser/test_train.py runs it against a page
]


DEMO = '"optimization": {"steps": 20}'
SHORT_DEMO = '"optimization": {"steps": 2, "batch_size": 1}, "images": {"resolution": 64}, "previews": {"steps": 2}'


@pytest.fixture
def folder(tmp_path: Path, shallow_sd1: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the text speaks of."""
    shutil.copytree(shallow_sd1, tmp_path / "sd15")
    adapter_files.random_adapter(shallow_sd1, tmp_path / "runs" / "my-style" / "my-style.safetensors", rank=2)
    for seed, name in enumerate(("style", "character", "ink")):
        emoji_adapters.random_adapter(tmp_path / f"{name}.safetensors", seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs_as_it_is_shown(snippet: str, folder: Path) -> None:
    exec(compile(snippet.replace(DEMO, SHORT_DEMO), "snippet", "exec"), {"__name__": "__main__"})


def test_the_demo_is_the_one_that_is_made_shorter() -> None:
    assert sum(DEMO in snippet.values[0] for snippet in SNIPPETS) == 1
