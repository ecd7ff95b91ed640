"""The dashboard: its files, and the API that it reads and changes the box by. No rule of the box lives here.

Whoever asks for the figures within a second gets the same bytes. What changes something is a POST with the admin token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from inspect import isawaitable
from typing import Any, cast
from urllib.parse import parse_qsl

from aiohttp import web

from accelerator.control.box import Box
from accelerator.control.commands import BY_NAME, check_arguments, parameters_of
from accelerator.errors import AcceleratorError, ControlError
from accelerator.web.guard import Guard
from accelerator.web.summary import language_of, page_of

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
# Everything comes from this listener; images also from the page itself (the marks of form fields).
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BODY_BYTES_MAX = 16_384
PAGE_ROWS_MAX = 200
QUERY_CHARACTERS_MAX = 16_384

# What was given, on whose behalf, what became of it: for the log. Queries in it are the log's to leave out.
Audit = Callable[[str, Mapping[str, object], str, str], None]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class File:
    body: bytes
    content_type: str
    etag: str


def load_files() -> dict[str, File]:
    """Every file of the dashboard by its path. Read once: afterwards no request leads to the disk."""
    found = {}
    for each in files("accelerator.web").joinpath("static").iterdir():
        suffix = each.name.rpartition(".")[2]
        if suffix in TYPES:
            body = each.read_bytes()
            found[f"/static/{each.name}"] = File(body, TYPES[suffix], f'"{sha256(body).hexdigest()[:32]}"')
    return found


class Dashboard:
    """Answers what is not /healthz or /metrics. `audit` hears of every change that was tried with the right token."""

    def __init__(self, box: Box, guard: Guard, audit: Audit) -> None:
        self._box = box
        self._guard = guard
        self._audit = audit
        self._files = load_files()
        self._kept: dict[str, tuple[object, bytes]] = {}
        self._readings: Mapping[str, Callable[[Arguments], Any]] = {
            "/api/status": lambda _: box.status(),
            "/api/live": lambda _: self._shared("live", box.live()),
            "/api/recent": lambda _: self._shared("recent", box.recent()),
            "/api/objects": self._objects,
            "/api/events": lambda given: box.events_after(number=_whole(given, "after", 0)),
            "/api/policy": lambda given: box.policy_text(number=_number(given, "number")),
            "/api/policy/diff": lambda given: box.policy_compare(
                number=_number(given, "number"), to=_number(given, "to")
            ),
            "/api/policy/history": lambda _: box.policy_history(),
            "/api/token": lambda _: {"reads_freely": guard.reads_freely},
        }
        self._changes: Mapping[str, Callable[[Arguments], Any]] = {
            "/api/token": lambda _: {"ok": True},
            "/api/purge": self._purge,
            "/api/policy/rollback": self._rollback,
        }

    async def answer(self, request: web.BaseRequest) -> web.Response | None:
        """None: there is no such page."""
        path, _, query = request.raw_path.partition("?")
        if path == "/" or path in self._files:
            if request.method not in ("GET", "HEAD"):
                return _not_allowed("GET, HEAD")
            return self._page(request) if path == "/" else self._file(request, self._files[path])
        if path not in self._readings and path not in self._changes:
            return None
        if not self._guard.is_same_site(request):
            return _error(403, "other-site", "a page of another site may not ask")
        if request.method == "POST" and path in self._changes:
            return await self._change(request, path)
        if request.method != "GET" or path not in self._readings:
            return _not_allowed("GET, POST" if path in self._changes and path in self._readings else
                                "POST" if path in self._changes else "GET")  # fmt: skip
        if not self._guard.reads_freely and path != "/api/token":
            refusal = self._guard.refusal(request)
            if refusal is not None:
                return _refused(*refusal)
        return await self._read(path, query)

    def _page(self, request: web.BaseRequest) -> web.Response:
        language = language_of(request.headers.get("Accept-Language", ""))
        live = self._box.live() if self._guard.reads_freely else None
        texts = json.loads(self._files[f"/static/{language}.json"].body)
        page = page_of(self._files["/static/index.html"].body.decode(), language, texts, live)
        response = web.Response(body=page.encode())
        response.headers.update({"Content-Type": TYPES["html"], "Vary": "Accept-Language"})
        return _as_page(response)

    @staticmethod
    def _file(request: web.BaseRequest, file: File) -> web.Response:
        # RFC 9110 section 13.1.2: the weak comparison, of a list.
        known = [each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")]
        response = web.Response(status=304) if file.etag in known else web.Response(body=file.body)
        # To be asked for each time: an upgrade must not leave half of a page behind.
        response.headers.update({"Content-Type": file.content_type, "ETag": file.etag, "Cache-Control": "no-cache"})
        return _as_page(response)

    async def _read(self, path: str, query: str) -> web.Response:
        try:
            result = self._readings[path](_arguments(query))
            if isawaitable(result):
                result = await result
        except AcceleratorError as error:
            return _error(_status(error), error.kind, error.message)
        return _json(200, result if isinstance(result, bytes) else _encode(result))

    def _shared(self, name: str, value: Mapping[str, object]) -> bytes:
        """Encoded once for all who ask, as long as the box gives the same object."""
        known, body = self._kept.get(name, (None, b""))
        if known is not value:
            body = _encode(value)
            self._kept[name] = (value, body)
        return body

    async def _objects(self, given: Arguments) -> Mapping[str, object]:
        wanted: Arguments = {name: given[name] for name in ("origin", "prefix", "contains", "sort") if given.get(name)}
        wanted["limit"] = min(_whole(given, "limit", 50), PAGE_ROWS_MAX)
        wanted["offset"] = _whole(given, "offset", 0)
        command = BY_NAME["cache ls"]
        result = self._box.cache_list(**cast(Any, parameters_of(command, check_arguments(command, wanted))))
        return await result if isawaitable(result) else result

    # -- changes -------------------------------------------------------------------------------------------------------

    async def _change(self, request: web.BaseRequest, path: str) -> web.Response:
        refusal = self._guard.refusal(request)
        if refusal is not None:
            return _refused(*refusal)
        # A form of another site could send only other types without asking first (Fetch, CORS-safelisted).
        if request.content_type != "application/json":
            return _error(415, "content-type", "application/json is expected")
        try:
            given = json.loads(await _body(request) or b"{}")
            if not isinstance(given, dict):
                raise ControlError("arguments", "a JSON object is expected")
        except (ValueError, RecursionError):
            return _error(400, "arguments", "no JSON document")
        except ControlError as error:
            return _error(_status(error), error.kind, error.message)
        outcome, detail = "done", ""
        try:
            result = self._changes[path](given)
            if isawaitable(result):
                result = await result
            self._guard.counts["changes"] += path != "/api/token"
            if "purged" in result:
                detail = f"{result['purged']} objects"
            return _json(200, _encode(result))
        except AcceleratorError as error:
            outcome, detail = "refused", error.message
            return _error(_status(error), error.kind, error.message)
        except Exception as fault:
            outcome, detail = "failed", type(fault).__name__
            raise
        finally:
            if path != "/api/token":
                self._audit(path.removeprefix("/api/").replace("/", " "), given, outcome, detail)

    def _purge(self, given: Arguments) -> Any:
        if isinstance(given.get("id"), str) and len(given) == 1:
            return self._box.object_purge(name=given["id"])
        checked = check_arguments(BY_NAME["cache purge"], given)
        return self._box.cache_purge(**cast(Any, checked))

    def _rollback(self, given: Arguments) -> Any:
        checked = check_arguments(BY_NAME["policy rollback"], given)
        return self._box.policy_rollback(**cast(Any, checked))


def _arguments(query: str) -> Arguments:
    """Raises ControlError."""
    if len(query) > QUERY_CHARACTERS_MAX:
        raise ControlError("arguments", "the query is too long")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=20)
    except ValueError:
        raise ControlError("arguments", "no query that could be read") from None
    return dict(pairs)


def _whole(given: Arguments, name: str, default: int) -> int:
    number = _number(given, name)
    return default if number is None else number


def _number(given: Arguments, name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise ControlError("arguments", f"{name} must be a whole number")
    return int(text)


async def _body(request: web.BaseRequest) -> bytes:
    """Raises ControlError("too-large")."""
    pieces = bytearray()
    async for piece in request.content.iter_any():
        pieces += piece
        if len(pieces) > BODY_BYTES_MAX:
            raise ControlError("too-large", f"at most {BODY_BYTES_MAX} bytes")
    return bytes(pieces)


def _status(error: AcceleratorError) -> int:
    by_kind = {"arguments": 400, "bad-url": 400, "too-large": 413, "starting": 503, "busy": 503}
    if error.kind in ("unknown-origin", "no-origin", "unknown-object", "no-such-entry", "no-older-policy"):
        return 404
    return by_kind.get(error.kind, 409)


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()


def _json(status: int, body: bytes) -> web.Response:
    response = web.Response(status=status, body=body)
    response.headers["Content-Type"] = TYPES["json"]
    return response


def _error(status: int, kind: str, message: str) -> web.Response:
    return _json(status, _encode({"error": {"kind": kind, "message": message}}))


def _refused(status: int, kind: str) -> web.Response:
    messages = {
        "no-token": "this box has no admin token that can be used: its log says why",
        "token-missing": "the admin token is needed: accelctl admin token",
        "token-wrong": "this is not the admin token",
        "token-waits": "too many wrong tokens: wait a minute",
    }
    response = _error(status, kind, messages[kind])
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="accelerator"'
    if status == 429:
        response.headers["Retry-After"] = "60"
    return response


def _not_allowed(methods: str) -> web.Response:
    response = _error(405, "method", f"only {methods}")
    response.headers["Allow"] = methods
    return response


def _as_page(response: web.Response) -> web.Response:
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response
