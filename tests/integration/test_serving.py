"""`sdlora serve`, asked over HTTP: pictures as `generate` makes them, refusals in words, keys, and foreign pages."""

from __future__ import annotations

import base64
import gzip
import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from typer.testing import CliRunner

from sdlora.cli import app
from sdlora.config.serve import ServeConfig
from sdlora.errors import ConfigError, ModelError
from sdlora.generation.generate import Generator
from sdlora.models.detection import detect
from sdlora.serving.app import Guard, Server
from sdlora.serving.batches import Batches
from sdlora.serving.figures import Figures
from sdlora.serving.foreign import known_hosts, why_foreign
from sdlora.serving.requests import ImageRequest, read_request, single_requests
from sdlora.serving.server import check, model_name, serve
from tests.support.emoji_adapters import random_adapter

PATH = "/v1/images/generations"
KEY = "sk-a-long-enough-key-of-ours"
SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("ink", "styles/wash")):
        (folder / name).parent.mkdir(exist_ok=True)
        random_adapter(folder / f"{name}.safetensors", seed=seed)
    (folder / "broken.safetensors").write_bytes(b"nothing")
    # What only its weights tell, which are read when it is to be put on.
    layer = load_file(folder / "ink.safetensors")
    name = next(name for name in layer if name.endswith("lora_down.weight"))
    save_file({**layer, name: torch.full_like(layer[name], torch.nan)}, folder / "nan.safetensors")
    save_file({**layer, name: torch.ones(layer[name].shape[0], 7)}, folder / "misfit.safetensors")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> ServeConfig:
    # In fp32: in bf16 rounding goes by the size of a pass, and the few steps of these tests can make much of it.
    return ServeConfig(adapter_folders=(folder,), batch_wait_ms=200, compute={"precision": "fp32"})


@pytest.fixture(scope="module")
def batches(served: ServeConfig) -> Iterator[Batches]:
    batches = Batches(served, lambda: Generator(served.base_model, served.compute))
    batches.start()
    while batches.generator is None:
        assert batches.failure is None
        time.sleep(0.05)
    yield batches
    batches.stop()


@pytest.fixture(scope="module")
def figures(batches: Batches) -> Figures:
    figures = Figures()
    batches._on_batch = figures.count_batch
    figures.watch(batches)
    return figures


@pytest.fixture(scope="module")
def client(served: ServeConfig, batches: Batches, figures: Figures) -> Iterator[TestClient]:
    app = Server(served, model_name(served), detect(served.base_model), batches, figures).app()
    with TestClient(Guard(app, known_hosts("127.0.0.1"), ()), base_url="http://localhost:8000") as client:  # type: ignore[arg-type]
        yield client


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"prompt": "a cat", "steps": 2, "size": "64x64", "seed": 5, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def picture(one: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))


def problem(client: TestClient, status: int, **body: Any) -> str:
    answer = client.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def same(one: Image.Image, other: Image.Image) -> bool:
    # Images in a pass with others differ from those alone in the last bits of the calculation.
    return max(high for _, high in ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema()) <= 2


def test_a_picture_is_the_one_that_generate_makes(client: TestClient, batches: Batches, folder: Path) -> None:
    answer = ask(client, adapters=["ink:0.8"], n=2)
    assert (answer["model"], answer["size"], answer["output_format"]) == ("builtin:emoji", "64x64", "png")
    assert [one["seed"] for one in answer["data"]] == [5, 6]
    assert batches.generator is not None
    request = {
        "prompt": "a cat", "steps": 2, "width_px": 64, "height_px": 64, "seed": 5, "num_images": 2, "batch_size": 8,
        "adapters": [{"file": str(folder / "ink.safetensors"), "weight": 0.8}],
    }  # fmt: skip
    expected = [generated.image for generated in batches.generator.generate(request)]
    assert all(same(picture(one), other) for one, other in zip(answer["data"], expected, strict=True))
    text = picture(answer["data"][0]).info
    assert "Steps: 2" in text["parameters"]
    assert str(folder) not in str(text)


def test_requests_with_other_adapters_share_a_pass_and_get_their_own_pictures(
    client: TestClient, figures: Figures
) -> None:
    asked: list[dict[str, Any]] = [
        {"adapters": ["ink"]},
        {"adapters": [{"name": "styles/wash", "weight": -1}]},
        {"prompt": "a cat <lora:ink:0.5>"},
        {},
    ]
    alone = [picture(ask(client, **one)["data"][0]) for one in asked]
    before = figures.as_text().decode()
    together: list[Image.Image | None] = [None] * len(asked)

    def one_of(index: int) -> None:
        together[index] = picture(ask(client, **asked[index])["data"][0])

    threads = [threading.Thread(target=one_of, args=[index]) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(other is not None and same(one, other) for one, other in zip(alone, together, strict=True))
    assert not any(same(alone[0], other) for other in alone[1:])
    passes = [float(_figure(text, "sdlora_batch_images_count")) for text in (before, figures.as_text().decode())]
    assert passes[1] - passes[0] < len(asked)


def _figure(text: str, name: str) -> str:
    return next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} "))


def test_what_is_wrong_is_said_all_at_once_and_names_no_place(client: TestClient, folder: Path) -> None:
    said = problem(client, 400, prompt="a", n=99, steps=101, size="63x9000", adapters=["inc", {"weight": 1}], seed=1)
    for words in (
        "n: at most 4 images a request here; got 99",
        "steps: at most 100 here; got 101",
        "the width must be a multiple of 8 from 64 to 2048; got 63",
        "the height must be a multiple of 8 from 64 to 2048; got 9000",
        "adapters.0: no single adapter here is called 'inc'; near it: ink",
        'adapters.1: name: is missing, as in {"name": "ink", "weight": 0.8}',
    ):
        assert words in said
    assert str(folder) not in said
    asked = {"prompt": "a <lora:ink:much> <lora:nowhere:1>", "n": 99, "adapters": ["inc"]}
    for status, more, also in (
        (400, {}, "n: at most 4"),
        (404, {"model": "dall-e-3"}, "the model here is builtin:emoji, not 'dall-e-3'"),
    ):
        said = problem(client, status, **asked, **more)
        for words in (
            also,
            "adapters.0: no single adapter",
            "'much' is not a number",
            "<lora:nowhere:1>",
            "n: at most",
        ):
            assert words in said
    said = problem(client, 400, promt="a", guidance="much", response_format="url", sampler="Eulr", stream=True)
    for words in ("prompt", "promt", "guidance", "b64_json", "Eulr", "stream"):
        assert words in said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a" * 10_001}, "prompt"),
        ({"prompt": "a", "adapters": [{"name": "ink", "file": "/etc/passwd"}]}, "by their name"),
        ({"prompt": "a", "adapters": ["/etc/passwd"]}, "no single adapter here is called '/etc/passwd'"),
        ({"prompt": "a", "adapters": ["../ink"]}, "no single adapter here is called '../ink'"),
        ({"prompt": "a", "adapters": ["broken"]}, "broken.safetensors"),
        ({"prompt": "a <lora:nobody:1>"}, "no adapter of that name is in the server's folder"),
        ({"prompt": "a <lora:broken:1>"}, "broken.safetensors"),
        ({"prompt": "a __nothing__"}, "nothing"),
        ({"prompt": "a", "adapters": ["ink:start=0.9,end=0.1"]}, "start 0.9 must come before end 0.1"),
        ({"prompt": "a" + " AND a" * 8}, "prompt: at most 8 prompts joined by AND here; got 9"),
        ({"prompt": "[" * 100}, "more than 50 brackets are open at once"),
        ({"prompt": "a", "output_compression": 50}, "no effect on png"),
        ({"prompt": "a", "size": "large"}, "write it as 512x512"),
        ({"prompt": "a", "quality": "hd"}, "quality"),
        ({"prompt": "a", "sampler": "LCM", "steps": 60}, "the LCM sampler takes at most 50"),
        ({"prompt": "a", "adapters": ["ink:1e999"]}, "adapters.0: weight: must be a finite number; got inf"),
        ({"prompt": "a", "adapters": ["in\0k"]}, "adapters.0: 'in\\x00k' holds a control character"),
        ({"prompt": None}, "prompt: field required"),
        ({"prompt": "a", "sed": None}, "sed: unknown setting"),
        ({"prompt": "a", "steps": 2, "size": "64x64", "adapters": ["misfit"]}, "misfit.safetensors doesn't fit"),
        ({"prompt": "a", "steps": 2, "size": "64x64", "adapters": ["nan"]}, "nan.safetensors can't be used: lora"),
    ],
)
def test_a_wrong_request_is_refused_in_words(
    client: TestClient, folder: Path, body: dict[str, Any], words: str
) -> None:
    said = problem(client, 400, **body)
    assert words in said
    assert str(folder) not in said
    assert "\n" not in said


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'"a"', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post(PATH, content=content)
    assert answer.status_code == 400
    assert "body" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a", "seed": 1, "seed": 2}', "the body sets 'seed' twice; leave one of them out"),
        (b'{"prompt": "a", "adapters": [{"name": "ink", "weight": 1, "weight": 2}]}', "the body sets 'weight' twice"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "the body holds a number of thousands of digits"),
        (gzip.compress(b'{"prompt": "a"}', mtime=0), "the body is no text in UTF-8"),
    ],
)
def test_what_would_be_lost_from_a_body_is_refused(client: TestClient, content: bytes, words: str) -> None:
    answer = client.post(PATH, content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(words)


def test_null_stands_for_what_is_left_out(client: TestClient) -> None:
    nothing = dict.fromkeys(ImageRequest.model_fields.keys() - {"prompt", "seed", "size", "steps"})
    assert ask(client, **nothing)["data"] == ask(client)["data"]


def test_a_folder_that_went_away_is_not_the_requests_fault(
    served: ServeConfig, batches: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "loras"
    there.mkdir()
    gone = served.model_copy(update={"adapter_folders": (there,)})
    client = TestClient(Server(gone, "emoji", detect(served.base_model), batches, Figures()).app())
    assert client.get("/v1/adapters").json()["data"] == []
    there.rmdir()
    prompted = client.post(PATH, json={"prompt": "a <lora:ink:1>"})
    for answer in (client.get("/v1/adapters"), client.post(PATH, json={"prompt": "a", "adapters": ["ink"]}), prompted):
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "whoever runs it must bring it back" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
    assert f"{there}: no such folder" in caplog.text


def test_a_fault_nobody_foresaw_is_told_in_the_form_of_all_others(
    served: ServeConfig, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("/home/somebody")

    monkeypatch.setattr("sdlora.serving.app.list_adapters", fail)
    app = Server(served, "emoji", detect(served.base_model), batches, Figures()).app()
    answer = TestClient(app, raise_server_exceptions=False).get("/v1/adapters")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "something went wrong in the server; its log says what"


def test_a_huge_body_another_model_and_an_unknown_path_are_refused(client: TestClient) -> None:
    assert client.post(PATH, content=b" " * 300_000).status_code == 413
    assert "the model here is builtin:emoji, not 'dall-e-3'" in problem(client, 404, prompt="a", model="dall-e-3")
    missing = client.get("/v1/chat/completions")
    assert missing.status_code == 404
    assert "GET /v1/chat/completions is nothing here" in missing.json()["error"]["message"]
    assert client.get(PATH).status_code == 405


def test_an_adapter_whose_name_holds_a_colon_goes_by_the_name_that_is_listed(
    served: ServeConfig, tmp_path: Path
) -> None:
    random_adapter(tmp_path / "ink:0.5.safetensors", seed=1)
    here = served.model_copy(update={"adapter_folders": (tmp_path,)})
    asked = read_request({"prompt": "a fox", "adapters": ["ink:0.5", "ink:0.5:0.7"]})
    first, second = single_requests(asked, here, detect(here.base_model))[0].adapters
    assert (Path(first.file).name, first.weight) == ("ink:0.5.safetensors", 1)
    assert (Path(second.file).name, second.weight) == ("ink:0.5.safetensors", 0.7)


def test_models_adapters_health_and_figures(client: TestClient) -> None:
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["builtin:emoji"]
    assert client.get("/v1/models/builtin:emoji").json()["id"] == "builtin:emoji"
    missing = client.get("/v1/models/dall-e/3")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert [one["name"] for one in client.get("/v1/adapters").json()["data"]] == ["ink", "misfit", "nan", "wash"]
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "model": "builtin:emoji"}
    text = client.get("/metrics").text
    for name in ("sdlora_requests_total", "sdlora_images_total", "sdlora_waiting_images 0.0", "sdlora_ready 1.0"):
        assert name in text


def test_foreign_pages_and_requests_without_a_key_are_refused(served: ServeConfig, batches: Batches) -> None:
    app = Server(served, "emoji", detect(served.base_model), batches, Figures()).app()
    guarded: Any = Guard(app, known_hosts("127.0.0.1"), (KEY, "another-key-of-somebody"))
    client = TestClient(guarded, base_url="http://localhost:8000")
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer no"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer é"},
    ):
        answer = client.get("/v1/models", headers={name: value.encode("latin-1") for name, value in headers.items()})
        assert answer.status_code == 401
        told = answer.json()["error"]["message"]
        assert ("none of this server's" if headers else "wants an API key") in told
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics", headers={"authorization": "Bearer no"}).status_code == 401
    right = {"authorization": f"Bearer {KEY}"}
    assert client.get("/v1/models", headers=right).status_code == 200
    for foreign in (
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
        {"origin": "null"},
        {"origin": "http://[::1"},
    ):
        assert client.get("/v1/models", headers={**right, **foreign}).status_code == 403


def test_what_can_not_be_served_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("short\n# note\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError) as error:
            check(
                ServeConfig.model_validate(
                    {
                        "base_model": {"model": str(tmp_path / "no.safetensors")},
                        "adapter_folders": [tmp_path / "a"],
                        "embedding_folders": [tmp_path / "b"],
                        "key_file": tmp_path / "keys.txt",
                        "port": taken.getsockname()[1],
                        "limits": {"steps": 10},
                        "compute": {"merge_adapters": True},
                    }
                )
            )
    said = str(error.value)
    for words in (
        "no.safetensors",
        "a: no such folder",
        "b: no such folder",
        "shorter than 16",
        "limits.steps",
        "port",
        "merge_adapters",
    ):
        assert words in said
    with pytest.raises(ConfigError, match=r"opens the server to others: set key_file"):
        check(ServeConfig(host="0.0.0.0", port=18_431))
    with pytest.raises(ConfigError, match="at least 128, the model's own size"):
        check(ServeConfig.model_validate({"limits": {"side_px": 64}, "port": 18_431}))


def test_other_names_are_allowed_as_a_refusal_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = why_foreign({b"host": "images.example.org"}, known_hosts("127.0.0.1"))
    assert said is not None
    assert said.endswith("start it with --allow-host images.example.org")
    served: list[ServeConfig] = []
    monkeypatch.setattr("sdlora.serving.server.serve", lambda config, tell: served.append(config))
    told = CliRunner().invoke(app, ["serve", *said.split()[-2:], "--allow-host", "b.example"])
    assert told.exit_code == 0, told.output
    assert served[0].allow_hosts == ("images.example.org", "b.example")


def test_a_model_that_can_not_be_loaded_ends_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise ModelError("its UNet is damaged")

    monkeypatch.setattr("sdlora.generation.generate.Generator", fail)
    said: list[str] = []
    # In a thread of its own: an event loop that Playwright leaves in the main one takes no second beside it.
    with ThreadPoolExecutor(1) as pool, pytest.raises(ModelError, match="its UNet is damaged"):
        pool.submit(serve, ServeConfig(port=_free_port()), said.append).result(SECONDS)
    assert len(said) == 1
    assert said[0].endswith("/v1 (loading)")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
