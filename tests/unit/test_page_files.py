"""Which files a request to the page may name, what becomes of uploads, and what is answered to programs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from webui.api import _as_shown
from webui.app import served
from webui.workspace import Workspace

FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("files") / "studio")


@pytest.fixture(scope="module")
def client(studio: Workspace) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(studio.uploads))
        # Each call is a session of its own, for which Gradio goes through all components: of the tabs none is needed.
        patch.setattr("webui.app.TABS", ())
        _, application = served(studio, host="127.0.0.1")
        with TestClient(application, base_url="http://127.0.0.1:7860") as client:
            yield client


def call(client: TestClient, name: str, *arguments: Any) -> str:
    """What the API says to a call, as it sends it."""
    begun = client.post(f"/gradio_api/call/{name}", json={"data": list(arguments)})
    assert begun.status_code == 200, begun.text
    return client.get(f"/gradio_api/call/{name}/{begun.json()['event_id']}").text


@pytest.mark.parametrize(
    "named",
    [
        "{secret}",
        "{folder}",
        "{uploads}/../../../secret.txt",
        "",
        "a\0b",
        "x" * 5000,
        "http://127.0.0.1:9/x",
        ["{secret}"],
        None,
    ],
    ids=["a file", "a folder", "out of the uploads", "nothing", "NUL", "too long", "an address", "a list", "null"],
)
def test_a_request_can_not_have_a_file_of_the_machine_copied(client: TestClient, studio: Workspace, named: Any) -> None:
    secret = studio.root.parent / "secret.txt"
    secret.write_text("private")
    if isinstance(named, str):
        named = named.format(secret=secret, folder=secret.parent, uploads=studio.uploads)
    for sent in ({"path": named, "meta": FILE}, {"deep": [{"path": named, "meta": 5}]}):
        told = call(client, "status", sent)
        assert "is no file that was uploaded here: upload it first" in told
    assert not [path for path in studio.uploads.rglob("*") if path.is_file()]


def test_an_uploaded_file_may_be_named(client: TestClient, studio: Workspace) -> None:
    (path,) = client.post("/gradio_api/upload", files={"files": ("a.txt", b"a caption")}).json()
    assert Path(path).is_relative_to(studio.uploads)
    assert "run: input should be a valid string" in call(client, "status", {"path": path, "meta": FILE})


def test_calls_of_what_there_is_not_are_answered_in_words(client: TestClient) -> None:
    for path in ("call/nosuch", "call/v2/nosuch", "call/_receive", "call/../status", "call/"):
        told = client.post(f"/gradio_api/{path}", json={"data": []})
        assert (told.status_code, told.headers["content-type"]) == (404, "application/json"), path
    told = client.post("/gradio_api/call/nosuch", json={})
    assert told.json()["error"].startswith("there is no /nosuch; there is: /train, /status")


@pytest.mark.parametrize(
    ("name", "sent", "said"),
    [
        ("status", {}, 'the call of /status lacks run: send {"run": ...}'),
        ("status", {"run": "x", "y": 2}, 'the call of /status has no y: send {"run": ...}'),
        ("status", ["x"], 'the call of /status names no arguments: send {"run": ...}'),
        ("generate", {"prompt": "x"}, "the call of /generate lacks adapters, settings"),
    ],
)
def test_calls_by_name_say_what_is_wrong_with_them(client: TestClient, name: str, sent: Any, said: str) -> None:
    told = client.post(f"/gradio_api/call/v2/{name}", json=sent)
    assert told.status_code == 422
    assert told.json()["error"].startswith(said)


def test_calls_by_name_have_the_defaults(client: TestClient) -> None:
    begun = client.post("/gradio_api/call/v2/mix", json={"adapters": ["nosuch"], "name": "m"})
    assert "nosuch: no adapter of that name" in client.get(f"/gradio_api/call/mix/{begun.json()['event_id']}").text


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("check", ["a\0b"], "'a\\\\x00b' holds a NUL, which no name has"),
        ("check", [" "], "folder: name one, such as datasets/fox"),
        ("suggest", ["", "style"], "folder: name one, such as datasets/fox"),
        ("status", ["nosuch"], "there is no such folder; /runs lists the runs"),
        ("train", ["demo.yaml", ["nonsense"]], "\\n  nonsense: write it as section.name=value"),
        ("generate", ["x", [], {"embedding_folders": ["nosuch", "other"], "steps": 0}], "steps: must be greater"),
    ],
)
def test_errors_are_in_the_words_of_the_api(client: TestClient, name: str, arguments: Any, said: str) -> None:
    told = call(client, name, *arguments)
    assert said in told
    assert not [word for word in ("--", "sdlora ", "Details are in") if word in told]


def test_settings_of_a_request_may_be_lists() -> None:
    assert _as_shown({"embedding_folders": ["/a", "/b c"], "steps": 2, "nosuch": [1]}) == {
        "embedding_folders": "/a\n/b c", "steps": 2, "nosuch": [1],
    }  # fmt: skip


def test_what_fails_without_words_is_still_answered_in_one_sentence(client: TestClient) -> None:
    patient = TestClient(client.app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
    told = patient.post("/gradio_api/run/nosuch", json={"data": []})
    assert told.status_code == 500
    assert told.json() == {"error": "That did not work. Details are in the server's log."}


def test_uploads_are_readable_by_their_owner_alone_and_go_after_a_day(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.prepare()
    assert os.name != "posix" or workspace.uploads.stat().st_mode & 0o777 == 0o700
    for name, hours in (("old/half.zip", 25), ("new/whole.zip", 1)):
        path = workspace.uploads / name
        path.parent.mkdir()
        path.write_bytes(b"PK")
        os.utime(path, (time.time() - hours * 3600,) * 2)
    workspace.prepare()
    assert [path.name for path in sorted(workspace.uploads.rglob("*"))] == ["new", "whole.zip"]
