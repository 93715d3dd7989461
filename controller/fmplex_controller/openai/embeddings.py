"""/v1/embeddings."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from fmplex_controller.openai.problems import ApiProblem, of_field
from fmplex_controller.openai.requests import Texts, parsed, refuse_others
from fmplex_controller.openai.tasks import Tasks
from fmplex_controller.openai.wire import unless_gone

MAX_TEXTS = 2048  # OpenAI's


class EmbeddingRequest(BaseModel):
    """The body."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=255)]
    input: Annotated[Texts, Field(max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


async def embeddings(request: Request, body: bytes, tasks: Tasks) -> JSONResponse:
    """Raises ApiProblem, FmplexErrors and ClientGone."""
    asked = parsed(EmbeddingRequest, body)
    request.state.model = asked.model
    refuse_others(asked.model_extra or {}, set())
    if await tasks.kind(asked.model) != "vectors":
        problem = f"{asked.model} does not embed texts. GET /v1/models lists the tasks that do, or generate text"
        raise ApiProblem(400, problem, param="model")
    vectors, tokens = await unless_gone(request, tasks.embed(asked.model, asked.input))
    width = len(vectors[0])
    if asked.dimensions not in (None, width):
        raise of_field("dimensions", f"the task's vectors have {width}, and are not shortened: leave it out")
    written = _base64 if asked.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": place, "embedding": written(each)} for place, each in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _base64(vector: Sequence[float]) -> str:
    """Its numbers as float32 in little-endian order."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
