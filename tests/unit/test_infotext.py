"""Pictures' settings as other tools write them, read into requests."""

from __future__ import annotations

import pytest

from sdlora.config import files
from sdlora.config.generate import GenerateConfig
from sdlora.errors import DataError
from sdlora.generation.restore.infotext import from_infotext

FROM_A1111 = """a cat, (blue:1.2) <lora:ink:0.8>
Steps: 5, by night
Negative prompt: blurry,
ugly
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, \
Model hash: 45dee52b1c, Model: v1-5-pruned, VAE: "a, b", Denoising strength: 0.6, Clip skip: 2, ENSD: 31337, \
Hires upscale: 2, Hires steps: 15, Hires upscaler: 4x-UltraSharp, Lora hashes: "ink: 46e3576bb990, fur: 0123456789ab", \
Version: v1.10.1"""


def test_a_picture_of_the_web_ui_becomes_a_request() -> None:
    read = from_infotext(FROM_A1111)
    assert read.values == {
        "prompt": "a cat, (blue:1.2) <lora:ink:0.8>\nSteps: 5, by night",
        "negative": "blurry,\nugly",
        "sampler": "DPM++ 2M Karras",
        "steps": 20,
        "guidance": 7.5,
        "seed": 965400086,
        "width_px": 512,
        "height_px": 768,
        "base_model": {"clip_skip": 2},
        "second_pass": {"scale": 2.0, "strength": 0.6, "steps": 15},
    }
    files.validate(read.values, "the picture", GenerateConfig)
    assert (read.model_name, read.model_hash) == ("v1-5-pruned", "45dee52b1c")
    assert read.adapter_hashes == {"ink": "46e3576bb990", "fur": "0123456789ab"}
    assert read.unknown == {"VAE": "a, b", "ENSD": "31337", "Hires upscaler": "4x-UltraSharp"}
    assert read.warnings == (
        "Hires upscaler: there is no '4x-UltraSharp' here; lanczos is used",
        "its noise came from the graphics card: the same seed gives another picture here",
    )
    assert not read.by_sdlora


def text_with(**values: str) -> str:
    line = {"Steps": "9", "Seed": "1", "CFG scale": "5", "RNG": "CPU"} | {
        name.replace("_", " "): value for name, value in values.items()
    }
    return "a cat\n" + ", ".join(f"{name}: {value}" for name, value in line.items())


@pytest.mark.parametrize(
    ("sampler", "schedule", "ours"),
    [
        ("DPM++ 2M", None, "DPM++ 2M"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Uniform", "DPM++ 2M"),
        ("DPM++ 2M Karras", None, "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Karras", "DPM++ 2M Karras"),
        ("DPM++ SDE", "Automatic", "DPM++ SDE Karras"),
        ("Euler A", "Automatic", "Euler a"),
        ("LCM", "Automatic", "LCM"),
    ],
)
def test_sampler_and_schedule_type_join(sampler: str, schedule: str | None, ours: str) -> None:
    read = from_infotext(text_with(Sampler=sampler, **({"Schedule_type": schedule} if schedule else {})))
    assert read.values["sampler"] == ours
    assert (read.unknown, read.warnings) == ({}, ())


def test_samplers_and_schedules_that_are_not_here_are_named() -> None:
    read = from_infotext(text_with(Sampler="Restart", Schedule_type="Karras"))
    assert "sampler" not in read.values
    assert read.unknown == {"Sampler": "Restart", "Schedule type": "Karras"}
    assert read.warnings[0].startswith("Sampler: there is no 'Restart' here; choose one of DPM++ 2M Karras, ")
    read = from_infotext(text_with(Sampler="Euler", Schedule_type="Beta"))
    assert read.values["sampler"] == "Euler"
    assert read.warnings == ("Schedule type: there is no 'Beta' here for Euler, which keeps its own",)


def test_values_that_do_not_fit_are_named_and_left_out() -> None:
    read = from_infotext(text_with(Seed="99999999999", Size="500x512", Clip_skip="two", Sampler="Euler"))
    assert read.values == {"prompt": "a cat", "negative": "", "sampler": "Euler", "steps": 9, "guidance": 5.0}
    assert set(read.unknown) == {"Seed", "Size", "Clip skip"}
    assert read.warnings[0] == "Seed: seed: must be less than 4294967296; got 99999999999"
    assert read.warnings[1] == "Clip skip: 'two' is not a number"
    assert "Size: width_px" in read.warnings[2]


def test_a_second_pass_by_its_final_size_and_a_start_image_that_is_not_in_the_file() -> None:
    read = from_infotext(text_with(Size="512x512", Hires_resize="1024x1024", Hires_steps="0", Denoising_strength="0.3"))
    assert read.values["second_pass"] == {"scale": 2.0, "strength": 0.3}
    read = from_infotext(text_with(Denoising_strength="0.3", Mask_blur="4"))
    assert read.values["start"] == {"strength": 0.3, "mask_blur_px": 4.0}
    assert read.warnings == ("it was generated over a start image, which is not in the file; set start.image",)


def test_hashes_are_read_where_model_sites_put_them() -> None:
    read = from_infotext(text_with(Hashes='{"model": "45dee52b1c", "lora:ink": "46e3576bb990"}'))
    assert read.adapter_hashes == {"ink": "46e3576bb990"}
    assert from_infotext(text_with(Hashes="{oops}")).adapter_hashes == {}


NO_SEED = "it tells no seed that can be taken, so another picture comes of it; a seed is drawn"


def test_a_text_without_settings_is_a_prompt() -> None:
    read = from_infotext("just a cat\nSteps: 5, by night")
    assert read.values == {"prompt": "just a cat\nSteps: 5, by night", "negative": ""}
    assert read.warnings == (NO_SEED,)


HEAD = "a cat\nNegative prompt: blurry\n"
PARTS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, RNG: CPU"
WHOLE = {
    "prompt": "a cat", "negative": "blurry", "sampler": "Euler a", "steps": 20, "guidance": 7.0, "seed": 5,
    "width_px": 512, "height_px": 768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        (f"{HEAD}{PARTS}", {}),
        (f"a cat\r\nNegative prompt: blurry\r\n{PARTS}\r\n", {}),
        (f"a cat\n{PARTS}\nNegative prompt: blurry", {}),
        (f"Negative prompt: blurry\nPrompt: a cat\n{PARTS}", {}),
        (f"a cat\nnegative Prompt:blurry\n{PARTS.lower()}", {}),
        (f"{HEAD}Steps: 20, Sampler: Euler a,\nCFG scale: 7, Seed: 5,\nSize: 512x768, RNG: CPU", {}),
        (f"{HEAD}Seed: 5, Size: 512x768,\nSteps: 20, Sampler: Euler a, CFG scale: 7, RNG: CPU", {}),
        (f"{HEAD}Steps: 20, Sampler: Euler\na, CFG scale: 7, Seed: 5, Size: 512x768, RNG: CPU", {}),
        (f"{HEAD}{PARTS}\nTemplate: a __pet__,\nby night", {"Template": "a __pet__,\nby night"}),
        (f'{HEAD}{PARTS}, Hires prompt: "a\nb, Seed: 9, c: d, e: f"',
         {"Hires prompt": "a\nb, Seed: 9, c: d, e: f"}),
        (f"{HEAD}Steps: 20, Sampler: k_euler_ancestral, CFG scale: 7.0, Seed: 5.0, Size-1: 512, Size-2: 768, RNG: CPU",
         {}),
        (f'{HEAD}{PARTS}, Created Date: 2025-01-02T03:04:05Z, '
         'Civitai resources: [{"type":"lora","weight":0.8,"modelName":"ink, b"}], Civitai metadata: {}',
         {"Created Date": "2025-01-02T03:04:05Z", "Civitai metadata": "{}",
          "Civitai resources": '[{"type":"lora","weight":0.8,"modelName":"ink, b"}]'}),
        (f'{HEAD}{PARTS}, ADetailer model: face_yolov8n.pt, ADetailer prompt: "a, b", Module 1: ae',
         {"ADetailer model": "face_yolov8n.pt", "ADetailer prompt": "a, b", "Module 1": "ae"}),
        (f"{HEAD}{PARTS}, App: SD.Next, Operations: txt2img; hires",
         {"App": "SD.Next", "Operations": "txt2img; hires"}),
    ],
)  # fmt: skip
def test_odd_forms_of_texts_are_read_as_what_they_mean(text: str, unknown: dict[str, str]) -> None:
    read = from_infotext(text)
    assert read.values == WHOLE
    assert read.unknown == unknown
    assert read.warnings == ()


def test_few_settings_are_settings_where_the_line_holds_nothing_else() -> None:
    read = from_infotext("a cat\nSteps: 3, Seed: 4")
    assert read.values == {"prompt": "a cat", "negative": "", "steps": 3, "seed": 4}
    assert from_infotext("Steps: 20, Seed: 5, Size: 512x512").values["prompt"] == ""


@pytest.mark.parametrize("seed", ["Seed: -1", "Seed: random", "Version: x"])
def test_a_seed_that_is_not_told_is_not_drawn_in_silence(seed: str) -> None:
    read = from_infotext(f"a cat\nSteps: 3, CFG scale: 4, {seed}, RNG: CPU")
    assert "seed" not in read.values
    assert NO_SEED in read.warnings


@pytest.mark.parametrize("text", ["a" * 2**18, "a " * 2**17, 'aa: "' * 2**16, 'aa:"\\",' * 2**16, "aa:" * 2**17])
def test_hostile_texts_are_read_before_the_time_limit(text: str) -> None:
    assert from_infotext(text).values  # in quadratic time this would take many minutes


def test_a_text_that_is_too_long_is_not_read() -> None:
    with pytest.raises(DataError, match="its settings take 1,048,577 characters, more than 1,048,576"):
        from_infotext("a" * (2**20 + 1))
