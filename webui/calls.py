"""Calls of the API over plain HTTP (`POST /gradio_api/call/NAME`, `call/v2/NAME`), before Gradio counts arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BY_NAME, _IN_ORDER = "/gradio_api/call/v2/", "/gradio_api/call/"
_LARGEST_BYTES = 2**24


class ArgumentCount:
    """An application in front of the page: refuses calls of what there isn't, or with too few or too many arguments.

    Gradio answers these with an error without words and a traceback in its log, and drops what is too much. Defaults
    are filled in.
    """

    def __init__(self, application: ASGIApp, signatures: Mapping[str, inspect.Signature]) -> None:
        """signatures: the API's functions by their name; the mapping may be filled later."""
        self._application = application
        self._signatures = signatures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or not path.startswith(_IN_ORDER):
            await self._application(scope, receive, send)
            return
        is_by_name = path.startswith(_BY_NAME)
        name = path.removeprefix(_BY_NAME if is_by_name else _IN_ORDER).removesuffix("/")
        signature = self._signatures.get(name)
        if signature is None:
            told = f"there is no /{name[:60]}; there is: {', '.join(f'/{each}' for each in self._signatures)}"
            await JSONResponse({"error": told}, 404)(scope, receive, send)
            return
        body, is_all = b"", False
        while not is_all and len(body) <= _LARGEST_BYTES:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            is_all = not message.get("more_body", False)
        if not is_all:
            await JSONResponse({"error": f"the call of /{name} is larger than 16 MiB"}, 413)(scope, receive, send)
            return
        given, problem = (_named if is_by_name else _arguments)(body, name, signature)
        if problem:
            await JSONResponse({"error": problem}, 422)(scope, receive, send)
            return
        whole = json.dumps(given).encode()
        headers = [(key, value) for key, value in Headers(scope=scope).raw if key != b"content-length"]
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": whole, "more_body": False}

        scope = {**scope, "headers": [*headers, (b"content-length", str(len(whole)).encode())]}
        await self._application(scope, again, send)


def _arguments(body: bytes, name: str, signature: inspect.Signature) -> tuple[dict[str, Any], str]:
    """The call's body with every argument, or what is wrong with it."""
    parameters = list(signature.parameters.values())
    shape = f'{{"data": [{", ".join(each.name for each in parameters)}]}}'
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return {}, f"the call of /{name} is no JSON: send {shape}"
    data = given.get("data") if isinstance(given, dict) else None
    if not isinstance(data, list):
        return {}, f"the call of /{name} has no list of arguments: send {shape}"
    missing = [each.name for each in parameters[len(data) :] if each.default is inspect.Parameter.empty]
    if missing:
        return {}, f"the call of /{name} lacks {', '.join(missing)}: send {shape}"
    if len(data) > len(parameters):
        return {}, f"the call of /{name} has {len(data)} arguments, of which it takes {len(parameters)}: send {shape}"
    return {**given, "data": [*data, *(each.default for each in parameters[len(data) :])]}, ""


def _named(body: bytes, name: str, signature: inspect.Signature) -> tuple[dict[str, Any], str]:
    """The body of a call that names its arguments, with every one of them, or what is wrong with it."""
    shape = "{" + ", ".join(f'"{each}": ...' for each in signature.parameters) + "}"
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return {}, f"the call of /{name} is no JSON: send {shape}"
    if not isinstance(given, dict):
        return {}, f"the call of /{name} names no arguments: send {shape}"
    needed = [each.name for each in signature.parameters.values() if each.default is inspect.Parameter.empty]
    if missing := [each for each in needed if each not in given]:
        return {}, f"the call of /{name} lacks {', '.join(missing)}: send {shape}"
    if unknown := [each[:60] for each in given if each not in signature.parameters]:
        return {}, f"the call of /{name} has no {', '.join(unknown)}: send {shape}"
    return {each.name: given.get(each.name, each.default) for each in signature.parameters.values()}, ""
