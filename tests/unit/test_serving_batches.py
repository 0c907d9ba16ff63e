"""The queue in front of a served model: who comes along in a pass, who is turned away, whom a fault concerns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from PIL import Image

from sdlora.config.generate import GenerateConfig
from sdlora.config.serve import ServeConfig
from sdlora.errors import AdapterError
from sdlora.generation.generated import GeneratedImage, GenerationFacts
from sdlora.serving.batches import Batches, FullError, UnexpectedError

FACTS = GenerationFacts("stand-in", None, {}, "sd1", "epsilon", 0.0)
SECONDS = 30


class StandIn:
    """Generates black pictures, when it may, and remembers what came together."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.counted: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.has_begun = threading.Event()
        self.wrong: Callable[[Sequence[GenerateConfig]], Exception | None] = lambda rows: None

    def generate_rows(
        self, rows: Sequence[GenerateConfig], *, is_cancelled: Callable[[], bool]
    ) -> Iterator[GeneratedImage]:
        self.passes.append([row.prompt for row in rows])
        self.has_begun.set()
        while not self.may_go.wait(0.01):
            if is_cancelled():
                return
        if (error := self.wrong(rows)) is not None:
            raise error
        for row in rows:
            yield GeneratedImage(Image.new("RGB", (8, 8)), row, FACTS)


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def make(stand_in: StandIn) -> Iterator[Callable[..., Batches]]:
    made: list[Batches] = []

    def begin(**settings: Any) -> Batches:
        given: Any = stand_in
        served = ServeConfig.model_validate({"batch_wait_ms": 0, **settings})
        batches = Batches(served, lambda: given, lambda num_images, seconds: stand_in.counted.append(num_images))
        made.append(batches)
        batches.start()
        return batches

    yield begin
    stand_in.may_go.set()
    for batches in made:
        batches.stop()


def row(prompt: str, **settings: Any) -> GenerateConfig:
    return GenerateConfig(prompt=prompt, seed=1, width_px=64, height_px=64, **settings)


def prompts(future: Future[list[GeneratedImage]]) -> list[str]:
    return [image.config.prompt for image in future.result(SECONDS)]


def held(stand_in: StandIn, batches: Batches) -> Future[list[GeneratedImage]]:
    """A request that is being generated until `may_go`."""
    stand_in.may_go.clear()
    future = batches.submit([row("first")])
    assert stand_in.has_begun.wait(SECONDS)
    return future


def test_requests_that_fit_together_share_a_pass_in_the_order_they_came(
    stand_in: StandIn, make: Callable[..., Batches]
) -> None:
    batches = make(batch_size=3)
    first = held(stand_in, batches)
    futures = [batches.submit([row(name, steps=steps)]) for name, steps in zip("abcde", (9, 5, 9, 9, 9), strict=True)]
    stand_in.may_go.set()
    assert prompts(first) == ["first"]
    assert [prompts(future) for future in futures] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert stand_in.passes == [["first"], ["a", "c", "d"], ["b"], ["e"]]


def test_a_request_waits_for_others_as_long_as_it_is_told_and_no_longer_when_there_are_enough(
    stand_in: StandIn, make: Callable[..., Batches]
) -> None:
    batches = make(batch_size=2, batch_wait_ms=10_000)
    futures = [batches.submit([row("a")]), batches.submit([row("b")])]
    assert [prompts(future) for future in futures] == [["a"], ["b"]]
    assert stand_in.passes == [["a", "b"]]


def test_images_of_one_request_come_back_in_their_order_from_several_passes(
    stand_in: StandIn, make: Callable[..., Batches]
) -> None:
    batches = make(batch_size=2)
    assert prompts(batches.submit([row(name) for name in "abcde"])) == list("abcde")
    assert [len(names) for names in stand_in.passes] == [2, 2, 1]


def test_too_many_waiting_are_turned_away_with_a_time_but_one_request_is_never_too_large(
    stand_in: StandIn, make: Callable[..., Batches]
) -> None:
    batches = make(limits={"waiting_images": 2})
    held(stand_in, batches)
    batches.submit([row("a"), row("b"), row("c")])
    with pytest.raises(FullError, match="3 images wait already; ask again in 1 second$") as full:
        batches.submit([row("d")])
    assert full.value.seconds == 1
    assert batches.waiting == 3


def test_the_time_to_come_again_is_that_of_what_waits_by_its_size_and_steps(
    stand_in: StandIn, make: Callable[..., Batches]
) -> None:
    batches = make(limits={"waiting_images": 1})
    stand_in.may_go.set()
    began = time.monotonic()
    assert prompts(batches.submit([row("small", steps=1)])) == ["small"]
    most = time.monotonic() - began
    stand_in.has_begun.clear()
    held(stand_in, batches)
    wide = row("large", steps=100).model_copy(update={"width_px": 4096, "height_px": 4096})
    batches.submit([wide])
    with pytest.raises(FullError) as full:
        batches.submit([row("d")])
    assert 1 < full.value.seconds <= 1 + most * (100 * 64**2 + row("first").steps)


def test_what_nobody_waits_for_is_not_generated(stand_in: StandIn, make: Callable[..., Batches]) -> None:
    batches = make()
    running, waiting = held(stand_in, batches), batches.submit([row("a"), row("b")])
    waiting.cancel()
    assert batches.waiting == 0
    stand_in.has_begun.clear()
    running.cancel()  # its pass ends at the next step, though nobody lets it go on
    after = batches.submit([row("c")])
    assert stand_in.has_begun.wait(SECONDS)
    stand_in.may_go.set()
    assert prompts(after) == ["c"]
    batches.stop(SECONDS)
    assert stand_in.passes == [["first"], ["c"]]
    assert stand_in.counted == [1]


def test_one_that_can_not_be_generated_spoils_no_other(stand_in: StandIn, make: Callable[..., Batches]) -> None:
    stand_in.wrong = lambda rows: AdapterError("b is damaged") if "b" in [each.prompt for each in rows] else None
    batches = make(batch_size=8, batch_wait_ms=10_000)
    futures = [batches.submit([row(name)]) for name in "abcdefgh"]
    with pytest.raises(AdapterError, match="b is damaged"):
        futures[1].result(SECONDS)
    assert [prompts(future) for future in (futures[0], *futures[2:])] == [[name] for name in "acdefgh"]


def test_too_little_memory_halves_the_pass_and_is_said_where_one_image_is_too_much(
    stand_in: StandIn, make: Callable[..., Batches]
) -> None:
    stand_in.wrong = lambda rows: torch.OutOfMemoryError("all gone") if len(rows) > 1 else None
    batches = make(batch_size=4, batch_wait_ms=10_000)
    futures = [batches.submit([row(name)]) for name in "abcd"]
    assert [prompts(future) for future in futures] == [["a"], ["b"], ["c"], ["d"]]
    stand_in.wrong = lambda rows: torch.OutOfMemoryError("all gone")
    with pytest.raises(UnexpectedError, match="too little memory for an image of this size"):
        make().submit([row("large")]).result(SECONDS)


def test_a_fault_of_ours_is_logged_and_the_next_request_served(
    stand_in: StandIn, make: Callable[..., Batches], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.wrong = lambda rows: ZeroDivisionError("surprise") if rows[0].prompt == "a" else None
    batches = make()
    with pytest.raises(UnexpectedError, match="the server's log says why"):
        batches.submit([row("a")]).result(SECONDS)
    assert "ZeroDivisionError: surprise" in caplog.text
    assert prompts(batches.submit([row("b")])) == ["b"]


def test_stopping_cancels_what_waits_and_what_runs(stand_in: StandIn, make: Callable[..., Batches]) -> None:
    batches = make()
    running, waiting = held(stand_in, batches), batches.submit([row("a")])
    batches.stop(SECONDS)
    assert running.cancelled()
    assert waiting.cancelled()


def test_a_model_that_can_not_be_loaded_is_told() -> None:
    def load() -> Any:
        raise AdapterError("no such thing")

    batches = Batches(ServeConfig(), load)
    batches.start()
    batches.stop(SECONDS)
    assert isinstance(batches.failure, AdapterError)
    assert batches.generator is None
