"""The command line as a user meets it: what it prints and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdlora.processes import ProcessRecord
from sdlora.runs.folder import open_run


def train_on(model: Path | str, images: Path, *overrides: str) -> list[str]:
    settings = [f"base_model.model={model}", f"images.folder={images}", "images.resolution=64", *overrides]
    return ["train", *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture
def one_image(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (80, 80), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a red square", encoding="utf-8")
    return folder


def test_help_and_import_load_no_torch() -> None:
    code = (
        "import sys, sdlora, sdlora.cli\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(sdlora.cli.app, ['--help'])\n"
        "assert result.exit_code == 0 and 'train' in result.output, result.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_webui_starts_the_page_with_its_own_options() -> None:
    command = [sys.executable, "-m", "sdlora", "webui", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "usage: sdlora webui" in answer
    assert "--no-browser" in answer
    command = [sys.executable, "-m", "sdlora", "webui", "--port", "70000"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "from 1 to 65535" in refused.stderr) == (2, True)


def test_presets_are_listed_with_their_purpose(cli) -> None:
    result = cli("presets")
    assert result.code == 0
    assert "demo.yaml" in result.output
    assert "blueprint style" in result.output


def test_explain_prints_the_description_of_a_setting_and_searches_all(cli) -> None:
    assert "Rank of the update of linear layers" in cli("explain", "adapter.rank").output
    assert "objective.min_snr_gamma" in cli("explain", "min_snr").output
    missing = cli("explain", "nosuchthing")
    assert missing.code == 2
    assert "no setting is called or mentions 'nosuchthing'" in missing.output


def test_dry_run_prints_settings_and_summary_and_leaves_nothing_behind(
    cli, shallow_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    result = cli(*train_on(shallow_sd1, tiny_images, f"outputs.folder={tmp_path / 'runs'}"), "--dry-run")
    assert result.code == 0, result.errors
    assert "rank: 16" not in result.output, "a default"
    assert "rank: 16" in cli(*train_on(shallow_sd1, tiny_images), "--dry-run", "--full").output
    for line in (
        "images:          10 of 10 files, 0 held out",
        "never trained:   0 images",
        "steps:           100 optimizer steps of 1 batches, 10.0 epochs",
        "strength:        learning rate 0.0001 x alpha/rank 0.5 = 5e-05",
        "text:            0 captions over 75 tokens",
    ):
        assert line in result.output
    assert not (tmp_path / "runs").exists()


def test_processes_share_a_batch_that_is_large_enough(cli, shallow_sd1: Path, tiny_images: Path) -> None:
    several = [
        *train_on(shallow_sd1, tiny_images, "optimization.batch_size=5", "optimization.device=cpu"),
        "--processes",
    ]
    told = cli(*several, "2", "--dry-run").output
    assert "5 images a step (batch 5 x accumulation 1), 2 or 3 for each of 2 processes" in told
    assert "GiB in each process" in told
    figures = json.loads(cli(*several, "2", "--dry-run", "--json").output)["figures"]
    assert (figures["processes"], figures["images_a_step"], figures["images_a_pass"]) == (2, 5, 3)
    assert "which 6 processes can't share" in cli(*several, "6").errors
    assert "--restarts goes with --processes" in cli(*train_on(shallow_sd1, tiny_images), "--restarts", "1").errors
    alone = cli(*train_on(shallow_sd1, tiny_images), "--full", "--json").errors
    assert all(f"--{name} goes with --dry-run only" in alone for name in ("full", "json"))
    assert "--quiet has no effect" in cli(*train_on(shallow_sd1, tiny_images), "--dry-run", "--quiet").errors


def test_of_several_processes_one_shows_the_dry_run(
    cli, shallow_sd1: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli(*train_on(shallow_sd1, tiny_images), "--dry-run").output == ""


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["optimization.warmup=500"], "optimization.warmup=500: the run has 100 steps"),
        (["previews.every=200"], "previews.every has no effect without previews.prompts"),
        (["previews.every=200", "previews.from_captions=1"], "previews.every=200: the run has 100 steps"),
        (["outputs.checkpoint_every=20 epochs"], "outputs.checkpoint_every=20 epochs: the run has 100 steps"),
        (["optimization.batch_size=64"], "optimization.batch_size=64: no bucket holds more than"),
    ],
)
def test_the_dry_run_notes_what_cannot_be_followed_as_written(
    cli, shallow_sd1: Path, tiny_images: Path, overrides: list[str], note: str
) -> None:
    steps = ("optimization.steps=100", "optimization.epochs=null")
    assert note in cli(*train_on(shallow_sd1, tiny_images, *steps, *overrides), "--dry-run").output
    assert "note:" not in cli(*train_on(shallow_sd1, tiny_images, *steps), "--dry-run").output


def test_epochs_that_accumulation_rounds_up_are_noted(cli, shallow_sd1: Path, tiny_images: Path) -> None:
    told = cli(*train_on(shallow_sd1, tiny_images, "optimization.epochs=1", "optimization.accumulation=3"), "--dry-run")
    assert "don't divide by optimization.accumulation=3; the last of 4 steps begins another epoch" in told.output


def test_cache_can_be_shown_and_pruned(cli, tmp_path: Path) -> None:
    assert "0 entries" in cli("cache", "show", "--folder", str(tmp_path)).output
    assert "removed 0 entries" in cli("cache", "prune", "--all", "--folder", str(tmp_path)).output
    for options in ([], ["--all", "--keep-mib", "3"]):
        refused = cli("cache", "prune", *options, "--folder", str(tmp_path))
        assert refused.code == 2
        assert "say what to remove: --keep-mib, --older-than-days, or --all" in refused.errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rnak=4", "adapter.rnak: unknown setting; did you mean 'rank'?"),
        ("adapter.rank=many", "adapter.rank: must be a whole number"),
        ("images.folder=nowhere", "nowhere"),
        ("adapter.layers=everything", "unknown layer set 'everything'"),
        ("adapter.start_from=nowhere.safetensors", "adapter.start_from: no such file: nowhere.safetensors"),
        ("base_model.model=nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("base_model.model=nowhere", "base model 'nowhere' was not found"),
        ("optimization.optimizer=torch.optim.Nothing", "'torch.optim.Nothing' can't be imported"),
    ],
)
def test_a_wrong_setting_is_one_message_and_exit_code_2(
    cli, shallow_sd1: Path, one_image: Path, override: str, message: str
) -> None:
    result = cli(*train_on(shallow_sd1, one_image, override))
    assert result.code == 2
    assert message in result.errors
    assert result.errors.count("error:") == 1
    assert "Traceback" not in result.errors


def test_no_image_folder_says_which_setting_is_missing(cli, shallow_sd1: Path) -> None:
    result = cli("train", "--set", f"base_model.model={shallow_sd1}")
    assert result.code == 2
    assert "no image folder is set: use --set images.folder=FOLDER" in result.errors


def test_an_empty_folder_is_named(cli, shallow_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cli(*train_on(shallow_sd1, tmp_path / "empty"))
    assert result.code == 2
    assert str(tmp_path / "empty") in result.errors


def test_a_corrupt_image_is_named_with_its_reason(cli, shallow_sd1: Path, one_image: Path) -> None:
    (one_image / "broken.png").write_bytes(b"\x89PNG not really")
    result = cli(*train_on(shallow_sd1, one_image))
    assert result.code == 2
    assert "broken.png" in result.errors
    assert "images.max_unreadable" in result.errors


def test_a_run_says_as_it_begins_what_it_leaves_out(cli, shallow_sd1: Path, one_image: Path, tmp_path: Path) -> None:
    (one_image / "broken.png").write_bytes(b"\x89PNG not really")
    (one_image / "broken.txt").write_text("a red square", encoding="utf-8")
    (one_image / "a.txt").write_text("red square, " * 50, encoding="utf-8")
    overrides = ("images.max_unreadable=0.5", "optimization.steps=1", "optimization.warmup=50")
    result = cli(*train_on(shallow_sd1, one_image, *overrides, f"outputs.folder={tmp_path / 'runs'}"))
    assert result.code == 0, result.errors
    (log,) = (tmp_path / "runs").glob("*/log.txt")
    told = log.read_text(encoding="utf-8")
    assert "skipped: broken.png" in told
    assert "note: optimization.warmup=50: the run has 1 steps" in told
    assert "1 captions over 75 tokens, cut off: a.png (" in told


def test_a_missing_caption_is_named_with_what_to_do(cli, shallow_sd1: Path, one_image: Path) -> None:
    (one_image / "a.txt").unlink()
    result = cli(*train_on(shallow_sd1, one_image))
    assert result.code == 2
    assert "a.png" in result.errors
    assert "captions.default" in result.errors


@pytest.mark.parametrize(
    ("override", "package", "extra"),
    [
        ("optimization.optimizer=prodigy", "prodigyopt", "prodigy"),
        ("optimization.optimizer=adamw8bit", "bitsandbytes", "8bit"),
        ("base_model.quantization=nf4", "bitsandbytes", "8bit"),
        ("outputs.tensorboard=true", "tensorboard", "tensorboard"),
    ],
)
def test_a_missing_package_is_named_with_the_pip_command(
    cli, monkeypatch: pytest.MonkeyPatch, shallow_sd1: Path, one_image: Path, override: str, package: str, extra: str
) -> None:
    monkeypatch.setattr("sdlora.training.preflight.checks.find_spec", lambda name: None)
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    overrides = [override, "optimization.learning_rate=1.0"] if package == "prodigyopt" else [override]
    result = cli(*train_on(shallow_sd1, one_image, *overrides))
    assert result.code == 2
    assert f"needs the package '{package}', which is not installed. Run: pip install -e '.[{extra}]'" in result.errors


def test_a_file_of_an_unknown_family_says_what_was_looked_for(cli, one_image: Path, tmp_path: Path) -> None:
    save_file({"something.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    result = cli(*train_on(tmp_path / "odd.safetensors", one_image))
    assert result.code == 2
    assert "odd.safetensors" in result.errors


def test_requests_go_to_the_run_and_wrong_folders_are_refused(cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x", encoding="utf-8")
    ProcessRecord.of(os.getpid()).write(open_run(tmp_path)[0].process)
    result = cli("preview", str(tmp_path))
    assert result.code == 2
    assert "has no preview prompts" in result.errors
    (tmp_path / "config.yaml").write_text("name: x\npreviews: {prompts: [a fox]}", encoding="utf-8")
    for command in ("stop", "save", "preview"):
        assert f"asked {tmp_path.name} to {command}" in cli(command, str(tmp_path)).output
    assert open_run(tmp_path)[0].take_requests() == {"stop", "save", "preview"}
    assert f"into {tmp_path / 'asked'}" in cli("preview", str(tmp_path), "a fox --d 3").output.replace("\n", "")
    assert open_run(tmp_path)[0].take_asked_prompts() == ["a fox --d 3"]
    result = cli("stop", str(tmp_path / "requests"))
    assert result.code == 2
    assert "not a run folder" in result.errors


def test_a_run_leaves_everything_it_promises(cli, shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> None:
    overrides = [
        "name=my style",
        "captions.trigger=sks",
        "adapter.rank=2",
        "adapter.text_encoder=true",
        "optimization.steps=3",
        "optimization.precision=fp32",
        "validation.fraction=0.1",
        "previews.prompts=[a cat, a dog]",
        "previews.steps=2",
        "outputs.tensorboard=true",
        f"outputs.folder={tmp_path}",
    ]
    result = cli(*train_on(shallow_sd1, tiny_images, *overrides))
    folder = tmp_path / "my_style"
    assert result.code == 0, result.errors
    assert "trainable parameters:" in result.errors
    assert "self-test passed" in result.errors
    names = ["config.yaml", "environment.json", "events.jsonl", "log.txt", "my style.safetensors", "my style.png"]
    names += ["previews/step_000000/01.png", "previews/step_000003/01.png", "checkpoints/step_000003", "tensorboard"]
    assert [name for name in names if not (folder / name).exists()] == []
    side_car = json.loads((folder / "my style.json").read_text(encoding="utf-8"))
    assert side_car["activation text"] == "sks"


def test_problems_of_different_kinds_are_listed_together(cli) -> None:
    result = cli(*train_on("nomodel", Path("nofolder"), "adapter.start_from=nofile.safetensors"))
    assert result.code == 2
    assert "this run has 3 problems" in result.errors
    for name in ("nomodel", "nofolder", "nofile.safetensors"):
        assert name in result.errors
