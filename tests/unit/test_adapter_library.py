"""The adapter library of the page: what headers and side-cars tell, search, names, what is remembered, uploads."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sdlora.adapters.files import catalog
from sdlora.adapters.files.catalog import describe
from sdlora.errors import AdapterError, ConfigError
from sdlora.library import scan as library_module
from sdlora.library.scan import Library, add_file
from tests.support.emoji_adapters import random_adapter


def scanned(*folders: Path) -> Library:
    library = Library(folders, folders[0].parent / "library.json")
    library.scan()
    return library


def test_a_file_is_described_from_its_header_and_metadata(tmp_path: Path) -> None:
    entry = scanned(
        random_adapter(tmp_path / "a" / "ink.safetensors", rank=3, trigger="ink style").parent
    ).last.entries[0]
    about = entry.about
    assert (entry.name, about.family, about.kind, about.rank) == ("ink", "sd1", "LoRA", 3)
    assert about.trigger == "ink style"
    assert about.tags == ("ink style", "flat")
    assert about.trains_text_encoder
    assert about.preferred_weight is None
    assert entry.file.size_bytes == entry.path.stat().st_size


def test_the_card_beside_a_file_overrules_its_metadata(tmp_path: Path) -> None:
    path = random_adapter(tmp_path / "a" / "ink.safetensors", trigger="from the file")
    card = {"activation text": "from the card", "preferred weight": 0.65, "notes": "below 1", "negative text": "blurry"}
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    Image.new("RGB", (40, 40)).save(path.with_suffix(".png"))
    entry = scanned(path.parent).last.entries[0]
    assert (entry.about.trigger, entry.about.preferred_weight) == ("from the card", 0.65)
    assert (entry.about.notes, entry.about.negative) == ("below 1", "blurry")
    assert entry.file.preview == path.with_suffix(".png")


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"preferred weight": "much", "activation text": 3}', '{"preferred weight": 0}']
)
def test_a_card_that_makes_no_sense_hides_nothing(tmp_path: Path, text: str) -> None:
    path = random_adapter(tmp_path / "a" / "ink.safetensors", trigger="from the file")
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    about = scanned(path.parent).last.entries[0].about
    assert (about.trigger, about.preferred_weight) == ("from the file", None)


def test_diffusers_files_and_sdxl_are_recognised(tmp_path: Path) -> None:
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    factors = {"lora_A": numpy.zeros((4, 2048), numpy.float32), "lora_B": numpy.zeros((640, 4), numpy.float32)}
    save_file({f"{key}.{name}.weight": value for name, value in factors.items()}, tmp_path / "xl.safetensors")
    about = describe(tmp_path / "xl.safetensors")
    assert about is not None
    assert (about.family, about.rank, about.num_layers) == ("sdxl", 4, 1)


def test_files_without_adapter_layers_are_left_out_and_damaged_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    random_adapter(folder / "good.safetensors")
    save_file({"first_stage_model.weight": numpy.zeros(3, numpy.float32)}, folder / "base.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:4000])
    scan = scanned(folder).last
    assert [entry.name for entry in scan.entries] == ["good"]
    assert len(scan.problems) == 1
    assert "cut.safetensors is damaged" in scan.problems[0]


def test_a_second_look_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None) -> None:
    folder = tmp_path / "a"
    paths = [random_adapter(folder / f"{name}.safetensors") for name in ("one", "two", "three")]
    for path in paths:  # what was written a moment ago is read again, since it may change unseen
        os.utime(path, (path.stat().st_mtime - 10,) * 2)
    scanned(folder)
    read: list[str] = []

    def noted(path: Path, card: Path | None = None) -> catalog.Description | None:
        read.append(path.name)
        return describe(path, card)

    monkeypatch.setattr(library_module, "describe", noted)
    library = scanned(folder)
    assert len(library.last.entries) == 3
    assert read == []
    random_adapter(paths[0], 5, rank=7)
    paths[1].with_suffix(".json").write_text('{"notes": "new"}', encoding="utf-8")
    paths[2].unlink()
    assert {entry.name: entry.about.notes for entry in library.scan().entries} == {"one": "", "two": "new"}
    assert sorted(read) == ["one.safetensors", "two.safetensors"]


def test_equal_names_get_their_folders_and_search_finds_all_words(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for run in ("demo", "demo-2"):
        random_adapter(folder / run / "demo.safetensors", trigger="blue print")
    random_adapter(folder / "other" / "ink.safetensors", trigger="ink")
    scan = scanned(folder).last
    assert {entry.tag for entry in scan.entries} == {"demo/demo", "demo-2/demo", "ink"}
    assert {entry.tag for entry in scan.search("print DEMO")} == {"demo/demo", "demo-2/demo"}
    assert [entry.tag for entry in scan.search("ink", "sd1")] == ["ink"]
    assert scan.search("ink", "sdxl") == []
    assert scan.find("demo-2/demo").path.parent.name == "demo-2"
    assert scan.find("INK").name == "ink"
    with pytest.raises(ConfigError, match="no adapter of that name is in the library; there is: demo, ink"):
        scan.find("nothing")


def test_hidden_folders_and_unfinished_files_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    random_adapter(folder / ".trash" / "old.safetensors")
    random_adapter(folder / "new" / ".new.safetensors.12.tmp.safetensors")
    random_adapter(folder / "new" / "new.safetensors")
    assert [entry.name for entry in scanned(folder).last.entries] == ["new"]


def test_an_upload_is_copied_under_a_free_name_and_once(tmp_path: Path) -> None:
    source = random_adapter(tmp_path / "up" / "ink.safetensors", 1)
    other = random_adapter(tmp_path / "up" / "other.safetensors", 2)
    folder = tmp_path / "adapters"
    assert add_file(source, "ink.safetensors", folder) == folder / "ink.safetensors"
    assert add_file(source, "ink.safetensors", folder) == folder / "ink.safetensors"
    assert add_file(other, "ink.safetensors", folder) == folder / "ink-2.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == ["ink-2.safetensors", "ink.safetensors"]


def test_an_upload_that_is_no_adapter_is_refused_with_the_reason(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_file({"model.diffusion_model.x": numpy.zeros(3, numpy.float32)}, base)
    pickled = tmp_path / "evil.safetensors"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    folder = tmp_path / "adapters"
    with pytest.raises(AdapterError, match=r"base\.safetensors holds no LoRA.*it is no adapter"):
        add_file(base, "base.safetensors", folder)
    with pytest.raises(AdapterError, match="is a pickle: opening one can run any program"):
        add_file(pickled, "evil.safetensors", folder)
    with pytest.raises(AdapterError, match=r"notes\.txt is no \.safetensors file"):
        add_file(base, "notes.txt", folder)
    assert not folder.exists()


def test_a_damaged_memory_is_read_anew(tmp_path: Path) -> None:
    folder = random_adapter(tmp_path / "a" / "ink.safetensors").parent
    (tmp_path / "library.json").write_text("{", encoding="utf-8")
    assert len(scanned(folder).last.entries) == 1


@pytest.mark.slow
def test_library_rows_and_requests_load_no_torch() -> None:
    script = (
        "import sys; import webui.generate.request, sdlora.generation.restore.repeat, sdlora.library.mixes; "
        "sys.exit(bool({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
