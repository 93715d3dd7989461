"""Names of models in HTTP paths, as Triton reads them.

tritonclient escapes a name as URLs are escaped, `t%C3%A2che`. Triton takes the bytes of a path as they are, unescapes
nothing, and would know no such model: the connections of tritonclient's clients are wrapped here.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from yarl import URL

# These would end the path, or the request's line: a name with one of them cannot be asked over HTTP.
_SPECIAL = re.compile(r"[\x00-\x20\x7f?#%]")


def unescaped(url: str) -> str:
    """The path, or URL, with the characters that were escaped."""
    plain = unquote(url)
    return url if _SPECIAL.search(plain) else plain


class BlockingConnections:
    """geventhttpclient's pool, as tritonclient.http uses it."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def get(self, request_uri: str, **options: Any) -> Any:
        return self._pool.get(unescaped(request_uri), **options)

    def post(self, request_uri: str, **options: Any) -> Any:
        return self._pool.post(unescaped(request_uri), **options)

    def close(self) -> None:
        self._pool.close()


class AsyncioConnections:
    """aiohttp's session, as tritonclient.http.aio uses it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def get(self, url: str, **options: Any) -> Any:
        return self._session.get(URL(unescaped(url), encoded=True), **options)

    def post(self, url: str, **options: Any) -> Any:
        return self._session.post(URL(unescaped(url), encoded=True), **options)

    async def close(self) -> None:
        await self._session.close()
