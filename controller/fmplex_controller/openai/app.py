"""The doors: who may come in, what is behind each, and how errors are told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fmplex_backend.errors import FmplexError
from fmplex_controller.openai.chat import chat
from fmplex_controller.openai.completions import completion
from fmplex_controller.openai.embeddings import embeddings
from fmplex_controller.openai.keys import ApiKeys
from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.openai.problems import SERVER, ApiProblem, of_problem
from fmplex_controller.openai.tasks import Tasks
from fmplex_controller.openai.wire import ClientGone, read_body
from fmplex_controller.server.addresses import LOCAL_HOSTS

OpenTasks = Callable[[], AbstractAsyncContextManager[Tasks]]
CLIENT_CLOSED = 499


def make_app(open_tasks: OpenTasks, options: OpenAiOptions) -> FastAPI:
    """The application.

    Args:
        open_tasks: makes the way to the server, inside the event loop.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_tasks() as tasks:
            app.state.tasks = tasks
            yield

    # No /docs: FastAPI's page for it loads its scripts from elsewhere.
    version = metadata.version("fmplex")
    app = FastAPI(title="FMplex", version=version, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    if options.is_local and options.keys is None:  # else a page elsewhere could have a browser of this host ask
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)
    door = _Door(ApiKeys(options.keys), int(options.body_mib * (1 << 20)))
    _add_doors(app, door)
    _add_errors(app)
    return app


class _Door:
    """Who may come in, with how much."""

    def __init__(self, keys: ApiKeys, most: int) -> None:
        self._keys, self._most = keys, most

    def check(self, request: Request) -> None:
        """Raise ApiProblem without a valid API key, where one is wanted."""
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if not self._keys.allow(key.strip() if kind.lower() == "bearer" else ""):
            problem = "Incorrect API key provided" if key else "You didn't provide an API key"
            remedy = "Send one that the server knows, as `Authorization: Bearer ...`"
            raise ApiProblem(401, f"{problem}. {remedy}", code="invalid_api_key")

    async def body(self, request: Request) -> bytes:
        """Of whoever may come in; raises ApiProblem."""
        self.check(request)
        return await read_body(request, self._most)


def _add_doors(app: FastAPI, door: _Door) -> None:
    started = int(time.time())
    allowed = [Depends(door.check)]

    @app.post("/v1/chat/completions")
    async def answer_chat(request: Request) -> Response:
        answering = chat(await door.body(request))
        request.state.model, request.state.sent_as = answering.asked.model, answering.asked.sent_as
        return await answering.respond(request, _tasks(request))

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        answering = completion(await door.body(request))
        request.state.model = answering.asked.model
        return await answering.respond(request, _tasks(request))

    @app.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        return await embeddings(request, await door.body(request), _tasks(request))

    def as_model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "fmplex"}

    @app.get("/v1/models", dependencies=allowed)
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [as_model(name) for name in await _tasks(request).listed()]}

    @app.get("/v1/models/{model:path}", dependencies=allowed)
    async def model_(request: Request, model: str) -> dict[str, Any]:
        request.state.model = model
        if not await _tasks(request).kind(model):
            problem = f"The task `{model}` neither generates text nor embeds texts"
            raise ApiProblem(404, problem, param="model", code="model_not_found")
        return as_model(model)

    @app.get("/health")
    async def health(request: Request) -> Response:
        return Response(status_code=200 if await _tasks(request).ready() else 503)


def _tasks(request: Request) -> Tasks:
    tasks: Tasks = request.app.state.tasks
    return tasks


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiProblem)
    async def told(request: Request, problem: ApiProblem) -> Response:
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(FmplexError)
    async def failed(request: Request, error: FmplexError) -> Response:
        state = request.state
        return await told(request, of_problem(error, getattr(state, "model", ""), getattr(state, "sent_as", None)))

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        message = f"Unknown request URL: {request.method} {request.url.path}. See /v1/models, /v1/chat/completions, "
        message += "/v1/completions and /v1/embeddings"
        known = error.status_code in (404, 405)
        problem = ApiProblem(error.status_code, message if known else error.detail, code="unknown_url")
        return await told(request, problem)

    @app.exception_handler(Exception)
    async def crashed(request: Request, error: Exception) -> Response:
        return await told(request, ApiProblem(500, "The server had an error; its log says which", kind=SERVER))
