"""Every setting of a training does something: what it changes, against the same run without it, in one number.

`python -m tests.integration.test_every_setting` prints the numbers. A new setting belongs into one of the three tables
here, or the first test fails: TRAINED changes what two steps on builtin:emoji come to, PREVIEWED what is generated
while training, ELSEWHERE is shown by a test of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from sdlora.config import files, schema
from sdlora.config.train import TrainConfig
from sdlora.events import Event, EventStream, StepFinished
from sdlora.models.loading import load
from sdlora.training.inputs.preview_prompts import with_captions
from sdlora.training.loop import prepare as preparing
from sdlora.training.loop.trainer import Trainer
from sdlora.training.outputs.previews import planned
from sdlora.training.preflight.checks import check
from sdlora.training.workers import Workers
from tests.support.emoji_adapters import random_adapter

ROOT = Path(__file__).parents[2]

MASKS = ("images.mask=file",)
TEXT = ("adapter.text_encoder=true",)
CONVOLUTIONS = ("adapter.layers=regex:up_blocks.3.resnets.2.conv1$",)
LOKR = ("adapter.algorithm=lokr",)
SHUFFLED = ("captions.shuffle_tags=true",)
DROPPED = ("captions.tag_dropout=0.7",)
HUBER = ("objective.loss=huber",)
TRIGGER = ("captions.trigger=fox",)
TOKEN = ("adapter.new_tokens={fox: red}",)
ADAMW = ("optimization.optimizer=adamw", "optimization.learning_rate=0.01", "optimization.steps=3")
LONGER = ("optimization.steps=3",)
V = ("base_model.prediction=v_prediction",)

TRAINED: dict[str, tuple[str, Sequence[str]]] = {
    "seed": ("1", ()),
    "base_model.prediction": ("v_prediction", ()),
    "base_model.zero_terminal_snr": ("true", V),
    "base_model.vae_scale": ("0.5", ()),
    "base_model.vae_shift": ("0.5", ()),
    "base_model.adapters": ("[{file: STYLE, weight: 2}]", ()),
    "base_model.clip_skip": ("2", ()),
    "images.folder": ("OTHER", ()),
    "images.folders": (
        "[{folder: FOLDER, loss_weight: 3}]",
        ("images.folder=null", "images.folders=[{folder: FOLDER}]"),
    ),
    "images.class_folder": ("OTHER", ("objective.prior_preservation=class_images", "images.class_folder=MORE")),
    "images.repeats": ("3", ()),
    "images.resolution": ("96", ()),
    "images.buckets": ("false", ("images.bucket_step=32",)),
    "images.bucket_step": ("32", ()),
    "images.bucket_min": ("64", ("images.bucket_step=32",)),
    "images.bucket_max": ("64", ("images.bucket_step=32",)),
    "images.upscale": ("false", (*LONGER, "images.bucket_step=8")),
    "images.horizontal_flip": ("true", (*LONGER, "seed=2")),
    "images.random_crop": ("true", LONGER),
    "images.crop_focus": ("face", LONGER),
    "images.crop_jitter": ("0.3", ()),
    "images.rotation": ("20", ()),
    "images.colour_jitter": ("0.3", ()),
    "images.hue_jitter": ("90", ()),
    "images.background": ("'#000000'", ()),
    "images.mask": ("file", ()),
    "images.unmasked_weight": ("0.5", MASKS),
    "captions.trigger": ("zeta", ()),
    "captions.prefix": ("'photo of '", ()),
    "captions.suffix": ("', at night'", ()),
    "captions.separator": ("'|||'", SHUFFLED),
    "captions.shuffle_tags": ("true", ()),
    "captions.keep_tags": ("3", SHUFFLED),
    "captions.tag_dropout": ("0.7", ()),
    "captions.dropout": ("0.8", LONGER),
    "captions.wildcards": ("true", ()),
    "captions.weights": ("true", ()),
    "captions.keep_separator": ("'|||'", SHUFFLED),
    "captions.group_separator": ("';;;'", ()),
    "captions.protected_tags": ("[sky, tall, red]", ("captions.tag_dropout=1",)),
    "captions.extension": (".caption", ()),
    "captions.alternatives": ("{.short.txt: 0.9}", LONGER),
    "captions.max_tokens": ("150", ("captions.prefix=" + "very " * 90,)),
    "adapter.algorithm": ("loha", ()),
    "adapter.rank": ("3", ()),
    "adapter.alpha": ("4", ()),
    "adapter.conv_rank": ("4", CONVOLUTIONS),
    "adapter.conv_alpha": ("4", CONVOLUTIONS),
    "adapter.layers": ("attention+ff", ()),
    "adapter.block_ranks": ("{up_blocks.3.attentions.0: 4}", ()),
    "adapter.unet": ("false", TEXT),
    "adapter.text_encoder": ("true", ()),
    "adapter.text_encoder_layers": ("attention", TEXT),
    "adapter.rslora": ("true", ("adapter.rank=4",)),
    "adapter.dora": ("true", ()),
    "adapter.dropout": ("0.5", LONGER),
    "adapter.rank_dropout": ("0.5", LONGER),
    "adapter.module_dropout": ("0.5", LONGER),
    "adapter.lokr_factor": ("4", LOKR),
    "adapter.lokr_decompose_both": ("true", (*LOKR, "adapter.rank=1", "adapter.lokr_factor=8")),
    "adapter.lokr_full": ("true", LOKR),
    "adapter.tucker": ("true", (*LOKR, *CONVOLUTIONS)),
    "adapter.new_tokens": ("{fox: red}", ()),
    "adapter.start_from": ("STYLE", TEXT),
    "optimization.steps": ("2", ()),
    "optimization.epochs": ("1", ("optimization.steps=null",)),
    "optimization.batch_size": ("1", ()),
    "optimization.accumulation": ("2", LONGER),
    "optimization.optimizer": ("lion", ADAMW),
    "optimization.optimizer_options": ("{betas: [0.5, 0.6]}", ADAMW),
    "optimization.learning_rate": ("20", ()),
    "optimization.text_encoder_learning_rate": ("0.03", TEXT),
    "optimization.text_encoder_until": ("1", (*TEXT, *LONGER)),
    "optimization.new_token_learning_rate": ("0.5", TOKEN),
    "optimization.new_tokens_until": ("1", (*TOKEN, *LONGER)),
    "optimization.block_learning_rates": ("{up_blocks.3.attentions.0: 0.1}", ()),
    "optimization.lora_plus_ratio": ("8", LONGER),
    "optimization.weight_decay": ("0.5", LONGER),
    "optimization.schedule": ("linear", LONGER),
    "optimization.warmup": ("2", LONGER),
    "optimization.schedule_cycles": ("2", ("optimization.schedule=cosine_with_restarts", *LONGER)),
    "optimization.schedule_power": ("3", ("optimization.schedule=polynomial", *LONGER)),
    "optimization.schedule_floor": ("0.5", ("optimization.schedule=linear", *LONGER)),
    "optimization.schedule_decay": ("1", ("optimization.schedule=wsd", *LONGER)),
    "optimization.schedule_timescale": ("1", ("optimization.schedule=inverse_sqrt", *LONGER)),
    "optimization.schedule_points": (
        "[[1, 0.1]]",
        ("optimization.schedule=piecewise", "optimization.schedule_points=[[1, 0.9]]", *LONGER),
    ),
    "optimization.max_gradient_norm": ("1e-6", ()),
    "optimization.max_weight_norm": ("1e-4", LONGER),
    "optimization.precision": ("bf16", ()),
    "optimization.precondition": ("true", LONGER),
    "optimization.ema": ("0.9", LONGER),
    "objective.loss": ("l1", ()),
    "objective.huber_delta": ("0.5", HUBER),
    "objective.huber_schedule": ("constant", HUBER),
    "objective.weighting": ("min_snr", ("objective.max_timestep=100",)),
    "objective.min_snr_gamma": ("0.5", ("objective.weighting=min_snr", "objective.max_timestep=500")),
    "objective.v_loss_like_epsilon": ("true", V),
    "objective.noise_offset": ("0.3", ()),
    "objective.noise_offset_random": ("true", ("objective.noise_offset=0.3",)),
    "objective.multires_noise_iterations": ("3", ()),
    "objective.multires_noise_discount": ("0.9", ("objective.multires_noise_iterations=3",)),
    "objective.input_perturbation": ("0.3", ()),
    "objective.input_perturbation_random": ("true", ("objective.input_perturbation=0.3",)),
    "objective.min_timestep": ("900", ()),
    "objective.max_timestep": ("100", ()),
    "objective.timestep_distribution": ("cubic", ()),
    "objective.timestep_spacing": ("even", ()),
    "objective.timestep_shift": ("3", ()),
    "objective.prior_preservation": ("base_prediction", (*TRIGGER, *LONGER)),
    "objective.prior_weight": ("9", (*TRIGGER, "objective.prior_preservation=base_prediction", *LONGER)),
    "objective.prior_prompt": (
        "a dog",
        (*TRIGGER, "objective.prior_preservation=base_prediction", *LONGER),
    ),
    "objective.prior_outside_mask": ("5", (*MASKS, *LONGER)),
    "validation.fraction": ("0.5", ()),
    "validation.folder": ("MORE", ("images.folder=[FOLDER, MORE]",)),
}
"""A value, and what must be set besides for it to matter (with and without it)."""

PROMPT = ("previews.prompts=[a fox]",)
PREVIEWED: dict[str, tuple[str, Sequence[str]]] = {
    "previews.prompts": ("[a fox]", ()),
    "previews.file": ("PROMPTS", ()),
    "previews.from_captions": ("1", ()),
    "previews.negative": ("blurry", PROMPT),
    "previews.steps": ("9", PROMPT),
    "previews.guidance": ("3", PROMPT),
    "previews.width_px": ("128", PROMPT),
    "previews.height_px": ("128", PROMPT),
    "previews.sampler": ("Euler", PROMPT),
    "previews.seed": ("7", PROMPT),
}

ELSEWHERE = {
    "name": "integration/test_training.py",
    "version": "regression/test_released_files.py",
    "base_model.model": "integration/test_families.py",
    "base_model.revision": "integration/test_loading.py",
    "base_model.variant": "integration/test_loading.py",
    "base_model.family": "unit/test_detection.py",
    "base_model.vae": "integration/test_loading.py",
    "images.inpaint_mask": "integration/test_inpainting.py",
    "base_model.flow_shift": "unit/test_detection.py",
    "base_model.precision": "integration/test_loading.py",
    "base_model.quantization": "integration/test_quantised_training.py",
    "images.max_unreadable": "unit/test_data_images.py",
    "images.max_megapixels": "unit/test_data_images.py",
    "images.cache": "unit/test_data_images.py",
    "images.cache_folder": "unit/test_data_images.py",
    "captions.default": "unit/test_data_images.py",
    "optimization.text_encoder_2_learning_rate": "unit/test_parameter_groups.py",
    "optimization.text_encoder_2_until": "integration/test_adapter_options.py",
    "optimization.gradient_checkpointing": "integration/test_training.py",
    "optimization.max_nonfinite": "integration/test_training.py",
    "optimization.on_out_of_memory": "integration/test_full_disk_and_memory.py",
    "optimization.speed": "integration/test_training_speed.py",
    "optimization.device": "integration/test_imported_training.py",
    "optimization.threads": "integration/test_training.py",
    "validation.every": "integration/test_training.py",
    "validation.timesteps": "integration/test_every_setting.py",
    "previews.adapters": "integration/test_preview_adapters.py",
    "previews.base_model": "integration/test_preview_base_model.py",
    "previews.every": "integration/test_training.py",
    "outputs.folder": "integration/test_training.py",
    "outputs.format": "integration/test_adapter_export.py",
    "outputs.precision": "integration/test_adapter_options.py",
    "outputs.bundle_embeddings": "integration/test_token_training.py",
    "outputs.checkpoint_every": "integration/test_between_steps.py",
    "outputs.checkpoint_names": "integration/test_between_steps.py",
    "outputs.keep_every": "integration/test_between_steps.py",
    "outputs.keep_checkpoints": "integration/test_between_steps.py",
    "outputs.finish": "integration/test_training.py",
    "outputs.metadata": "unit/test_adapter_metadata.py",
    "outputs.author": "unit/test_adapter_metadata.py",
    "outputs.description": "unit/test_adapter_metadata.py",
    "outputs.self_test": "integration/test_training.py",
    "outputs.tensorboard": "integration/test_cli.py",
    "outputs.wandb": "integration/test_run_endings.py",
    "outputs.wandb_project": "integration/test_run_endings.py",
    "outputs.on_finish": "integration/test_run_endings.py",
    "outputs.webhook": "integration/test_run_endings.py",
}
"""Settings about speed, files and machines, which leave the steps alone; the test file that shows what they do."""
_SPELLED_OTHERWISE = {
    "outputs.metadata": "private=True",
    "outputs.format": "file_format",
    "outputs.precision": "precision",
    "images.cache": "cache=",
    "base_model.precision": "precision",
}


class Measuring:
    """A folder of pictures, and what a short training with them comes to."""

    def __init__(self, folder: Path) -> None:
        self.places = {name: folder / name.lower() for name in ("FOLDER", "OTHER", "MORE")}
        draw_pictures(self.places["FOLDER"], 0)
        draw_pictures(self.places["OTHER"], 100)
        draw_pictures(self.places["MORE"], 180)
        self.places["STYLE"] = random_adapter(folder / "style.safetensors", 1)
        self.places["PROMPTS"] = folder / "prompts.txt"
        self.places["PROMPTS"].write_text("a fox\n")
        self._plain = self.config(()).resolved_base_model
        self._bundle = load(self._plain)
        self._known: dict[tuple[str, ...], tuple[float, ...]] = {}

    def base(self, config: Any, **arguments: Any) -> Any:
        """A copy of the base model loaded once, as far as the settings want the same."""
        from sdlora.adapters.algebra.loaded_base import load_base

        if config != self._plain:
            return load_base(config, **arguments)
        unchanged = {id(part): part for part in (self._bundle.vae, *self._bundle.tokenizers)}
        return copy.deepcopy(self._bundle, unchanged)

    def config(self, overrides: Sequence[str]) -> TrainConfig:
        settings = [
            "images.folder=FOLDER", "images.resolution=64", "adapter.rank=2",
            "adapter.layers=regex:up_blocks.3.*to_v$", "optimization.steps=1", "optimization.batch_size=2",
            "optimization.optimizer=torch.optim.SGD", "optimization.learning_rate=10",
            "optimization.max_gradient_norm=0",
            "optimization.precision=fp32", "optimization.threads=1", "base_model.prediction=epsilon", *overrides,
        ]  # fmt: skip
        for name, place in self.places.items():
            settings = [setting.replace(name, str(place)) for setting in settings]
        return files.with_files_read(files.load(overrides=settings))

    def trained(self, *overrides: str) -> tuple[float, ...]:
        """Losses of the steps, and the norm of the adapter's weights at the end."""
        if overrides not in self._known:
            config = self.config(overrides)
            images = check(config)
            losses = _Losses()
            events, workers = EventStream([losses]), Workers("cpu")
            prepared = preparing.prepare(config, images, events, workers)
            steps = images.total_steps(config)
            trainer = Trainer(
                config, steps, prepared.adapter, prepared.batches, prepared.loss_function, events, workers
            )
            trainer.run(lambda: "go on")
            with trainer.evaluating():
                norm = math.sqrt(sum(float(one.detach().square().sum()) for one in prepared.adapter.parameters))
            self._known[overrides] = (*losses.values, norm)
        return self._known[overrides]

    def previewed(self, *overrides: str) -> object:
        config = self.config(overrides)
        return planned(with_captions(config, check(config).trained))


class _Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def emit(self, event: Event) -> None:
        self.values += [event.loss] if isinstance(event, StepFinished) else []

    def close(self) -> None:
        pass


def draw_pictures(folder: Path, shade: int) -> None:
    """Three pictures with masks and captions of every kind; one is small, one has a transparent part."""
    folder.mkdir()
    sizes = {"a_130_20_24_24": (160, 64), "b": (64, 64), "c": (48, 40)}
    for index, (name, size) in enumerate(sizes.items()):
        image = Image.new("RGBA", size, (shade, 60 * index, 200 - shade, 255))
        ImageDraw.Draw(image).ellipse((4, 4, 30 + 8 * index, 36), fill=(255, 255, 80 * index, 255))
        ImageDraw.Draw(image).rectangle((size[0] - 12, 0, size[0], 12), fill=(0, 0, 0, 0))
        image.save(folder / f"{name}.png")
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).ellipse((4, 4, 30, 36), fill=255)
        mask.save(folder / f"{name}-masklabel.png")
        caption = f"fox (red), tall, no {index} ||| sky, sea;;;sun, {{hot|cold}}, moon\nanother fox, {{far|near}}"
        (folder / f"{name}.txt").write_text(caption)
        (folder / f"{name}.caption").write_text("an old fox")
        (folder / f"{name}.short.txt").write_text("fox")


def setting_on(name: str, value: str, besides: Sequence[str]) -> tuple[str, ...]:
    """The overrides with the setting, which takes the place of what else is said of it."""
    return (*(one for one in besides if not one.startswith(f"{name}=")), f"{name}={value}")


@pytest.fixture(scope="module")
def measuring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measuring]:
    found = Measuring(tmp_path_factory.mktemp("settings"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "load_base", found.base)
        yield found


def test_every_setting_is_shown_to_do_something() -> None:
    known = [setting.name for setting in schema.settings(TrainConfig)]
    tables = [*TRAINED, *PREVIEWED, *ELSEWHERE]
    assert sorted(set(known) - set(tables)) == [], "say what they change, in one of the tables of this file"
    assert sorted(set(tables) - set(known)) == []
    assert len(tables) == len(set(tables))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_file_that_shows_a_setting_names_it(name: str) -> None:
    text = (ROOT / "tests" / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert _SPELLED_OTHERWISE.get(name, name.rpartition(".")[2]) in text


@pytest.mark.parametrize("name", TRAINED)
def test_a_setting_changes_the_steps(measuring: Measuring, name: str) -> None:
    value, besides = TRAINED[name]
    assert measuring.trained(*setting_on(name, value, besides)) != measuring.trained(*besides)


@pytest.mark.parametrize("name", PREVIEWED)
def test_a_setting_changes_the_previews(measuring: Measuring, name: str) -> None:
    value, besides = PREVIEWED[name]
    assert measuring.previewed(*setting_on(name, value, besides)) != measuring.previewed(*besides)


def print_numbers(folder: Path) -> None:
    """A table of the last loss and the weights' norm, off and on."""
    found = Measuring(folder)
    preparing.load_base = found.base
    print("| setting | on | loss off | loss on | norm off | norm on |\n|---|---|---|---|---|---|")
    for name, (value, besides) in TRAINED.items():
        off, on = found.trained(*besides), found.trained(*setting_on(name, value, besides))
        print(f"| {name} | {value} | {off[-2]:.6f} | {on[-2]:.6f} | {off[-1]:.5f} | {on[-1]:.5f} |", flush=True)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        print_numbers(Path(place))
