"""The page's API: its endpoints' types, wrong arguments, and what the guide says of it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sdlora.errors import ConfigError
from tests.support.told_runs import made
from webui import api
from webui.calls import ArgumentCount
from webui.context import Context
from webui.services import Services
from webui.state import PageState
from webui.workspace import Workspace

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "page.md"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "studio")


@pytest.fixture
def endpoints(workspace: Workspace) -> dict[str, Any]:
    """What the API tells of each endpoint, by name."""
    services = Services(workspace, PageState(workspace.state))
    with gr.Blocks() as page:
        context = Context(services, page, gr.Tabs(), {})
        api.add_run_endpoints(context)
        api.add_dataset_endpoints(context)
        api.add_image_endpoints(context)
    told = page.get_api_info()
    assert told is not None
    return dict(told["named_endpoints"])


def test_every_endpoint_has_types_and_stands_in_the_guide(endpoints: dict[str, Any]) -> None:
    in_guide = dict(re.findall(r"^\| `(/[a-z]+)` \|([^|]*)\|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(in_guide) == set(endpoints)
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
        arguments = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        assert re.findall(r"`(\w+)`", in_guide[name]) == arguments
        for typed in (*endpoint["parameters"], *endpoint["returns"]):
            assert typed["type"], (name, typed)
    status = endpoints["/status"]["returns"][0]["type"]
    assert status["properties"]["total_steps"] == {"oneOf": [{"type": "null"}, {"type": "integer"}]}


def test_wrong_arguments_are_all_named_in_plain_text() -> None:
    def mix(adapters: list[str], rank: int = 0) -> str:
        return f"{adapters} {rank}"

    checked = api._checked(mix, "mix")
    assert checked(["a"], 4) == "['a'] 4"
    with pytest.raises(gr.Error) as raised:
        checked(["a", {"b": 1}], "four")
    words = str(raised.value.message)
    assert "the call of /mix has 2 problems" in words
    assert "adapters[1]: input should be a valid string, got \"{'b': 1}\"" in words
    assert "rank: input should be a valid integer" in words
    with pytest.raises(gr.Error, match="adapters: missing required argument"):
        checked()


def test_errors_of_the_library_reach_programs_without_markup() -> None:
    def refuse(text: str) -> str:
        raise ConfigError("<the settings>", ["a: is wrong", "b: is wrong"])

    with pytest.raises(gr.Error) as raised:
        api._checked(refuse, "refuse")("x")
    assert str(raised.value.message).splitlines()[0].startswith("<the settings> has 2 problems")


def test_the_api_takes_names_of_runs_not_paths(tmp_path: Path) -> None:
    handle = made(tmp_path)
    assert api._find(tmp_path, "cats") == handle
    for name in ("../cats", "", str(handle.folder)):
        with pytest.raises(ConfigError, match="is no name of a run"):
            api._find(tmp_path, name)
    with pytest.raises(ConfigError, match="not a run folder"):
        api._find(tmp_path, "dogs")


def answered(body: str, name: str = "mix") -> Any:
    """What an application that gives back what it was sent answers behind the count of arguments."""

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    def mix(adapters: list[str], name: str, rank: int = 0) -> None: ...

    inner = Starlette(routes=[Route("/gradio_api/call/{name}", echo, methods=["POST"])])
    client = TestClient(ArgumentCount(inner, {"mix": inspect.signature(mix)}))
    return client.post(f"/gradio_api/call/{name}", content=body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"data": [["a"]]}', 'lacks name: send {"data": [adapters, name, rank]}'),
        ('{"data": []}', "lacks adapters, name"),
        ('{"data": [["a"], "b", 1, 2]}', "has 4 arguments, of which it takes 3"),
        ('{"adapters": 1}', "has no list of arguments"),
        ("[1]", "has no list of arguments"),
        ("nonsense", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_call_with_another_number_of_arguments_is_refused(body: str, words: str) -> None:
    answer = answered(body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_defaults_are_filled_in_and_calls_of_what_there_is_not_refused() -> None:
    sent = {"data": [["a"], "b"], "session_hash": "x"}
    assert answered(json.dumps(sent)).json() == {"data": [["a"], "b", 0], "session_hash": "x"}
    assert answered('{"data": [1]}', "other").json() == {"error": "there is no /other; there is: /mix"}


def test_half_characters_and_names_of_no_run_are_refused(workspace: Workspace) -> None:
    for name in ("\ud83d", "a\nb", "..", "", "a/b", "x" * 300):
        with pytest.raises(ConfigError, match="is no name of a run"):
            api._find(workspace.runs, name)
    checked = api._checked(lambda text: text.encode(), "mix")
    with pytest.raises(gr.Error, match="is half a character"):
        checked("\udfff")


def test_a_prompt_that_is_given_twice_is_refused(workspace: Workspace) -> None:
    services = Services(workspace, PageState(workspace.state))
    with gr.Blocks() as page:
        api.add_image_endpoints(Context(services, page, gr.Tabs(), {}))
    generate = next(function.fn for function in page.fns.values() if function.api_name == "generate")
    with pytest.raises(gr.Error, match="prompt: is an argument of its own; leave it out of settings"):
        generate("a fox", [], {"prompt": "a castle"})
