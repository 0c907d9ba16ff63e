"""The HTTP side: OpenAI's `/v1/images/generations` and `/v1/models`, the adapters, health and figures.

Errors are what OpenAI's clients read: `{"error": {"message": ..., "type": ..., "code": ...}}`.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sdlora.adapters.files.catalog import describe
from sdlora.config.serve import ServeConfig
from sdlora.errors import ConfigError, SdloraError
from sdlora.generation.generated import GeneratedImage
from sdlora.generation.restore.image_files import SavedSettings, encode_image
from sdlora.generation.restore.infotext import to_infotext
from sdlora.library.names import list_adapters, unique_names
from sdlora.models.detection import Detection
from sdlora.serving.batches import Batches, FullError, UnexpectedError
from sdlora.serving.figures import Figures
from sdlora.serving.foreign import why_foreign
from sdlora.serving.requests import SOURCE, ImageRequest, read_request, single_requests
from sdlora.text_files import repeated_key
from sdlora.words import count

log = logging.getLogger("sdlora.serving")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LARGEST_BODY_BYTES = 256 * 1024
_OPEN_PATHS = ("/healthz", "/readyz")
"""Answered without a key: whoever looks after the machine has none, and they tell nothing."""
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_CODES = {401: "invalid_api_key", 404: "not_found", 429: "too_many_waiting", 503: "not_ready", 504: "timeout"}
_FOLDER_SECONDS = 30
"""When to ask again where a folder is not there, which may be on a disk that comes back."""
_LIST, _LISTED = re.compile(r":\n\s*"), re.compile(r"\n\s*")
"""What stands before the lines of a message with a list, and between them."""
_GONE = 499
"""nginx's number for a client that didn't wait; it stands in the figures only."""


class Server:
    """Answers requests for one served model."""

    def __init__(
        self, served: ServeConfig, name: str, detection: Detection, batches: Batches, figures: Figures
    ) -> None:
        self._served = served
        self._name = name
        self._detection = detection
        self._batches = batches
        self._figures = figures
        self._began = int(time.time())
        self._folders = (*served.adapter_folders, *served.embedding_folders, *served.wildcard_folders)
        absolute = (str(folder.expanduser().resolve()) for folder in self._folders)
        written = {*map(str, self._folders), *absolute} - {os.curdir}
        self._places = sorted(written, key=len, reverse=True)  # of two, one within the other, the inner one first

    def app(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                Route("/v1/images/generations", self._generate, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/adapters", self._adapters),
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={404: _no_such_path, 405: _no_such_path, Exception: _unexpected},
        )

    async def _generate(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            answer = await self._answer_images(request)
        except ClientDisconnect:
            answer = Response(status_code=_GONE)
        except asyncio.CancelledError:  # the minute for what was asked is over, or Ctrl-C came a second time
            answer = failure(503, "the server is stopping", retry_after=10)
        self._figures.count_request(answer.status_code, time.monotonic() - began)
        return answer

    async def _answer_images(self, request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return failure(413, f"a request may have {_LARGEST_BODY_BYTES // 1024} KiB, and this one has more")
        try:
            asked = read_request(_object_in(body))
        except ConfigError as error:
            return failure(400, self._in_one_line(error))
        try:
            if asked.model not in (None, self._name):
                return await run_in_threadpool(self._no_such_model, asked.model, asked)
            if self._batches.generator is None:
                return failure(503, "the model is still loading", retry_after=5)
            rows = await run_in_threadpool(single_requests, asked, self._served, self._detection)
            future = self._batches.submit(rows)
        except FullError as error:
            return failure(429, str(error), retry_after=error.seconds)
        except SdloraError as error:
            return self._refusal(error)
        log.info("%s asked for by %r", count(len(rows), "image"), asked.user or "someone")
        done, gone = asyncio.wrap_future(future), asyncio.ensure_future(_until_gone(request))
        both: set[asyncio.Future[Any]] = {done, gone}
        await asyncio.wait(both, timeout=self._served.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not done.done():
            is_gone = gone.done()
            future.cancel()
            if is_gone:
                return Response(status_code=_GONE)
            return failure(504, f"not done within {self._served.limits.seconds:g} seconds; ask for less, or later")
        if done.cancelled():
            return failure(503, "the server is stopping", retry_after=10)
        if (fault := done.exception()) is not None:
            # An adapter's weights are read now: one that doesn't fit or is damaged is a wrong one to name, as one whose
            # header told so. A client would ask again for what is ours.
            is_ours = isinstance(fault, UnexpectedError) or not isinstance(fault, SdloraError)
            return failure(500 if is_ours else 400, self._in_one_line(fault))
        return await run_in_threadpool(self._answer, done.result())

    def _answer(self, images: Sequence[GeneratedImage]) -> Response:
        first = images[0]
        return JSONResponse(
            {
                "created": int(time.time()),
                "model": self._name,
                "size": f"{first.image.width}x{first.image.height}",
                "output_format": first.config.files.format,
                "data": [
                    {
                        "b64_json": base64.b64encode(_file(image)).decode(),
                        "seed": image.config.seed,
                        "warnings": [self._without_places(warning) for warning in image.warnings],
                    }
                    for image in images
                ],
            }
        )

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described]})

    async def _model(self, request: Request) -> Response:
        asked = request.path_params["name"]
        return JSONResponse(self._described) if asked == self._name else self._no_such_model(asked)

    @property
    def _described(self) -> dict[str, object]:
        return {"id": self._name, "object": "model", "created": self._began, "owned_by": "sdlora"}

    def _no_such_model(self, name: str | None, asked: ImageRequest | None = None) -> Response:
        """The answer to a name that is no model's here, with whatever else is wrong with the request."""
        said = f"the model here is {self._name}, not '{name}'"
        if asked is not None:
            try:
                single_requests(asked, self._served, self._detection)
            except SdloraError as error:
                said = f"{said}; {self._in_one_line(error)}"
        return failure(404, said, "model_not_found")

    async def _adapters(self, request: Request) -> Response:
        try:
            return JSONResponse({"object": "list", "data": await run_in_threadpool(self._list_adapters)})
        except SdloraError as error:
            return self._refusal(error)

    def _list_adapters(self) -> list[dict[str, object]]:
        known = list_adapters(self._served.adapter_folders)
        names, listed = unique_names(known), []
        for adapter in known:
            try:
                described = describe(adapter.path)
            except (SdloraError, OSError):
                continue  # no whole file: naming it in a request says what is wrong with it
            if described is not None and described.family in (None, self._detection.family):
                listed.append({"name": names[adapter.path], "bytes": adapter.size_bytes})
        return listed

    def _refusal(self, error: SdloraError) -> Response:
        """The answer to what can't be done, the request's fault or that of folders that are gone."""
        if gone := [folder for folder in self._folders if not folder.is_dir()]:
            log.error("%s: no such folder; bring it back, or start the server without it", ", ".join(map(str, gone)))
            said = "a folder that the server was started with is not there now; whoever runs it must bring it back"
            return failure(503, said, "folder_gone", retry_after=_FOLDER_SECONDS)
        return failure(400, self._in_one_line(error))

    def _in_one_line(self, error: BaseException) -> str:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        lines = [" ".join(_LISTED.sub("; ", _LIST.sub(": ", problem)).split()) for problem in problems]
        return self._without_places("; ".join(lines))

    def _without_places(self, text: str) -> str:
        """A message for people elsewhere, whom this machine's folders don't concern."""
        for place in self._places:
            text = text.replace(f"{place}{os.sep}", "").replace(place, "the server's folder")
        return text

    async def _health(self, request: Request) -> Response:
        if not self._batches.is_alive:
            return failure(503, "nothing generates any more: start the server again")
        return JSONResponse({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        if self._batches.generator is None:
            return failure(503, "the model is still loading", retry_after=5)
        return JSONResponse({"status": "ready", "model": self._name})

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._figures.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Guard:
    """Passes on what no foreign web page sends and, where there are keys, what brings one of them."""

    def __init__(self, app: Starlette, knows_host: Callable[[str], bool], keys: Sequence[str]) -> None:
        self._app = app
        self._knows_host = knows_host
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        # Header names arrive in any case, their values as bytes that HTTP reads as Latin-1.
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := why_foreign(headers, self._knows_host):
            await failure(403, problem)(scope, receive, send)
        elif self._keys and scope["path"] not in _OPEN_PATHS and not self._has_key(headers):
            refusal = failure(401, _key_wanted(headers))
            refusal.headers["www-authenticate"] = "Bearer"
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _has_key(self, headers: dict[bytes, str]) -> bool:
        kind, _, key = headers.get(b"authorization", "").partition(" ")
        given = key.strip().encode("latin-1")
        # All are compared, each in a time that tells nothing: an answer that came sooner would tell of a near one.
        right = [hmac.compare_digest(given, known) for known in self._keys]
        return kind.lower() == "bearer" and any(right)


def _key_wanted(headers: Mapping[bytes, str]) -> str:
    send = "send the header Authorization: Bearer KEY"
    if b"authorization" not in headers:
        return f"this server wants an API key: {send}"
    return f"the API key that was sent is none of this server's: {send}, with one that whoever runs it gave you"


def failure(status: int, message: str, code: str | None = None, *, retry_after: int | None = None) -> JSONResponse:
    """An error as OpenAI's clients read it. retry_after: seconds after which it may be otherwise."""
    error = {
        "message": message,
        "type": _KINDS.get(status, "server_error"),
        "param": None,
        "code": code or _CODES.get(status),
    }
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return JSONResponse({"error": error}, status, headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    paths = "POST /v1/images/generations, GET /v1/models, /v1/adapters, /healthz, /readyz, /metrics"
    return failure(status, f"{request.method} {request.url.path} is nothing here; there is: {paths}")


async def _unexpected(request: Request, error: Exception) -> Response:
    return failure(500, "something went wrong in the server; its log says what")


def _object_in(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises ConfigError."""
    try:
        values = json.loads(body)
        repeated = repeated_key(body)
    except UnicodeDecodeError as error:
        raise ConfigError(SOURCE, [f"the body is no text in UTF-8 ({error.reason}); send it as plain JSON"]) from None
    except json.JSONDecodeError as error:
        raise ConfigError(SOURCE, [f"the body is no JSON: {error}"]) from None
    except ValueError:  # Python's limit to the digits of a number
        raise ConfigError(SOURCE, ["the body holds a number of thousands of digits"]) from None
    except RecursionError:
        raise ConfigError(SOURCE, ["the body is nested too deeply"]) from None
    if not isinstance(values, dict):
        raise ConfigError(SOURCE, ['the body must be a JSON object, such as {"prompt": "a fox"}'])
    if repeated is not None:
        raise ConfigError(SOURCE, [f"the body sets '{repeated}' twice; leave one of them out"])
    return values


async def _body(request: Request) -> bytes | None:
    """A request's body, None when it is too large, which is told from its first bytes beyond that."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST_BODY_BYTES:
            return None
    return content


def _file(image: GeneratedImage) -> bytes:
    """The image with the settings that other tools read, not the whole request, which names this machine's files."""
    settings = SavedSettings(to_infotext(image.config, image.facts))
    return encode_image(image.image, image.config.files.format, image.config.files.quality, settings)


async def _until_gone(request: Request) -> None:
    """Returns when whoever asked doesn't wait any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
