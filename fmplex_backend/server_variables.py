"""Environment variables by which whoever starts a server tells its backbones about it."""

from __future__ import annotations

ALLOW_LINKS = "FMPLEX_ALLOW_LINKS"  # directories that links of a version may lead into, with os.pathsep between them
PROFILES = "FMPLEX_PROFILES"  # the folder of measured profiles
MODEL_CONTROL = "FMPLEX_MODEL_CONTROL"  # the server's model control mode: explicit or poll
GRPC_ADDRESS = "FMPLEX_GRPC_ADDRESS"  # HOST:PORT, where its backbones reach the server itself; unset: not known
HTTP_ADDRESS = "FMPLEX_HTTP_ADDRESS"  # likewise over HTTP
METRICS_S = "FMPLEX_METRICS_S"  # seconds from one time that a backbone publishes its metrics to the next; unset: 1
