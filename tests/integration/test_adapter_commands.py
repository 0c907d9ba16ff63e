"""The commands on finished adapters as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdlora.adapters.files.reading import read

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def saved(path: Path, seed: int, rank: int = 4, alpha: float = 3.0) -> Path:
    """An adapter for the tiny SD 1.x model of the tests."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, inputs in ((KEY, 64), (QUERY, 32)):
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(32, rank, generator=generator) * 0.1
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, {"ss_base_model_version": "sd_v1"})
    return path


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path / "a.safetensors", 1), saved(tmp_path / "b.safetensors", 2, rank=2)


def test_inspect_prints_text_or_json_and_draws_a_chart(cli, two: tuple[Path, Path], tmp_path: Path) -> None:
    result = cli("inspect", two[0], "--chart", tmp_path / "chart.png")
    assert result.code == 0, result.errors
    assert "a.safetensors: lora for sd1, kohya layout" in result.output
    assert "energy@1" in result.output
    assert (tmp_path / "chart.png").is_file()
    content = json.loads(cli("inspect", two[0], "--json").output)
    assert content["files"][0]["num_modules"] == 2
    assert len(content["analysis"]["layers"][0]["singular_values"]) == 4
    assert "analysis" not in json.loads(cli("inspect", two[0], "--json", "--quick").output)
    assert "--quick does no analysis" in cli("inspect", two[0], two[1], "--quick").errors


def test_inspect_compares_two_and_takes_a_base(cli, two: tuple[Path, Path], shallow_sd1: Path) -> None:
    content = json.loads(cli("inspect", two[0], two[1], "--json").output)
    assert content["comparison"]["total"]["num_layers"] == 2
    assert "cosine" in cli("inspect", *two).output
    assert "||dW||/||W||" in cli("inspect", two[0], "--base", shallow_sd1).output


def test_mix_takes_weights_on_the_command_line_or_from_a_file(cli, two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "mix.safetensors"
    result = cli("mix", f"{two[0]}:0.8", f"{two[1]}:unet=-0.5", "--out", out)
    assert result.code == 0, result.errors
    assert "2 layers of rank 6" in result.output
    assert "exact, up to rounding" in result.output
    again = cli("mix", f"{two[0]}:0.8", "--out", out)
    assert again.code == 2
    assert "exists already" in again.errors
    settings = tmp_path / "mix.yaml"
    settings.write_text(
        f"method: svd\nrank: 2\nadapters:\n  - {{file: {two[0].as_posix()}, weight: 0.8}}\n"
        f"  - {{file: {two[1].as_posix()}, weight: -0.5, blocks: {{IN01: 1}}}}\n",
        encoding="utf-8",
    )
    result = cli("mix", "--config", settings, "--errors", "--force", "--out", out)
    assert "relative error" in result.output
    assert f"rank 2    {KEY}" in result.output
    wrong = cli("mix", two[0], "--method", "svd", "--out", out)
    assert wrong.code == 2
    assert "method svd needs a rank or an energy" in wrong.errors


def test_adapters_that_take_the_place_of_a_files_and_all_that_are_damaged_are_told(
    cli, two: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tmp_path / "mix.yaml"
    config.write_text(f"adapters: ['{two[0]}']", encoding="utf-8")
    result = cli("mix", two[1], "--config", config, "--out", tmp_path / "m.safetensors")
    assert result.code == 0, result.errors
    assert "not mixed: those given here take their place" in " ".join(result.output.split())
    for file in two:
        file.write_bytes(file.read_bytes()[:-8])
    for command in (("mix", *two, "--out", tmp_path / "n.safetensors"), ("inspect", *two)):
        errors = cli(*command).errors
        assert "a.safetensors is damaged" in errors
        assert "b.safetensors is damaged" in errors


def test_merge_extract_and_resize_go_round(cli, two: tuple[Path, Path], shallow_sd1: Path, tmp_path: Path) -> None:
    result = cli("merge", f"{two[0]}:2", "--base", shallow_sd1, "--out", tmp_path / "merged")
    assert "2 layers changed" in result.output, result.errors
    result = cli(
        "extract",
        "--tuned",
        tmp_path / "merged",
        "--base",
        shallow_sd1,
        "--rank",
        "4",
        "--out",
        tmp_path / "x.safetensors",
    )
    assert "2 layers of rank 4" in result.output, result.errors
    found, expected = read(tmp_path / "x.safetensors").modules, read(two[0]).modules
    for name in (KEY, QUERY):
        torch.testing.assert_close(found[name].delta(), 2 * expected[name].delta(), rtol=1e-2, atol=1e-3)
    result = cli("resize", two[0], "--rank", "2", "--out", tmp_path / "small.safetensors")
    assert "2 layers of rank 2" in result.output, result.errors
    assert "relative error" in result.output
    assert "give a rank or an energy" in cli("resize", two[0], "--out", tmp_path / "y.safetensors").errors
    both = cli("resize", two[0], "--rank", "2", "--energy", "1.5", "--out", tmp_path / "y.safetensors")
    assert "rank and energy exclude each other" in both.errors
    assert "energy: is a share above 0 and up to 1, not 1.5" in both.errors


def test_convert_writes_the_other_layout_and_diffusers_declares_what_it_must(
    cli, two: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "peft.safetensors"
    result = cli("convert", two[0], "--to", "diffusers", "--out", out)
    assert "the diffusers format is read whole by diffusers only" in result.output, result.errors
    assert all(name.startswith("unet.") for name in load_file(out))
    with safe_open(out, "pt") as opened:
        declared = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert declared["unet.lora_alpha"] == 3.0


def test_push_shows_card_and_files_before_anything_is_uploaded(cli, two: tuple[Path, Path]) -> None:
    result = cli("push", two[0], "me/mine", "--dry-run", "--license", "cc0-1.0")
    assert "license: cc0-1.0" in result.output, result.errors
    assert "files: README.md, a.safetensors" in result.output
    without = cli("push", two[0], "--dry-run")
    assert 'load_lora_weights("OWNER/NAME"' in without.output, without.errors
