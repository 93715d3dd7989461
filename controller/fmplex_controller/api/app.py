"""The HTTP API: what is asked, who may ask it, and what is answered. The calls themselves are a `Source`'s."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fmplex_backend.errors import SetupProblem
from fmplex_controller.api.options import ApiOptions
from fmplex_controller.records.events import Event
from fmplex_controller.records.since import time_of
from fmplex_controller.records.usage import Usage, as_csv
from fmplex_controller.server.addresses import LOCAL_HOSTS
from fmplex_controller.sidecar.board import Overview

Since = Annotated[str, Query(description="so long ago (30s, 15m, 1h, 7d, 2w), or a date (2026-01-31T08:00)")]
PAGE = Path(__file__).with_name("page.html")
MOST_EVENTS = 1000
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Accepted(BaseModel):
    """A change that the controller carries out within two seconds; the events say what came of it."""

    task: str
    loaded: bool  # what it is going to be


class Source(Protocol):
    """What the API tells and does. Any thread."""

    def overview(self) -> Overview:
        """The server as it is."""

    def events(self, since: datetime | None, model: str, most: int) -> Sequence[Event]:
        """The latest events."""

    def usage(self, since: datetime | None) -> Usage:
        """What tasks were charged; raises SetupProblem where nothing is recorded."""

    def metrics(self) -> bytes:
        """For Prometheus."""

    def is_task(self, name: str) -> bool:
        """Whether the repository has this task."""

    def set_loaded(self, name: str, loaded: bool) -> None:
        """Keep a task unloaded, or not any more; raises OSError."""

    @property
    def control_key(self) -> str:
        """That of the server, "" where it wants none."""


def make_app(source: Source, options: ApiOptions) -> FastAPI:
    """The application; `/openapi.json` describes it."""
    # No /docs: FastAPI's page for it loads its scripts from elsewhere. Its /openapi.json would be open to everyone.
    app = FastAPI(title="FMplex controller", version=metadata.version("fmplex"), openapi_url=None)
    if options.is_local:  # else a page elsewhere could have a browser of this host ask, by a name that leads here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)
    doors = _Doors(source, options)
    app.include_router(_reading(source), dependencies=[Depends(doors.may_read)])
    app.include_router(_control(source), dependencies=[Depends(doors.may_control)])

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(doors.may_read)])
    def describe() -> dict[str, Any]:
        return app.openapi()

    page = PAGE.read_text(encoding="utf-8")
    headers = _headers(page)

    @app.get("/", include_in_schema=False)
    def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return app


def _reading(source: Source) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/status")
    def status() -> Overview:
        """Backbones and tasks as they are; rates and shares are those of the last ten seconds."""
        return source.overview()

    @router.get("/v1/events")
    def events(
        since: Since = "", model: str = "", limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100
    ) -> Sequence[Event]:
        """The latest events, oldest first."""
        return source.events(_time(since), model, limit)

    @router.get("/v1/usage", response_model=Usage)
    def usage(since: Since = "", format: Literal["json", "csv"] = "json") -> Any:
        """Seconds of its backbone that each task was charged."""
        try:
            found = source.usage(_time(since))
        except SetupProblem as problem:
            raise HTTPException(404, str(problem)) from None
        return PlainTextResponse(as_csv(found), media_type="text/csv") if format == "csv" else found

    @router.get("/metrics")
    def metrics() -> PlainTextResponse:
        """The controller's own metrics, for Prometheus."""
        return PlainTextResponse(source.metrics(), media_type="text/plain; version=0.0.4")

    return router


def _control(source: Source) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/tasks/{task}/unload", status_code=202)
    def unload(task: str) -> Accepted:
        """Unload a task and keep it so: the file UNLOADED is put into its directory."""
        return _set_loaded(source, task, False)

    @router.post("/v1/tasks/{task}/load", status_code=202)
    def load(task: str) -> Accepted:
        """Load a task that was kept unloaded: the file UNLOADED is removed."""
        return _set_loaded(source, task, True)

    return router


class _Doors:
    """Who may do what."""

    def __init__(self, source: Source, options: ApiOptions) -> None:
        self._source, self._options = source, options

    def may_read(self, request: Request) -> None:
        """Everyone of this host, or who has the token, or the control key."""
        token = self._options.token
        if token and not _has(request, token) and not _has(request, self._source.control_key):
            raise _unauthorized("the controller's API token")

    def may_control(self, request: Request) -> None:
        """Who may control the server."""
        host = request.headers.get("host", "")
        if urlsplit(request.headers.get("origin") or f"//{host}").netloc != host:
            raise HTTPException(403, "the page of another site asks for this")
        key = self._source.control_key
        if not key:
            self.may_read(request)
        elif not _has(request, key):
            raise _unauthorized("the server's control key, which `fmplex control-key` prints on its host")


def _has(request: Request, secret: str) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    is_same = hmac.compare_digest(given.strip().encode(), secret.encode())
    return bool(secret) and kind.lower() == "bearer" and is_same


def _unauthorized(what: str) -> HTTPException:
    problem = f"this wants {what}. Send it as `Authorization: Bearer ...`"
    return HTTPException(401, problem, {"WWW-Authenticate": "Bearer"})


def _set_loaded(source: Source, task: str, loaded: bool) -> Accepted:
    if not source.is_task(task):
        raise HTTPException(404, f"there is no task {task!r} in the repository. /v1/status lists those there are")
    try:
        source.set_loaded(task, loaded)
    except OSError as error:
        raise HTTPException(
            409, f"its directory cannot be written to: {error}. Let the controller write there"
        ) from None
    return Accepted(task=task, loaded=loaded)


def _time(text: str) -> datetime | None:
    try:
        return time_of(text)
    except ValueError as error:
        raise HTTPException(422, f"since: {error}") from None


def _headers(page: str) -> dict[str, str]:
    """What the page may do: run its own script, ask this API, and nothing else.

    Names come from files that anybody may have put into the repository. Should one ever get past the escaping, it
    runs nothing and loads nothing.
    """
    inline = {kind: b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in _INLINE.findall(page)}
    policy = [
        "default-src 'none'",
        f"script-src 'sha256-{inline['script']}'",
        f"style-src 'sha256-{inline['style']}'",
        "connect-src 'self'",
        *(f"{name} 'none'" for name in ("base-uri", "form-action", "frame-ancestors")),
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
