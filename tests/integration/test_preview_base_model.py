"""previews.base_model: a run's previews are the pictures that its adapter gives on another model of the family."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.config import files
from sdlora.errors import ConfigError
from sdlora.events import WarningRaised
from sdlora.generation.generate import Generator
from sdlora.training.loop.run import train
from sdlora.training.preflight.summary import summarise
from tests.support.adapter_files import EVERYTHING, random_adapter
from tests.support.followed_runs import Collector
from tests.support.tiny_models import build

PROMPT = "shape 3, white"


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same layers."""
    return build("sd1", tmp_path_factory.mktemp("other") / "finetuned", seed=5, shallow=True)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def config_of(model: Path, images: Path, folder: Path, other: object, *more: str) -> files.TrainConfig:
    settings = [
        f"base_model.model={model}", f"images.folder={images}", "images.resolution=64", "adapter.rank=2",
        "adapter.layers=all+conv", "adapter.text_encoder=true", "optimization.steps=2", "optimization.precision=fp32",
        "optimization.learning_rate=1e-2", "previews.guidance=1", f"previews.prompts=[{PROMPT!r}]",
        "previews.steps=3", "optimization.device=cpu", "outputs.self_test=false", f"outputs.folder={folder}",
        f"previews.base_model={other}",
    ]  # fmt: skip
    return files.load(overrides=[*settings, *more])


@pytest.mark.parametrize("new_tokens", [False, True], ids=["plain", "new tokens"])
def test_previews_are_what_the_adapter_gives_on_that_model(
    new_tokens: bool, shallow_sd1: Path, finetuned: Path, tiny_images: Path, tmp_path: Path
) -> None:
    style = random_adapter(shallow_sd1, tmp_path / "style.safetensors", layers=EVERYTHING)
    more = [f"previews.adapters=['{style}:0.6']"]
    prompt = PROMPT
    if new_tokens:
        prompt = "a <blob>"
        more += ["adapter.new_tokens={<blob>: {init: shape, vectors: 2}}", f"previews.prompts=[{prompt!r}]"]
    config = config_of(shallow_sd1, tiny_images, tmp_path / "runs", finetuned, *more)
    result = train(config)
    found = pixels(Image.open(result.folder / "previews" / "step_000002" / "00.png"))

    def generated(model: Path) -> np.ndarray:
        request = {
            "prompt": prompt, "width_px": 64, "height_px": 64, "steps": 3, "seed": 0, "guidance": 1.0,
            "sampler": "DPM++ 2M", "base_model": {"model": str(model), "precision": "fp32"},
            "adapters": (str(result.adapter), f"{style}:0.6"), "compute": {"merge_adapters": False},
        }  # fmt: skip
        return pixels(next(Generator(request["base_model"]).generate(request)).image)

    there = np.abs(found - generated(finetuned)).mean()
    here = np.abs(found - generated(shallow_sd1)).mean()
    print(f"new tokens {new_tokens}: {there:.3f} from that model's, {here:.3f} from those of the one that is trained")
    assert there < 0.02 * here


def test_a_model_that_goes_meanwhile_costs_the_previews_and_not_the_run(
    shallow_sd1: Path, finetuned: Path, tiny_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(finetuned, tmp_path / "gone")
    heard = Collector(lambda step: shutil.rmtree(tmp_path / "gone") if step == 1 else None)
    config = config_of(shallow_sd1, tiny_images, tmp_path / "runs", tmp_path / "gone")
    result = train(config, [heard])
    assert result.outcome == "completed"
    assert [path.parent.name for path in result.folder.glob("previews/*/00.png")] == ["step_000000"]
    warnings = [event.message for event in heard.events if isinstance(event, WarningRaised)]
    assert [text for text in warnings if text.startswith("step 2: no previews on previews.base_model: ")]


def test_what_cant_be_used_is_refused_before_a_model_is_loaded(
    shallow_sd1: Path, tiny_sdxl: Path, tiny_images: Path, tmp_path: Path
) -> None:
    for other, words in ((tmp_path / "gone", "gone"), (tiny_sdxl, "of family sdxl")):
        with pytest.raises(ConfigError, match=rf"(?s)previews\.base_model.*{words}"):
            summarise(config_of(shallow_sd1, tiny_images, tmp_path, other))


def test_an_empty_name_is_refused_by_its_setting() -> None:
    with pytest.raises(ConfigError, match="previews.base_model: is empty"):
        files.validate({"previews": {"base_model": " "}}, "test")


def test_the_dry_run_names_it(shallow_sd1: Path, finetuned: Path, tiny_images: Path, tmp_path: Path) -> None:
    lines = dict(summarise(config_of(shallow_sd1, tiny_images, tmp_path, finetuned)).lines())
    assert lines["previews"] == f"{PROMPT}; on {finetuned}, loaded each time beside the model that is trained"
