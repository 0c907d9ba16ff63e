"""Preview prompts with options of their own, in a line or a file: read as sd-scripts writes them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdlora.config import files
from sdlora.config.images import CaptionsConfig
from sdlora.config.outputs import PreviewsConfig
from sdlora.config.preview_prompts import PreviewPrompt, parse_preview, read_preview_file
from sdlora.config.train import TrainConfig
from sdlora.data.images import ImageRecord
from sdlora.errors import ConfigError
from sdlora.training.inputs.preview_prompts import with_captions
from sdlora.training.outputs.previews import planned

LINE = "a fox in snow --n blurry, bad --w 768 --h 512 --d 42 --l 6.5 --s 20 --ss euler_a --am 0.8"
ENTRY = {
    "prompt": "a fox in snow", "negative_prompt": "blurry, bad", "width": 768, "height": 512, "seed": 42,
    "scale": 6.5, "sample_steps": 20, "sample_sampler": "euler_a",
}  # fmt: skip
WANTED = PreviewPrompt("a fox in snow", "blurry, bad", 768, 512, 42, 6.5, 20, "Euler a", 0.8)


def test_a_line_is_read_with_all_its_options() -> None:
    assert parse_preview(LINE) == WANTED
    assert parse_preview("a well-lit fox -- by night, x--y") == PreviewPrompt("a well-lit fox -- by night, x--y")
    assert parse_preview("--n ugly") == PreviewPrompt("", "ugly")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a --w 100", "--w 100: must be a whole number from 64 to 8192, a multiple of 8"),
        ("a --cn pose.png", "--cn is no option of a preview; there are --n, --w"),
        ("a --ss lms", "--ss lms: no such sampler here; there are DPM"),
        ("a --l high --d 1.5", "--l high: must be a number.*; --d 1.5: must be a whole number"),
    ],
)
def test_an_option_that_cannot_be_read_is_refused_by_name(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_preview(line)
    with pytest.raises(ConfigError, match=r"previews\.prompts\.0: --"):
        files.validate({"previews": {"prompts": [line]}}, "my.yaml")


def test_prompt_files_of_sd_scripts_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"# comment\n\n{LINE}\n")
    (tmp_path / "a.json").write_text(json.dumps([ENTRY, "a cat --d 1"]))
    (tmp_path / "a.toml").write_text(
        '[prompt]\nwidth = 768\nheight = 512\nnegative_prompt = "blurry, bad"\n'
        '[[prompt.subset]]\nprompt = "a fox in snow"\nseed = 42\nscale = 6.5\nsample_steps = 20\n'
        'sample_sampler = "euler_a"\n'
    )
    alike = PreviewPrompt(*[getattr(WANTED, name) for name in WANTED.__dataclass_fields__][:-1])
    assert [parse_preview(line) for line in read_preview_file(tmp_path / "a.txt")] == [WANTED]
    assert [parse_preview(line) for line in read_preview_file(tmp_path / "a.json")] == [
        alike,
        PreviewPrompt("a cat", seed=1),
    ]
    assert [parse_preview(line) for line in read_preview_file(tmp_path / "a.toml")] == [alike]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{"prompt": 1}', "must hold a list of prompts, holds dict"),
        ("a.json", '[{"prompt": "x", "lora": 1}]', "'lora' is not known"),
        ("a.json", "[", "is no valid JSON"),
        ("a.json", '[{"prompt": "x", "prompt": "y"}]', "sets 'prompt' twice"),
        ("a.toml", "x = 1", r"must hold \[prompt\] with one \[\[prompt\.subset\]\]"),
        ("a.txt", "a --w x", "'a --w x': --w x: must be a whole number"),
    ],
)
def test_a_bad_prompt_file_is_refused_before_the_run(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        files.load(None, [f"previews.file={tmp_path / name}"])


def test_the_runs_settings_hold_where_a_line_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"a cat\n{LINE}\n")
    config = files.load(
        None,
        [f"previews.file={tmp_path / 'a.txt'}", "images.resolution=256", "previews.seed=5", "previews.negative=low",
         "previews.guidance=4", "previews.steps=9", "previews.sampler=Euler"],
    )  # fmt: skip
    assert config.previews.file is None
    assert config.previews.prompts == ("a cat", LINE), "a run keeps the prompts it began with"
    first, second = (preview.request for preview in planned(config))
    assert (first.prompt, first.negative, first.width_px, first.seed, first.guidance) == ("a cat", "low", 256, 5, 4)
    assert (first.steps, first.sampler) == (9, "Euler")
    assert (second.prompt, second.negative, second.width_px, second.height_px) == (
        "a fox in snow",
        "blurry, bad",
        768,
        512,
    )
    assert (second.seed, second.guidance, second.steps, second.sampler) == (42, 6.5, 20, "Euler a")
    assert [preview.adapter_weight for preview in planned(config)] == [1.0, 0.8]


@pytest.mark.parametrize("line", ["a cat --ctrl_img p.png", "a cat --foo=3", "a cat --x-y"])
def test_an_option_of_another_spelling_is_no_part_of_the_prompt(line: str) -> None:
    with pytest.raises(ValueError, match="is no option of a preview"):
        parse_preview(line)


def recorded(*captions: str, **more: Any) -> list[ImageRecord]:
    one = CaptionsConfig(trigger="ohwx")
    return [
        ImageRecord(Path(f"{index}.png"), 64, 64, caption, str(index), 1, captions=one, **more)
        for index, caption in enumerate(captions)
    ]


def prompts(config: PreviewsConfig, records: list[ImageRecord]) -> tuple[str, ...]:
    return with_captions(TrainConfig(previews=config), records).previews.prompts


def test_training_captions_become_prompts_as_they_are_trained() -> None:
    records = recorded("a fox", "a fox", "an owl", "a castle (stone)", "a frog", "a bird")
    assert prompts(PreviewsConfig(from_captions=2), records) == ("ohwx, a fox", r"ohwx, a castle \(stone\)")
    assert prompts(PreviewsConfig(from_captions=1, prompts=("a car",)), records) == ("a car",)
    assert prompts(PreviewsConfig(), records) == ()
    assert prompts(PreviewsConfig(from_captions=2), recorded("a person", is_class=True)) == ()


def test_a_caption_that_would_be_read_as_options_is_no_prompt() -> None:
    assert prompts(PreviewsConfig(from_captions=2), recorded("a fox --n 5", "an owl")) == ("ohwx, an owl",)


def test_more_captions_than_there_are_images_take_each_once() -> None:
    assert prompts(PreviewsConfig(from_captions=5), recorded("a fox", "")) == ("ohwx, a fox", "ohwx")
