"""Adapters on the hub: what is fetched, described and uploaded. No network: the hub's client is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from safetensors.torch import save_file

from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.reading import read
from sdlora.adapters.hub.publishing import prepare, push
from sdlora.config.files import validate
from sdlora.errors import AdapterError
from sdlora.runs.folder import create, open_run
from sdlora.training.preflight.checks import check

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def saved(path: Path, metadata: dict[str, str] | None = None, key: str = KEY, size: tuple[int, int] = (8, 768)) -> Path:
    tensors = {f"{key}.lora_down.weight": torch.ones(2, size[1]), f"{key}.lora_up.weight": torch.ones(size[0], 2)}
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub that holds one adapter under me/one and two under me/two."""
    path = saved(
        tmp_path / "downloaded.safetensors", {"ss_base_model_version": "sd_v1"}, size=(64, 192)
    )  # builtin:emoji's
    asked: list[str] = []

    def download(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        if name == "missing.safetensors":
            raise EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    listing = {"me/one": ["README.md", "a.safetensors"], "me/two": ["a.safetensors", "b.safetensors"], "me/no": []}
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, repository: listing[repository])
    return asked


def test_a_hub_address_goes_wherever_a_file_goes(hub: list[str]) -> None:
    assert KEY in read("hf://me/two/sub/b.safetensors").modules
    assert KEY in read("hf://me/one").modules
    assert KEY in read(Path("hf://me/one")).modules  # pathlib leaves one slash
    assert hub == ["me/two/sub/b.safetensors", "me/one/a.safetensors", "me/one/a.safetensors"]


def test_training_can_go_on_from_an_adapter_on_the_hub(hub: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "a.png")
    values = {"adapter": {"start_from": "hf://me/one"}, "outputs": {"folder": str(tmp_path / "runs")}}
    config = validate({**values, "images": {"folder": str(tmp_path)}, "captions": {"default": "red"}}, "test")
    check(config)
    assert set(hub) == {"me/one/a.safetensors"}
    assert open_run(create(config).path)[1].adapter.start_from == "hf://me/one"
    with pytest.raises(AdapterError, match="holds no .safetensors file"):
        check(config.model_copy(update={"adapter": config.adapter.model_copy(update={"start_from": "hf://me/no"})}))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me/two", "holds 2 .safetensors files; name one, for example hf://me/two/a.safetensors"),
        ("hf://me/no", "holds no .safetensors file"),
        ("hf://me/one/missing.safetensors", "'me/one' has no file missing.safetensors"),
        ("hf://me", "write hf://owner/name or hf://owner/name/file.safetensors"),
    ],
)
def test_an_address_that_names_no_adapter_is_explained(hub: list[str], address: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        local_file(address)


def run_folder(folder: Path) -> Path:
    metadata = {
        "modelspec.title": "my style",
        "modelspec.trigger_phrase": "sks: style",
        "modelspec.license": "cc0-1.0",
        "ss_sd_model_name": "owner/model",
        "ss_steps": "500",
    }
    saved(folder / "my style.safetensors", metadata)
    (folder / "my style.json").write_text("{}", encoding="utf-8")
    for step, index in ((0, 0), (500, 1)):
        (folder / "previews" / f"step_{step:06d}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "previews" / f"step_{step:06d}" / f"{index:02d}.png")
    return folder


def test_a_run_goes_up_with_its_newest_previews_and_a_card_that_the_hub_understands(tmp_path: Path) -> None:
    publication = prepare(run_folder(tmp_path), "me/mine")
    assert list(publication.files) == ["my style.safetensors", "my style.json", "images/01.png"]
    header = yaml.safe_load(publication.card.split("---")[1])
    assert header["base_model"] == "owner/model"
    assert header["instance_prompt"] == "sks: style"
    assert header["license"] == "cc0-1.0"
    assert {"lora", "stable-diffusion", "text-to-image"} <= set(header["tags"])
    assert header["widget"] == [{"text": "sks: style", "output": {"url": "images/01.png"}}]
    for part in ("# my style", "Put `sks: style` into the prompt.", "| steps | 500 |", "| rank | 2 |"):
        assert part in publication.card
    assert 'load_lora_weights("me/mine", weight_name="my style.safetensors")' in publication.card
    assert read(tmp_path / "my style.safetensors").model_hash[:12] in publication.card


def test_a_base_that_is_not_on_the_hub_is_not_claimed_to_be(tmp_path: Path) -> None:
    embedded = prepare(saved(tmp_path / "a.safetensors", {"ss_sd_model_name": "builtin:emoji"}), "me/mine")
    assert "base_model" not in yaml.safe_load(embedded.card.split("---")[1])
    assert "sdlora generate --set base_model.model=builtin:emoji" in embedded.card
    local = saved(tmp_path / "b.safetensors", {"ss_sd_model_name": "model.safetensors"})
    for path, described in (
        (local, "for Stable Diffusion 1.x, trained on `model.safetensors`."),
        (saved(tmp_path / "c.safetensors", {}), "adapter for Stable Diffusion 1.x."),
    ):
        unknown = prepare(path, "me/mine")
        assert unknown.base_model is None
        assert "base_model" not in yaml.safe_load(unknown.card.split("---")[1])
        assert described in unknown.card
        # It loads on any model of its family, which is shown and said.
        assert "# Any Stable Diffusion 1.x model; best is the one it was trained on." in unknown.card
        assert 'from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")' in unknown.card
    assert "base_model: own/base" in prepare(local, "me/mine", base_model="own/base").card


def test_everything_is_uploaded_in_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    def create(self: HfApi, repository: str, *, private: bool, exist_ok: bool) -> str:
        calls["created"] = (repository, private, exist_ok)
        return f"https://huggingface.co/{repository}"

    def commit(self: HfApi, repository: str, operations: list[Any], *, commit_message: str) -> None:
        calls["paths"] = [operation.path_in_repo for operation in operations]

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "create_commit", commit)
    address = push(prepare(run_folder(tmp_path), "me/mine"), private=True)
    assert address == "https://huggingface.co/me/mine"
    assert calls["created"] == ("me/mine", True, True)
    assert calls["paths"] == ["my style.safetensors", "my style.json", "images/01.png", "README.md"]


def test_what_cannot_be_published_is_explained(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="holds 0 adapter files, not one"):
        prepare(tmp_path, "me/mine")
    with pytest.raises(AdapterError, match="there is no such file or run folder"):
        prepare(tmp_path / "nothing", "me/mine")
    path = saved(tmp_path / "a.safetensors", key="lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q")
    with pytest.raises(AdapterError, match="doesn't tell its Stable Diffusion family, so no model card"):
        prepare(path, "me/mine")


@pytest.mark.parametrize("name", ["bad name", "a/b/c", "me/" + "x" * 97, "me/-x", "https://huggingface.co/me/x"])
def test_a_name_that_the_hub_does_not_take_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="no name of a repository on the hub: it is OWNER/NAME"):
        prepare(tmp_path / "absent.safetensors", name)
