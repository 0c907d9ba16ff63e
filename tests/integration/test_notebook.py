"""The notebook runs from top to bottom as it stands, with fewer steps and smaller pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "install" / "sdlora.ipynb"


@pytest.mark.slow
def test_the_notebook_goes_from_pictures_to_a_file_and_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (choices,) = [cell for cell in notebook.cells if "optimization.steps=300" in cell.source]
    fewer = [
        *("optimization.steps=2", "optimization.batch_size=1", "images.resolution=64"),
        *("previews.steps=2", "previews.guidance=1", "outputs.self_test=false"),
    ]
    choices.source = choices.source.replace('"optimization.steps=300"', ", ".join(f'"{each}"' for each in fewer))
    (drawing,) = [cell for cell in notebook.cells if "--set seed=1" in cell.source]
    drawing.source = drawing.source.replace("--set seed=1", "--set seed=1 --set steps=2")
    folder = tmp_path / "work"
    folder.mkdir()
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(folder))

    said = "\n".join(
        str(output.get("text", "")) for cell in notebook.cells for output in cell.get("outputs", ()) if output
    )
    assert "Traceback" not in said
    assert "error:" not in said
    assert (folder / "runs" / "my-first" / "my-first.safetensors").is_file()
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 2
    assert list((folder / "outputs").rglob("*.png"))
    shutil.rmtree(folder)
