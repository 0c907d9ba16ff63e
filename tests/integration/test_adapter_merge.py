"""Adapters and whole models: baking in, taking out again, on random models of every family in both layouts."""

from __future__ import annotations

import gc
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters.algebra.base_weights import open_base
from sdlora.adapters.algebra.extract import Ranks
from sdlora.adapters.algebra.making import extract_adapter, merge_adapters, mix_adapters
from sdlora.adapters.algebra.operands import layer_update
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.writing import write_adapter
from sdlora.adapters.live.attach import attach
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.mix import MixConfig, MixedAdapter
from sdlora.errors import AdapterError, ModelError
from sdlora.models.bundle import Bundle
from sdlora.models.headers import file_tensor_hash
from sdlora.models.loading import load
from tests.support.copied_models import copy_of
from tests.support.tiny_models import save_single_file

FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def folders(tiny_sd1: Path, tiny_sd2: Path, tiny_sdxl: Path) -> dict[str, Path]:
    return {"sd1": tiny_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}


def loaded(model: Path) -> Bundle:
    return load(BaseModelConfig(model=str(model), precision="fp32"))


@torch.no_grad()
def trained(model: Path, target: Path, **settings: Any) -> tuple[Path, Bundle]:
    """An adapter file as if trained on the model, and the model with the live adapter."""
    bundle = copy_of(BaseModelConfig(model=str(model), precision="fp32"))
    config = {"rank": 2, "layers": "all+conv", "text_encoder": True, "alpha": 3.0, **settings}
    adapter = attach(bundle, AdapterConfig(**config))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    write_adapter(
        target, adapter.module_weights(), TrainingFacts("tuned", adapter.family, trigger="sks"), precision="fp32"
    )
    return target, bundle


@torch.no_grad()
def prediction(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """A UNet prediction and its text states, for one caption and fixed noise."""
    texts = bundle.family.encode_text(bundle, ["a red square"])
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    sizes = [bundle.family.full_size_conditions(128, 128)] if bundle.family.name == "sdxl" else None
    return bundle.family.predict(bundle, noisy, torch.tensor([500]), texts, sizes), texts.states_BTD


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_hold_the_same_weights_under_the_same_names(
    folders: dict[str, Path], tiny_files: dict[str, Path], family: str
) -> None:
    folder, file = open_base(str(folders[family])), open_base(str(tiny_files[family]))
    golden = [name for name in folder.places if "_attn" in name or "resnets" in name or "mlp" in name]
    assert len(golden) > 100
    layers = [name for name in folder.places if "embedding" not in name and not name.endswith("text_projection")]
    assert set(layers) <= set(file.places)
    for name in layers:
        assert torch.equal(folder.weight(name).flatten(), file.weight(name).flatten()), name


@pytest.mark.parametrize(("family", "layouts"), [("sd1", "folder file"), ("sd2", "file"), ("sdxl", "file")])
def test_a_merged_model_predicts_what_the_live_adapter_predicts(
    folders: dict[str, Path], tiny_files: dict[str, Path], tmp_path: Path, family: str, layouts: str
) -> None:
    adapter, live = trained(folders[family], tmp_path / "a.safetensors")
    expected = prediction(live)
    for layout in layouts.split():
        model, target = {
            "folder": (folders[family], tmp_path / "m"),
            "file": (tiny_files[family], tmp_path / "m.safetensors"),
        }[layout]
        merged = merge_adapters(str(model), [MixedAdapter(file=str(adapter))], target)
        assert len(merged.changed) == len(read(adapter).modules)
        assert merged.unplaced == ()
        for found, wanted in zip(prediction(loaded(target)), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    base = prediction(loaded(folders[family]))
    assert float((expected[0] - base[0]).norm()) > 1e-2 * float(base[0].norm())


def test_what_is_not_adapted_stays_bit_for_bit_and_the_file_says_what_it_is_made_of(
    tiny_files: dict[str, Path], tiny_sd1: Path, tmp_path: Path
) -> None:
    adapter, _ = trained(tiny_sd1, tmp_path / "a.safetensors", layers="attention", text_encoder=False)
    target = tmp_path / "merged.safetensors"
    merge_adapters(str(tiny_files["sd1"]), [MixedAdapter(file=str(adapter), weight=0.5)], target)
    before, after = load_file(tiny_files["sd1"]), load_file(target)
    assert before.keys() == after.keys()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert len(changed) == len(read(adapter).modules)
    assert all("attn" in name for name in changed)
    with safe_open(target, "pt") as opened:
        metadata = opened.metadata()
    made = json.loads(metadata["sdlora.provenance"])
    assert made["inputs"][0]["weights"]["unet"] == 0.5
    assert made["inputs"][0]["hash"] == read(adapter).model_hash
    assert made["base"] == {
        "file": "sd1.safetensors",
        "hashes": {"sd1.safetensors": file_tensor_hash(tiny_files["sd1"])},
    }
    assert metadata["modelspec.merged_from"] == "a.safetensors"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_merging_then_extracting_at_full_rank_gives_the_updates_back(
    tiny_sd1: Path, tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    adapter, _ = trained(tiny_sd1, tmp_path / "a.safetensors")
    merge_adapters(str(tiny_files["sd1"]), [MixedAdapter(file=str(adapter))], tmp_path / "m.safetensors")
    # the base lies in the other layout
    made = extract_adapter(
        str(tmp_path / "m.safetensors"), str(tiny_sd1), tmp_path / "x.safetensors", Ranks(4096), precision="fp32"
    )
    expected, found = read(adapter), read(tmp_path / "x.safetensors")
    assert found.modules.keys() == expected.modules.keys()
    assert made.result.relative_error < 1e-6
    base = open_base(str(tiny_sd1))
    for name, weights in expected.modules.items():
        wanted, got = weights.delta(), found.modules[name].delta()
        # the merged weights are rounded to fp32: 6e-8 of the weight itself
        rounding = 1e-7 * float(base.weight(name).norm())
        assert float((wanted.flatten() - got.flatten()).norm()) < rounding + 1e-6 * float(wanted.norm()), name
        assert got.ndim == wanted.ndim


def test_extracting_at_a_low_rank_keeps_the_best_and_conv_rank_0_leaves_convolutions_out(
    tiny_sd1: Path, tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    adapter, _ = trained(tiny_sd1, tmp_path / "a.safetensors", rank=4)
    merge_adapters(str(tiny_files["sd1"]), [MixedAdapter(file=str(adapter))], tmp_path / "m.safetensors")
    model, out = str(tmp_path / "m.safetensors"), tmp_path / "x.safetensors"
    made = extract_adapter(model, str(tiny_files["sd1"]), out, Ranks(2, conv_rank=0))
    ranks = {weights.rank for weights in made.result.modules.values()}
    assert ranks == {2}
    assert 0.05 < made.result.relative_error < 0.9
    assert not any(name.endswith(("_conv1", "_conv2")) for name in made.result.modules)
    assert "layers differ and are left out" in made.result.notes[0]
    by_energy = extract_adapter(model, str(tiny_files["sd1"]), out, Ranks(None, energy=0.999), force=True)
    assert by_energy.result.relative_error < 0.001**0.5


def test_a_dora_adapter_is_merged_as_the_update_it_makes(tiny_sd1: Path, tmp_path: Path) -> None:
    adapter, live = trained(tiny_sd1, tmp_path / "a.safetensors", dora=True, text_encoder=False)
    expected = prediction(live)
    merge_adapters(str(tiny_sd1), [MixedAdapter(file=str(adapter))], tmp_path / "m")
    torch.testing.assert_close(prediction(loaded(tmp_path / "m"))[0], expected[0], rtol=1e-4, atol=1e-4)
    config: dict[str, Any] = {"adapters": [MixedAdapter(file=str(adapter))], "precision": "fp32"}
    with pytest.raises(AdapterError, match="is DoRA, whose update depends on the base weights; give the model: --base"):
        mix_adapters(MixConfig(**config), tmp_path / "mix.safetensors")
    made = mix_adapters(MixConfig(**config, base_model=str(tiny_sd1)), tmp_path / "mix.safetensors")
    base = open_base(str(tiny_sd1))
    for name, weights in read(adapter).modules.items():
        wanted = layer_update(name, weights, base.weight, "a").matrix()
        found = made.result.modules[name].delta().flatten(1)
        assert float((wanted - found).norm()) < 1e-5 * float(wanted.norm())


@pytest.mark.parametrize("algorithm", ["loha", "lokr"])
def test_other_algorithms_are_merged_as_the_updates_they_make(tiny_sd1: Path, tmp_path: Path, algorithm: str) -> None:
    adapter, live = trained(tiny_sd1, tmp_path / "a.safetensors", algorithm=algorithm)
    expected = prediction(live)
    merge_adapters(str(tiny_sd1), [MixedAdapter(file=str(adapter))], tmp_path / "m")
    torch.testing.assert_close(prediction(loaded(tmp_path / "m"))[0], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can only be reset on Linux")
def test_merging_holds_a_few_tensors_and_never_the_file(tmp_path: Path, tiny_sd1: Path) -> None:
    adapter, _ = trained(tiny_sd1, tmp_path / "a.safetensors", layers="attention", text_encoder=False)
    model = save_single_file(tiny_sd1, tmp_path / "model.safetensors")
    add_tensor_of_zeros(model, 75_000_000)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_mib()
    merge_adapters(str(model), [MixedAdapter(file=str(adapter))], tmp_path / "merged.safetensors")
    assert model.stat().st_size > 300e6
    assert peak_mib() - before < 120


def add_tensor_of_zeros(file: Path, numbers: int) -> None:
    """Give a safetensors file a large tensor more, as a hole in the file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, end = json.loads(content[8 : 8 + length]), len(content) - 8 - length
    offsets = [end, end + 4 * numbers]
    header["first_stage_model.large"] = {"dtype": "F32", "shape": [numbers], "data_offsets": offsets}
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw + content[8 + length :])
        stream.truncate(8 + len(raw) + offsets[1])


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def test_a_base_model_may_be_a_file_on_the_hub(tiny_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tiny_files["sd2"])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert open_base("hf://me/model/sub/v2.safetensors").family == "sd2"
    assert asked == [("me/model", "sub/v2.safetensors")]


def test_what_cannot_be_merged_is_refused(
    tiny_sd1: Path, tiny_sdxl: Path, tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    adapter, _ = trained(tiny_sd1, tmp_path / "a.safetensors", layers="attention", text_encoder=False)
    mine = [MixedAdapter(file=str(adapter))]
    with pytest.raises(AdapterError, match=r"a.safetensors is for sd1, sdxl.safetensors is sdxl"):
        merge_adapters(str(tiny_files["sdxl"]), mine, tmp_path / "m.safetensors")
    with pytest.raises(AdapterError, match="a .safetensors file; give it that ending: m.safetensors"):
        merge_adapters(str(tiny_files["sd1"]), mine, tmp_path / "m")
    with pytest.raises(AdapterError, match="exists already; choose another name, or give --force"):
        merge_adapters(str(tiny_files["sd1"]), mine, tiny_files["sd1"])
    with pytest.raises(AdapterError, match="is the base model itself"):
        merge_adapters(str(tiny_files["sd1"]), mine, tiny_files["sd1"], force=True)
    with pytest.raises(AdapterError, match="don't differ in any layer"):
        extract_adapter(str(tiny_sd1), str(tiny_files["sd1"]), tmp_path / "x.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    wide = {f"{name}.lora_down.weight": torch.ones(2, 768), f"{name}.lora_up.weight": torch.ones(32, 2)}
    save_file(wide, tmp_path / "wide.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(
        AdapterError, match=r"1 layers don't fit the model: wide.safetensors: .*the model has \[32, 32\]"
    ):
        merge_adapters(str(tiny_sd1), [MixedAdapter(file=str(tmp_path / "wide.safetensors"))], tmp_path / "m")
    (tmp_path / "m.ckpt").write_bytes(b"")
    with pytest.raises(ModelError):
        merge_adapters(str(tmp_path / "m.ckpt"), mine, tmp_path / "n.safetensors")


def test_a_model_that_another_process_wrote_meanwhile_is_not_replaced(tiny_sd1: Path, tmp_path: Path) -> None:
    file, _ = trained(tiny_sd1, tmp_path / "tuned.safetensors")
    target = tmp_path / "merged"

    def another(done: int, total: int) -> None:
        if done == 3:
            target.mkdir()
            (target / "theirs.txt").touch()

    adapters = [MixedAdapter(file=str(file), weight=1.0)]
    with pytest.raises(AdapterError, match="merged exists already; choose another name, or give --force"):
        merge_adapters(str(tiny_sd1), adapters, target, on_progress=another)
    assert [path.name for path in target.iterdir()] == ["theirs.txt"]
    assert not list(tmp_path.glob(".merged*"))
    with pytest.raises(AdapterError, match=r"other things than a model \(theirs.txt\), which would be lost"):
        merge_adapters(str(tiny_sd1), adapters, target, force=True)
    (target / "theirs.txt").unlink()
    merge_adapters(str(tiny_sd1), adapters, target, force=True)
    assert (target / "model_index.json").is_file()
    merge_adapters(str(tiny_sd1), adapters, target, force=True)
    (target / "mine.txt").touch()
    with pytest.raises(AdapterError, match=r"\(mine.txt\), which would be lost"):
        merge_adapters(str(tiny_sd1), adapters, target, force=True)
    assert (target / "mine.txt").is_file()


def test_adapters_of_weight_0_are_not_merged_as_if_they_changed_anything(tiny_sd1: Path, tmp_path: Path) -> None:
    file, _ = trained(tiny_sd1, tmp_path / "tuned.safetensors")
    with pytest.raises(AdapterError, match="every weight is 0: the model would stay as it is"):
        merge_adapters(str(tiny_sd1), f"{file}:0", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
