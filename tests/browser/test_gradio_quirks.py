"""What Gradio does otherwise than the page needs, shown on bare pages. A test that fails here is good news.

That quirk is gone, and so may be what `webui/gradio_quirks.py` or the first section of `page.js` does about it.

Each test has a control beside it: the same that works, so that it can't pass because nothing works.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import wait_until
from conftest import free_port

gr = pytest.importorskip("gradio", reason="the page needs gradio")
quirks = pytest.importorskip("webui.gradio_quirks")

A_WHILE = 1500
"""Milliseconds in which anything that comes at all has come."""
FIELDS = 120
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


@pytest.fixture
def open_bare(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a window on a bare page, in this process: `open_bare(page)`."""
    served: list[Any] = []
    contexts: list[Any] = []

    def show(page: Any) -> Any:
        served.append(page)
        port = free_port()
        page.launch(server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False, _frontend=False)
        contexts.append(browser.new_context())
        window = contexts[-1].new_page()
        window.set_default_timeout(60_000)
        window.goto(f"http://127.0.0.1:{port}")
        window.wait_for_selector("#there")
        window.wait_for_timeout(A_WHILE)
        return window

    yield show
    for context in contexts:
        context.close()
    for page in served:
        page.close(verbose=False)


def bare() -> Any:
    """A page to be filled; the window waits for what it ends with (see `end`)."""
    return gr.Blocks(analytics_enabled=False)


def end() -> None:
    gr.HTML("<p>here</p>", elem_id="there")


def text(window: Any, element: str) -> str:
    """What a text field shows."""
    return str(window.locator(f"#{element} textarea, #{element} input").first.input_value())


def test_errors_of_quick_handlers_are_not_shown(open_bare: Callable[..., Any]) -> None:
    """page.js, quirk 1."""

    def fail() -> None:
        raise gr.Error("it failed", print_exception=False)

    with bare() as page:
        gr.Button("quick", elem_id="quick").click(fail, None, None, queue=False)
        gr.Button("queued", elem_id="queued").click(fail, None, None)
        end()
    window = open_bare(page)
    window.click("#quick")
    window.wait_for_timeout(A_WHILE)
    assert window.locator(".toast-body").count() == 0
    window.click("#queued")
    window.wait_for_selector(".toast-body")


def test_a_text_field_tells_of_key_presses_alone(open_bare: Callable[..., Any]) -> None:
    """page.js, quirk 2."""
    with bare() as page:
        field = gr.Textbox(elem_id="field")
        heard = gr.Textbox(elem_id="heard")
        field.input(lambda words: words, field, heard, queue=False, **QUIET)
        end()
    window = open_bare(page)
    box = window.locator("#field textarea, #field input").first
    for words in ("a", "ab"):  # one at a time: quick answers may overtake each other
        box.press(words[-1])
        wait_until(window, lambda words=words: text(window, "heard") == words)
    box.press("Backspace")
    window.wait_for_timeout(A_WHILE)
    assert (text(window, "field"), text(window, "heard")) == ("a", "ab")
    window.keyboard.insert_text("pasted")
    window.wait_for_timeout(A_WHILE)
    assert (text(window, "field"), text(window, "heard")) == ("apasted", "ab")


def test_an_empty_gallery_is_labelled_without_a_role(open_bare: Callable[..., Any]) -> None:
    """page.js, quirk 3."""
    with bare() as page:
        gr.Gallery([], elem_id="gallery", interactive=False)
        end()
    window = open_bare(page)
    assert window.locator("#gallery div.empty[aria-label]").count() == 1
    assert window.locator("#gallery div.empty[role]").count() == 0


def test_a_list_that_is_left_by_tab_stays_open(open_bare: Callable[..., Any]) -> None:
    """page.js, quirk 4."""
    with bare() as page:
        gr.HTML("<p>above</p>", elem_id="above")
        gr.Dropdown(["a", "b"], elem_id="list", interactive=True)
        gr.Textbox()
        end()
    window = open_bare(page)
    window.click("#list input")
    window.keyboard.press("Tab")
    window.wait_for_timeout(A_WHILE)
    assert window.locator("ul[role=listbox]:visible").count() == 1
    window.click("#list input")
    window.click("#above")  # what is below lies under the open list
    window.wait_for_timeout(A_WHILE)
    assert window.locator("ul[role=listbox]:visible").count() == 0


def test_what_could_not_be_sent_is_lost_and_the_page_loaded_anew(open_bare: Callable[..., Any]) -> None:
    """page.js, quirk 5."""
    got: list[str] = []
    with bare() as page:
        field = gr.Textbox(elem_id="field")
        field.input(got.append, field, None, queue=False, trigger_mode="always_last", **QUIET)
        end()
    window = open_bare(page)
    window.locator("#field textarea").press_sequentially("sent")
    wait_until(window, lambda: got[-1:] == ["sent"])
    window.evaluate("() => { window.isOld = true; }")
    window.route("**/gradio_api/run/**", lambda route: route.abort())
    window.locator("#field textarea").press_sequentially(" and lost")
    window.wait_for_function("() => !window.isOld")
    window.wait_for_selector("#there")
    assert text(window, "field") == ""
    assert got[-1] == "sent"


def polled(*, inputs: bool = False, gathered: bool = False, outputs: bool = False, spare: bool = True) -> Any:
    """A page that writes one field five times a second, beside many that were inputs or outputs of an event."""
    with bare() as page:
        fields = [gr.Textbox(label=f"field {number}") for number in range(FIELDS)]
        into, heard, count = gr.Textbox(elem_id="into"), gr.Textbox(elem_id="heard"), gr.Textbox(elem_id="count")
        if outputs:
            page.load(lambda: [str(number) for number in range(FIELDS)], None, fields, queue=False, **QUIET)
        if inputs:
            page.load(lambda *values: str(len(values)), fields, heard, queue=False, **QUIET)
        if gathered:
            collected = quirks.collect(page.load, {f"a {number}": field for number, field in enumerate(fields)}, into)
            collected.then(lambda words: str(len(json.loads(words))), into, heard, **QUIET)
        gr.Timer(0.2).tick(lambda: str(time.time()), None, count, queue=False, **QUIET)
        end()
        if spare:
            quirks.spare_progress(page)
    return page


def busy_seconds(window: Any) -> float:
    """How long the page's scripts compute within three seconds."""
    session = window.context.new_cdp_session(window)
    session.send("Performance.enable")

    def computed() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "ScriptDuration"))

    before = computed()
    window.wait_for_timeout(3000)
    return computed() - before


def busier(one: Any, other: Any) -> bool:
    """Whether a page computes clearly more than another, in one of three tries: other work on the machine blurs it."""
    return any(busy_seconds(one) > 1.5 * busy_seconds(other) for _ in range(3))


def test_every_poll_updates_the_outputs_of_all_events(open_bare: Callable[..., Any]) -> None:
    """`spare_progress`."""
    assert busier(open_bare(polled(outputs=True, spare=False)), open_bare(polled(outputs=True)))


def test_every_poll_updates_the_inputs_of_all_events(open_bare: Callable[..., Any]) -> None:
    """`collect`."""
    gathered = open_bare(polled(gathered=True))
    wait_until(gathered, lambda: text(gathered, "heard") == str(FIELDS))
    assert busier(open_bare(polled(inputs=True)), gathered)


def test_handlers_that_make_up_for_what_came_meanwhile_repeat_each_other_for_ever(
    open_bare: Callable[..., Any],
) -> None:
    """`defer_one_each`."""
    keys = 4

    def repeats(*, mended: bool) -> tuple[int, str]:
        calls: list[str] = []
        chance = random.Random(0)

        def late(words: str) -> str:
            calls.append(words)
            time.sleep(chance.uniform(0.2, 0.6))
            return words

        with bare() as page:
            field, heard = gr.Textbox(elem_id="field"), gr.Textbox(elem_id="heard")
            for output in (gr.Textbox(), gr.Textbox(), heard):
                field.input(late, field, output, queue=False, trigger_mode="always_last", **QUIET)
            end()
            if mended:
                quirks.defer_one_each(page)
        window = open_bare(page)
        window.locator("#field textarea, #field input").first.press_sequentially("a" * keys, delay=300)
        if mended:
            window.wait_for_timeout(10 * A_WHILE)
        else:
            wait_until(window, lambda: len(calls) > 8 * keys)
        return len(calls), text(window, "heard")

    calls, last = repeats(mended=True)
    assert (calls <= 3 * keys, last) == (True, "a" * keys)
    repeats(mended=False)  # until there are far more


def test_a_queue_looks_for_work_a_thousand_times_a_second() -> None:
    """`rest_between_looks`."""
    with bare() as page:
        end()
    page.queue()
    assert page._queue.sleep_when_free == (0.05 if os.name == "nt" else 0.001)
    quirks.rest_between_looks(page)
    assert page._queue.sleep_when_free == 0.02


def test_each_window_gets_a_description_of_every_component(open_bare: Callable[..., Any]) -> None:
    """`describe_nothing_twice`."""

    def kept(*, mended: bool) -> int:
        with bare() as page:
            choice = gr.Dropdown(["a", "b"], value="a", elem_id="choice", interactive=True)
            heard = gr.Textbox(elem_id="heard")
            other = gr.Button("other", elem_id="other")
            other.click(lambda: gr.Dropdown(["c", "d"], value="d"), None, choice, queue=False)
            gr.Button("send", elem_id="send").click(lambda value: f"got {value}", choice, heard, queue=False)
            end()
        window = open_bare(page)  # what is served has a holder of sessions by then
        if mended:
            quirks.describe_nothing_twice(page)
            page.state_holder.session_data.clear()
        window.click("#other")
        wait_until(window, lambda: text(window, "choice") == "d")
        window.click("#send")
        # The list of this window is known all the same: another one's "d" would be refused.
        wait_until(window, lambda: text(window, "heard") == "got d")
        (session,) = page.state_holder.session_data.values()
        return sum(bool(described) for described in session.config_values.values())

    assert kept(mended=False) > 4
    assert kept(mended=True) == 0


def test_a_number_that_begins_empty_is_shown_and_sent_as_0(open_bare: Callable[..., Any]) -> None:
    """`empty_numbers`."""
    with bare() as page:
        plain = gr.Number(None, elem_id="plain", interactive=True)
        mended = gr.Number(None, elem_id="mended", interactive=True)
        gr.Number(5, elem_id="five", interactive=True)
        sent = gr.Textbox(elem_id="sent")
        gr.Button("send", elem_id="send").click(lambda *values: repr(values), [plain, mended], sent, queue=False)
        found = quirks.empty_numbers(page)
        page.load(lambda: {mended: found[mended]}, None, [mended], queue=False)
        end()
    assert list(found) == [plain, mended]
    window = open_bare(page)
    assert [text(window, element) for element in ("plain", "mended", "five")] == ["0", "", "5"]
    window.click("#send")
    wait_until(window, lambda: text(window, "sent") == "(0, None)")


def test_updates_made_in_the_browser_have_no_public_name(open_bare: Callable[..., Any]) -> None:
    """`update_in_browser`."""
    with bare() as page:
        button = gr.Button("before", elem_id="button")
        script = f"() => [{quirks.update_in_browser(value='after', interactive=False)}]"
        gr.Button("press", elem_id="press").click(None, None, [button], js=script)
        end()
    assert not hasattr(gr, "update_in_browser")
    window = open_bare(page)
    assert window.is_enabled("#button")
    window.click("#press")
    window.wait_for_selector("#button:disabled:has-text('after')")


def test_quick_handlers_can_tell_nothing_and_change_no_state(open_bare: Callable[..., Any]) -> None:
    """The rule of `webui.context.QUICK`."""
    with bare() as page:
        state, heard = gr.State(0), gr.Textbox(elem_id="heard")
        state.change(lambda value: f"changed to {value}", state, heard)

        def act(value: int) -> int:
            gr.Info("it is done")
            return value + 1

        gr.Button("quick", elem_id="quick").click(act, state, state, queue=False)
        gr.Button("queued", elem_id="queued").click(act, state, state)
        end()
    window = open_bare(page)
    window.click("#quick")
    window.wait_for_timeout(A_WHILE)
    assert (window.locator(".toast-body").count(), text(window, "heard")) == (0, "")
    window.click("#queued")
    window.wait_for_selector(".toast-body")
    wait_until(window, lambda: text(window, "heard") == "changed to 2")
