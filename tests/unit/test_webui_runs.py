"""Run views without a browser: states in words, curves, previews, comparison, files, starting once."""

from __future__ import annotations

import csv
import io
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sdlora import events
from sdlora.config import files as config_files
from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.launch import queue
from sdlora.launch.dry_runs import Finding
from sdlora.launch.evaluations import Evaluations
from sdlora.launch.forecast import Forecast
from sdlora.launch.pace import Pace, Paces
from sdlora.launch.runs import RunHandle
from sdlora.launch.starting import Starter
from sdlora.launch.support import support_zip
from sdlora.launch.watch import RunWatch, Snapshot, WatchedRun, settings_that_differ
from sdlora.runs.curves import MAX_POINTS, Curves, smoothed, thin_out
from sdlora.runs.state import RunState, RunStatus
from sdlora.training.preflight.step_count import count_steps
from tests.support.told_runs import DEMO, made, started, step, told
from webui.runs import chart, previews, sentences, view
from webui.runs.chart import ChartOptions, Curve
from webui.runs.parts import Choice, RunParts
from webui.train import view as train_view


def validated(number: int, loss: float) -> events.Validated:
    return events.Validated(step=number, loss=loss, base_loss=0.2, relative_loss=loss / 0.2, is_best=True)


def test_a_resumed_run_replaces_the_steps_it_does_again() -> None:
    curves = Curves()
    for event in (started(), validated(0, 0.2), *(step(n) for n in range(1, 9)), started(first=5), step(6, 0.05)):
        curves.take(event)
    assert list(curves.steps) == [1, 2, 3, 4, 5, 6]
    assert curves.losses[-1] == 0.05
    rows = list(csv.DictReader(io.StringIO(curves.as_csv())))
    assert rows[0] == {"step": "0", "loss": "", "validation_loss": "0.2", "learning_rate_unet": "", "seconds": ""}
    assert rows[-1]["loss"] == "0.05"


def test_a_step_that_tells_other_learning_rates_leaves_gaps() -> None:
    curves = Curves()
    both = step(2).model_copy(update={"learning_rates": {"unet": 1e-4, "text_encoder": 5e-5}})
    for event in (started(), step(1), both, step(3)):
        curves.take(event)
    rows = list(csv.DictReader(io.StringIO(curves.as_csv())))
    assert [row["learning_rate_text_encoder"] for row in rows] == ["", "5e-05", ""]
    assert [row["learning_rate_unet"] for row in rows] == ["0.0001"] * 3


def test_a_very_long_log_is_read_part_by_part_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = made(tmp_path)
    told(handle, started(), *(step(n) for n in range(1, 101)))
    monkeypatch.setattr("sdlora.launch.watch._LOOK_BYTES", 8_000)
    watch = RunWatch(tmp_path)
    parts = RunParts(watch, Evaluations(tmp_path / "jobs"), tmp_path / "thumbnails", tmp_path / "datasets")
    first = parts.parts(Choice("cats"))["chart"]
    assert "still being read" in str(first.make())
    assert watch.is_reading
    seen = len(watch.curves(handle).steps)
    assert 0 < seen < 100
    assert len(watch.curves(handle, whole=True).steps) == 100
    last = parts.parts(Choice("cats"))["chart"]
    assert first.key != last.key
    assert "still being read" not in str(last.make())
    assert not watch.is_reading
    with handle.files.events.open("a", encoding="utf-8") as log:
        log.write('{"kind": "step_fin')  # its writer was killed here
    watch.curves(handle)
    assert not watch.is_reading


def test_a_long_curve_is_shown_with_few_points_and_keeps_its_extremes() -> None:
    losses = [0.1 + 0.001 * (n % 7) for n in range(20_000)]
    losses[12_345] = 0.9
    points = thin_out(range(1, 20_001), losses)
    assert len(points) <= MAX_POINTS
    assert (12_346.0, 0.9) in points
    assert len(smoothed(range(1, 20_001), losses, 0.3)) <= MAX_POINTS


def test_smoothing_has_no_delay_and_keeps_a_constant() -> None:
    steps = range(1, 102)
    peak = smoothed(steps, [1.0 if n == 51 else 0.0 for n in steps], 0.5)
    assert max(peak, key=lambda point: point[1])[0] == 51
    assert [value for _, value in smoothed(steps, [0.25] * 101, 1.0)] == pytest.approx([0.25] * 101)
    assert smoothed([1, 2], [0.1, 0.2], 0.0) == [(1.0, 0.1), (2.0, 0.2)]


def test_the_chart_says_its_last_values_in_words() -> None:
    curve = Curve("cats", range(1, 4), [0.3, 0.2, 0.1], [(3.0, 0.15)], [1e-4, 1e-4, 5e-5])
    drawn = chart.chart([curve], ChartOptions(smoothing=0.0))
    label = re.search('aria-label="([^"]+)"', drawn)
    assert label is not None
    assert label[1] == "Loss of cats: 0.1000 at step 3, smoothed 0.1000, validation 0.1500 at step 3."
    assert "learning rate" in drawn
    assert "learning rate" not in chart.chart([curve], ChartOptions(with_rate=False))
    assert "<script" not in chart.chart([Curve("<script>", [1], [0.1])], ChartOptions(log_scale=True))
    assert "No step yet" in chart.chart([Curve("cats", [], [])], ChartOptions(), "No step yet.")


def test_a_stretch_of_steps_is_shown_with_all_its_points() -> None:
    curve = Curve("cats", range(1, 20_001), [0.1 + 0.001 * (n % 7) for n in range(20_000)], [(5.0, 0.2), (150.0, 0.15)])
    part = curve.between(100, 200)
    assert (list(part.steps), len(part.losses), part.validations) == (list(range(100, 201)), 101, [(150.0, 0.15)])
    shown = chart.chart([curve], ChartOptions(first_step=100, last_step=200))
    assert 'data-steps="100 200"' in shown
    assert "at step 200" in shown
    assert "No step between 30000 and 40000" in chart.chart([curve], ChartOptions(first_step=30_000, last_step=40_000))


@pytest.mark.parametrize(
    ("state", "words", "on"),
    [
        (RunState("running", 12, 100), "cats</strong> is training", {"stop", "save", "preview"}),
        (RunState("stopping", 12, 100), "asked to stop and is saving", {"kill"}),
        (RunState("stopped", 12, 100), "stopped at step 12 of 100; it can go on", {"resume", "delete"}),
        (RunState("stopped"), "has not begun", {"resume", "delete"}),
        (RunState("finished", 100, 100), "is finished: 100 steps", {"delete"}),
        (RunState("crashed", 12, 100, last_error="Killed <9>"), "Killed &lt;9&gt;", {"resume", "delete"}),
        (RunState("failed", 0, None, last_error="no captions"), "no captions", {"resume", "delete"}),
        (RunState("queued"), "waits for its turn", {"delete"}),
    ],
)
def test_each_state_has_its_words_and_its_buttons(state: RunState, words: str, on: set[str], tmp_path: Path) -> None:
    run = WatchedRun(RunHandle(tmp_path / "cats"), state)
    assert words in view.headline(run)
    assert state.actions == on


ALL_STATES = [
    RunState(status, step, total, stage=stage, updated_at=told_at)
    for status in get_args(RunStatus)
    for step, total in ((0, None), (0, 100), (28, 100), (100, 100))
    for stage in (None, "generating previews")
    for told_at in (None, 1.0)
]


@pytest.mark.parametrize("state", ALL_STATES, ids=str)
def test_no_sentence_says_what_is_not_so(state: RunState) -> None:
    said = {
        "headline": sentences.headline(state),
        "badge": sentences.badge(state),
        "loss": sentences.no_loss(state),
        "previews": sentences.no_previews(state, True),
        "files": sentences.no_files(state),
        "log": sentences.no_log(state),
    }
    everything = " ".join(said.values())
    assert all(said.values())
    assert "preview prompts" not in everything  # it has some
    assert ("Save now" in everything) == ("save" in state.actions)
    assert ("is training" in said["headline"]) == (state.status == "running")
    assert not ("Resume" in said["headline"] and "resume" not in state.actions)
    assert ("being generated" in said["previews"]) == (state.is_active and state.stage is not None)
    begun = sentences.has_begun(state)
    assert (said["badge"] == "not begun") == (state.status == "stopped" and not begun)
    assert begun or "ended" not in everything
    if not state.is_active and begun and state.status != "queued":
        assert "once the run" not in everything
        assert "will" not in everything


def test_the_header_and_the_progress_bar_tell_the_same_percent() -> None:
    state = RunState("running", 28, 100)
    assert sentences.in_short("cats", state, 1) == "cats: 28 % of 100 steps"
    assert sentences.in_short("cats", state, 10) == "cats: 20 % of 100 steps"  # what is spoken
    assert "<span>28%</span>" in view.figures(state)


def test_speed_and_remaining_time_wait_for_thirty_steps() -> None:
    assert "known after 30 steps" in view.figures(RunState("running", 12, 100))
    shown = view.figures(RunState("running", 50, 100, steps_per_second=2.0, eta_seconds=25.0))
    assert "2.0 steps/s" in shown
    assert "about 25 s" in shown
    assert 'aria-valuenow="50"' in shown
    silent = RunState("running", 50, 100, updated_at=time.time() - 600)
    assert "No news for 10 min" in view.figures(silent)


def test_killing_is_offered_again_when_stopping_takes_long() -> None:
    state = RunState("stopping", 1, 10)
    assert view.kill_hint(state, time.time()) == ""
    assert "Kill ends it at once" in view.kill_hint(state, time.time() - 21)
    assert view.kill_hint(RunState("running"), time.time() - 99) == ""


def test_the_queue_lists_who_waits_and_what_can_be_done(tmp_path: Path) -> None:
    shown = view.queue(Snapshot(waiting=("one", "t<w>o")))
    assert shown.count("<li>") == 2
    assert 'aria-label="Move up one" title="Move up" disabled' in shown
    assert "t&lt;w&gt;o" in shown
    assert "Held: nothing is started" in view.queue(Snapshot(waiting=("one",), is_held=True))
    assert view.queue(Snapshot()) == ""
    assert "No runs yet" in view.run_list(Snapshot(), None)


def test_a_press_makes_one_run_however_often_it_comes(tmp_path: Path, monkeypatch: Any) -> None:
    begun: list[str] = []
    monkeypatch.setattr(RunHandle, "resume", lambda self: begun.append(self.name))
    starter = Starter(tmp_path)
    first = starter.start(DEMO)
    assert starter.start(DEMO) == first
    assert starter.enqueue(DEMO) == first
    assert begun == [first.name]
    other = starter.start(DEMO.model_copy(update={"name": "other"}))
    assert begun == [first.name, other.name]


def test_nothing_is_started_beside_a_waiting_run(tmp_path: Path) -> None:
    handle = made(tmp_path)
    queue.hold(tmp_path)
    queue.enqueue(handle)
    with pytest.raises(RunError, match="cats waits in the queue: add this run to the queue instead"):
        Starter(tmp_path).start(DEMO)
    assert Starter(tmp_path).enqueue(DEMO).state().status == "queued"
    assert RunWatch(tmp_path).snapshot().waiting == ("cats", "blueprint-demo")


def test_a_snapshot_of_the_runs_sees_what_is_new(tmp_path: Path) -> None:
    watch = RunWatch(tmp_path)
    assert watch.snapshot().runs == ()
    handle = made(tmp_path)
    told(handle, started(), step(1), events.RunFailed(step=1, message="the card is full"))
    run = watch.snapshot(now=True).find("cats")
    assert run is not None
    assert (run.state.status, run.state.last_error) == ("failed", "the card is full")
    told(handle, started(first=1), step(2))
    assert list(watch.curves(handle).steps) == [1, 2]
    told(handle, step(3))
    assert list(watch.curves(handle).steps) == [1, 2, 3]


def previewed(handle: RunHandle, *steps: int) -> None:
    """Preview pictures of the run's prompts at these steps."""
    for number in steps:
        folder = handle.files.previews(number)
        folder.mkdir(parents=True)
        for index in range(len(DEMO.previews.prompts)):
            Image.new("RGB", (16, 16), (number % 255, index, 0)).save(folder / f"{index:02d}.png")


def test_previews_are_shown_by_step_and_prompt_and_compared_with_step_0(tmp_path: Path) -> None:
    handle = made(tmp_path / "runs")
    assert "Not yet." in previews.grid([], tmp_path, "Not yet.")
    previewed(handle, 0, 100)
    images = handle.previews()
    table = previews.grid(images, tmp_path / "thumbnails", "")
    assert table.count("<img") == 6
    assert 'alt="an owl, blueprint style, step 100"' in table
    pair = previews.before_after(images, 1, 100)
    assert "step_000000/01.png" in pair
    assert "step_000100/01.png" in pair
    assert 'aria-label="Share of the picture that shows step 100"' in pair
    assert "can be compared with it" in previews.before_after(images, 1, 0)
    assert previews.before_after(images, 9, 100) == ""


def test_runs_are_compared_by_settings_and_pictures(tmp_path: Path) -> None:
    one, other = made(tmp_path / "runs", "one"), made(tmp_path / "runs", "other", seed=7)
    previewed(one, 0)
    previewed(other, 0, 50)
    runs = [WatchedRun(handle, handle.state()) for handle in (one, other)]
    assert settings_that_differ(runs) == [("name", ["one", "other"]), ("seed", [0, 7])]
    assert "<td>7</td>" in view.compared(runs, "<svg></svg>", "")
    assert "<svg></svg>" in view.compared(runs[:1] * 2, "<svg></svg>", "")
    assert "are the same" in view.compared(runs[:1] * 2, "", "")
    side = previews.side_by_side([(run.name, run.handle.previews()) for run in runs], tmp_path / "thumbnails")
    assert side.count("<img") == 6
    assert "step 50" in side


def test_only_what_has_changed_is_made_anew(tmp_path: Path) -> None:
    handle = made(tmp_path / "runs")
    told(handle, started(), *(step(n) for n in range(1, 4)))
    evaluations = Evaluations(tmp_path / "jobs")
    page = RunParts(RunWatch(tmp_path / "runs"), evaluations, tmp_path / "thumbnails", tmp_path / "datasets")

    def keys() -> dict[str, Any]:
        page.watch.snapshot(now=True)
        return {name: part.key for name, part in page.parts(Choice()).items()}

    before = keys()
    assert keys() == before
    told(handle, step(4))
    changed = {name for name, key in keys().items() if key != before[name]}
    assert "chart" in changed
    assert not changed & {"queue", "buttons", "log", "files", "messages", "pair", "compared"}
    assert all(isinstance(part.make(), object) for part in page.parts(Choice()).values())


def test_many_pages_that_ask_for_the_same_have_it_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("webui.runs.parts.time.monotonic", lambda: clock[0])
    page = RunParts(RunWatch(tmp_path), Evaluations(tmp_path / "jobs"), tmp_path, tmp_path)
    made_so_far: list[str] = []

    def ask(key: str) -> int:
        return page.once(key, lambda: made_so_far.append(key) or len(made_so_far))

    assert [ask("cat"), ask("cat"), ask("dog"), ask("cat")] == [1, 1, 2, 1]
    clock[0] += 1.5  # a page that asks later gets what is so by then
    assert [ask("cat"), ask("dog")] == [3, 4]
    assert len(page._made) == 2


def test_the_base_models_of_runs_are_offered_newest_first(tmp_path: Path) -> None:
    for place, model in enumerate(("a/first", "b/second")):
        handle = made(tmp_path, f"run-{place}", base_model=DEMO.base_model.model_copy(update={"model": model}))
        os.utime(handle.files.config, (1_000 + place, 1_000 + place))
    by_hand = made(tmp_path, "by-hand")
    by_hand.files.config.write_text("{base_model: {model: c/third}}")
    made(tmp_path, "damaged").files.config.write_text("base_model:\n  model: [\n")
    assert RunWatch(tmp_path).base_models() == ["c/third", "b/second", "a/first"]


def test_adapter_files_can_be_fetched(tmp_path: Path) -> None:
    handle = made(tmp_path / "my runs")
    assert "Save now writes one" in view.adapter_files([], RunState("running", 1, 5))
    handle.files.adapter("cats").write_bytes(b"0" * 2**20)
    listed = view.adapter_files(handle.adapter_files(), RunState("finished", 5, 5))
    assert "1.0 MiB" in listed
    assert f'href="gradio_api/file={tmp_path}/my%20runs/cats/cats.safetensors" download="cats.safetensors"' in listed


def test_a_run_of_tokens_alone_offers_its_embedding(tmp_path: Path) -> None:
    tokens = config_files.load(overrides=["adapter.new_tokens={<ohwx>: red fox}", "adapter.rank=0"])
    handle = made(
        tmp_path / "runs",
        adapter=tokens.adapter,
        captions=tokens.captions,
        optimization=tokens.optimization,
        previews=tokens.previews,
    )
    save_file(
        {"emb_params": np.zeros((2, 8), "float32")},
        handle.files.result(handle.config()),
        {"sdlora.new_token": "<ohwx>"},
    )
    told(handle, started(), events.RunFinished(step=5, reason="completed", adapter_path=None, seconds=1.0))
    assert handle.adapter_files() == []
    listed = view.adapter_files([], handle.state(), handle.embedding_files())
    assert "cats_emb.safetensors" in listed
    assert "finished · new token &lt;ohwx&gt; · 0." in listed
    run = WatchedRun(handle, handle.state())
    offered = view.outcome(run, [], "", handle.embedding_files())
    assert "Generate with it" in offered
    assert "Add to mix" not in offered
    first = view.first_request(handle, "", "more")
    assert first["prompt"] == "<ohwx>"
    assert first["embedding_folders"] == f"more\n{handle.folder}"
    assert view.outcome(run, [], "") == ""


def test_a_first_picture_is_made_as_the_first_preview_was(tmp_path: Path) -> None:
    line = "a blue fox --n blurry --w 96 --s 7"
    set_so = config_files.load(overrides=[f"previews.prompts=[{line}]", "previews.guidance=3", "captions.trigger=ohwx"])
    handle = made(tmp_path / "runs", previews=set_so.previews, captions=set_so.captions)
    first = view.first_request(handle, "a prompt for something else")
    expected = {"prompt": "a blue fox", "negative": "blurry", "steps": 7, "guidance": 3.0, "sampler": "DPM++ 2M"}
    expected |= {"width_px": 96, "height_px": handle.config().images.resolutions[0]}
    assert {name: first[name] for name in expected} == expected
    own = view.first_request(handle, "a portrait of OHWX")
    assert set(own) == {"base_model.model", "prompt"}


def test_a_support_zip_holds_no_images_and_prompts_only_when_asked(tmp_path: Path) -> None:
    handle = made(tmp_path / "runs")
    previewed(handle, 0)
    told(handle, started(), events.PreviewReady(step=0, paths=["x.png"], prompts=["a secret ] cat"]))
    handle.files.log.write_text("error: no memory\n", encoding="utf-8")

    def content(with_prompts: bool) -> dict[str, str]:
        with zipfile.ZipFile(support_zip(handle, tmp_path / "out", with_prompts=with_prompts)) as archive:
            return {name: archive.read(name).decode() for name in archive.namelist()}

    plain = content(False)
    assert set(plain) == {"config.yaml", "environment.json", "state.json", "files.txt", "events.jsonl", "log.txt"}
    assert "blueprint style" not in plain["config.yaml"]
    assert "secret" not in plain["events.jsonl"]
    assert plain["log.txt"] == "error: no memory"
    assert "secret" in content(True)["events.jsonl"]
    assert "blueprint style" in content(True)["config.yaml"]


def test_steps_are_counted_from_file_names(tmp_path: Path) -> None:
    for name in ("3_cat/a.png", "3_cat/b.png", "dog/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config = config_files.validate({"images": {"folder": str(tmp_path)}, "optimization": {"batch_size": 2}}, "test")
    counted = count_steps(config)
    assert counted is not None
    assert counted.in_words() == (
        "3 images x repeats = 7 samples / batch 2 = 4 steps an epoch (the last batch is smaller); 40 steps = 10 epochs"
    )
    assert count_steps(TrainConfig()) is None


def test_the_time_is_told_from_runs_of_the_same_size_only(tmp_path: Path) -> None:
    handle = made(tmp_path)
    paces = Paces()
    told(handle, started(), *(step(n) for n in range(1, 20)))
    assert paces.find(DEMO, [handle]) is None
    told(handle, *(step(n) for n in range(20, 41)))
    assert paces.find(DEMO, [handle]) == Pace(0.5, "cats")
    larger = DEMO.model_copy(update={"optimization": DEMO.optimization.model_copy(update={"batch_size": 16})})
    assert paces.find(larger, [handle]) is None
    shown = train_view.summary(Forecast(steps=count_steps(DEMO), pace=Pace(0.5, "cats")))
    assert "about 2 min 30 s" in shown
    assert "0.5 s a step in cats" in shown
    assert "known after 30 steps" in train_view.summary(Forecast(steps=count_steps(DEMO), dry_run=Finding("running")))
