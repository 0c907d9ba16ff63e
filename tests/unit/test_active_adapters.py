"""Rows of adapters in use: operations, blocks, `<lora:...>` text both ways, families, keeping, saved mixes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sdlora.adapters.algebra.blocks import read_blocks, spell_blocks
from sdlora.config.generate import UsedAdapter
from sdlora.config.mix import MixedAdapter, parse_adapter, spell_adapter
from sdlora.errors import AdapterError, ConfigError
from sdlora.library import mixes
from sdlora.library.rows import (
    Row,
    add,
    apply_tags,
    check_family,
    from_used,
    move,
    remove,
    to_tags,
    update,
    used,
)
from sdlora.library.scan import Library, Scan
from tests.support.emoji_adapters import random_adapter
from webui.active_adapters import ActiveAdapters
from webui.mix.rows import RowsPanel
from webui.state import PageState


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("ink", "wash", "chalk")):
        random_adapter(folder / f"{name}.safetensors", seed)
    (folder / "wash.json").write_text('{"preferred weight": 0.7}', encoding="utf-8")
    wide = {"lora_down": numpy.zeros((2, 2048), numpy.float32), "lora_up": numpy.zeros((640, 2), numpy.float32)}
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.{factor}.weight": value for factor, value in wide.items()}, folder / "xl.safetensors")
    return Library([folder], folder / "library.json").scan()


def rows_of(library: Scan, *names: str) -> tuple[Row, ...]:
    rows: tuple[Row, ...] = ()
    for name in names:
        rows = add(rows, library.find(name))
    return rows


def test_a_row_begins_at_the_preferred_weight_and_no_adapter_comes_twice(library: Scan) -> None:
    rows = rows_of(library, "ink", "wash")
    assert [(row.id, row.name, row.weight) for row in rows] == [(1, "ink", 1.0), (2, "wash", 0.7)]
    entry = library.find("ink")
    with pytest.raises(AdapterError, match="ink is in the list already; change its weight there"):
        add(rows, entry)


def test_rows_move_change_and_go(library: Scan) -> None:
    rows = rows_of(library, "ink", "wash", "chalk")
    assert [row.name for row in move(rows, 3, -1)] == ["ink", "chalk", "wash"]
    assert move(rows, 1, -1) == rows
    assert move(rows, 9, 1) == rows
    assert [row.name for row in remove(rows, 2)] == ["ink", "chalk"]
    assert update(rows, 2, weight=-1.5)[1].weight == -1.5
    assert add(remove(rows, 2), library.find("wash"))[-1].id == 4


def test_enabled_rows_become_settings_and_back(library: Scan) -> None:
    rows = rows_of(library, "ink", "wash", "chalk")
    rows = update(rows, 1, text_encoder=0.2, blocks="MID=0.5,OUT03=0", start=0.25)
    rows = update(rows, 2, enabled=False)
    rows = update(rows, 3, blocks="1,0,1,0,1,0,1,0,1,0,1,0,1,0,1,0,1")
    first, second = used(rows)
    assert (first.weight, first.text_encoder, first.start) == (1.0, 0.2, 0.25)
    assert first.blocks == {"MID": 0.5, "OUT03": 0.0}
    assert isinstance(second.blocks, list)
    again = from_used([first, second])
    assert [(row.weight, row.text_encoder, row.blocks, row.start) for row in again] == [
        (row.weight, row.text_encoder, row.blocks, row.start) for row in (rows[0], rows[2])
    ]


def test_an_adapter_with_parts_of_its_own_keeps_its_effect() -> None:
    row = from_used([UsedAdapter(file="a.safetensors", weight=0.5, unet=0.9)])[0]
    assert (row.weight, row.text_encoder) == (0.9, 0.5)
    row = from_used([UsedAdapter(file="a.safetensors", weight=0.5, unet=0.9, text_encoder=0.9)])[0]
    assert (row.weight, row.text_encoder) == (0.9, None)


def test_all_problems_of_rows_are_told_at_once(library: Scan) -> None:
    rows = update(rows_of(library, "ink", "wash"), 1, blocks="SIDEWAYS")
    rows = update(rows, 2, start=0.8, end=0.2)
    with pytest.raises(ConfigError) as caught:
        used(rows)
    assert len(caught.value.problems) == 2
    assert "no weights are called 'SIDEWAYS'" in caught.value.problems[0]
    assert "start 0.8 must come before end 0.2" in caught.value.problems[1]


@pytest.mark.parametrize(
    ("text", "read"),
    [("", "ALL"), ("outd", "outd"), ("MID=0.5", {"MID": 0.5}), ("1, 0,0.5", [1.0, 0.0, 0.5])],
)
def test_blocks_are_read_as_people_type_them(text: str, read: object) -> None:
    assert read_blocks(text, "ink") == read
    assert read_blocks(spell_blocks(read_blocks(text, "ink")), "ink") == read


def test_blocks_are_checked_against_the_family() -> None:
    with pytest.raises(ConfigError, match="3 weights; this adapter needs 17 or 26"):
        read_blocks("1,0,0.5", "ink", "sd1")
    with pytest.raises(ConfigError, match="there is no block OUT11"):
        read_blocks("OUT11=0.5", "ink", "sdxl")


# ---- text


def test_rows_and_text_say_the_same(library: Scan) -> None:
    rows = update(rows_of(library, "ink", "wash", "chalk"), 1, text_encoder=0.3, weight=0.8)
    rows = update(rows, 3, enabled=False)
    text = to_tags(rows, library)
    assert text == "<lora:ink:0.3:0.8> <lora:wash:0.7>"
    assert apply_tags(rows, text, library) == rows


def test_editing_the_text_changes_adds_and_switches_off(library: Scan) -> None:
    rows = rows_of(library, "ink", "wash")
    after = apply_tags(rows, "<lora:chalk:0.4>, <lora:INK:te=0.1:unet=0.9>", library)
    assert [(row.name, row.enabled, row.weight, row.text_encoder) for row in after] == [
        ("chalk", True, 0.4, None),
        ("wash", False, 0.7, None),
        ("ink", True, 0.9, 0.1),
    ]
    assert apply_tags(rows, "<lora:ink:1:lbw=OUTD> <lora:wash:1>", library)[0].blocks == "OUTD"
    assert apply_tags(after, "<lora:wash:0.5>", library)[1] == Row(2, rows[1].file, weight=0.5)


def test_a_text_that_makes_no_sense_changes_nothing_and_names_everything(library: Scan) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_tags((), "a fox <lora:ink:1> <lora:ink:2> <lora:nobody:1>", library)
    assert caught.value.problems == [
        "'a fox' is no <lora:name:weight>",
        "<lora:ink:2>: ink has a tag already",
        "<lora:nobody:1>: no adapter of that name is in the library; there is: chalk, ink, wash, xl",
    ]
    with pytest.raises(ConfigError, match="'much' is not a number"):
        apply_tags((), "<lora:ink:much>", library)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_rows_survive_the_way_through_text(library: Scan, data: st.DataObject) -> None:
    weights = st.floats(-5, 5).map(lambda weight: round(weight, 3) + 0.0)
    rows = rows_of(library, *data.draw(st.permutations(["ink", "wash", "chalk"])))
    for row in rows:
        text_encoder = data.draw(st.none() | weights)
        weight = data.draw(weights)
        if text_encoder == weight:
            text_encoder = None
        rows = update(rows, row.id, weight=weight, text_encoder=text_encoder, enabled=data.draw(st.booleans()))
    assert apply_tags(rows, to_tags(rows, library), library) == rows


# ---- families and keeping


def test_mixed_families_are_refused_naming_both(library: Scan) -> None:
    rows = rows_of(library, "ink", "xl")
    with pytest.raises(AdapterError, match="xl is for sdxl") as caught:
        check_family(rows, library)
    assert "ink is for sd1" in str(caught.value)
    assert check_family(update(rows, 2, enabled=False), library) == "sd1"
    with pytest.raises(AdapterError, match="the base model anime is sdxl, ink is for sd1"):
        check_family(rows[:1], library, ("anime", "sdxl"))


def test_a_file_that_is_gone_is_named(library: Scan) -> None:
    with pytest.raises(AdapterError, match=r"these files are gone: /nowhere/x\.safetensors"):
        check_family((Row(1, "/nowhere/x.safetensors"),), library)


def test_rows_outlive_the_server(library: Scan, tmp_path: Path) -> None:
    active = ActiveAdapters(PageState(tmp_path / "state.json"))
    rows = active.change(lambda _: update(rows_of(library, "ink", "wash"), 2, text_encoder=0.25, blocks="OUTD"))
    assert ActiveAdapters(PageState(tmp_path / "state.json")).rows == rows


def test_two_servers_over_one_folder_keep_each_others_rows(library: Scan, tmp_path: Path) -> None:
    one, other = (ActiveAdapters(PageState(tmp_path / "state.json")) for _ in range(2))
    one.change(lambda _: rows_of(library, "ink", "wash"))
    rows = other.change(lambda rows: update(rows, 2, text_encoder=0.25))
    assert [row.file for row in rows] == [row.file for row in one.rows]
    assert one.change(lambda rows: rows) == rows


def test_remembered_rows_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    state = PageState(tmp_path / "state.json")
    state.set("mix.rows", [{"id": 1, "file": "a"}, {"id": 2}, "x", {"id": 3, "file": "b", "colour": 1}])
    assert ActiveAdapters(state).rows == (Row(1, "a"),)


# ---- saved mixes and export


def test_a_saved_mix_comes_back_and_is_never_overwritten(library: Scan, tmp_path: Path) -> None:
    rows = update(rows_of(library, "ink", "wash"), 1, weight=0.8, text_encoder=0.1, blocks="MID=0.5")
    path = mixes.save_mix(rows, "soft ink", tmp_path)
    assert mixes.list_mixes(tmp_path) == ["soft ink"]
    assert mixes.load_mix("soft ink", tmp_path, library) == (rows, [])
    assert "weight: 0.8" in path.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"soft ink\.yaml exists already"):
        mixes.save_mix(rows, "soft ink", tmp_path)


def test_a_mix_finds_files_that_moved_and_names_those_that_are_gone(library: Scan, tmp_path: Path) -> None:
    rows = (Row(1, "/elsewhere/ink.safetensors"), Row(2, "/elsewhere/lost.safetensors"))
    mixes.save_mix(rows, "old", tmp_path)
    loaded, notes = mixes.load_mix("old", tmp_path, library)
    assert [row.file for row in loaded] == [str(library.find("ink").path)]
    (note,) = notes
    assert note.startswith("/elsewhere/lost.safetensors is gone, and no adapter of that name is in the library")


def test_a_mix_of_which_nothing_is_left_does_not_take_the_rows_place(library: Scan, tmp_path: Path) -> None:
    mixes.save_mix((Row(1, "/elsewhere/lost.safetensors"),), "old", tmp_path)
    with pytest.raises(ConfigError, match=r"lost\.safetensors is gone.*\n.*none of its adapters is there, so the rows"):
        mixes.load_mix("old", tmp_path, library)


def test_what_a_file_cannot_hold_is_refused(library: Scan) -> None:
    with pytest.raises(ConfigError, match="no adapter is switched on"):
        mixes.mixed(())
    with pytest.raises(ConfigError, match="ink: sets in or ends during the steps"):
        mixes.mixed(update(rows_of(library, "ink"), 1, start=0.2))
    with pytest.raises(ConfigError, match="method svd needs a rank or an energy"):
        mixes.mix_config(rows_of(library, "ink"), {"method": "svd", "rank": None})
    assert mixes.mix_config(rows_of(library, "ink"), {"method": "svd", "rank": 8}).rank == 8


@pytest.mark.parametrize("name", ["", "  ", "../up", "a/b", "what?", ".hidden"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="the name has 1 problem"):
        mixes.new_file(name, tmp_path, ".safetensors")


@pytest.mark.parametrize(
    "adapter",
    [
        MixedAdapter(file="a.safetensors"),
        MixedAdapter(file="/x y/b.safetensors", weight=-0.5, unet=0.25, text_encoder=0.0, text_encoder_2=1e-5),
        MixedAdapter(file="hf://owner/name", weight=2.0, blocks="OUTD"),
        MixedAdapter(file="a.safetensors", text_encoder=0.3, blocks=[1.0, 0.0, 0.5]),
        MixedAdapter(file="a.safetensors", blocks={"MID": 0.5, "OUT03": 0.0}),
    ],
)
def test_an_adapter_is_spelled_as_the_command_line_reads_it(adapter: MixedAdapter) -> None:
    assert parse_adapter(spell_adapter(adapter)) == adapter


@pytest.mark.parametrize("name", ["CON", "nul.x", "x" * 300])
def test_a_mix_has_a_name_that_every_system_can_keep(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="Windows keeps it for devices|is too long"):
        mixes.new_file(name, tmp_path, ".safetensors")


def test_of_values_that_overtake_each_other_the_newest_counts() -> None:
    panel: Any = object.__new__(RowsPanel)
    panel._newest, panel._lock = {}, threading.Lock()

    def is_newest(number: int, window: str = "a", row: int = 1, name: str = "weight") -> bool:
        return bool(panel._is_newest(row, name, {"window": window, "number": number}))

    assert [is_newest(number) for number in (1, 4, 3, 2, 5)] == [True, True, False, False, True]
    assert is_newest(2, window="b")  # another window counts by itself, and so does another field
    assert is_newest(3, name="start")
