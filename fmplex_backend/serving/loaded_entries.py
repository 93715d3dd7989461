"""The entries by which a server has loaded its tasks, as it tells of them itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fmplex_backend.printable import printable
from fmplex_backend.repository.configs import tags_in
from fmplex_backend.serving.asked_server import AskedServer

ASK_S = 0.25  # such an answer takes a millisecond, but for what waits behind a load of another model


class LoadedEntries(AskedServer):
    """Asks the server for a model's configuration, over gRPC. Any thread.

    What stands on disk may be newer than what the server has loaded, and only the server knows which requests it sends.

    Args:
        address: of the server, HOST:PORT; "" where it is not known.
        backbone: the name of the one that asks.
    """

    def __init__(self, address: str, backbone: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(address, clock)
        self.backbone = backbone
        self._client: Any = None

    def tags(self, name: str) -> list[int] | None:
        """The tags with which requests of a loaded model come to this backbone; None where the server does not say."""
        if not self.may_be_asked:
            return None
        try:
            config = self._connected().get_model_config(printable(name), client_timeout=ASK_S).config
        except Exception as error:  # whatever grpc raises
            self.pause(f"how it has loaded {name}", str(error))
            return None
        return tags_in(config, self.backbone)

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> Any:
        if self._client is None:
            import tritonclient.grpc as grpcclient  # only where it is asked: some 20 MB

            self._client = grpcclient.InferenceServerClient(self.address)
        return self._client
