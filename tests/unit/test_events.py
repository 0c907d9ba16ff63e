"""Events and their consumers."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sdlora.events import (
    CheckpointSaved,
    Event,
    EventStream,
    Notice,
    RunStarted,
    StepFinished,
    WarningRaised,
    parse_event,
)
from sdlora.sinks.jsonl import JsonlSink
from sdlora.sinks.terminal import TerminalSink


class Collector:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


class Broken(Collector):
    fatal = False

    def emit(self, event: Event) -> None:
        raise OSError("disk full")


class FatallyBroken(Broken):
    fatal = True


def step(number: int) -> StepFinished:
    return StepFinished(
        step=number, epoch=0, loss=0.5, learning_rates={"unet": 1e-4}, gradient_norm=1.0, seconds=0.1, memory_gib=1.0
    )


def test_a_sink_that_fails_is_reported_once_and_detached() -> None:
    collector = Collector()
    stream = EventStream([Broken(), collector])
    stream.notice("one")
    stream.notice("two")
    assert [event.kind for event in collector.events] == ["warning_raised", "notice", "notice"]
    assert isinstance(collector.events[0], WarningRaised)
    assert "Broken failed and is switched off: disk full" in collector.events[0].message


def test_a_fatal_sink_ends_the_run() -> None:
    with pytest.raises(OSError, match="disk full"):
        EventStream([FatallyBroken()]).notice("one")


def test_events_file_reads_back_what_was_sent(tmp_path: Path) -> None:
    sent = [Notice(message="häß [x]"), step(1)]
    stream = EventStream([JsonlSink(tmp_path / "events.jsonl")])
    for event in sent:
        stream.emit(event)
    stream.close()
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [parse_event(line) for line in lines] == sent


def test_terminal_shows_parameters_loss_and_warnings_in_plain_text() -> None:
    output = io.StringIO()
    sink = TerminalSink(Console(file=output, width=200))
    started = RunStarted(
        name="x", folder="runs/x", process_id=1, total_steps=2, first_step=0, trainable_parameters=10,
        total_parameters=1000,
    )  # fmt: skip
    for event in (started, step(1), step(2), WarningRaised(message="odd [tag]")):
        sink.emit(event)
    sink.close()
    text = output.getvalue()
    assert "trainable parameters: 10 of 1,000 (1.00%)" in text
    assert "training 2/2  loss 0.5000" in text
    assert "warning: odd [tag]" in text


def test_a_run_outlives_whoever_read_its_output() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    sink = TerminalSink()
    sink.console.file = Gone()
    for _ in range(2):
        sink.emit(Notice(message="loading"))
    sink.close()


def test_names_with_brackets_are_printed_whole() -> None:
    sink = TerminalSink(Console(file=io.StringIO(), soft_wrap=True))
    sink.emit(CheckpointSaved(step=1, path="runs/fox [v2]/[/]x"))
    assert "runs/fox [v2]/[/]x" in sink.console.file.getvalue()  # type: ignore[attr-defined]


def test_texts_with_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from sdlora.cli.app import console

    console.file = sys.stdout
    console.print("<lora:x:1> [a:b:0.5] :cat:", markup=False)
    assert capsys.readouterr().out == "<lora:x:1> [a:b:0.5] :cat:\n"
    console.file = None  # type: ignore[assignment]
