"""Files of other tools, made by hand from their documented formats: imported by the command, they train."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import yaml
from PIL import Image, ImageDraw
from pyarrow import parquet

from sdlora.__main__ import main
from sdlora.adapters.files.reading import read
from sdlora.config import files
from sdlora.training.loop.run import train

BASE = "builtin:emoji"
CHEAP = ("images.cache=false", "outputs.self_test=false", "optimization.device=cpu")
COMPLETE = (f"base_model.model={BASE}", "images.resolution=64", "adapter.rank=2", "optimization.precision=fp32")
"""What files say nothing of that only tell of images."""

Source = tuple[Path, tuple[str, ...]]
"""What is imported, and the settings that it leaves open."""


def picture(number: int) -> Image.Image:
    image = Image.new("RGB", (96, 96), (60 * number % 256, 90, 200 - 20 * number))
    ImageDraw.Draw(image).ellipse((10 + 5 * number, 20, 60, 80), fill=(255, 220, 40 * number % 256))
    return image


def encoded(number: int) -> bytes:
    content = io.BytesIO()
    picture(number).save(content, "PNG")
    return content.getvalue()


def pictures(folder: Path, *, captions: bool = True, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number in range(first, first + 2):
        picture(number).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"zeta, ball {number}, yellow", "utf-8")
    return folder


def sd_scripts_folders(root: Path) -> Source:
    pictures(root / "train" / "2_zeta ball", captions=False)
    return root / "train", COMPLETE


def sd_scripts_dataset(root: Path) -> Source:
    source = root / "dataset.toml"
    source.write_text(
        f"""
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = 64
batch_size = 2
enable_bucket = true
min_bucket_reso = 64
max_bucket_reso = 128
bucket_reso_steps = 32

  [[datasets.subsets]]
  image_dir = {json.dumps(str(pictures(root / "hero")))}
  class_tokens = "zeta ball"
  num_repeats = 2

  [[datasets.subsets]]
  is_reg = true
  image_dir = {json.dumps(str(pictures(root / "balls")))}
""",
        "utf-8",
    )
    return source, (COMPLETE[0], *COMPLETE[2:])


def sd_scripts_metadata(root: Path) -> Source:
    folder = pictures(root / "images", captions=False)
    source = folder / "meta_lat.json"
    entries = {
        str(folder / "0.png"): {"caption": "a ball", "tags": "yellow, round", "train_resolution": [64, 64]},
        "1": {"tags": "ball, blue"},
    }
    source.write_text(json.dumps(entries), "utf-8")
    return source, COMPLETE


def kohya_gui(root: Path) -> Source:
    pictures(root / "train" / "2_zeta ball")
    settings = {
        "LoRA_type": "Kohya LoCon",
        "adaptive_noise_scale": 0,
        "bucket_no_upscale": True,
        "bucket_reso_steps": 32,
        "cache_latents": True,
        "caption_extension": ".txt",
        "clip_skip": "1",
        "conv_alpha": 1,
        "conv_dim": 2,
        "enable_bucket": True,
        "epoch": "",
        "gradient_accumulation_steps": "1",
        "keep_tokens": "1",
        "learning_rate": 0.0001,
        "lr_scheduler": "cosine_with_restarts",
        "lr_scheduler_num_cycles": "1",
        "lr_warmup": 10,
        "max_bucket_reso": 128,
        "max_resolution": "64,64",
        "max_timestep": 1000,
        "max_train_steps": "1",
        "min_bucket_reso": 64,
        "min_snr_gamma": 5,
        "mixed_precision": "no",
        "network_alpha": 1,
        "network_dim": 2,
        "noise_offset": 0.05,
        "optimizer": "AdamW",
        "optimizer_args": "weight_decay=0.1 betas=0.9,0.99",
        "output_dir": str(root / "out"),
        "output_name": "zeta",
        "pretrained_model_name_or_path": BASE,
        "save_model_as": "safetensors",
        "save_precision": "fp16",
        "seed": "1234",
        "shuffle_caption": True,
        "text_encoder_lr": 5e-05,
        "train_batch_size": 2,
        "train_data_dir": str(root / "train"),
        "unet_lr": 0.0001,
        "v2": False,
        "xformers": "xformers",
    }
    (root / "kohya.json").write_text(json.dumps(settings), "utf-8")
    return root / "kohya.json", ()


def onetrainer_concepts(root: Path) -> Source:
    concepts = [
        {
            "__version": 2,
            "image": {"enable_random_flip": True, "enable_resolution_override": True, "resolution_override": "64"},
            "text": {
                "prompt_source": "sample",
                "enable_tag_shuffling": True,
                "tag_delimiter": ",",
                "keep_tags_count": 1,
            },
            "name": "zeta",
            "path": str(pictures(root / "zeta")),
            "enabled": True,
            "type": "STANDARD",
            "include_subdirectories": False,
            "balancing": 2.0,
            "balancing_strategy": "REPEATS",
            "loss_weight": 1.0,
        },
        {"name": "held out", "path": str(pictures(root / "held-out", first=2)), "enabled": True, "type": "VALIDATION"},
    ]
    (root / "concepts.json").write_text(json.dumps(concepts), "utf-8")
    return root / "concepts.json", (COMPLETE[0], *COMPLETE[2:])


def onetrainer(root: Path) -> Source:
    source, _ = onetrainer_concepts(root)
    settings = {
        "__version": 10,
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_15",
        "workspace_dir": "workspace/run",
        "cache_dir": "workspace-cache/run",
        "base_model_name": BASE,
        "output_dtype": "FLOAT_16",
        "output_model_format": "SAFETENSORS",
        "output_model_destination": "models/zeta.safetensors",
        "concept_file_name": source.name,
        "concepts": None,
        "aspect_ratio_bucketing": True,
        "learning_rate_scheduler": "COSINE",
        "learning_rate": 0.0003,
        "learning_rate_warmup_steps": 1.0,
        "epochs": 1,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "ema": "OFF",
        "train_device": "cuda",
        "train_dtype": "FLOAT_32",
        "resolution": "64",
        "loss_weight_fn": "DEBIASED_ESTIMATION",
        "unet": {"train": True, "learning_rate": None, "weight_dtype": "FLOAT_32", "gradient_checkpointing": False},
        "text_encoder": {"train": False, "weight_dtype": "FLOAT_32"},
        "peft_type": "LOHA",
        "lora_rank": 2,
        "lora_alpha": 1.0,
        "layer_filter": "attentions",
        "layer_filter_preset": "attn-mlp",
        "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-08},
        "samples": [],
        "save_every_unit": "NEVER",
    }
    (root / "onetrainer.json").write_text(json.dumps(settings), "utf-8")
    return root / "onetrainer.json", ()


def ai_toolkit(root: Path) -> Source:
    process = {
        "type": "sd_trainer",
        "training_folder": str(root / "output"),
        "device": "cuda:0",
        "trigger_word": "zeta",
        "network": {"type": "lora", "linear": 2, "linear_alpha": 2},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [
            {
                "folder_path": str(pictures(root / "images")),
                "caption_ext": "txt",
                "caption_dropout_rate": 0.05,
                "shuffle_tokens": False,
                "cache_latents_to_disk": True,
                "resolution": [64],
            }
        ],
        "train": {
            "batch_size": 1,
            "steps": 1,
            "gradient_accumulation_steps": 1,
            "train_unet": True,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "noise_scheduler": "ddpm",
            "optimizer": "adamw",
            "lr": 1e-4,
            "ema_config": {"use_ema": True, "ema_decay": 0.99},
            "dtype": "float32",
        },
        "model": {"name_or_path": BASE},
    }
    job = {"job": "extension", "config": {"name": "zeta", "process": [process]}, "meta": {"name": "[name]"}}
    (root / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")
    return root / "job.yaml", ()


def image_folder(root: Path) -> Source:
    folder = pictures(root / "set" / "train", captions=False)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["0.png", "a ball, yellow"], ["1.png", "a ball, red"]])
    return root / "set", COMPLETE


def parquet_files(root: Path) -> Source:
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("text", pyarrow.string())])
    rows = [{"image": {"bytes": encoded(number), "path": None}, "text": f"ball {number}"} for number in range(2)]
    (root / "set" / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    parquet.write_table(table, root / "set" / "data" / "train-00000-of-00001.parquet")
    return root / "set", COMPLETE


def webdataset(root: Path) -> Source:
    (root / "set").mkdir()
    with tarfile.open(root / "set" / "00000.tar", "w") as archive:
        for number in range(2):
            members = {
                "png": encoded(number),
                "json": json.dumps({"caption": f"ball {number}", "key": str(number)}).encode(),
            }
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{number:09d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return root / "set", COMPLETE


SETTINGS = [
    sd_scripts_folders,
    sd_scripts_dataset,
    sd_scripts_metadata,
    kohya_gui,
    onetrainer_concepts,
    onetrainer,
    ai_toolkit,
    image_folder,
]


Make = Callable[[Path], Source]


def command(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sdlora", "dataset", "import", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert not exit_info.value.code


@pytest.mark.parametrize("make", SETTINGS, ids=lambda make: make.__name__)
def test_imported_settings_train(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, left_open = make(tmp_path)
    captions = ["--captions-for", source.parent] if make is sd_scripts_metadata else []
    command(source, "--out", tmp_path / "ours.yaml", *captions, monkeypatch=monkeypatch)
    overrides = [*CHEAP, *left_open, f"outputs.folder={tmp_path / 'runs'}"]
    if make not in (kohya_gui, onetrainer, ai_toolkit):
        overrides.append("optimization.steps=1")
    config = files.load(tmp_path / "ours.yaml", overrides)
    result = train(config)
    assert (result.step, config.base_model.model) == (1, BASE)
    assert read(result.adapter).modules


@pytest.mark.parametrize("make", [parquet_files, webdataset], ids=lambda make: make.__name__)
def test_packed_data_sets_train(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, left_open = make(tmp_path)
    command(source, "--out", tmp_path / "unpacked", monkeypatch=monkeypatch)
    overrides = [
        f"images.folder={tmp_path / 'unpacked'}",
        "optimization.steps=1",
        f"outputs.folder={tmp_path / 'runs'}",
    ]
    assert train(files.load(None, [*CHEAP, *left_open, *overrides])).step == 1
