"""Inspection, analysis, comparison and chart of adapter files, against numpy on the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.algebra.analysis import analyse
from sdlora.adapters.algebra.comparison import compare
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.adapters.hub.chart import draw_bars, save_chart
from sdlora.adapters.hub.inspection import inspect
from sdlora.errors import AdapterError

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_up_blocks_3_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
METADATA = {
    "ss_steps": "500",
    "ss_seed": "7",
    "ss_network_dim": "4",
    "ss_learning_rate": "None",
    "ss_tag_frequency": json.dumps({"10_cat": {"cat": 10, " red": 3}, "5_dog": {"dog": 5, "red": 4}}),
    "modelspec.trigger_phrase": "sks",
    "sshs_model_hash": "0" * 64,
}


def layer(name: str, seed: int, shape: tuple[int, ...], rank: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, *shape[1:], generator=generator),
        f"{name}.lora_up.weight": torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }


def adapter(folder: Path, name: str = "a", seed: int = 0, **more: Tensor) -> AdapterFile:
    tensors = {
        **layer(KEY, seed, (16, 768)),
        **layer(CONV, seed + 1, (12, 8, 3, 3), rank=2),
        **layer(TEXT, seed + 2, (16, 8)),
        **more,
    }
    save_file(tensors, folder / f"{name}.safetensors", METADATA)
    return read(folder / f"{name}.safetensors")


def test_inspection_tells_what_a_file_is_and_says(tmp_path: Path) -> None:
    file = adapter(tmp_path, **{"lora_unet_conv_in.diff": torch.ones(2, 2)})
    facts = inspect(file)
    assert (facts.family, facts.format, facts.algorithms, facts.dora) == ("sd1", "kohya", ("lora",), False)
    assert facts.modules_by_block == {"BASE": 1, "IN01": 1, "OUT09": 1}
    assert (facts.ranks, facts.alphas) == ({4: 2, 2: 1}, {"2": 3})
    assert facts.num_parameters == 4 * (16 + 768) + 2 * (12 + 72) + 4 * (16 + 8)
    assert facts.size_bytes == file.path.stat().st_size
    assert facts.tags == {"cat": 10, "red": 7, "dog": 5}
    assert facts.settings == {"steps": "500", "seed": "7"}
    assert facts.trigger == "sks"
    assert facts.unused == ("lora_unet_conv_in.diff",)
    assert facts.short_hash == file.model_hash[:12]
    text = facts.as_text()
    for part in (
        "a.safetensors: lora for sd1",
        "BASE (1), IN01 (1), OUT09 (1)",
        "note: its tensors are not those that its own hash",
    ):
        assert part in text
    assert "not understood  1 tensors: lora_unet_conv_in.diff" in text
    assert json.loads(json.dumps(facts.as_dict()))["short_hash"] == facts.short_hash


def test_analysis_agrees_with_numpy(tmp_path: Path) -> None:
    file = adapter(tmp_path)
    base = {name: torch.randn(weights.delta_shape) for name, weights in file.modules.items()}
    analysis = analyse(file, base.__getitem__)
    assert [one.block for one in analysis.blocks] == ["BASE", "IN01", "OUT09"]
    for one in analysis.layers:
        update = file.modules[one.name].delta().flatten(1).numpy()
        values = np.linalg.svd(update, compute_uv=False)[: one.rank]
        np.testing.assert_allclose(one.singular_values, values, rtol=1e-6)
        assert one.norm == pytest.approx(np.linalg.norm(update))
        assert one.relative_norm == pytest.approx(np.linalg.norm(update) / np.linalg.norm(base[one.name].numpy()))
        share = values / values.sum()
        assert one.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert one.energy_at_rank[1] == pytest.approx(values[0] ** 2 / (values**2).sum())
        assert one.energy_at_rank[4] == pytest.approx(1.0)
    assert analysis.norm == pytest.approx(sum(one.norm**2 for one in analysis.layers) ** 0.5)
    lines = analysis.as_text().splitlines()
    assert "||dW||/||W||" in lines[0]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "||dW||/||W||" not in analyse(file).as_text()


def test_dora_is_analysed_without_a_base_and_the_note_says_what_is_left_out(tmp_path: Path) -> None:
    file = adapter(tmp_path, **{f"{KEY}.dora_scale": torch.full((16, 1), 2.0)})
    plain = analyse(file)
    assert "DoRA's magnitude is left out" in plain.notes[0]
    assert f"note: {plain.notes[0]}" in plain.as_text()
    base = {name: torch.randn(weights.delta_shape) for name, weights in file.modules.items()}
    whole = analyse(file, base.__getitem__)
    assert whole.notes == ()
    tuned = base[KEY].double() + file.modules[KEY].delta()
    expected = tuned * (2.0 / tuned.norm(dim=1, keepdim=True)) - base[KEY].double()
    found = next(layer.norm for layer in whole.layers if layer.name == KEY)
    assert found == pytest.approx(float(expected.norm()))


def test_an_adapter_agrees_with_itself_and_fights_its_opposite(tmp_path: Path) -> None:
    file = adapter(tmp_path)
    same = compare(file, file)
    assert same.total.cosine == pytest.approx(1.0)
    assert same.total.conflict == pytest.approx(0.0)
    opposite = {f"{KEY}.lora_up.weight": -file.modules[KEY].factors["lora_up"]}
    against = compare(file, adapter(tmp_path, "b", **opposite))
    found = {block.block: (round(block.cosine, 6), round(block.conflict, 6)) for block in against.blocks}
    assert found["IN01"] == (-1.0, 1.0)
    assert found["OUT09"] == (1.0, 0.0)
    other = compare(file, adapter(tmp_path, "c", seed=10)).total
    assert abs(other.cosine) < 0.3
    assert 0.1 < other.conflict < 0.6
    assert against.as_text().splitlines()[-1] == "layers in only one of both: 0 and 0"


def test_adapters_without_a_common_layer_are_not_compared(tmp_path: Path) -> None:
    save_file(layer(KEY, 0, (16, 768)), tmp_path / "x.safetensors")
    save_file(layer(KEY.replace("to_k", "to_v"), 0, (16, 768)), tmp_path / "y.safetensors")
    with pytest.raises(AdapterError, match="x.safetensors and y.safetensors have no layer in common"):
        compare(read(tmp_path / "x.safetensors"), read(tmp_path / "y.safetensors"))


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    image = draw_bars([("BASE", 1.0), ("IN01", -0.5), ("MID", 0.0)], "title")
    colours = [image.crop((0, top, image.width, top + 1)).getcolors() or [] for top in range(64, image.height - 24, 26)]
    lengths = [{colour: count for count, colour in row} for row in colours]
    assert lengths[0][(59, 120, 194)] == 521
    assert lengths[1][(194, 85, 59)] == 261
    assert not {(59, 120, 194), (194, 85, 59)} & lengths[2].keys()
    save_chart([("BASE", 1.0)], "title", tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").format == "PNG"
    with pytest.raises(AdapterError, match="chart.png exists already"):
        save_chart([("BASE", 1.0)], "title", tmp_path / "chart.png")
