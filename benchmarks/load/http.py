"""Requests over HTTP/1.1 as bytes that were made beforehand, on connections that stay open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import numpy as np
import tritonclient.http as httpclient

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(Exception):
    """An answer with another status than 200."""


def message(host: str, task: str, text: str, outputs: Sequence[str], slo_ms: float = 0.0) -> bytes:
    """A whole POST of one text, with Triton's extension for binary tensors."""
    tensor = httpclient.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    body, head = httpclient.InferenceServerClient.generate_request_body(
        [tensor],
        outputs=[httpclient.InferRequestedOutput(name, binary_data=True) for name in outputs],
        parameters={"slo_ms": f"{slo_ms:g}"} if slo_ms else None,
    )
    lines = [
        f"POST /v2/models/{task}/infer HTTP/1.1",
        f"Host: {host}",
        f"Content-Length: {len(body)}",
        f"Inference-Header-Content-Length: {head}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + bytes(body)


def embeddings_body(model: str, text: str) -> bytes:
    """What OpenAI's embeddings API is asked for one text; base64 is what its own clients ask for, and the shortest."""
    return json.dumps({"model": model, "input": [text], "encoding_format": "base64"}).encode()


def embeddings(host: str, model: str, text: str) -> bytes:
    """A whole POST of one text to that API."""
    body = embeddings_body(model, text)
    lines = [
        "POST /v1/embeddings HTTP/1.1",
        f"Host: {host}",
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpCalls:
    """Sends requests, each on a connection of its own, of which there come to be as many as requests at a time."""

    def __init__(self, host: str) -> None:
        self._address, _, self._port = host.rpartition(":")
        self._idle: list[Connection] = []

    async def __call__(self, data: bytes) -> bytes:
        """The body of the answer; raises HttpError."""
        connection = self._idle.pop() if self._idle else await asyncio.open_connection(self._address, self._port)
        reader, writer = connection
        writer.write(data)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in lines if line)
        body = await reader.readexactly(int(fields[b"content-length"]))
        self._idle.append(connection)
        if b" 200 " not in status:
            raise HttpError(body.decode(errors="replace"))
        return body

    async def aclose(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
