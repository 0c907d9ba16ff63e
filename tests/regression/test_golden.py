"""Golden values: a refactoring that changes what is learned, or what a file is called, shows here first.

Loss curves of thirty steps on the embedded model, and the names in an exported file. After a change that is meant to
move them, write them anew and say why in the commit:

    python -m pytest tests/regression/test_golden.py --write-golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sdlora.config import files
from sdlora.training.loop.run import train

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
STEPS = 30
OBJECTIVES = {
    "epsilon": [],
    "v_prediction": ["base_model.prediction=v_prediction"],
    "min_snr": ["objective.weighting=min_snr", "objective.noise_offset=0.1"],
}


@pytest.fixture
def agrees(request: pytest.FixtureRequest) -> Any:
    """Compares with a golden file's entry, or writes it with --write-golden."""

    def compare(file: str, entry: str, value: Any, relative: float | None = None) -> None:
        path = GOLDEN / file
        golden = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if request.config.getoption("--write-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({**golden, entry: value}, indent=1) + "\n", encoding="utf-8")
        else:
            expected = golden[entry]
            assert value == (expected if relative is None else pytest.approx(expected, rel=relative))

    return compare


def run(images: Path, runs: Path, *overrides: str) -> Path:
    """The folder of a run with everything on that a loss depends on.

    The embedded model, because a trained one forgives rounding: from one kind of processor to another its curves move
    by 2e-6, those of a random model by 1e-2.
    """
    settings = [
        f"images.folder={images}",
        "images.resolution=64",
        "images.bucket_step=16",
        "images.horizontal_flip=true",
        "captions.dropout=0.2",
        "captions.weights=true",
        "adapter.rank=4",
        "adapter.layers=all+conv",
        "adapter.text_encoder=true",
        f"optimization.steps={STEPS}",
        "optimization.batch_size=2",
        "optimization.learning_rate=5e-3",
        "optimization.schedule=cosine",
        "optimization.precision=fp32",
        "outputs.self_test=false",
        f"outputs.folder={runs}",
    ]
    return train(files.load(overrides=[*settings, *overrides])).folder


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    events = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event["loss"] for event in events if event["kind"] == "step_finished"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_thirty_steps_have_the_losses_they_had(objective: str, tiny_images: Path, tmp_path: Path, agrees: Any) -> None:
    curve = losses(run(tiny_images, tmp_path, *OBJECTIVES[objective]))
    assert len(curve) == STEPS
    agrees("losses.json", objective, curve, relative=1e-4)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_an_exported_file_has_the_names_it_had(layout: str, tiny_images: Path, tmp_path: Path, agrees: Any) -> None:
    overrides = ["optimization.steps=1", f"outputs.format={layout}", "captions.trigger=zwx", "adapter.conv_rank=2"]
    folder = run(tiny_images, tmp_path, *overrides)
    with safe_open(folder / "my-lora.safetensors", "pt") as file:
        shapes = {name: "x".join(map(str, file.get_slice(name).get_shape())) for name in sorted(file.keys())}
        agrees(f"{layout}_names.json", "tensors", shapes)
        agrees(f"{layout}_names.json", "metadata", sorted(file.metadata()))
