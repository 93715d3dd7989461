"""A short digest that tells a model's weights from others, without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fmplex_backend.safetensors_header import parse_header

MAX_HEADER = 100 << 20  # bytes; the format's own bound
SAMPLE_BYTES = 256  # of the front of each tensor: enough to tell two trainings of one shape apart


def fingerprint(directory: Path) -> str | None:
    """`sha256:...` over names, shapes and the first bytes of all tensors; None where there is no safetensors.

    The order of tensors in the file and the split into shards do not matter; the dtype on disk does.
    """
    tensors: dict[str, bytes] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:  # the operator's: no task names it
            length, header = parse_header(stream, MAX_HEADER)
            for name, tensor in header.items():
                stream.seek(length + tensor.start)
                front = stream.read(min(SAMPLE_BYTES, tensor.end - tensor.start))
                tensors[name] = f"{tensor.dtype}{list(tensor.shape)}".encode() + front
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name] + b"\0")
    return f"sha256:{digest.hexdigest()[:32]}"
