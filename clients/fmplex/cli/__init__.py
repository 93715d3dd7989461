"""The command line: `fmplex`."""

import os

# gRPC reads it when it is imported; its own lines about a connection would go before our message.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
