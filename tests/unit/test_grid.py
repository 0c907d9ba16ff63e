"""Grids before they are generated: axes, cells, their order, problems, and the sheet's layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.grid import contact_sheet
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.contact_sheet import SheetAxis, draw_contact_sheet
from sdlora.generation.grid.run import Grid
from sdlora.generation.grid.values import expand_numbers, split_values

INK = UsedAdapter(file="ink.safetensors")
FUR = UsedAdapter(file="fur.safetensors", weight=0.5)


def grid(*specs: str, run: Path | None = None, **settings: object) -> Grid:
    config = GenerateConfig(**{"seed": 3, **settings})
    return Grid(config, parse_axes(specs, config, run))


def labels(made: Grid) -> list[tuple[str, ...]]:
    return [cell.labels for cell in made.cells()]


# ---- values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:1.2:0.2", ["0", "0.2", "0.4", "0.6", "0.8", "1", "1.2"]),
        ("0:1:0.1", ["0", *(f"0.{digit}" for digit in range(1, 10)), "1"]),
        ("1:0:-0.5", ["1", "0.5", "0"]),
        ("1:2:0.4", ["1", "1.4", "1.8"]),
        ("100:400:100,1000", ["100", "200", "300", "400", "1000"]),
        ("5:5:1", ["5"]),
        ("-1,0.5", ["-1", "0.5"]),
    ],
)
def test_ranges_hold_their_end_and_do_not_drift(text: str, values: list[str]) -> None:
    assert expand_numbers(split_values(text)) == values


@given(st.integers(-1000, 1000), st.integers(1, 500), st.integers(1, 60), st.sampled_from([1, 10, 1000]))
def test_a_range_has_exactly_the_multiples(start: int, step: int, count: int, scale: int) -> None:
    end = start + step * (count - 1)
    text = ":".join(f"{value / scale:.3f}" for value in (start, end, step))
    assert [round(float(value) * scale) for value in expand_numbers([text])] == [
        start + step * index for index in range(count)
    ]


def test_quotes_keep_commas_together() -> None:
    assert split_values('a cat, "a dog, sitting", "say ""hi""", (x:1.2)') == [
        "a cat",
        "a dog, sitting",
        'say "hi"',
        "(x:1.2)",
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("guidance=1:5", "'1:5' is no range; write start:end:step, for example 0:1.2:0.2"),
        ("guidance=1:5:0", "'1:5:0' never gets from 1 to 5 in steps of 0"),
        ("guidance=1:5:-1", "'1:5:-1' never gets from 1 to 5 in steps of -1"),
        ("guidance=0:inf:1", "'0:inf:1' is no range of numbers"),
        ("guidance=0:1e9:1", "'0:1e9:1' has 1,000,000,001 values"),
        ("guidance=1,,2", "'1,,2' has an empty value; write values between commas"),
        ('prompt="a', "'\"a' can't be read: unexpected end of data"),
        ("guidance", "write it as setting=values, for example adapter.weight=0:1.2:0.2"),
        ("wieght=1", "unknown setting; did you mean 'weight'?"),
        ("guidanse=1", "unknown setting; did you mean 'guidance'?"),
        ("adapter.wieght=1", "unknown setting of an adapter; did you mean adapter.weight?"),
        ("num_images=1,2", "'num_images' can't be varied in a grid"),
        ("files.format=png", "'files.format' can't be varied in a grid"),
        ("size=512", "'512' is no size; write 512x512"),
        ("replace=cat", "give the text to replace and at least one other, replace=cat,dog"),
        ("checkpoint=100", "say whose checkpoints: --run runs/NAME"),
        ("compare", "there is no adapter to compare; give some, or write them into the prompt"),
        ("adapter.file=nothere.safetensors", "'nothere.safetensors': there is no such file"),
    ],
)
def test_an_axis_that_cannot_be_read_says_why(spec: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(spec)
    assert caught.value.problems == [f"{spec}: {reason}"]


def test_all_problems_of_all_axes_are_listed_before_anything_is_generated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        grid("x=wrong=1", "y=checkpoint=5", "z=guidance=1:2", run=tmp_path / "no-run")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"--run {tmp_path / 'no-run'}",
        "wrong=1",
        "checkpoint=5",
        "guidance=1",
    ]
    with pytest.raises(ConfigError) as caught:
        grid("steps=5,0,900", "sampler=Euler,Elder")
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="an axis is given twice; x, y and z each take one"):
        grid("x=seed=1,2", "x=steps=1,2")
    with pytest.raises(ConfigError, match="cfg=1,2 and guidance=3: guidance is varied by two axes"):
        grid("cfg=1,2", "guidance=3")
    with pytest.raises(ConfigError, match="4 axes; a grid has up to three, x, y and z"):
        grid("seed=1,2", "steps=1,2", "guidance=1,2", "clip_skip=1,2")
    with pytest.raises(ConfigError, match="num_images=2: a grid generates one image a cell"):
        grid("steps=1,2", num_images=2)


def test_more_than_four_hundred_cells_are_asked_for_explicitly() -> None:
    with pytest.raises(ConfigError, match="21 x 20 = 420 cells, more than 400; take fewer values$"):
        grid("seed=0:20:1", "steps=1:20:1")
    config = GenerateConfig(seed=1)
    axes = parse_axes(["seed=0:20:1", "steps=1:20:1"], config)
    with pytest.raises(ConfigError, match="take fewer values, or say --yes$"):  # the page has no --yes
        Grid(config, axes, for_more=", or say --yes")
    assert len(Grid(config, axes, most_cells=10_000).cells()) == 420


# ---- cells


def test_cells_take_every_combination_of_any_settings() -> None:
    made = grid("y=start.strength=0.2,0.4", "cfg=1:3:1", "z=sampler=Euler,DPM++ 2M Karras")
    assert len(made.cells()) == 12
    assert [axis.title for axis in made.axes] == ["guidance", "start.strength", "sampler"]
    assert labels(made)[:4] == [
        ("1", "0.2", "Euler"),
        ("2", "0.2", "Euler"),
        ("3", "0.2", "Euler"),
        ("1", "0.4", "Euler"),
    ]
    last = made.cells()[-1]
    assert last.place == (2, 1, 1)
    assert (last.config.guidance, last.config.start.strength, last.config.sampler) == (3.0, 0.4, "DPM++ 2M Karras")


def test_all_cells_share_a_random_seed_unless_an_axis_varies_it() -> None:
    made = grid("steps=1:4:1", seed=-1)
    assert len({cell.config.seed for cell in made.cells()}) == 1
    assert made.cells()[0].config.seed >= 0
    made = grid("seed=-1,-1,5")
    assert len({cell.config.seed for cell in made.cells()}) == 3
    assert labels(made)[2] == ("5",)


def test_prompts_are_searched_and_replaced_in_both() -> None:
    made = grid('replace=cat,dog,"a fox, red"', prompt="a cat on a cat", negative="bad cat")
    assert [cell.config.prompt for cell in made.cells()] == [
        "a cat on a cat",
        "a dog on a dog",
        "a a fox, red on a a fox, red",
    ]
    assert made.cells()[1].config.negative == "bad dog"
    with pytest.raises(ConfigError, match="replace: 'cow' is not in the prompts"):
        grid("replace=cow,dog", prompt="a cat")


def test_sizes_and_prompts_are_axes_too() -> None:
    made = grid("size=64x128,128 x 64", "prompt=a cat,a dog")  # with spaces, as the page lists sizes
    assert [(cell.config.width_px, cell.config.height_px, cell.config.prompt) for cell in made.cells()] == [
        (64, 128, "a cat"),
        (128, 64, "a cat"),
        (64, 128, "a dog"),
        (128, 64, "a dog"),
    ]


def test_adapter_weights_vary_for_the_one_adapter_or_a_numbered_one(tmp_path: Path) -> None:
    made = grid("adapter.weight=0:1:0.5", adapters=(INK,))
    assert [cell.config.adapters[0].weight for cell in made.cells()] == [0, 0.5, 1]
    made = grid("adapter2.unet=0.1,0.2", adapters=(INK, FUR))
    assert [cell.config.adapters[1].unet for cell in made.cells()] == [0.1, 0.2]
    assert made.cells()[0].config.adapters[0] == INK
    with pytest.raises(ConfigError, match=r"say which adapter is meant: adapter1 \(ink\), adapter2 \(fur\)"):
        grid("weight=0,1", adapters=(INK, FUR))
    with pytest.raises(ConfigError, match="there is no adapter to vary"):
        grid("weight=0,1")
    apart = INK.model_copy(update={"unet": 1.0, "text_encoder": 0.5})
    with pytest.raises(ConfigError, match="no effect beside its unet and text_encoder weights; vary adapter.unet"):
        grid("weight=0,1", adapters=(apart,))


def test_adapters_of_the_prompt_count(tmp_path: Path) -> None:
    (tmp_path / "fog.safetensors").write_bytes(b"")
    (tmp_path / "dew.safetensors").write_bytes(b"")
    made = grid("weight=0,1", prompt="a cat <lora:fog:0.3>", adapter_folders=(tmp_path,))
    assert [cell.config.adapters[0].weight for cell in made.cells()] == [0, 1]
    assert made.cells()[0].config.prompt == "a cat"
    made = grid("replace=fog,dew", prompt="a cat <lora:fog:0.3>", adapter_folders=(tmp_path,))
    assert [Path(cell.config.adapters[0].file).stem for cell in made.cells()] == ["fog", "dew"]
    made = grid("compare", prompt="a cat <lora:fog:1> <lora:dew:1>", adapter_folders=(tmp_path,))
    assert labels(made) == [("none",), ("fog",), ("dew",), ("together",)]
    with pytest.raises(ConfigError, match="no adapter of that name is in") as caught:
        grid("replace=fog,fig", "steps=1:50:1", prompt="<lora:fog:1>", adapter_folders=(tmp_path,))
    assert len(caught.value.problems) == 1


def test_other_files_take_the_adapters_place_with_its_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    made = grid(f"adapter.file=none,{tmp_path / 'a.safetensors'},b", adapters=(FUR,), adapter_folders=(tmp_path,))
    assert labels(made) == [("none",), ("a",), ("b",)]
    assert [cell.config.adapters for cell in made.cells()] == [
        (),
        (UsedAdapter(file=str(tmp_path / "a.safetensors"), weight=0.5),),
        (UsedAdapter(file=str(tmp_path / "b.safetensors"), weight=0.5),),
    ]


def test_compare_is_none_each_alone_and_together() -> None:
    made = grid("compare", "seed=1,2", adapters=(INK, FUR))
    assert [(cell.labels[0], cell.config.adapters) for cell in made.cells()[:4]] == [
        ("none", ()),
        ("ink", (INK,)),
        ("fur", (FUR,)),
        ("together", (INK, FUR)),
    ]
    assert labels(grid("compare", adapters=(INK,))) == [("none",), ("ink",)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as training leaves it, the adapters empty."""
    folder = tmp_path / "runs" / "cat"
    for step in (100, 200, 300):
        path = folder / "checkpoints" / f"step_{step:06d}" / f"cat-step_{step:06d}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        (path.parent / "state.pt").write_bytes(b"")
    (folder / "checkpoints" / ".step_000400.7-0123abcd.sdlora-tmp").mkdir()
    (folder / "cat.safetensors").write_bytes(b"")
    (folder / "config.yaml").write_text("name: cat\nimages: {folder: x}\n")
    return folder


def test_checkpoints_of_a_run_by_their_steps(run: Path) -> None:
    made = grid("x=weight=0.5,1", "y=checkpoint=100:300:200,final", run=run)
    assert labels(made) == [(weight, step) for step in ("100", "300", "final") for weight in ("0.5", "1")]
    assert made.axes[1].title == "training step"
    files = [Path(cell.config.adapters[0].file).name for cell in made.cells()][::2]
    assert files == ["cat-step_000100.safetensors", "cat-step_000300.safetensors", "cat.safetensors"]
    assert [label for (label,) in labels(grid("checkpoint=all", run=run))] == ["100", "200", "300", "final"]


def test_a_missing_checkpoint_names_those_that_are_there(run: Path) -> None:
    with pytest.raises(ConfigError, match="the run has no checkpoint 400, last; there is: 100, 200, 300, final"):
        grid("checkpoint=100,400,last", run=run)


# ---- axes that overrule each other


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        (("size=64x64,128x128", "width_px=96,128"), "width_px is varied by two axes"),
        (("height_px=64,128", "size=64x64,128x128"), "height_px is varied by two axes"),
        (("checkpoint=all", "adapter.file=a,none"), "adapter1.file is varied by two axes"),
        (("adapter.file=none,a", "adapter1.file=a"), "adapter1.file is varied by two axes"),
        (("adapter.file=none,a", "compare"), "adapter1.file is varied by two axes"),
        (("checkpoint=all", "compare"), "adapter1.file is varied by two axes"),
        (("weight=0,1", "adapter.unet=0,1"), "adapter1.unet is varied by two axes"),
        (("adapter.text_encoder=0,1", "adapter1.weight=0,1"), "adapter1.text_encoder is varied by two axes"),
        (("steps=1,2", "steps=3"), "steps is varied by two axes"),
        (("replace=fox,owl", "replace=owl,cat"), "'owl' in the prompts is varied by two axes"),
        (("replace=a fox,a cat", "replace=fox,owl"), "'fox' in the prompts is varied by two axes"),
    ],
)
def test_axes_that_change_the_same_are_refused_by_their_names(
    specs: tuple[str, str], what: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        grid(*specs, run=run, prompt="a fox", adapters=(INK,), adapter_folders=(tmp_path,))
    assert caught.value.problems == [f"{' and '.join(specs)}: {what}, of which one would overrule the other"]


def test_an_adapter_that_may_go_leaves_no_other_under_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"adapter1.file=none,a and adapter2.weight=0,1: adapter2\.\w+.* varied by two"
    ):
        grid("adapter1.file=none,a", "adapter2.weight=0,1", adapters=(INK, FUR, INK), adapter_folders=(tmp_path,))


def test_texts_are_replaced_in_the_prompts_of_another_axis_whichever_comes_first() -> None:
    for specs in (("replace=fox,owl", "prompt=a fox,a red fox"), ("y=prompt=a fox,a red fox", "x=replace=fox,owl")):
        made = grid(*specs, prompt="a fox")
        assert [cell.config.prompt for cell in made.cells()] == ["a fox", "a owl", "a red fox", "a red owl"]
    with pytest.raises(ConfigError, match="replace: 'fox' is not in the prompts"):
        grid("replace=fox,owl", "prompt=a fox,a cat", prompt="a fox")


def test_the_weight_of_an_adapter_is_not_varied_beside_its_unets() -> None:
    with pytest.raises(
        ConfigError, match="adapter.weight has no effect on the UNet beside its unet weight; vary adapter"
    ):
        grid("weight=0,1", adapters=(INK.model_copy(update={"unet": 0.5}),))


def test_what_goes_together_still_does() -> None:
    assert len(grid("compare", "adapter2.weight=0,1", adapters=(INK, FUR)).cells()) == 8
    assert len(grid("adapter1.weight=0,1", "adapter2.weight=0,1", adapters=(INK, FUR)).cells()) == 4
    assert len(grid("adapter.unet=0,1", "adapter.text_encoder=0,1", adapters=(INK,)).cells()) == 4
    assert len(grid("replace=fox,owl", "replace=red,blue", prompt="a red fox").cells()) == 4


# ---- order


def test_bases_switch_least_and_batches_share_what_they_must() -> None:
    made = grid("model=m1,m2", "sampler=Euler,DDIM", "z=weight=0,1", adapters=(INK,), batch_size=3)
    batches = made.batches()
    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    bases = [batch[0].config.base_model.model for batch in batches]
    assert bases == ["m1", "m1", "m2", "m2"]
    for batch in batches:
        assert len({(cell.config.base_model.model, cell.config.sampler) for cell in batch}) == 1
    assert sorted(cell.place for batch in batches for cell in batch) == sorted(cell.place for cell in made.cells())


def test_cells_with_the_same_adapters_come_one_after_the_other() -> None:
    made = grid("weight=0,0.5,1", "seed=1:4:1", adapters=(INK,), batch_size=4)
    assert [{cell.config.adapters[0].weight for cell in batch} for batch in made.batches()] == [{0}, {0.5}, {1}]


@pytest.mark.slow
def test_planning_a_grid_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from sdlora.config.generate import GenerateConfig\n"
        "from sdlora.generation.grid import axes, run\n"
        "from sdlora.library import prompt_tags\n"
        "from sdlora.generation.restore import image_files, infotext, repeat\n"
        "config = GenerateConfig()\n"
        "assert len(run.Grid(config, axes.parse_axes(['seed=1,2'], config)).batches()) == 1\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the sheet


def test_a_sheet_has_room_for_every_image_and_label() -> None:
    images = {(x, y, 0): Image.new("RGB", (128, 64), (100 * x, 100 * y, 50)) for x in range(3) for y in range(2)}
    del images[(1, 1, 0)]
    long = "a very long prompt that goes on and on, " * 20
    x = SheetAxis("guidance", ("1", "2", long))
    sheet = draw_contact_sheet(images, x, SheetAxis("seed", ("1234567890", "supercalifragilistic" * 10)))
    colours = {colour for _, colour in sheet.getcolors(2**24)}
    for (column, row, _), image in images.items():
        assert image.getpixel((0, 0)) in colours, (column, row)
    assert sum(count for count, colour in sheet.getcolors(2**24) if colour == (0, 0, 50)) == 128 * 64
    assert (228, 228, 228) in colours  # the cell that was not generated
    assert sheet.width < 3 * 128 + 400


def test_blocks_stand_below_each_other_and_huge_sheets_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {(0, 0, z): Image.new("RGB", (64, 64), "red") for z in range(3)}
    one = draw_contact_sheet({(0, 0, 0): images[(0, 0, 0)]}, SheetAxis("seed", ("1",)))
    three = draw_contact_sheet(images, SheetAxis("seed", ("1",)), z=SheetAxis("sampler", ("a", "b", "c")))
    assert three.height > 3 * one.height
    monkeypatch.setattr(contact_sheet, "_LARGEST_SHEET_PX", 1e6)
    wide = {(x, 0, 0): Image.new("RGB", (512, 512)) for x in range(10)}
    sheet = draw_contact_sheet(wide, SheetAxis("seed", tuple(str(x) for x in range(10))))
    assert sheet.width * sheet.height < 1.5e6
